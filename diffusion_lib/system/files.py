"""Write files so that a reader, or a crash, finds the old content or the new, never half of it."""

import csv
import errno
import glob
import io
import json
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from diffusion_lib.system.errors import ConfigError

TEMPORARY = ".tmp"  # the end of a temporary file's name, which begins with a dot
TRIES = 3  # of a write whose temporary file is removed by another process, as a killed writer's
NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # as file systems say it


def write_atomic(path: Path | str, content: bytes | str):
    """Write through a temporary file beside `path`, or beside what it links to.

    Raises ConfigError where a folder, a pipe or a device is there, and OSError, which names the file; the file stays as
    it was.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is there and is no file; it is left as it was")
    _write(path, content, os.replace)


def create_exclusively(path: Path, content: str) -> bool:
    """Make `path` with its whole content, or return False where it exists: of several processes one makes it."""
    try:
        _write(path, content, os.link)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with suppress(FileExistsError), open(path, "x") as file:
            file.write(content)
            return True
        return False
    return True


def _write(path, content, put_in_place):
    path.parent.mkdir(parents=True, exist_ok=True)
    for tries_left in reversed(range(TRIES)):
        temporary = _write_temporary(path, content)
        try:
            return put_in_place(temporary, path)
        except FileNotFoundError:
            if not tries_left:
                raise
        finally:
            temporary.unlink(missing_ok=True)


def require_writable(folder: Path):
    """Raise OSError, which names `folder`, where it cannot be written in, or made; leave nothing there."""
    places = (folder.absolute(), *folder.absolute().parents)
    try:
        tempfile.TemporaryFile(dir=next(filter(os.path.lexists, places))).close()
    except OSError as error:
        error.filename = str(folder)
        raise


def _write_temporary(path, content) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            # a text may name a folder whose name is not UTF-8
            file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk's error names no file
        raise
    return temporary


def remove_temporary_files(folder: Path, of: str = ""):
    """Remove what killed writers left of files whose names begin with `of`; a living writer writes its file again."""
    for path in folder.glob(f".{glob.escape(of)}*{TEMPORARY}"):
        with suppress(OSError):  # a file of another user, say
            path.unlink()


def write_json(path, value: dict):
    write_atomic(path, json_text(value))


def json_text(value: dict) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises ConfigError for a file that is none."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return value


def write_csv(path, rows: list[dict]):
    """Write rows under one header: all their keys, in order of appearance; a missing value is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
