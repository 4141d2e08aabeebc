"""Sudoku puzzles with one solution, made here; a board is a list of digit bits, row by row, 0 for a blank."""

import hashlib
import random
from functools import cache, lru_cache
from itertools import combinations

import torch

from diffusion_lib.seeds import derive_seed
from diffusion_lib.tasks.encoding import permutations
from diffusion_lib.tasks.files import Boards

# Of every four classes of puzzles two are for training.
SPLIT_OF_CLASS = ("train", "train", "val", "test")


@cache
def units_of_cells(box: int) -> list[tuple[int, int, int]]:
    """Return the row, column and box of each cell, as numbers below 3 s."""
    side = box * box
    return [(r, side + c, 2 * side + r // box * box + c // box) for r in range(side) for c in range(side)]


def solve(board: list[int], box: int, order=None) -> list[int] | None:
    """Return a solution of the board, or None; `order` sorts the possible digits of a cell (default: lowest first)."""
    side, units = box * box, units_of_cells(box)
    everything, used = (1 << side) - 1, [0] * (3 * box * box)
    board = list(board)
    for cell, bit in enumerate(board):
        if bit:
            if any(used[unit] & bit for unit in units[cell]):
                return None
            for unit in units[cell]:
                used[unit] |= bit
    blank = [cell for cell, bit in enumerate(board) if not bit]
    return board if _fill(board, blank, used, units, everything, order) else None


def _fill(board, blank, used, units, everything, order) -> bool:
    """Fill the blank cells in place, that with the fewest digits first; if impossible return False, all as before."""
    if not blank:
        return True
    least, best, options = 99, -1, 0
    for place, cell in enumerate(blank):
        row, column, square = units[cell]
        free = everything & ~(used[row] | used[column] | used[square])
        count = free.bit_count()
        if count < least:
            least, best, options = count, place, free
            if count <= 1:
                break
    cell = blank[best]
    blank[best] = blank[-1]
    blank.pop()
    row, column, square = units[cell]
    for bit in order(options) if order else _bits(options):
        board[cell] = bit
        used[row] |= bit
        used[column] |= bit
        used[square] |= bit
        if _fill(board, blank, used, units, everything, order):
            return True
        used[row] ^= bit
        used[column] ^= bit
        used[square] ^= bit
    board[cell] = 0
    blank.append(cell)
    blank[best], blank[-1] = blank[-1], blank[best]
    return False


def _bits(options: int) -> list[int]:
    return [1 << digit for digit in range(options.bit_length()) if options >> digit & 1]


def random_solution(box: int, chance: random.Random) -> list[int]:
    """Draw a full board."""

    def shuffled(options):
        bits = _bits(options)
        chance.shuffle(bits)
        return bits

    return solve([0] * box**4, box, shuffled)


def dig(solution: list[int], box: int, givens: int, chance: random.Random) -> list[int]:
    """Blank cells in random order while the solution stays the only one, down to `givens` or as far as it goes."""
    board, units, blank = list(solution), units_of_cells(box), []
    everything = (1 << box * box) - 1
    used = [everything] * (3 * box * box)
    for cell in chance.sample(range(len(board)), len(board)):
        if len(board) - len(blank) == givens:
            break
        bit = board[cell]
        for unit in units[cell]:
            used[unit] ^= bit
        row, column, square = units[cell]
        others = everything & ~(used[row] | used[column] | used[square] | bit)
        if any(_solvable(board, blank, used, units, cell, other, everything) for other in _bits(others)):
            for unit in units[cell]:
                used[unit] ^= bit
        else:
            board[cell] = 0
            blank.append(cell)
    return board


def _solvable(board, blank, used, units, cell, bit, everything) -> bool:
    """Return whether the board has a solution with this digit in the cell; nothing is changed."""
    used = list(used)
    for unit in units[cell]:
        used[unit] |= bit
    return _fill(list(board), list(blank), used, units, everything, None)


def split_of(board: list[int], solution: list[int], box: int) -> str:
    """Return the split that a puzzle belongs to, by what no symmetry (see `symmetric`) changes.

    That is the solution's class. Boards of 2 x 2 boxes have only two classes, so there the pattern of givens counts
    too.
    """
    side = box * box
    lines = [solution[i : i + side] for i in range(0, side * side, side)]
    columns = list(zip(*lines, strict=True))
    places = [[line.index(1 << digit) for line in lines] for digit in range(side)]
    parts = [_cycles(places), sorted([_cycles(lines), _cycles(columns)])]
    if box < 3:
        parts.append(_pattern(board, box))
    return SPLIT_OF_CLASS[hashlib.blake2b(repr(parts).encode()).digest()[0] % len(SPLIT_OF_CLASS)]


def _cycles(rows) -> list:
    """Return the lengths of the cycles of each permutation after the inverse of each other one, all sorted."""
    found = []
    for one, other in combinations(rows, 2):
        step, lengths = dict(zip(one, other, strict=True)), []
        while step:
            start, place = next(iter(step.items()))
            del step[start]
            length = 1
            while place != start:
                place, length = step.pop(place), length + 1
            lengths.append(length)
        found.append(sorted(lengths))
    return sorted(found)


def _pattern(board, box) -> list:
    """Return how many givens each digit, the rows of each band and the columns of each stack have, sorted."""
    side = box * box
    digits = sorted(board.count(1 << digit) for digit in range(side))
    given = [[int(bit > 0) for bit in board[i : i + side]] for i in range(0, side * side, side)]
    counts = [[sum(line) for line in lines] for lines in (given, zip(*given, strict=True))]
    bands = [sorted(sorted(each[i : i + box]) for i in range(0, side, box)) for each in counts]
    return [digits, sorted(bands)]


@lru_cache(maxsize=16)
def base_puzzles(box: int, fewest: int, most: int, split: str, count: int) -> Boards:
    """Make `count` puzzles of the split's classes, with uniformly fewest .. most givens, or as few as can be reached.

    6 ms each at 31 to 42 givens, 20 ms where nothing more can be blanked; made once in a process.
    """
    chance = random.Random(derive_seed(f"{split} sudoku", box, fewest, most))
    puzzles = []
    while len(puzzles) < count:
        solution = random_solution(box, chance)
        if box >= 3 and split_of(solution, solution, box) != split:
            continue
        board = dig(solution, box, chance.randint(fewest, most), chance)
        if box >= 3 or split_of(board, solution, box) == split:
            puzzles.append(([bit.bit_length() - 1 for bit in solution], [bit > 0 for bit in board]))
    side = box * box
    solutions, givens = (torch.tensor(part).view(count, side, side) for part in zip(*puzzles, strict=True))
    return Boards(solutions.to(torch.uint8), givens, "generated")


def symmetric(solution, given, box: int, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply random symmetries to boards (B, s, s), which keep them valid and their solution the only one.

    Digits get new names; bands, rows within bands, stacks and columns within stacks change places; half the boards are
    transposed.
    """
    count, side, device = len(solution), box * box, solution.device
    names = permutations(count, side, generator, device)
    boards = torch.stack([names.gather(1, solution.flatten(1).long()).view_as(solution), given.long()], 1)
    for axis in (2, 3):
        lines = _lines_by_band(count, box, generator, device)
        index = lines[:, None, :, None] if axis == 2 else lines[:, None, None]
        boards = boards.gather(axis, index.expand_as(boards))
    turned = torch.rand(count, 1, 1, 1, generator=generator, device=device) < 0.5
    boards = torch.where(turned, boards.mT, boards)
    return boards[:, 0], boards[:, 1] > 0


def _lines_by_band(count, box, generator, device) -> torch.Tensor:
    """Draw orders of the rows (B, s) that keep bands together."""
    bands = permutations(count, box, generator, device)
    within = permutations(count * box, box, generator, device).view(count, box, box)
    return (bands[..., None] * box + within).flatten(1)
