"""A trained model in use: loaded from each kind of folder, asked for inverses, refusing what it cannot do."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import assert_same_weights, make_diffusion

import train
from dataset import Inverse
from diffusion_lib.inference import load_model, solve
from diffusion_lib.system.errors import CheckpointError, ConfigError, exit_status
from experiments import solve as solve_command
from experiments.matrix_inversion_mining_comparison import main as compare

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published" / "matrix-energy"
RUN = "small/runs/random/seed-2"  # of the comparison below
N = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the comparison, in RUN, and runs of train.py, in `single` and `addition`."""
    folder = tmp_path_factory.mktemp("trained")
    tiny = ["--rank", str(N), "--train-steps", "12", "--evaluation-size", "64", "--device", "cpu"]
    one_run = ["--strategies", "random", "--seeds", "2", "--at-once", "1", "--run", "0"]
    assert compare([*tiny, *one_run, "--batch-size", "16", "--results", str(folder), "--name", "small"]) == 0
    tiny += ["--batch_size", "16", "--save-every", "6", "--seed", "4"]
    for name, options in (
        ("single", ["--ood", "--model", "matrix", "--mining-mode", "adversarial", "--use-innerloop-opt", "True"]),
        ("addition", ["--dataset", "addition"]),
    ):
        assert train.main([*tiny, *options, "--results-folder", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def published():
    return load_model(PUBLISHED)


@pytest.mark.parametrize(("name", "mode"), [("matrix-energy", "none"), ("matrix-energy-mined", "adversarial")])
def test_the_published_models_invert(name, mode):
    model, a = load_model(PUBLISHED.with_name(name)), drawn(20)
    assert model.mining.mode == mode
    assert residuals(a, solve(model, a)).mean() < 1e-2


def drawn(count: int, n: int = 20, ridge: float | None = None) -> np.ndarray:
    """Matrices of the training distribution, as a user would have them: float64."""
    inp, _ = Inverse("test", n, ridge=ridge).sample(count, torch.Generator().manual_seed(7), dtype=torch.float64)
    return inp.view(-1, n, n).numpy()


def residuals(a, y):
    return np.linalg.norm(a @ y - np.eye(a.shape[-1]), axis=(-2, -1))


@pytest.mark.parametrize("run", [RUN, "single"])
def test_the_averaged_weights_of_a_run_in_each_kind_of_folder(trained, run):
    state = torch.load(trained / run / "last.pt", weights_only=True)["ema"]
    averaged = {key.removeprefix("ema_model."): value for key, value in state.items() if key.startswith("ema_model.")}
    before = torch.get_rng_state()
    model = load_model(str(trained / run))
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert_same_weights(model.state_dict(), averaged)
    assert_same_weights(load_model(trained / run / "last.pt").state_dict(), averaged)


def test_the_averaged_weights_of_the_runs_here_are_others_than_the_last(trained):
    """Else the test above would not tell them apart."""
    last = torch.load(trained / RUN / "last.pt", weights_only=True)["model"]
    assert not torch.equal(load_model(trained / RUN).model.ebm.fc2.weight, last["model.ebm.fc2.weight"])


def test_the_model_is_as_config_json_says(trained):
    model, single = load_model(trained / RUN), load_model(trained / "single")
    assert (type(model.model.ebm).__name__, model.mining.mode, model.bound) == ("EBM", "random", 2.0)
    assert (model.task.ridge, model.use_innerloop_opt) == (0.5, False)
    assert (type(single.model.ebm).__name__, single.mining.mode, single.bound) == ("MatrixEBM", "adversarial", 10.0)
    assert (single.task.ridge, single.use_innerloop_opt) == (0.1, True)


def test_other_checkpoints_of_the_folder(trained, tmp_path):
    shutil.copytree(trained / "single", tmp_path / "run")
    shutil.move(tmp_path / "run" / "last.pt", tmp_path / "run" / "model-6.pt")
    assert_same_weights(
        load_model(tmp_path / "run" / "model-6.pt").state_dict(), load_model(trained / "single").state_dict()
    )
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*last\.pt"):
        load_model(tmp_path / "run")


def test_what_is_no_run_is_named(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"no run at .*typo"):
        load_model(tmp_path / "typo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json in .*empty"):
        load_model(tmp_path / "empty")
    run = tmp_path / "run"
    shutil.copytree(trained / RUN, run)
    recorded = json.loads((run / "config.json").read_text())
    for changes, error, message in (
        ({"model": "matrix"}, CheckpointError, r"last\.pt holds another model"),
        ({"model": "cnn"}, ConfigError, "model is 'cnn'; allowed: mlp"),
        ({"dataset": "nothing"}, ConfigError, "dataset is 'nothing'; allowed: inverse"),
    ):
        (run / "config.json").write_text(json.dumps({"config": recorded["config"] | changes}))
        with pytest.raises(error, match=message):
            load_model(run)
    for content, message in (
        ("{}", r"config\.json is not of a run: it lacks rank, model, seed"),
        ("{", "not valid JSON"),
    ):
        (run / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_model(run)
    (run / "last.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read as a checkpoint"):
        load_model(run)


def test_the_published_model_inverts_without_a_warning(published):
    a = drawn(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for innerloop in (True, False):
            assert residuals(a, solve(published, a, innerloop=innerloop)).max() < 1e-2


@pytest.mark.parametrize("n", [1, 10, 30])
def test_weights_that_know_nothing_of_n_invert_other_sizes(published, n):
    a = drawn(40, n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert residuals(a, solve(published, a)).max() < 1e-2
    with pytest.warns(UserWarning, match=rf"^1 of 1 matrices .*largest eigenvalue .*in training's task at n = {n} "):
        solve(published, 9 * a[0])


def test_a_size_far_from_the_trained_one_is_warned_of(published):
    with pytest.warns(UserWarning, match=r"^n is 41, and training's was 20: the errors may be large$") as warned:
        solve(published, drawn(1, 41))
    assert len(warned) == 1 and warned[0].filename == __file__


def test_the_answer_has_the_shape_and_type_of_the_question(published):
    a = drawn(3)
    reference = solve(published, a)
    assert (reference.dtype, reference.shape) == (np.float64, (3, 20, 20))
    one = solve(published, a[1])
    assert one.shape == (20, 20)
    np.testing.assert_allclose(one, reference[1], atol=1e-4)
    assert solve(published, a.astype(np.float32)).dtype == np.float32
    tensor = torch.from_numpy(a).requires_grad_()
    answer = solve(published, tensor)
    assert (type(answer), answer.dtype, answer.requires_grad) == (torch.Tensor, torch.float64, False)
    np.testing.assert_array_equal(answer.numpy(), reference)
    assert solve(published, torch.from_numpy(a[0]).float()).shape == (20, 20)
    np.testing.assert_array_equal(solve(published, np.asfortranarray(a)), reference)


def test_seed_and_sampler_decide_the_answer_and_nothing_else_does(trained):
    model, a = load_model(trained / RUN), drawn(5, N)
    first = solve(model, a)
    torch.manual_seed(99)
    np.testing.assert_array_equal(solve(model, a), first)
    np.testing.assert_allclose(solve(model, a, batch_size=2), first, rtol=1e-4, atol=1e-5)
    assert not np.allclose(solve(model, a, seed=1), first, atol=1e-3)
    assert not np.allclose(solve(model, a, innerloop=False), first, atol=1e-3)


def asymmetric():
    a = drawn(4, N)
    a[2, 0, 1] += 0.5
    return a


def with_entry(value):
    a = drawn(4, N)
    a[1, 0, 0] = value
    return a


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (drawn(2, 4), r"A has shape \(2, 4, 4\); this model takes \(3, 3\) or \(B, 3, 3\)"),
        (np.ones(9), r"A has shape \(9,\)"),
        (np.ones((0, 3, 3)), r"A has shape \(0, 3, 3\)"),
        (np.ones((1, 2, 3, 3)), r"A has shape \(1, 2, 3, 3\)"),
        (with_entry(np.nan), "not finite in float32, first in matrix 1"),
        (with_entry(1e39), "not finite in float32, first in matrix 1"),
        (asymmetric(), r"matrix 2 of A is not symmetric: \|A - A\^T\| reaches"),
        (np.eye(3, dtype=int), "A is int64; allowed: a NumPy array or a tensor of floating-point numbers"),
        (torch.eye(3, dtype=torch.complex64), "A is torch.complex64; allowed"),
        (np.eye(3).tolist(), "A is list; allowed"),
        (scipy.sparse.csr_array(np.eye(3)), "A is csr_array; allowed: a NumPy array or a tensor"),
        (torch.eye(3).to_sparse(), r"A is torch.sparse_coo; allowed: a dense tensor, as of A.to_dense\(\)"),
        (torch.eye(3).to("meta"), "A is on meta, without data"),
        (torch.nested.nested_tensor([torch.eye(3), torch.eye(3)]), "A is a nested tensor"),
        (np.ma.masked_array(np.eye(3), np.eye(3)), "A has masked entries"),
    ],
)
def test_what_it_cannot_invert_is_named(trained, a, message):
    with pytest.raises(ConfigError, match=message):
        solve(load_model(trained / RUN), a)


def test_models_and_options_that_do_not_serve(trained):
    with pytest.raises(ConfigError, match="trained on Addition; allowed: one trained on Inverse"):
        solve(load_model(trained / "addition"), drawn(1, N))
    with pytest.raises(ConfigError, match="does not say its task"):
        solve(make_diffusion(N), drawn(1, N))
    with pytest.raises(ConfigError, match="batch_size is 0; allowed: a whole number from 1"):
        solve(load_model(trained / RUN), drawn(1, N), batch_size=0)
    with pytest.raises(ConfigError, match=r"seed is 1\.5; allowed: a whole number from 0"):
        solve(load_model(trained / RUN), drawn(1, N), seed=1.5)
    solve(load_model(trained / RUN), drawn(2, N), batch_size=np.int64(1), seed=np.int64(3))


@pytest.mark.parametrize("n", [20, 41])
def test_answers_that_are_no_numbers_are_counted(published, n):
    a = drawn(3, n)
    a[1] = -a[1]
    with pytest.warns(UserWarning) as warned:
        inverses = solve(published, a)
    assert [not np.isfinite(each).all() for each in inverses] == [False, True, False]
    assert str(warned[-1].message) == "1 of 3 inverses are not finite, first that of matrix 1"
    assert warned[-1].filename == __file__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a - 0.4 * np.eye(20), r"^2 of 3 .* distribution: smallest eigenvalue 0\.1\d* to .*training 0\.5 "),
        (lambda a: 3 * a, r"largest eigenvalue .* \(in training .*; trace "),
        (lambda a: 25 * np.eye(20) + 0 * a, r"smallest eigenvalue 25 to 25 .*; trace 500 to 500 \(in training "),
    ],
    ids=["a smaller ridge", "larger entries", "the identity"],
)
def test_matrices_unlike_those_of_training_are_warned_of(published, change, message):
    a = drawn(3)
    a[:2] = change(a[:2])
    with pytest.warns(UserWarning, match=message) as warned:
        solve(published, a)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert warned[0].filename == __file__


