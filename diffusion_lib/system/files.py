"""Writing files so that a reader, or a crash, finds the old content or the new, never half of it."""

import csv
import io
import json
import os
import secrets
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from diffusion_lib.system.errors import CheckpointError

CHECKPOINT_TYPES = {"step": int, "model": dict, "opt": dict, "ema": dict}
OPTIONAL_TYPES = {  # which the release's checkpoints lack
    "seed": int,
    "history": list,
    "train_seconds": (int, float),
    "loss_sums": torch.Tensor,
    "run": dict,
}
TEMPORARY = ".tmp"  # the end of a temporary file's name, which begins with a dot


def write_atomic(path: Path | str, content: bytes | str):
    """Write through a temporary file beside `path`. Raises OSError naming `path`, which is then untouched."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_exclusively(path: Path, content: str) -> bool:
    """Make `path` with its whole content, or return False where it exists: of several processes one makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        with suppress(FileExistsError), open(path, "x") as file:
            file.write(content)
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write_temporary(path, content) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk's error names no file
        raise
    return temporary


def remove_temporary_files(folder: Path):
    """Remove what killed writers left. Only for who alone writes in `folder`."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_json(path, value: dict):
    write_atomic(path, json_text(value))


def json_text(value: dict) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def write_csv(path, rows: list[dict]):
    """Rows with one header; the columns are all keys, in order of appearance, and a missing value is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def save_checkpoint(path, state: dict):
    # through memory: torch reports a full disk as an unrelated RuntimeError, a plain write as OSError
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path, device) -> dict:
    """The state in a checkpoint, tensors on `device`. Raises CheckpointError naming the file, which stays.

    A zip's checksums are compared first: a flipped bit would be a weight like others.
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
    wrong = [key for key, kinds in CHECKPOINT_TYPES.items() if not _is_one_of(state.get(key), kinds)]
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
    recorded = state.get("run", {})  # the release's checkpoints have none
    for key, value in own.items():
        if value is not None and recorded.get(key, value) != value:
            raise CheckpointError(f"{path} is of {key} {recorded[key]}, this run has {value}; it is left as it was")
    if state["step"] < 0 or (last is not None and state["step"] > last):
        raise CheckpointError(f"{path} is of step {state['step']}, this run has {last} steps; it is left as it was")


def _is_one_of(value, kinds) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
