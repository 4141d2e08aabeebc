"""The checkpoint of a training: what it holds, how it is written, and how it is read.

A file that torch.load reads with weights_only=True, one dict, as `Trainer1D.save` makes it:

step           updates made so far
model          state_dict of the GaussianDiffusion1D that is trained
opt            state_dict of Adam
ema            state_dict of ema_pytorch's EMA: the averaged weights, those to use, are its keys that begin with
               `ema_model.`, with the names of `model` after it
scaler         None; the release's key
seed           that of the run: with `step` it decides all further batches
history        the rows of metrics.csv so far
train_seconds  time spent on training so far
loss_sums      (6,) float64, since the last of those rows: the sums of the loss, of its three parts and of clipped
               gradients, and the number of steps
run            task, model, mining and so on: see Trainer1D.run_identity
The first four are needed (opt only for training on) and are also what a checkpoint of the released code has.
"""

import io
import zipfile
from pathlib import Path

import torch

from diffusion_lib.system.errors import CheckpointError
from diffusion_lib.system.files import write_atomic

EMA_PREFIX = "ema_model."
CHECKPOINT_TYPES = {"step": int, "model": dict, "opt": dict, "ema": dict}
OPTIONAL_TYPES = {  # which the release's checkpoints lack
    "seed": int,
    "history": list,
    "train_seconds": (int, float),
    "loss_sums": torch.Tensor,
    "run": dict,
}


def save_checkpoint(path, state: dict):
    # through memory: torch reports a full disk as an unrelated RuntimeError, a plain write as OSError
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def checkpoint_path(folder: Path, milestone) -> Path:
    """Where a milestone of a run's folder lies: `last`, a number as in the released trainer, or the path of a file."""
    name = str(milestone)
    if name == "last":
        return folder / "last.pt"
    return folder / f"model-{name}.pt" if name.isdigit() else Path(name)


def load_checkpoint(path, device, to_train: bool) -> dict:
    """The state in a checkpoint, tensors on `device`. Raises CheckpointError naming the file, which stays.

    to_train: whether it needs the optimizer's state. A zip's checksums are compared first: a flipped bit would be a
    weight like others.
    """
    try:
        device = torch.device(device)
        place = "cpu" if device.type == "cpu" else device  # accelerate's "cpu:0" is no place that torch can load to
        damaged = zipfile.ZipFile(path).testzip() if zipfile.is_zipfile(path) else None
        if damaged:
            raise ValueError(f"the checksum of {damaged} differs")
        state = torch.load(path, map_location=place, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except Exception as error:  # torch raises half a dozen unrelated types for damaged files
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason}); it is left as it was") from None
    state = state if isinstance(state, dict) else {}
    needed = {key: kinds for key, kinds in CHECKPOINT_TYPES.items() if to_train or key != "opt"}
    wrong = [key for key, kinds in needed.items() if not _is_one_of(state.get(key), kinds)]
    wrong += [key for key, kinds in OPTIONAL_TYPES.items() if key in state and not _is_one_of(state[key], kinds)]
    if wrong:
        raise CheckpointError(f"{path} is no checkpoint of a Trainer1D: see its {', '.join(wrong)}")
    return state


def require_own(path, state: dict, own: dict, seed: int, last: int | None):
    """Raises CheckpointError for the state of another run than `own` (see Trainer1D.run_identity; None: any).

    last: the step beyond which it is of a longer run (None: any is allowed).
    """
    if state.get("seed", seed) != seed:
        raise CheckpointError(f"{path} is of seed {state['seed']}, this run has seed {seed}")
    if state["step"] < 0 or (last is not None and state["step"] > last):
        raise CheckpointError(f"{path} is of step {state['step']}, this run has {last} steps; it is left as it was")
    recorded = state.get("run", {})  # the release's checkpoints have none, earlier versions' not all of it
    for key, value in own.items():
        if value is not None and recorded.get(key, value) != value:
            raise CheckpointError(f"{path} is of {key} {recorded[key]}, this run has {value}; it is left as it was")


def _is_one_of(value, kinds) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def averaged_weights(state: dict) -> dict:
    """The state_dict of the averaged (EMA) model in a checkpoint."""
    return {key.removeprefix(EMA_PREFIX): value for key, value in state["ema"].items() if key.startswith(EMA_PREFIX)}


def other_model_error(path, error: Exception) -> CheckpointError:
    """What to raise where the state in `path` does not fit; `error` is load_state_dict's, of many lines."""
    reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
    return CheckpointError(f"{path} holds another model than this run's ({reason}); it is left as it was")
