"""Check that a device computes what the CPU does, and a captured step what an eager one does."""

import tempfile
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only

from diffusion_lib.build import build_diffusion, require_fitting_shapes
from diffusion_lib.compiling import compiles_bf16, set_compiled
from diffusion_lib.config import ExperimentConfig, configure
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D, require_possible
from diffusion_lib.energies import MODELS
from diffusion_lib.negatives import MODES
from diffusion_lib.precision import choose_products, has_tf32, set_precision
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS, Task
from diffusion_lib.tasks.base import SPLITS
from diffusion_lib.training.batches import Batch, stream_of
from diffusion_lib.training.step import EAGER_STEPS

# Largest relative errors against float64 on the CPU that a working device has, by the precision of its products.
ALLOWED = {"float32": 1e-4, "tf32": 1e-1, "bf16": 2e-1, "compiled": 2e-1}
ALLOWED_BY_A_GRAPH = 1e-5  # of a loss, against the same steps without one
STEPS = EAGER_STEPS + 5
SAMPLED_LEVELS = (9, 5, 0)
BATCH = {"cpu": 4, "cuda": 32}  # examples a step; a CPU only tries the check
POOL = 64  # what a task draws from that has no endless supply


def small_task(name: str, rank: int = 2, split: str = "train") -> Task:
    """Make a task of that rank, kept between the task's least and its default one."""
    kind = TASKS[name]
    task = kind(split, max(kind.least_rank, min(rank, kind.default_rank)))
    if hasattr(task, "pool_size"):
        task.pool_size = dict.fromkeys(SPLITS, POOL)
    return task


@cache
def dataset_of(model: str) -> str:
    """Return the name of a task that the model fits: IRED's own for it first, then the smallest. Raises ConfigError."""
    for name in sorted(TASKS, key=lambda name: (TASKS[name].model != model, TASKS[name].least_rank)):
        task = small_task(name)
        try:
            with torch.device("meta"):
                ebm = MODELS[model](task.inp_dim, task.out_dim)
            require_fitting_shapes(ExperimentConfig(dataset=name, model=model), ebm, task)
        except ConfigError:
            continue
        return name
    raise ConfigError(f"no task has the shapes of the model {model}")


def task_of(model: str, rank: int = 2) -> Task:
    """Make a task that the model fits, as `small_task` does."""
    return small_task(dataset_of(model), rank)


def modes_of(model: str) -> list[str]:
    """Return the modes that the model can be trained with on its task.

    Without an energy there are no negatives, and some modes need something of the task's own.
    """
    found, rules = [], task_of(model).rules
    for mode in MODES:
        with suppress(ConfigError):
            require_possible(MODELS[model], rules, mode)
            found.append(mode)
    return found


def precisions(device: torch.device, model: str = "mlp") -> list[str]:
    """Return the precisions that differ on the device, of those that the model has; `compiled` is bf16's."""
    names = ["float32", *(["tf32"] if has_tf32(device) else [])]
    names += ["bf16"] if hasattr(MODELS[model], "product") else []
    return names + (["compiled"] if hasattr(MODELS[model], "evaluation") and compiles_bf16(device) else [])


def check_everything(device: torch.device, models, rank: int, examples: int) -> list[dict]:
    """Check the models in their modes and precisions; return rows with `check`, `found`, `allowed` and `ok`."""
    rows = []
    for model in models:
        for mode in modes_of(model):
            for precision in precisions(device, model):
                errors = differences(model, mode, precision, device, rank, examples)
                # an untrained model's sampler magnifies rounding: the less accurate products' error is only stated
                worst = max(e for name, e in errors.items() if name != "samples" or precision == "float32")
                shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
                rows.append(row(f"{model}, {mode}, {precision} against float64", shown, worst, ALLOWED[precision]))
            choose_products("float32", device)
            rows += [check_graph(model, mode, device, rank), check_resume(model, mode, device, rank)]
        if "compiled" in precisions(device, model):
            rows.append(check_graph(model, "adversarial", device, rank, "compiled"))
    return [*rows, check_fallback(device, rank)]


def row(check: str, found: str, error: float, allowed: float) -> dict:
    return {"check": check, "found": found, "allowed": f"{allowed:.0e}" if allowed else "equal", "ok": error <= allowed}


def diffusion_of(model: str, mode: str, task: Task) -> GaussianDiffusion1D:
    return build_diffusion(configure({"model": model, "mode": mode}), 0, task)


def differences(model, mode, precision, device, rank: int, examples: int) -> dict[str, float]:
    """Return relative errors of loss, gradient, negatives and samples against the CPU's in float64, without dropout.

    Those of negatives and samples are medians over examples: where a descent is kept or not by a hair, rounding
    decides.
    """
    batch, expected = exact_results(model, mode, rank, examples)
    here = diffusion_of(model, mode, task_of(model, rank)).eval().to(device)
    use_precision(precision, here, device)
    found, errors = results(here, moved(batch, device, torch.float32)), {}
    for name, right in expected.items():
        size, error = (part.flatten(1).norm(dim=1) for part in (right, found[name].double().cpu() - right))
        errors[name] = (error / size.clamp_min(1e-30)).median().item()
    return errors


