"""One run: one strategy, one seed, trained, evaluated and diagnosed in its own folder."""

import math
from pathlib import Path

from diffusion_lib.build import build_diffusion, describe_data, evaluation_tasks, set_step, training_task
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.evaluation import EvaluationSet, energy_auc, samplers_of
from diffusion_lib.flops import train_flops
from diffusion_lib.names import SAMPLERS
from diffusion_lib.precision import choose_products, denormals_flushed, float32_products
from diffusion_lib.run_folder import (
    REMEDY,
    ended_result,
    prepare_folder,
    require_of_study,
    require_same,
    study_of,
    write_result,
)
from diffusion_lib.system.device import chosen_device
from diffusion_lib.system.errors import NonFiniteLossError, one_line_for_full_memory, say
from diffusion_lib.system.files import read_json, write_json
from diffusion_lib.system.lock import RunLock
from diffusion_lib.system.memory import peak_memory_bytes, reset_peak_memory
from experiments.study.landscape import MINED, diagnose, first_rows, metrics_of_both

CURVE_SIZE = 1024  # examples behind a point of the learning curve, and at most a quarter of the evaluation set
CURVE_DESCENTS = 5 * CURVE_SIZE  # at most, at each level, behind a point of the inner loop: some energies take many
AUC_SIZE = 4096  # examples behind energy_auc, at every level
DIAGNOSED = 512  # problems of each difficulty behind the diagnosis, and at most a sixteenth of the evaluation set
LONG_DESCENTS = (20, 40)  # inner_steps of samplers that only the diagnosis affords


