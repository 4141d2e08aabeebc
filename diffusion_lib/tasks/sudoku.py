"""Sudoku (IRED, section 4.2): boards from published files where they are there, else made ones; see files, puzzles."""

from typing import ClassVar

import torch
from einops import reduce, repeat

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.base import Rules, Task
from diffusion_lib.tasks.corruption import ChangedCells
from diffusion_lib.tasks.encoding import one_hot_signs, signs
from diffusion_lib.tasks.files import Boards, rrn_sudoku, satnet_sudoku
from diffusion_lib.tasks.metrics import board_scores, ratio, units
from diffusion_lib.tasks.puzzles import base_puzzles, symmetric

BANDS = ((0, 24), (25, 30), (31, 81))  # numbers of givens that boards are reported by


class Sudoku(Task):
    """A puzzle and its solution on s x s boards, s = rank^2, both (s^3,) in signs.

    rank: the size of a box, 2 or 3.
    Cells come row by row, the s digits of each innermost; a blank cell is all -1. `mask` is 1 at all digits of a given
    cell. Examples are SATNet's puzzles (31 to 42 givens), and RRN's (17 to 34) for the harder set, where there are
    files. Else they are made: `pool_size` puzzles of the split's own classes, with 31 to 42 givens, or 22 to 34 for the
    harder set (blanking reaches no fewer), each seen under random symmetries without end. At rank 2 givens are in
    proportion.

    Scores: see metrics.board_scores, and `solved` by the number of givens.
    """

    model = "sudoku"
    least_rank, default_rank = 2, 3
    givens: ClassVar[tuple[int, int]] = (31, 42)
    harder_givens: ClassVar[tuple[int, int]] = (22, 34)
    pool_size: ClassVar[dict[str, int]] = {"train": 2000, "val": 1000, "test": 1000}
    rules = Rules(bound=1.0, candidate_bound=2.0, inner_steps=20, contrast_weight=0.05, corruption=ChangedCells())
    recipe: ClassVar[dict] = {"batch_size": 64, "train_steps": 50_000}
    metrics = (
        "solved",
        "consistency",
        "accuracy",
        "board_accuracy",
        *(f"solved_{low}_to_{high}_givens" for low, high in BANDS),
    )
    higher_is_better = frozenset(metrics)

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        if self.rank > 3:
            raise ConfigError(f"rank is {self.rank}; allowed: 2 or 3, the size of a box")
        self.side = self.rank**2
        self.inp_dim = self.out_dim = self.side**3
        self.inp_shape = self.out_shape = (self.inp_dim,)
        self.file = self.published() if self.rank == 3 else None
        self.moved: dict[str, Boards] = {}
        self.source = self.file.source if self.file else "stand-in: generated puzzles"

    def published(self) -> Boards | None:
        """Return the file's puzzles, or None without it."""
        return rrn_sudoku(self.split) if self.ood else satnet_sudoku(self.split)

    def boards(self, device="cpu") -> Boards:
        """Return the puzzles that batches are drawn from, moved to a device once."""
        if str(device) not in self.moved:
            solution, given, source = self.file or self.stand_in()
            self.moved[str(device)] = Boards(solution.to(device), given.to(device), source)
        return self.moved[str(device)]

    def stand_in(self) -> Boards:
        """Make puzzles in place of the published ones."""
        low, high = self.harder_givens if self.ood else self.givens
        cells = self.side**2
        return base_puzzles(self.rank, low * cells // 81, high * cells // 81, self.split, self.pool_size[self.split])

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        boards = self.boards(device)
        rows = torch.randint(len(boards.solution), (batch_size,), generator=generator, device=device)
        solution, given = boards.solution[rows].long(), boards.given[rows]
        if not self.file:
            solution, given = symmetric(solution, given, self.rank, generator)
        target = one_hot_signs(solution, self.side, dtype)
        return torch.where(given[..., None], target, -1).flatten(1), target.flatten(1)

    def mask(self, inp):
        given = reduce(inp, "b (cell digit) -> b cell", "max", digit=self.side) > 0
        return repeat(given.to(inp.dtype), "b cell -> b (cell digit)", digit=self.side)

    def score(self, inp, target, prediction):
        scores = board_scores(target, prediction, self.mask(inp))
        givens = self.side**2 - scores["blank"]
        for low, high in BANDS:
            inside = ((low <= givens) & (givens <= high)).double()
            scores |= {f"of_{low}": inside, f"solved_of_{low}": inside * scores["solved"]}
        return scores

    def derived(self, means):
        by_givens = {
            f"solved_{low}_to_{high}_givens": ratio(means[f"solved_of_{low}"], means[f"of_{low}"])
            for low, high in BANDS
        }
        return by_givens | {"accuracy": ratio(means["right"], means["blank"])}

    def reference_predictions(self, inp, generator):
        """Predict what follows from the givens without guessing: see `propagate`."""
        return {"propagation": signs(propagate(inp.unflatten(1, (self.side,) * 3) > 0), inp.dtype).flatten(1)}

    def draw(self, axes, inp, target, prediction):
        """Draw the predicted board: givens black, right digits blue, wrong ones red."""
        shape = (self.side**2, self.side)
        given = self.mask(inp[None]).view(shape)[:, 0] > 0
        digits, right = (part.view(shape).argmax(1) for part in (prediction, target))
        for cell, (digit, fixed, wanted) in enumerate(zip(digits, given, right, strict=True)):
            colour = "black" if fixed else "tab:blue" if digit == wanted else "red"
            row, column = divmod(cell, self.side)
            weight = "bold" if fixed else "normal"
            axes.text(
                column + 0.5, row + 0.5, str(int(digit) + 1), color=colour, weight=weight, ha="center", va="center"
            )
        for line in range(self.side + 1):
            width = 2 if line % self.rank == 0 else 0.5
            axes.plot([line, line], [0, self.side], color="black", linewidth=width)
            axes.plot([0, self.side], [line, line], color="black", linewidth=width)
        axes.set(
            xlim=(0, self.side), ylim=(self.side, 0), aspect="equal", title=f"wrong cells: {(digits != right).sum()}"
        )
        axes.axis("off")


class SudokuRRN(Sudoku):
    """RRN's puzzles with 17 to 34 givens, equally many of each; made ones have 22 to 34. Harder: as few as can be.

    The release tests on the split that it chooses models by; here val and test are apart.
    """

    givens = (22, 34)
    harder_givens = (17, 24)

    def published(self):
        boards = rrn_sudoku(self.split)
        if boards is None or not self.ood:
            return boards
        few = boards.given.flatten(1).sum(1) <= self.harder_givens[1]
        return Boards(
            boards.solution[few], boards.given[few], f"{boards.source}, at most {self.harder_givens[1]} givens"
        )


def propagate(given: torch.Tensor) -> torch.Tensor:
    """Fill in boards (B, s, s, s) bool, digits last, as far as single candidates go; all else stays blank.

    A cell with one possible digit gets it, and so does the only cell for a digit in a row, column or box.
    """
    known = given
    while True:
        possible = ~known.any(3, keepdim=True) & ~_seen(known)
        single = possible & (possible.sum(3, keepdim=True) == 1)
        alone = possible & _spread([unit.sum(2, keepdim=True) == 1 for unit in _units(possible)])
        new = single | alone
        if not new.any():
            return known
        known = known | new


def _units(flags):
    """Return the rows, columns and boxes of (B, s, s, digits), each (B, unit, place, digits)."""
    parts = [units(each) for each in flags.unbind(3)]
    return [torch.stack(part, 3) for part in zip(*parts, strict=True)]


def _seen(known):
    return _spread([unit.any(2, keepdim=True) for unit in _units(known)])


def _spread(flags):
    """Return whether a cell's row, column or box has its flag: three of (B, unit, 1, digits) to (B, s, s, digits)."""
    side = flags[0].shape[1]
    box = round(side**0.5)
    rows, columns, boxes = flags
    spread = "b (down across) 1 digit -> b (down row) (across column) digit"
    boxes = repeat(boxes, spread, down=box, row=box, column=box)
    return rows | columns.transpose(1, 2) | boxes
