"""Load a trained model, and invert matrices with it.

    model = load_model("results/published/matrix-energy")
    inverses = solve(model, matrices)  # (B, n, n), or one (n, n)

`load_model` takes the folder of a run of the comparison or of train.py, or a checkpoint in such a folder.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from diffusion_lib.build import build_diffusion, training_task
from diffusion_lib.checkpoint import averaged_weights, load_checkpoint, other_model_error
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from diffusion_lib.names import SAMPLERS
from diffusion_lib.precision import float32_products
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.checks import plain, require_truth, require_whole
from diffusion_lib.system.defaults import torchs_defaults
from diffusion_lib.system.device import chosen_device
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import read_json
from diffusion_lib.tasks import Inverse

SYMMETRIC = 1e-5  # largest |A - A^T|, relative to A's largest entry: float32 rounding stays below
DRAWN = 1024  # training matrices behind the range of their spectra
# Added to that range on both sides, in units of it: of 40,000 further matrices at most five lie outside then.
RANGE_MARGIN = 0.5
ROUNDING = 1e-3  # relative: that of A in float32 moves its smallest eigenvalue below the ridge
MEASURED = 2  # times the training's n: as far were other n measured (experiments/matrix_generalisation.py)

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@torchs_defaults()
def load_model(run: Path | str, device: str | None = "cpu") -> GaussianDiffusion1D:
    """Load a run's model with its averaged (EMA) weights, in eval mode; `model.task` is the task it was trained on.

    run: a folder with config.json and last.pt, which the comparison and train.py make for each run, or the path of a
    checkpoint in such a folder. device: 'cpu', 'cuda', or None for a GPU where there is one. The model computes in
    float32, whatever it was trained in. Loading leaves the process's random numbers as they were.
    Raises ConfigError if there is no config.json, or it does not describe a run; CheckpointError if the checkpoint is
    absent, damaged, or of another model.
    """
    run, device = Path(run).expanduser(), chosen_device(device)
    folder, path = (run, run / "last.pt") if run.is_dir() else (run.parent, run)
    if not run.exists():
        raise ConfigError(f"no run at {run}; allowed: a folder with config.json and last.pt, or a checkpoint in one")
    if not (folder / "config.json").exists():
        raise ConfigError(f"no config.json in {folder}: it says which model the checkpoint is of")
    state = load_checkpoint(path, device, to_train=False)
    model = _untrained(folder / "config.json")
    try:
        model.load_state_dict(averaged_weights(state))
    except RuntimeError as error:
        raise other_model_error(path, error) from None
    return model.to(device).eval()


def _untrained(path: Path) -> GaussianDiffusion1D:
    """The model that a run's config.json describes, as it was before training. Raises ConfigError."""
    recorded = read_json(path).get("config")
    missing = [name for name in ("rank", "model", "seed") if name not in (recorded or {})]
    if missing:
        raise ConfigError(f"{path} is not of a run: it lacks {', '.join(missing)}")
    config = ExperimentConfig.from_dict(recorded)
    task = training_task(config, recorded.get("ood", False))
    options = {name: recorded.get(name, False) for name in ("use_innerloop_opt", "baseline")}
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        model = build_diffusion(config, recorded["seed"], task, **options)
    model.task = task
    return model


@torchs_defaults()
def solve(
    model: GaussianDiffusion1D, A: Array, *, innerloop: bool = True, seed: int = 0, batch_size: int = 2048
) -> Array:
    """Invert symmetric matrices A, (n, n) or (B, n, n), with a trained model. Returns A's shape and type.

    model: from `load_model`; the energies `matrix` and `matrix-free` take any n, the others that of their training.
    A: a NumPy array or a tensor of floating-point numbers; the model computes in float32.
    innerloop: use IRED's sampler, which descends the energy at each level, instead of the plain one.
    seed: decides the noise that the sampler starts from. batch_size: matrices at a time.
    Entries of an inverse are clamped at +-`model.bound`, which is 1 / ridge in training.
    Warns if matrices lie outside the distribution of the training task (at their own n), if n is above twice the
    training's, or if an answer is not finite. Raises ConfigError for a model of another task, and for an A of another
    shape or type, with entries that are not finite in float32, or that is not symmetric.
    """
    task = getattr(model, "task", None)
    if not isinstance(task, Inverse):
        what = f"was trained on {type(task).__name__}" if task else "does not say its task: it is not of load_model"
        raise ConfigError(f"the model {what}; allowed: one trained on Inverse (others have model.sample(inp))")
    require_truth("innerloop", innerloop)
    batch_size, seed = plain(batch_size), plain(seed)
    require_whole("batch_size", batch_size)
    require_whole("seed", seed, 0)
    matrices = _checked(A, None if model.model.ebm.any_size else task.rank)
    _warn_if_untrained(matrices, task)
    start = torch.randn(len(matrices), matrices[0].numel(), generator=seeded_generator("solve", seed))
    device, steps = model.betas.device, SAMPLERS["innerloop" if innerloop else "plain"](model.rules)
    more_noise = seeded_generator("solve, levels", seed, device=device)  # for models with train.py's --baseline
    with float32_products(model):
        parts = [
            model.sample_loop(inp.to(device), start=noise.to(device), generator=more_noise, inner_steps=steps)
            for inp, noise in zip(matrices.float().flatten(1).split(batch_size), start.split(batch_size), strict=True)
        ]
    inverses = torch.cat(parts)
    lost = (~inverses.isfinite()).any(1).nonzero().flatten().tolist()
    if lost:
        count = f"{len(lost)} of {len(inverses)} inverses are not finite"
        warnings.warn(f"{count}, first that of matrix {lost[0]}", stacklevel=3)
    inverses = inverses.view(A.shape)
    if isinstance(A, np.ndarray):
        return inverses.cpu().numpy().astype(A.dtype)
    return inverses.to(A.device, A.dtype)