def build_trainer(config, diffusion, seed, folder, device=None, **options) -> Trainer1D:
    """Make the trainer of a run, its step set up as configured. Raises ConfigError."""
    set_step(config, diffusion, chosen_device(device))
    task = training_task(config)
    val, ood = evaluation_tasks(config, task)
    size = min(CURVE_SIZE, config.evaluation_size // 4 + 1)
    descending = {name: SAMPLERS[name](diffusion.rules) for name in samplers_of(diffusion) if name != "plain"}
    return Trainer1D(
        diffusion,
        task,
        **config.trainer_options(),
        validation_batch_size=2048,
        save_and_sample_every=max(1, min(1000, config.train_steps // 10)),
        results_folder=folder,
        validation_dataset=val,
        extra_validation_datasets={"ood": ood},
        extra_validation_every_mul=1,
        evaluation_size=size,
        curve_samplers={name: min(size, max(1, CURVE_DESCENTS // steps)) for name, steps in descending.items()},
        seed=seed,
        device=device,
        keep_milestones=False,
        **options,
    )


def run_experiment(
    strategy: str,
    seed: int,
    config: ExperimentConfig,
    folder: Path | str,
    device: str | None = None,
    use_lock: bool = True,
    at_once: int = 1,
    **options,
) -> dict:
    """Train, evaluate and diagnose one run in `folder`, continuing what an earlier call left there.

    Returns the content of result.json, but for its digest: `status` 'finished' with `samplers` (metrics by sampler)
    and costs, or 'failed' with `reason` where the loss, the samples or a metric are not finite; a run that finished
    leaves diagnostics.json too.

    strategy: the run's label.
    config: the run's own, its mining included.
    use_lock: see RunLock.
    at_once: runs that the command trains at the same time, to be recorded.
    options: keywords for Trainer1D.

    Raises RunHeld where another process has the run, ConfigError, CheckpointError, OSError, and Interrupted after a
    signal.
    """
    folder = Path(folder)
    place = chosen_device(device)
    choose_products(config.precision, place)  # first, for config.json to record them
    recorded = {**config.to_dict(), "strategy": strategy, "seed": seed}
    done = ended_result(folder)
    if done:
        require_same(folder, recorded, REMEDY)
        return done
    with one_line_for_full_memory(), RunLock(folder, use_lock) as lock:
        require_of_study(folder, recorded)  # another command's --fresh may have put another study there
        prepare_folder(folder, recorded, place, at_once=at_once, data=describe_data(config))
        done = ended_result(folder)  # another process may have ended the run before we held the lock
        if done:
            return done
        trainer = build_trainer(
            config,
            build_diffusion(config, seed),
            seed,
            folder,
            device=device,
            on_log=lock.note,
            before_save=lock.check,
            label=f"{strategy} seed {seed}",
            tracked_as="/".join((study.name if (study := study_of(folder)) else folder.name, strategy, f"seed-{seed}")),
            **options,
        )
        try:
            result = {"strategy": strategy, "seed": seed, **train_and_evaluate(trainer, config)}
        finally:
            lock.reached(trainer.step)
        lock.check()
        write_result(folder, result)
    return result


@denormals_flushed()
def train_and_evaluate(trainer: Trainer1D, config: ExperimentConfig) -> dict:
    """Train from where the folder's checkpoint stands; `status`, and `reason` or the costs and metrics."""
    reset_peak_memory(trainer.device)
    if trainer.checkpoint_path("last").exists():
        trainer.load("last")
    result = {"parameters": sum(p.numel() for p in trainer.diffusion.parameters())}
    try:
        trainer.train()
    except NonFiniteLossError as error:
        return result | {"status": "failed", "reason": str(error)}
    diffusion = trainer.ema.ema_model
    say(f"{trainer.label}: trained; its metrics on {config.evaluation_size} problems of each difficulty")
    with float32_products(diffusion):
        samplers = evaluate_run(diffusion, config)
    reason = not_finite(samplers)
    if reason:  # the weights are finite, but not what is sampled with them
        return result | {"status": "failed", "reason": reason}
    result |= {
        "status": "finished",
        "train_seconds": trainer.train_seconds,
        "train_flops": train_flops(config),
        "steps_per_second": config.train_steps / trainer.train_seconds,
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
        "clipped": clipped_share(trainer.history),
    }
    return result | {"samplers": samplers | long_descents(diagnosis(diffusion, config, trainer))}


def not_finite(samplers: dict[str, dict]) -> str:
    """Return what is not finite among the metrics, or "". Where all samples' are nan, only the energy's are here."""
    for sampler, metrics in samplers.items():
        for name, value in metrics.items():
            if math.isinf(value):
                return f"{name} of the {sampler} sampler is {value}"
        if all(name.startswith("energy_auc") for name in metrics):
            return f"the samples of the {sampler} sampler are not finite"
    return ""


def clipped_share(history: list[dict]) -> float:
    """Return the share of all steps whose gradient was clipped, from the rows of metrics.csv."""
    clipped = before = 0
    for row in history:
        clipped += row["clipped"] * (row["step"] - before)
        before = row["step"]
    return clipped / before


def diagnosis(diffusion, config: ExperimentConfig, trainer: Trainer1D) -> dict:
    """Make diagnostics.json anew, and return it: one that is there may be damaged, or of other weights."""
    path, size = trainer.results_folder / "diagnostics.json", diagnosed_size(config)
    say(f"{trainer.label}: what its energy looks like, on {size} problems of each difficulty")
    if trainer.before_save:
        trainer.before_save()
    with float32_products(diffusion):
        write_json(path, diagnose(diffusion, *evaluation_sets(config, size, trainer.device)))
    return read_json(path)


def diagnosed_size(config: ExperimentConfig) -> int:
    return min(DIAGNOSED, config.evaluation_size // 16 + 1)


def long_descents(diagnosed: dict) -> dict[str, dict]:
    """Return the metrics of the samplers with LONG_DESCENTS, by name, and the `evaluation_size` behind them."""
    rows = {row["inner_steps"]: row for row in diagnosed["inner_steps"]}
    return {
        f"innerloop{steps}": {key: value for key, value in rows[steps].items() if key != "inner_steps"}
        for steps in LONG_DESCENTS
        if steps in rows  # without an energy there are no descents
    }


def evaluation_sets(config: ExperimentConfig, size: int, device) -> tuple[EvaluationSet, EvaluationSet]:
    """Return the first `size` of the fixed problems of both difficulties."""
    val, ood = evaluation_tasks(config, training_task(config))
    return EvaluationSet(val, size, device), EvaluationSet(ood, size, device)


def evaluate_run(diffusion, config: ExperimentConfig) -> dict[str, dict]:
    """Return the metrics that result.json holds, by sampler, on the fixed sets."""
    val, ood = evaluation_sets(config, config.evaluation_size, diffusion.betas.device)
    ranked = energy_auc(diffusion, first_rows(val, AUC_SIZE), MINED)
    auc = {f"energy_auc_{mode}": share for mode, share in ranked.items()}
    return {name: metrics_of_both(diffusion, val, ood, name, execute=True) | auc for name in samplers_of(diffusion)}
