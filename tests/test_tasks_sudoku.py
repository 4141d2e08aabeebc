"""Sudoku: made puzzles have one solution, symmetries keep it, splits share no class; published files are read."""

import gzip
import random
import re

import pytest
import torch

from dataset import Parity20, Sudoku, SudokuRRN
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import files
from diffusion_lib.tasks.metrics import board_is_valid
from diffusion_lib.tasks.puzzles import base_puzzles, dig, random_solution, split_of, symmetric
from diffusion_lib.tasks.sudoku import propagate

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    monkeypatch.setattr(Sudoku, "pool_size", dict.fromkeys(SPLITS, 40))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(task, count=24):
    return task.sample(count, seeded_generator("test", 21))


def boards(task, inp, target):
    """Digits from 1, 0 for a blank, of puzzles and solutions."""
    size = task.side
    solution = target.view(-1, size, size, size).argmax(3) + 1
    return solution * (task.mask(inp).view(-1, size, size, size)[..., 0] > 0), solution


def count_solutions(board: list[list[int]], box: int, limit=2) -> int:
    """By trying every digit in the blank cell with the fewest."""
    size = box * box
    best = None
    for r in range(size):
        for c in range(size):
            if not board[r][c]:
                seen = set(board[r]) | {row[c] for row in board}
                top, left = r // box * box, c // box * box
                seen |= {board[i][j] for i in range(top, top + box) for j in range(left, left + box)}
                free = [digit for digit in range(1, size + 1) if digit not in seen]
                if best is None or len(free) < len(best[2]):
                    best = (r, c, free)
    if best is None:
        return 1
    r, c, free = best
    found = 0
    for digit in free:
        board[r][c] = digit
        found += count_solutions(board, box, limit - found)
        board[r][c] = 0
        if found >= limit:
            break
    return found


@pytest.mark.parametrize(
    ("task", "least", "most"),
    [
        (Sudoku("train"), 31, 42),
        (SudokuRRN("val"), 22, 34),
        (Sudoku("val", 2), 6, 8),
        (Sudoku("test", 2, ood=True), 4, 6),
    ],
    ids=["train", "rrn", "boxes of 2", "harder, boxes of 2"],
)
def test_puzzles_have_one_solution(task, least, most):
    inp, target = drawn(task)
    puzzles, solutions = boards(task, inp, target)
    assert board_is_valid(solutions - 1).all()
    for puzzle in puzzles:
        assert count_solutions(puzzle.tolist(), task.rank) == 1
    givens = (puzzles > 0).flatten(1).sum(1)
    assert least <= givens.min() < givens.max() <= most
    given = task.mask(inp) > 0
    assert torch.equal(inp[given], target[given])
    assert (inp[~given] == -1).all()
    assert torch.equal(given.sum(1), givens * task.side)


def test_harder_puzzles_have_fewer_givens():
    easy, hard, hardest = (
        task.mask(drawn(task, 40)[0]).sum().item() / 9 / 40
        for task in (Sudoku("val"), Sudoku("val", ood=True), SudokuRRN("val", ood=True))
    )
    assert 34 < easy < 39
    assert 25 < hard < 31
    assert 22 <= hardest < 26


def test_digging_goes_as_far_as_it_can():
    chance = random.Random(3)
    solution = random_solution(3, chance)
    board = dig(solution, 3, 0, chance)
    assert sum(bit > 0 for bit in board) < 30
    for cell, bit in enumerate(board):
        if bit:
            fewer = [0 if i == cell else each.bit_length() for i, each in enumerate(board)]
            assert count_solutions([fewer[i : i + 9] for i in range(0, 81, 9)], 3) == 2


@pytest.mark.parametrize("box", [2, 3])
def test_symmetries_keep_what_a_split_is_told_by(box):
    side = box * box
    pools = {split: base_puzzles(box, (box + 1) * side, (box + 1) * side + 2, split, 30) for split in SPLITS}
    for split, pool in pools.items():
        solution, given = symmetric(pool.solution, pool.given, box, seeded_generator("test", 22))
        assert board_is_valid(solution).all()
        assert torch.equal(given.flatten(1).sum(1), pool.given.flatten(1).sum(1))
        assert not torch.equal(solution, pool.solution.long())
        for digits, known in zip(solution.flatten(1).tolist(), given.flatten(1).tolist(), strict=True):
            bits = [1 << digit for digit in digits]
            board = [bit if fixed else 0 for bit, fixed in zip(bits, known, strict=True)]
            assert split_of(board, bits, box) == split


