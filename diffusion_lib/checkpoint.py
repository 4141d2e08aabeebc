"""Write and read the checkpoints of a training run.

A checkpoint is one dict, as `Trainer1D.save` makes it, that torch.load reads with weights_only=True:

step           updates made so far
model          state_dict of the GaussianDiffusion1D that is trained
opt            state_dict of Adam
ema            state_dict of ema_pytorch's EMA; its keys `ema_model.<name in model>` are the averaged weights,
               those to use
scaler         None; the release's key
seed           the run's: with `step` it decides all further batches
history        the rows of metrics.csv so far
train_seconds  time spent on training so far
loss_sums      (6,) float64, sums since the last of those rows: the loss, its three parts, clipped gradients, steps
run            task, model, mining and so on: see Trainer1D.run_identity

The first four are needed (opt only to train on); a checkpoint of the released code has them too.
"""

import io
import zipfile
from pathlib import Path

import torch

from diffusion_lib.system.errors import CheckpointError, first_line
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
    """Write a checkpoint: the whole of it, or nothing. Raises OSError, for a full disk too."""
    # through memory: torch reports a full disk as an unrelated RuntimeError, a plain write as OSError
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def checkpoint_path(folder: Path, milestone) -> Path:
    """Return the path of a milestone of a run: `last`, a number or word as in the released trainer, or a file's own."""
    name = str(milestone)
    if name == "last":
        return folder / "last.pt"
    is_path = "/" in name or name.endswith(".pt")
    return Path(name) if is_path else folder / f"model-{name}.pt"


def load_checkpoint(path, device, to_train: bool) -> dict:
    """Read the state in a checkpoint, its tensors on `device`.

    to_train: whether the optimizer's state is needed.
    A zip's checksums are compared first, since a flipped bit would pass for a weight. Raises CheckpointError, which
    names the file; the file stays.
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
        reason = first_line(error)[:120]
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason}); it is left as it was") from None
    state = state if isinstance(state, dict) else {}
    needed = {key: kinds for key, kinds in CHECKPOINT_TYPES.items() if to_train or key != "opt"}
    wrong = [key for key, kinds in needed.items() if not _is_one_of(state.get(key), kinds)]
    wrong += [key for key, kinds in OPTIONAL_TYPES.items() if key in state and not _is_one_of(state[key], kinds)]
    if wrong:
        raise CheckpointError(f"{path} is no checkpoint of a Trainer1D: see its {', '.join(wrong)}")
    return state


def require_own(path, state: dict, own: dict, seed: int, last: int | None):
    """Raise CheckpointError where a state is another run's.

    own: the identity of this run, see Trainer1D.run_identity; a value of None allows any.
    seed: the seed of this run.
    last: the last step of this run; None: any step is allowed.
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
    """Return the state_dict of the averaged (EMA) model in a checkpoint."""
    return {key.removeprefix(EMA_PREFIX): value for key, value in state["ema"].items() if key.startswith(EMA_PREFIX)}


def other_model_error(path, error: Exception) -> CheckpointError:
    """Make the error for a state in `path` that does not fit the model; `error` is load_state_dict's, of many lines."""
    reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
    return CheckpointError(f"{path} holds another model than this run's ({reason}); it is left as it was")
