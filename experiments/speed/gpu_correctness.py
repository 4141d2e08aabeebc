"""Whether a device computes what the CPU does, and a captured step what an eager one does."""

import tempfile
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only

from diffusion_lib.build import build_diffusion
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
from diffusion_lib.energies import MODELS
from diffusion_lib.negatives import MODES
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS, Task
from diffusion_lib.training.batches import Batch, BatchStream
from diffusion_lib.training.precision import choose_products, has_tf32, set_precision
from diffusion_lib.training.step import EAGER_STEPS

# Largest relative errors against float64 on the CPU that a working device has, by the precision of its products.
ALLOWED = {"float32": 1e-4, "tf32": 1e-1, "bf16": 2e-1}
ALLOWED_BY_A_GRAPH = 1e-5  # of a loss, against the same steps without one
STEPS = 2 * EAGER_STEPS + 4


def task_of(model: str, rank: int | None = None) -> Task:
    """A task that the model can be built for, that which IRED takes it for where there is one.

    rank: its size, if the task has such sizes; None: the least but one.
    """
    for kind in sorted(TASKS.values(), key=lambda kind: kind.model != model):
        task = kind("train", max(kind.least_rank, rank or 4))
        try:
            MODELS[model](task.inp_dim, task.out_dim)
        except (ConfigError, RuntimeError):
            continue
        return task
    raise ConfigError(f"no task has the sizes of the model {model}")


def modes_of(model: str) -> list[str]:
    """The modes that the model can be trained with: without an energy there are no negatives."""
    return list(MODES) if MODELS[model].has_energy else ["none"]


def precisions(device: torch.device, model: str = "mlp") -> list[str]:
    """The precisions that differ on the device, of those that the model has."""
    names = ["float32", *(["tf32"] if has_tf32(device) else [])]
    return names + (["bf16"] if hasattr(MODELS[model], "product") else [])


def check_everything(device: torch.device, rank: int, examples: int) -> list[dict]:
    """Rows with `check`, `found`, `allowed` and `ok`, for every model, mode and precision.""" ""
    rows = []
    for model in MODELS:
        for mode in modes_of(model):
            for precision in precisions(device, model):
                errors = differences(model, mode, precision, device, rank, examples)
                # an untrained model's sampler magnifies rounding: the less accurate products' error is only stated
                worst = max(e for name, e in errors.items() if name != "samples" or precision == "float32")
                shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
                rows.append(row(f"{model}, {mode}, {precision} against float64", shown, worst, ALLOWED[precision]))
            choose_products("float32", device)
            rows += [check_graph(model, mode, device, rank), check_resume(model, mode, device, rank)]
    return [*rows, check_fallback(device, rank)]


def row(check: str, found: str, error: float, allowed: float) -> dict:
    return {"check": check, "found": found, "allowed": f"{allowed:.0e}" if allowed else "equal", "ok": error <= allowed}


def diffusion_of(model: str, mode: str, task: Task) -> GaussianDiffusion1D:
    return build_diffusion(ExperimentConfig(model=model), {"mode": mode}, 0, task)


def differences(model, mode, precision, device, rank: int, examples: int) -> dict[str, float]:
    """Relative errors of loss, gradient, negatives and samples, each against the CPU's in float64.

    Of negatives and samples the median over examples: where a descent is kept or not by a hair, rounding decides.
    """
    task = task_of(model, rank)
    exact, here = diffusion_of(model, mode, task).double(), diffusion_of(model, mode, task).to(device)
    set_precision(precision, here.model.ebm, device)
    batch = BatchStream(task, examples, here.num_timesteps, 0, torch.device("cpu"), mode != "none").batch(0)
    expected = results(exact, moved(batch, "cpu", torch.float64), mode)
    found = results(here, moved(batch, device, torch.float32), mode)
    errors = {}
    for name, right in expected.items():
        size, error = (part.flatten(1).norm(dim=1) for part in (right, found[name].double().cpu() - right))
        errors[name] = (error / size.clamp_min(1e-30)).median().item()
    return errors


def moved(batch: Batch, device, dtype) -> Batch:
    """On the device, its fractions in `dtype`."""
    return tree_map_only(
        torch.Tensor, lambda part: part.to(device, dtype if part.is_floating_point() else part.dtype), batch
    )


def results(diffusion, batch: Batch, mode: str) -> dict[str, torch.Tensor]:
    """Loss and gradient as one row, negatives and samples with a row for each example."""
    loss, _ = diffusion(*batch)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in diffusion.parameters() if p.grad is not None])
    found = {"loss": loss.detach().view(1, 1), "gradient": gradient[None]}
    if mode != "none":
        cond = diffusion.model.ebm.condition(batch.inp, batch.t)
        found["negatives"] = diffusion.negatives(cond, batch.target, batch.t, batch.nce_noise).detach()
    inner_steps = 5 if diffusion.model.ebm.has_energy else 0
    found["samples"] = diffusion.sample_loop(batch.inp, start=batch.noise, inner_steps=inner_steps)
    return found


def trainer_of(model, mode, device, rank, folder, **options) -> Trainer1D:
    task = task_of(model, rank)
    return Trainer1D(
        diffusion_of(model, mode, task),
        task,
        train_batch_size=32,
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


def check_graph(model, mode, device, rank) -> dict:
    """STEPS steps with a graph against the same without; fails, too, where the step could not be captured."""
    with tempfile.TemporaryDirectory() as folder:
        plain = trainer_of(model, mode, device, rank, folder, cuda_graph=False)
        trainer = trainer_of(model, mode, device, rank, folder)
        expected, found = losses(plain), losses(trainer)
    error = largest_difference(found, expected)
    wanted = device.type != "cpu"
    shown = f"losses {error:.1e}" if trainer.train_step.captures == wanted else "the step was not captured"
    return row(
        f"{model}, {mode}, graph against eager steps",
        shown,
        error if trainer.train_step.captures == wanted else float("inf"),
        ALLOWED_BY_A_GRAPH,
    )


def check_resume(model, mode, device, rank) -> dict:
    """A run that is saved, loaded by another trainer and continued, against one in one go: every bit."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer_of(model, mode, device, rank, Path(folder, "whole"))
        losses(whole)
        first, second = (trainer_of(model, mode, device, rank, Path(folder, "run")) for _ in range(2))
        losses(first, STEPS // 2)
        first.save()
        second.load()
        losses(second, STEPS - STEPS // 2)
    pairs = [
        (left, right)
        for name in ("diffusion", "ema")
        for left, right in zip(*(getattr(t, name).state_dict().values() for t in (whole, second)), strict=True)
    ]
    different = sum(not torch.equal(left, right) for left, right in pairs)
    return row(f"{model}, {mode}, resumed", f"{different} of {len(pairs)} tensors differ", different, 0)


def check_fallback(device, rank) -> dict:
    """A step that no graph can hold, since it waits for the host: one line on stderr, and the same losses."""
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