def test_symmetries_reach_every_kind_of_change():
    boards = (torch.arange(81).view(1, 9, 9) % 9).expand(400, 9, 9)
    given = torch.zeros(400, 9, 9, dtype=torch.bool)
    given[:, 0, 4] = True
    moved, places = symmetric(boards, given, 3, seeded_generator("test", 23))
    assert len(places.flatten(1).int().argmax(1).unique()) == 81  # any cell can become any other
    turned = (moved == moved[:, :, :1]).all(2).all(1).float().mean()
    assert turned.item() == pytest.approx(0.5, abs=0.1)


def test_propagation_finds_what_follows_and_nothing_else():
    task = Sudoku("val", ood=True)
    inp, target = drawn(task, 40)
    filled = propagate(inp.view(-1, 9, 9, 9) > 0)
    right = target.view(-1, 9, 9, 9) > 0
    assert not (filled & ~right).any()
    share = filled.any(3).flatten(1).all(1).double().mean()
    assert 0.2 < share < 1  # some need a guess
    guess = task.reference_predictions(inp, None)["propagation"]
    scores = task.score(inp, target.double(), guess)
    assert scores["solved"].mean() >= share


def test_bands_of_givens():
    task = Sudoku("val", ood=True)
    inp, target = drawn(task, 40)
    broken = torch.where((task.mask(inp).sum(1, keepdim=True) <= 30 * 9) & (task.mask(inp) == 0), -target, target)
    ours = task.summary({k: v.mean().item() for k, v in task.score(inp, target.double(), broken).items()})
    assert ours["solved_31_to_81_givens"] == 1
    assert ours["solved_25_to_30_givens"] == ours["solved_0_to_24_givens"] == 0
    assert 0 < ours["solved"] < 1
    scores = task.score(inp, target.double(), target)
    assert (sum(values for name, values in scores.items() if name.startswith("of_")) == 1).all()


def test_one_wrong_cell_is_not_solved():
    task = Sudoku("val", 2)
    inp, target = drawn(task)
    blank = (inp.view(-1, 16, 4) < 0).all(2).int().argmax(1)
    cells = target.view(-1, 16, 4).clone()
    cells[range(24), blank] = cells[range(24), blank].roll(1, 1)
    scores = task.score(inp, target.double(), cells.flatten(1))
    assert scores["solved"].max() == scores["consistency"].max() == 0
    assert torch.equal(scores["right"], scores["blank"] - 1)


@pytest.mark.parametrize("rank", [2, 3])
def test_corruption_changes_blank_cells_only(rank):
    task = Sudoku("train", rank)
    inp, target = task.sample(300, seeded_generator("test", 24))
    mask = task.mask(inp)
    spoiled = task.rules.corruption(target, seeded_generator("test", 25), mask=mask)
    changed = spoiled != target
    assert not changed[mask > 0].any()
    cells = changed.view(300, -1, task.side).any(2).sum(1)
    assert cells.min() == 1
    blank = (mask == 0).sum(1) / task.side
    assert (cells / blank).mean().item() == pytest.approx(0.05 if rank == 3 else 0.12, abs=0.03)
    assert (spoiled.view(300, -1, task.side) > 0).sum(2).unique().tolist() == [1]


def satnet(folder, count=40, form=lambda values: values):
    """Files of the published form, with made puzzles."""
    pool = base_puzzles(3, 31, 42, "train", count)
    labels = torch.nn.functional.one_hot(pool.solution.long(), 9).float()
    folder.mkdir(parents=True)
    torch.save(form(labels * pool.given[..., None]), folder / "features.pt")
    torch.save(form(labels), folder / "labels.pt")
    return pool


