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
loss_sums      (5,) float64, since the last of those rows: the sums of the loss, of its two parts and of clipped
               gradients, and the number of steps
The first four are needed and are also what a checkpoint of the released code has.
"""

import io

import torch

from diffusion_lib.system.errors import CheckpointError
from diffusion_lib.system.files import write_atomic

EMA_PREFIX = "ema_model."


def save_checkpoint(path, state: dict):
    # through memory: torch reports a full disk as an unrelated RuntimeError, a plain write as OSError
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path, device) -> dict:
    """The state in a checkpoint, tensors on `device`. Raises CheckpointError naming the file, which stays."""
    try:
        device = torch.device(device)
        place = "cpu" if device.type == "cpu" else device  # accelerate's "cpu:0" is no place that torch can load to
        state = torch.load(path, map_location=place, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except Exception as error:  # torch raises half a dozen unrelated types for damaged files
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason}); it is left as it was") from None
    missing = [key for key in ("step", "model", "opt", "ema") if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(f"{path} is no checkpoint of a Trainer1D: it lacks {', '.join(missing)}")
    return state


def averaged_weights(state: dict) -> dict:
    """The state_dict of the averaged (EMA) model in a checkpoint."""
    return {key.removeprefix(EMA_PREFIX): value for key, value in state["ema"].items() if key.startswith(EMA_PREFIX)}


def other_model_error(path, error: Exception) -> CheckpointError:
    """What to raise where the state in `path` does not fit; `error` is load_state_dict's, of many lines."""
    reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
    return CheckpointError(f"{path} holds another model than this run's ({reason}); it is left as it was")