def use_precision(name: str, diffusion: GaussianDiffusion1D, device):
    """Compute a diffusion's products as named by `precisions`."""
    compiled = name == "compiled"
    set_precision("bf16" if compiled else name, diffusion.model.ebm, device)
    set_compiled("on" if compiled else "off", diffusion.model.ebm, device)


@lru_cache(maxsize=1)
def exact_results(model, mode, rank: int, examples: int) -> tuple[Batch, dict[str, torch.Tensor]]:
    """Return a batch, and `results` on it in float64 on the CPU."""
    task = task_of(model, rank)
    exact, cpu = diffusion_of(model, mode, task).eval(), torch.device("cpu")
    batch = stream_of(exact, task, examples, 0, cpu).batch(0)
    return batch, results(exact.double(), moved(batch, cpu, torch.float64))


def moved(batch: Batch, device, dtype) -> Batch:
    """Move a batch to the device, its fractions in `dtype`."""
    return tree_map_only(
        torch.Tensor, lambda part: part.to(device, dtype if part.is_floating_point() else part.dtype), batch
    )


def results(diffusion, batch: Batch) -> dict[str, torch.Tensor]:
    """Return loss and gradient as one row, negatives and samples with a row for each example."""
    loss, _ = diffusion(*batch)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in diffusion.parameters() if p.grad is not None])
    found = {"loss": loss.detach().view(1, 1), "gradient": gradient[None]}
    if batch.nce_noise is not None and batch.candidates is None:
        cond = diffusion.model.ebm.condition(batch.inp, batch.t)
        own = {"mask": batch.mask, "drawn": batch.drawn}
        found["negatives"] = diffusion.negatives(cond, batch.target, batch.t, batch.nce_noise, **own)
    inner_steps = 5 if diffusion.model.ebm.has_energy else 0
    options = {"mask": batch.mask, "start": batch.noise, "inner_steps": inner_steps, "levels": SAMPLED_LEVELS}
    found["samples"] = diffusion.sample_loop(batch.inp, **options)
    return found


def trainer_of(model, mode, device, rank, folder, precision="float32", **options) -> Trainer1D:
    task = task_of(model, rank)
    diffusion = diffusion_of(model, mode, task)
    use_precision(precision, diffusion, device)
    return Trainer1D(
        diffusion,
        task,
        train_batch_size=BATCH[device.type],
        lr_schedule=lambda step: 1 - step / (2 * STEPS),
        ema_update_every=1,
        results_folder=folder,
        device=device.type,
        **options,
    )


def losses(trainer: Trainer1D, steps: int = STEPS) -> list[float]:
    return [trainer.run_one_step().item() for _ in range(steps)]


def largest_difference(found: list[float], expected: list[float]) -> float:
    return max(abs(f / e - 1) for f, e in zip(found, expected, strict=True))


def check_graph(model, mode, device, rank, precision="float32") -> dict:
    """Compare STEPS steps with a graph and without; it fails, too, where the step could not be captured."""
    with tempfile.TemporaryDirectory() as folder:
        plain = trainer_of(model, mode, device, rank, folder, precision, cuda_graph=False)
        trainer = trainer_of(model, mode, device, rank, folder, precision)
        expected, found = losses(plain), losses(trainer)
    error = largest_difference(found, expected)
    shown = f"losses {error:.1e}"
    if trainer.train_step.captures != (device.type != "cpu"):
        error, shown = float("inf"), "the step was not captured"
    named = "" if precision == "float32" else f" {precision},"
    return row(f"{model}, {mode},{named} graph against eager steps", shown, error, ALLOWED_BY_A_GRAPH)


def check_resume(model, mode, device, rank) -> dict:
    """Compare a run that is saved, loaded by another trainer and continued with one in one go: every bit."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer_of(model, mode, device, rank, Path(folder, "whole"))
        losses(whole)
        first, second = (trainer_of(model, mode, device, rank, Path(folder, "run")) for _ in range(2))
        losses(first, STEPS // 2)
        first.save()
        second.load()
        losses(second, STEPS - STEPS // 2)
    one, other = ([*t.diffusion.state_dict().values(), *t.ema.state_dict().values()] for t in (whole, second))
    different = sum(not torch.equal(left, right) for left, right in zip(one, other, strict=True))
    return row(f"{model}, {mode}, resumed", f"{different} of {len(one)} tensors differ", different, 0)


def check_fallback(device, rank) -> dict:
    """Check a step that no graph can hold, since it waits for the host: one line on stderr, and the same losses."""
    with tempfile.TemporaryDirectory() as folder:
        expected = losses(trainer_of("mlp", "random", device, rank, folder, cuda_graph=False))
        trainer = trainer_of("mlp", "random", device, rank, folder)
        loss = trainer.diffusion.p_losses

        def waiting(*arguments):
            value, parts = loss(*arguments)
            value.item()
            return value, parts

        trainer.diffusion.p_losses = waiting
        error = largest_difference(losses(trainer), expected)
    torch.rand((), device=device)  # a failed capture must leave the device's own generator usable
    return row("a step that cannot be captured, against eager steps", f"losses {error:.1e}", error, ALLOWED_BY_A_GRAPH)