FORMS = {
    "as published": lambda values: values,
    "bool": torch.Tensor.bool,
    "uint8": torch.Tensor.byte,
    "half": torch.Tensor.half,
    "double": torch.Tensor.double,
    "sparse": torch.Tensor.to_sparse,
    "signs": lambda values: 2 * values - 1,
    "parameter": torch.nn.Parameter,
    "flat": lambda values: values.flatten(1),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_satnets_tensors(here, form):
    pool = satnet(here / "data" / "sudoku", form=FORMS[form])  # the release's folder
    task = Sudoku("train")
    assert task.source == "SATNet's file data/sudoku/features.pt"
    assert torch.equal(task.boards().solution, pool.solution[:36])
    assert torch.equal(task.boards().given, pool.given[:36])
    assert task.sample(3)[0].dtype == torch.float32


def test_complex_numbers_are_no_boards(here):
    satnet(here / "data" / "sudoku", form=lambda values: values.to(torch.complex64))
    with pytest.raises(ConfigError, match=r"data/sudoku/features.pt is damaged: it holds no tensor of real numbers"):
        Sudoku("train")


def test_satnets_file(here):
    pool = satnet(here / "data" / "satnet" / "sudoku")
    parts = {split: Sudoku(split) for split in SPLITS}
    assert [len(parts[split].boards().solution) for split in SPLITS] == [36, 2, 2]
    assert parts["train"].source == "SATNet's file data/satnet/sudoku/features.pt"
    puzzles, solutions = boards(parts["test"], *drawn(parts["test"]))
    published = {tuple(each.flatten().tolist()) for each in pool.solution[-2:] + 1}
    assert {tuple(each.flatten().tolist()) for each in solutions} == published  # as they are, no symmetries
    assert (puzzles > 0).flatten(1).sum(1).min() >= 31
    assert Sudoku("train", 2).source == Sudoku("train", ood=True).source == "stand-in: generated puzzles"


def test_rrns_file(here):
    pool = base_puzzles(3, 22, 34, "train", 40)
    (here / "data" / "rrn").mkdir(parents=True)
    lines = list(lines_of(pool))
    (here / "data" / "rrn" / "valid.csv").write_text("\n".join(lines) + "\n")
    task = SudokuRRN("val")
    assert "RRN's file data/rrn/valid.csv" in task.source
    assert torch.equal(task.boards().solution, pool.solution)
    assert torch.equal(task.boards().given, pool.given)
    assert Sudoku("val", ood=True).source == task.source
    assert task.mask(drawn(SudokuRRN("val", ood=True))[0]).sum(1).max() <= 24 * 9
    assert SudokuRRN("train").source == "stand-in: generated puzzles"
    (here / "data" / "rrn" / "test.csv").write_text(lines[0] + "\n" + lines[1][:-1] + "\n")
    with pytest.raises(ConfigError, match=r"data/rrn/test.csv is damaged: row 2 is not 81 digits"):
        SudokuRRN("test")


def lines_of(pool):
    """RRN's lines."""
    for solution, given in zip(pool.solution.flatten(1) + 1, pool.given.flatten(1), strict=True):
        yield ",".join("".join(map(str, digits.tolist())) for digits in (solution * given, solution))


LAYOUTS = {
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "header": lambda text: "quizzes,solutions\n" + text,
    "dots": lambda text: text.replace("0", "."),
    "byte order mark": lambda text: "\ufeff" + text,
    "quoted": lambda text: re.sub(r"(\d{81})", r'"\1"', text),
    "tabs": lambda text: text.replace(",", "\t"),
    "more columns": lambda text: "id,puzzle,solution,clues\n" + re.sub(r"(?m)^(.+)$", r"7,\1,36", text),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["rrn/train.csv", "sudoku-rrn/train.csv", "sudoku-rrn/train.csv.gz"])
def test_layouts_of_the_lines(here, layout, name):
    pool = base_puzzles(3, 22, 34, "train", 40)
    content = LAYOUTS[layout]("\n".join(lines_of(pool)) + "\n").encode()
    path = here / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    task = SudokuRRN("train")
    assert task.source == f"RRN's file data/{name}"
    assert torch.equal(task.boards().solution, pool.solution)
    assert torch.equal(task.boards().given, pool.given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"quizzes,solutions\n", "it is empty"),
        (b"quizzes,solutions\n12,34\n", "row 2 is not 81 digits"),
        (b"12345,54321\n", "row 1 is not 81 digits"),
        (b"PK\x03\x04 a zip\nof another", "row 2 is not 81 digits"),
        (gzip.compress(b"quizzes,solutions\n", mtime=0)[:-9], r"gzip cannot read it \(EOFError\)"),
    ],
)
def test_what_is_no_table_of_boards_is_one_line(here, content, message):
    (here / "data" / "rrn").mkdir(parents=True)
    (here / "data" / "rrn" / "train.csv.zip").write_bytes(content)  # whatever it is called, it is not passed over
    with pytest.raises(ConfigError, match=f"data/rrn/train.csv.zip is damaged: {message}"):
        SudokuRRN("train")