def command(*arguments):
    line = [sys.executable, str(ROOT / "experiments" / "solve.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_the_command_writes_the_inverses(tmp_path):
    a = drawn(4)
    np.save(tmp_path / "a.npy", a)
    done = command(PUBLISHED, tmp_path / "a.npy")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith(f"run {PUBLISHED} | matrices {tmp_path / 'a.npy'} | sampler innerloop | device cpu")
    y = np.load(tmp_path / "a.inverse.npy")
    assert (y.dtype, y.shape) == (a.dtype, a.shape)
    errors = residuals(a, y)
    assert "shape (4, 20, 20), sampler innerloop" in done.stdout
    assert f"||A Y - I||_F: mean {errors.mean():.3g}, worst {errors.max():.3g}" in done.stdout
    assert errors.max() < 1e-2


def test_the_command_reads_a_pipe(tmp_path):
    np.save(tmp_path / "a.npy", drawn(2, 10))
    arguments = [PUBLISHED, "/dev/stdin", "--output", tmp_path / "y.npy"]
    line = [sys.executable, str(ROOT / "experiments" / "solve.py"), *arguments]
    with subprocess.Popen(["cat", tmp_path / "a.npy"], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(line, stdin=cat.stdout, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), solve(load_model(PUBLISHED), drawn(2, 10)))


def test_the_command_warns_overwrites_when_told_and_takes_the_plain_sampler(tmp_path):
    np.save(tmp_path / "a.npy", drawn(1, ridge=0.2)[0])
    (tmp_path / "y.npy").write_bytes(b"mine")
    arguments = [PUBLISHED, tmp_path / "a.npy", "--sampler", "plain", "--output", tmp_path / "y.npy"]
    refused = command(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: ") and "--overwrite" in refused.stderr
    assert (tmp_path / "y.npy").read_bytes() == b"mine"
    done = command(*arguments, "--overwrite")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1].startswith("warning: 1 of 1 matrices") and done.stderr.count("\n") == 2
    assert "sampler plain" in done.stdout
    assert np.load(tmp_path / "y.npy").shape == (20, 20)


def test_the_command_names_bad_input_in_one_line_and_writes_nothing(tmp_path, capsys):
    np.save(tmp_path / "good.npy", drawn(1))
    np.save(tmp_path / "shape.npy", np.ones((1, 4, 5)))
    np.save(tmp_path / "nan.npy", np.full((20, 20), np.nan))
    np.save(tmp_path / "asymmetric.npy", np.triu(np.ones((20, 20))))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", drawn(1))
    (tmp_path / "text.npy").write_text("1 0\n0 1\n")
    good = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "two.npy").write_bytes(good + good)
    (tmp_path / "syntax.npy").write_bytes(good.replace(b"'<f8'", b"',f8'", 1))
    (tmp_path / "parenthesis.npy").write_bytes(good.replace(b"}", b" ", 1))
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "half.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:300])
    before = sorted(tmp_path.iterdir())
    for run, matrix, message in (
        (tmp_path / "none", "good.npy", "no run at"),
        (tmp_path, "good.npy", "no config.json in"),
        (PUBLISHED, "absent.npy", "no file at"),
        (PUBLISHED, "text.npy", "cannot be read as a .npy file"),
        (PUBLISHED, "several.npz", "cannot be read as a .npy file"),
        (PUBLISHED, "half.npy", "cannot be read as a .npy file"),
        (PUBLISHED, "objects.npy", "cannot be read as a .npy file"),
        (PUBLISHED, "syntax.npy", "cannot be read as a .npy file"),
        (PUBLISHED, "parenthesis.npy", "cannot be read as a .npy file"),
        (PUBLISHED, "two.npy", "goes on after its first array"),
        (PUBLISHED, ".", "is a pipe or a folder"),
        (PUBLISHED, "pipe.npy", "give --output"),
        (PUBLISHED, "shape.npy", "A has shape (1, 4, 5); this model takes (n, n) or (B, n, n)"),
        (PUBLISHED, "nan.npy", "not finite"),
        (PUBLISHED, "asymmetric.npy", "not symmetric"),
    ):
        with pytest.raises(SystemExit) as stop, exit_status():
            solve_command.main([str(run), str(tmp_path / matrix)])
        said = capsys.readouterr()
        assert stop.value.code == 2
        *header, error = said.err.splitlines()
        assert error.startswith("error: ") and message in error
        assert all(line.startswith("run ") for line in header) and len(header) <= 1
        assert said.out == ""
    assert sorted(tmp_path.iterdir()) == before