def _checked(A, n: int | None) -> torch.Tensor:
    """A as (B, n, n) float64 on the CPU, for any n where it is None. Raises ConfigError."""
    if isinstance(A, torch.Tensor):
        if A.layout != torch.strided or A.is_meta or A.is_nested:
            kind = "a nested tensor" if A.is_nested else "on meta, without data" if A.is_meta else str(A.layout)
            raise ConfigError(f"A is {kind}; allowed: a dense tensor, as of A.to_dense()")
        floating = A.is_floating_point()
    else:
        floating = isinstance(A, np.ndarray) and A.dtype.kind == "f"
    if not floating:
        kind = A.dtype if isinstance(A, np.ndarray | torch.Tensor) else type(A).__name__
        raise ConfigError(f"A is {kind}; allowed: a NumPy array or a tensor of floating-point numbers")
    if np.ma.is_masked(A):
        raise ConfigError("A has masked entries; allowed: arrays all of whose entries are there")
    sides = tuple(A.shape[-2:])
    if A.ndim not in (2, 3) or sides != (n or sides[0],) * 2 or 0 in A.shape:
        side = n or "n"
        raise ConfigError(f"A has shape {tuple(A.shape)}; this model takes ({side}, {side}) or (B, {side}, {side})")
    on_cpu = A.detach().cpu().double() if isinstance(A, torch.Tensor) else torch.from_numpy(A.astype(np.float64))
    matrices = on_cpu.reshape(-1, *sides)
    broken = (~matrices.float().isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(broken):
        raise ConfigError(f"A has entries that are not finite in float32, first in matrix {broken[0]}")
    asymmetry = (matrices - matrices.mT).abs().amax((1, 2)) / matrices.abs().amax((1, 2)).clamp(min=1e-30)
    if asymmetry.max() > SYMMETRIC:
        worst = f"|A - A^T| reaches {asymmetry.max():.2g} of its largest entry; allowed: {SYMMETRIC:g}"
        raise ConfigError(f"matrix {asymmetry.argmax()} of A is not symmetric: {worst}")
    return matrices


def _warn_if_untrained(matrices: torch.Tensor, task: Inverse):
    """Warn, in one line, of matrices whose spectra training did not have: nothing speaks for the answers there."""
    n = matrices.shape[1]
    if n > MEASURED * task.rank:
        warnings.warn(f"n is {n}, and training's was {task.rank}: the errors may be large", stacklevel=4)
        return
    spectra, outside, reasons = _spectra(matrices), torch.zeros(len(matrices), dtype=torch.bool), []
    where = "in training" if n == task.rank else f"in training's task at n = {n}"
    for name, (low, high) in _trained_spectra(n, task.ridge).items():
        beyond = (spectra[name] < low * (1 - ROUNDING)) | (spectra[name] > high)
        outside |= beyond
        if beyond.any():
            least, most = spectra[name][beyond].min(), spectra[name][beyond].max()
            reasons.append(f"{name} {least:.3g} to {most:.3g} ({where} {low:.3g} to {high:.3g})")
    if reasons:
        count = f"{int(outside.sum())} of {len(matrices)} matrices lie outside the trained distribution"
        warnings.warn(f"{count}: {'; '.join(reasons)}", stacklevel=4)


def _spectra(matrices: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is compared with training's range, by name, (B,) each."""
    eigenvalues = torch.linalg.eigvalsh(matrices)
    return {
        "smallest eigenvalue": eigenvalues[:, 0],
        "largest eigenvalue": eigenvalues[:, -1],
        "trace": eigenvalues.sum(1),
    }


@cache
def _trained_spectra(rank: int, ridge: float) -> dict[str, tuple[float, float]]:
    """The range of each among training matrices, with its margin; none goes below the ridge."""
    inp, _ = Inverse("train", rank, ridge=ridge).sample(DRAWN, seeded_generator("trained spectra"), dtype=torch.float64)
    ranges = {}
    for name, values in _spectra(inp.view(-1, rank, rank)).items():
        low, high = values.min().item(), values.max().item()
        margin = RANGE_MARGIN * (high - low)
        ranges[name] = max(ridge, low - margin), high + margin
    return ranges
