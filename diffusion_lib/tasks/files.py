"""Published data, where the user has put it: SATNet's and RRN's files under ./data.

    data/satnet/sudoku/features.pt, labels.pt         tensors (10000, 9, 9, 9), one-hot digits, a blank all 0
    data/satnet/parity/<bits>/features.pt, labels.pt  10,000 rows of bits; the parity is the labels' last column
    data/rrn/train.csv, valid.csv, test.csv           lines with 81 digits of a puzzle, 0 or . for a blank, then 81 of
                                                      its solution, between other columns or none; or .csv.gz

The release's folders are read too: data/sudoku, data/parity/<bits>, data/sudoku-rrn. Tensors may be dense or sparse, of
any type. Of SATNet's rows the first 90% train, as published; the others are halved into val and test. A damaged file
raises ConfigError; without a file the caller makes examples itself.
"""

import gzip
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.metrics import board_is_valid

FOLDER = Path("data")
BOARD = re.compile(rb"(?<![\d.])[\d.]{81}(?![\d.])")
GZIP = b"\x1f\x8b"
RRN_NAMES = {"train": "train", "val": "valid", "test": "test"}


class Boards(NamedTuple):
    """Sudoku puzzles: the solutions' digits 0 .. s - 1, uint8, and which are given, bool, both (P, s, s); a source."""

    solution: torch.Tensor
    given: torch.Tensor
    source: str


class BitRows(NamedTuple):
    """Rows of bits (P, L) bool, whether the number of ones is odd (P, 1) bool, and a source."""

    bits: torch.Tensor
    odd: torch.Tensor
    source: str


def satnet_sudoku(split: str) -> Boards | None:
    """Return the split's share of SATNet's 10,000 puzzles with 31 to 42 givens, or None without its files."""
    pair = _satnet_pair("satnet/sudoku", "sudoku")
    return pair and _boards_of_split(pair, split)


def rrn_sudoku(split: str) -> Boards | None:
    """Return the split's RRN puzzles with 17 to 34 givens, or None without its file."""
    for folder in ("rrn", "sudoku-rrn"):
        for path in sorted(FOLDER.glob(f"{folder}/{RRN_NAMES[split]}.csv*")):
            return _read_csv(path.resolve(), str(path))
    return None


def satnet_parity(bits: int, split: str) -> BitRows | None:
    """Return the split's share of SATNet's rows of that many bits, or None without its files."""
    pair = _satnet_pair(f"satnet/parity/{bits}", f"parity/{bits}")
    return pair and _bits_of_split(pair, bits, split)


def _satnet_pair(*folders: str) -> tuple[Path, Path] | None:
    """Return both files of the first folder that has one, or None. Raises ConfigError where the other is missing."""
    for folder in (FOLDER / each for each in folders):
        pair = folder / "features.pt", folder / "labels.pt"
        missing = [path for path in pair if not path.exists()]
        if len(missing) == 1:
            raise ConfigError(f"{missing[0]} is missing; put both features.pt and labels.pt into {folder}, or neither")
        if not missing:
            return tuple(path.absolute() for path in pair)
    return None


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _damaged(path, what: str) -> ConfigError:
    return ConfigError(f"{path} is damaged: {what}; fetch it again, or remove it to use made-up examples")


def _load(path: Path) -> torch.Tensor:
    """Return a file's tensor, dense and in float32. Raises ConfigError where it is damaged."""
    try:
        values = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load has no class of its own for what it cannot read
        raise _damaged(_shown(path), f"torch cannot read it ({type(error).__name__})") from error
    if not isinstance(values, torch.Tensor) or values.is_complex() or values.dim() == 0 or len(values) < 20:
        raise _damaged(_shown(path), "it holds no tensor of real numbers, a row for each example")
    return values.detach().to_dense().float()


def _rows_of_split(count: int, split: str) -> slice:
    train, val = 9 * count // 10, 19 * count // 20
    return {"train": slice(train), "val": slice(train, val), "test": slice(val, count)}[split]


@lru_cache(maxsize=4)
def _boards_of_split(pair, split) -> Boards:
    puzzle, solution = (_load(path) for path in pair)
    for path, values in zip(pair, (puzzle, solution), strict=True):
        if values[0].numel() != 729 or len(values) != len(puzzle):
            raise _damaged(_shown(path), f"its shape is {tuple(values.shape)}, not (10000, 9, 9, 9)")
    puzzle, solution = (values.reshape(-1, 9, 9, 9) for values in (puzzle, solution))
    given = puzzle.amax(-1) > 0.5
    digits = solution.argmax(-1).to(torch.uint8)
    _check(pair[1], digits, given, puzzle.argmax(-1))
    rows = _rows_of_split(len(puzzle), split)
    return Boards(digits[rows], given[rows], f"SATNet's file {_shown(pair[0])}")


@lru_cache(maxsize=4)
def _read_csv(path: Path, shown: str) -> Boards:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(shown, f"gzip cannot read it ({type(error).__name__})") from error
    boards = []
    for number, line in enumerate(filter(bytes.strip, content.splitlines()), 1):
        found = BOARD.findall(line)
        names = number == 1 and not found and re.search(rb"[A-Za-z]", line)
        if len(found) != 2 and not names:
            raise _damaged(shown, f"row {number} is not 81 digits (0 or . for a blank) and 81 of the solution")
        boards += found
    if not boards:
        raise _damaged(shown, "it is empty")
    digits = np.frombuffer(b"".join(boards).replace(b".", b"0"), np.uint8).reshape(-1, 2, 9, 9) - ord("0")
    puzzle, solution = torch.from_numpy(digits.astype(np.int16)).unbind(1)
    _check(shown, solution - 1, puzzle > 0, puzzle - 1)
    return Boards((solution - 1).to(torch.uint8), puzzle > 0, f"RRN's file {shown}")


def _check(path, solution, given, puzzle):
    """Raise ConfigError unless every solution is a valid board that agrees with its givens."""
    right = board_is_valid(solution) & ((puzzle == solution) | ~given).flatten(1).all(1)
    if not right.all():
        raise _damaged(path, f"the solution of puzzle {int((~right).nonzero()[0]) + 1} is wrong")


@lru_cache(maxsize=4)
def _bits_of_split(pair, bits, split) -> BitRows:
    features, labels = (_load(path) for path in pair)
    rows, odd = (values.reshape(len(values), -1) > 0.5 for values in (features, labels))
    odd = odd[:, -1:]  # labels may be a column, or none at all
    if rows.shape[1] != bits or len(odd) != len(rows):
        raise _damaged(_shown(pair[0]), f"its shape is {tuple(features.shape)}, not (10000, {bits})")
    if not torch.equal(rows.sum(1, keepdim=True) % 2 == 1, odd):
        raise _damaged(_shown(pair[1]), "its last column is not the parity of the features")
    chosen = _rows_of_split(len(rows), split)
    return BitRows(rows[chosen], odd[chosen], f"SATNet's file {_shown(pair[0])}")
