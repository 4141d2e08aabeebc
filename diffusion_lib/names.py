"""The samplers and the evaluation sets, by the names of result.json and of all tables."""

# By name, the descents at each level, inner_steps, under the rules of a task.
SAMPLERS = {"plain": lambda _rules: 0, "innerloop": lambda rules: rules.inner_steps}
DIFFICULTIES = ("val", "ood")  # the sets of usual and of harder examples


def column(difficulty: str, metric: str) -> str:
    """Return what result.json and the tables call a metric: `val_mse`, `ood_mse`, …

    `recon_error` is older than the other tasks, and keeps its name.
    """
    return metric if (difficulty, metric) == ("val", "recon_error") else f"{difficulty}_{metric}"