@pytest.mark.parametrize("part", [0, 1], ids=["a given unlike the solution", "a solution with a digit twice"])
def test_wrong_solutions_in_a_file(here, part):
    pool = base_puzzles(3, 22, 34, "train", 40)
    (here / "data" / "rrn").mkdir(parents=True)
    solution = (pool.solution[0].flatten() + 1).tolist()
    puzzle = [digit if given else 0 for digit, given in zip(solution, pool.given[0].flatten(), strict=True)]
    cell = puzzle.index(0) if part else next(i for i, digit in enumerate(puzzle) if digit)
    (puzzle, solution)[part][cell] = solution[cell] % 9 + 1
    (here / "data" / "rrn" / "train.csv").write_text(",".join("".join(map(str, row)) for row in (puzzle, solution)))
    with pytest.raises(ConfigError, match=r"train.csv is damaged: the solution of puzzle 1 is wrong"):
        SudokuRRN("train")


def test_damaged_satnet_files(here):
    folder = here / "data" / "satnet" / "sudoku"
    satnet(folder)
    labels = (folder / "labels.pt").read_bytes()
    (folder / "labels.pt").write_bytes(labels[:1000])
    with pytest.raises(ConfigError, match=r"data/satnet/sudoku/labels.pt is damaged: torch cannot read it"):
        Sudoku("train")
    (folder / "labels.pt").unlink()
    with pytest.raises(ConfigError, match=r"labels.pt is missing; put both"):
        Sudoku("train")
    torch.save(torch.zeros(40, 81), folder / "labels.pt")
    with pytest.raises(ConfigError, match=r"its shape is \(40, 81\)"):
        Sudoku("train")


@pytest.mark.parametrize(
    "labels", [lambda odd: odd, lambda odd: odd[:, -1], lambda odd: odd[:, -1:].bool(), lambda odd: odd.to_sparse()]
)
def test_forms_of_the_parity_labels(here, labels):
    folder = here / "data" / "parity" / "20"  # the release's
    folder.mkdir(parents=True)
    bits = torch.randint(0, 2, (100, 20), generator=seeded_generator("test", 27))
    torch.save(bits.to_sparse(), folder / "features.pt")
    torch.save(labels(bits.cumsum(1) % 2), folder / "labels.pt")
    task = Parity20("train")
    assert task.source == "SATNet's file data/parity/20/features.pt"
    assert torch.equal(task.file.bits, bits[:90] > 0)
    assert torch.equal(task.file.odd[:, 0], bits[:90].sum(1) % 2 == 1)


def test_satnets_parity_file(here):
    folder = here / "data" / "satnet" / "parity" / "20"
    folder.mkdir(parents=True)
    bits = (torch.rand(100, 20, generator=seeded_generator("test", 26)) < 0.5).float()
    torch.save(bits, folder / "features.pt")
    torch.save(bits.cumsum(1) % 2, folder / "labels.pt")  # running parity: the last column counts
    train, test = Parity20("train"), Parity20("test")
    assert "SATNet's file" in train.source
    inp, target = drawn(test)
    assert len(inp.unique(dim=0)) == 5
    assert torch.equal((inp > 0).sum(1, keepdim=True) % 2 * 2.0 - 1, target)
    assert Parity20("test", ood=True).source == "generated"
    torch.save(1 - bits.cumsum(1) % 2, folder / "labels.pt")
    files._bits_of_split.cache_clear()
    with pytest.raises(ConfigError, match=r"labels.pt is damaged: its last column is not the parity"):
        Parity20("train")
