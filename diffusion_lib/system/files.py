"""Writing files so that a reader, or a crash, finds the old content or the new, never half of it."""

import csv
import io
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

import torch

from diffusion_lib.system.errors import CheckpointError

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
