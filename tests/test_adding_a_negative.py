"""The worked example of docs/adding-a-negative.md is a mode: it trains, resumes, and its setting is one everywhere."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights, make_diffusion, make_trainer, weights

import train
from dataset import Inverse
from diffusion_lib.config import configure, current, setting_names
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.negatives import MODES, MiningConfig, mode
from diffusion_lib.run_folder import differences
from diffusion_lib.system.checks import setting
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.training.batches import stream_of
from experiments.matrix_inversion_mining_comparison import main
from experiments.study.flags import parse_command

PAGE = Path(__file__).resolve().parent.parent / "docs" / "adding-a-negative.md"


@pytest.fixture(autouse=True)
def jitter(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType("jitter")
    monkeypatch.setitem(sys.modules, "jitter", module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    yield
    MODES.pop("jitter")


def test_its_formula_is_what_trains():
    diffusion = make_diffusion(mining_config={"mode": "jitter", "spread": 0.25})
    batch = batches(diffusion, 0).batch(3)
    _, (_, _, distance) = diffusion(*batch)
    assert batch.drawn.shape == (8, 1, 9)
    expected = (batch.target + 0.25 * batch.drawn[:, 0]).clamp(-2, 2) - batch.target
    assert distance.item() == pytest.approx(expected.square().mean().item(), rel=1e-5)


def batches(diffusion, seed, **options):
    return stream_of(diffusion, Inverse("train", 3), 8, seed, torch.device("cpu"), **options)


def test_its_draws_are_a_function_of_seed_and_step():
    diffusion = make_diffusion(mining_config={"mode": "jitter"})
    forward, backward = batches(diffusion, 0), batches(diffusion, 0, workers=2)
    expected = [forward.batch(k) for k in range(4)]
    torch.manual_seed(5)
    for k in reversed(range(4)):
        assert torch.equal(backward.batch(k).drawn, expected[k].drawn)
    halves = [batches(diffusion, 0, rank=rank, world=2).batch(2).drawn for rank in range(2)]
    assert torch.equal(torch.cat(halves), expected[2].drawn)
    assert not torch.equal(expected[0].drawn, expected[1].drawn)
    assert not torch.equal(expected[0].drawn, batches(diffusion, 1).batch(0).drawn)
    without = batches(make_diffusion(mining_config={"mode": "random"}), 0).batch(2)
    assert without.drawn is None
    assert torch.equal(without.nce_noise, expected[2].nce_noise)
    assert not torch.equal(expected[2].drawn[:, 0], expected[2].nce_noise)


@pytest.mark.parametrize("stop", [1, 7])
def test_resume_equals_an_uninterrupted_run(tmp_path, stop):
    whole = make_trainer(tmp_path / "whole", mode="jitter")
    whole.train()
    first = make_trainer(tmp_path / "parts", mode="jitter")
    for _ in range(stop):
        first.run_one_step()
    first.save()
    torch.manual_seed(99)
    second = make_trainer(tmp_path / "parts", mode="jitter")
    second.load("last")
    second.train()
    assert second.step == 12
    assert_same_weights(weights(second.diffusion), weights(whole.diffusion))
    assert_same_weights(weights(second.ema), weights(whole.ema))


def test_its_setting_is_one_of_the_configuration():
    config = configure({"mode": "jitter", "spread": 0.1})
    assert config.mining == MiningConfig("jitter", spread=0.1) != MiningConfig("jitter")
    assert hash(config) == hash(config.change(spread=0.1)) and config.change(train_steps=7).mining.spread == 0.1
    recorded = json.loads(json.dumps(config.to_dict()))
    assert recorded["mining"]["spread"] == 0.1
    assert type(config).from_dict(recorded) == config
    del recorded["mining"]["spread"]  # as of a version without the setting
    assert type(config).from_dict(recorded).mining.spread == 0.3
    assert differences(recorded, config.to_dict()) == "spread (there 0.3, now 0.1)"


def test_other_modes_records_are_as_they_were():
    """Else a new mode would refuse earlier runs and checkpoints."""
    config = configure({"mode": "random"})
    assert "spread" not in config.to_dict()["mining"]
    assert current(config.to_dict())["mining"] == config.mining.to_dict()


def test_its_setting_is_a_flag_and_a_key_of_a_study(tmp_path):
    file = tmp_path / "own.toml"
    modes = {"baseline": "none", "random": "random", "jitter": "jitter"}
    lines = [f'{name} = {{mode = "{mode}"}}' for name, mode in modes.items()]
    file.write_text("\n".join(["[config]", "rank = 3", "[strategies]", *lines]))
    study = parse_command("", ["--study", str(file), "--vary", "spread=0.1,0.2"]).study
    assert list(study.variants()) == ["baseline", "random", "jitter,spread=0.1", "jitter,spread=0.2"]
    assert [each.config.mining.spread for each in study.variants().values()] == [0.3, 0.3, 0.1, 0.2]
    assert parse_command("", ["--study", str(file), "--spread", "0.4"]).study.config.mining.spread == 0.4
    file.write_text(file.read_text().replace('"jitter"', '"jitter", spread = 0.7'))
    study = parse_command("", ["--study", str(file)]).study
    assert study.variants()["jitter"].config.mining.spread == 0.7
    assert train.resolve(train.parse_arguments(["--mining-mode", "jitter", "--spread", "0.6"])).mining.spread == 0.6


@pytest.mark.usefixtures("cheap_report")
def test_a_study_of_it_is_trained(tmp_path):
    file = tmp_path / "own.toml"
    sizes = "rank = 3\nbatch_size = 16\nevaluation_size = 64\ntrain_steps = 2\n"
    file.write_text(f'[config]\n{sizes}[strategies]\nbaseline = {{mode = "none"}}\njitter = {{mode = "jitter"}}\n')
    words = [
        "--study",
        str(file),
        "--device",
        "cpu",
        "--at-once",
        "1",
        "--results",
        str(tmp_path),
        "--vary",
        "spread=0.1,0.2",
    ]
    assert main(words) == 0
    ended = sorted(path.parts[-3] for path in tmp_path.glob("own/runs/*/seed-0/result.json"))
    assert ended == ["baseline", "jitter,spread=0.1", "jitter,spread=0.2"]
    assert main([*words, "--report-only"]) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spread": 0}, "spread is 0; allowed: a positive number"),
        ({"spread": "wide"}, "spread is 'wide'; allowed: a positive number"),
        ({"spred": 1.0}, "unknown mining key spred; allowed: mode, .*spread"),
    ],
)
def test_what_is_not_allowed_is_named(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_diffusion(mining_config={"mode": "jitter", **values})
    assert len(str(caught.value).splitlines()) == 1


WRONG_DECLARATIONS = (
    ({"spread": 0.3}, r"the mode 'other' has spread = 0.3; allowed: spread = setting\(0.3, help\)"),
    ({"spread": setting(0.0, "of what")}, "spread is 0.0; allowed: a positive number"),
    ({"kind": setting("near", "of what")}, "kind is 'near'"),
    ({"uses": ("opt_step",)}, "the mode 'other' uses opt_step; allowed: opt_steps, "),
)


@pytest.mark.parametrize(("declared", "message"), WRONG_DECLARATIONS)
def test_a_wrong_declaration_is_named_and_leaves_the_other_modes(declared, message):
    with pytest.raises(ConfigError, match=message):
        mode("other", **declared)(lambda *_: None)
    assert "other" not in MODES and MiningConfig("jitter").spread == 0.3


@pytest.fixture
def other(monkeypatch):
    """Declares a function as the mode `other`, and makes a diffusion of it."""

    def declare(function, **declared):
        monkeypatch.setitem(MODES, "other", None)
        mode("other", **declared)(function)
        return make_diffusion(mining_config={"mode": "other"})

    return declare


def test_a_setting_that_it_uses_may_stand_alone(other):
    assert other(lambda *_: None, uses="opt_steps").mining.uses("opt_steps")


@pytest.mark.parametrize(
    "returned",
    [
        lambda x: x[:, :1],
        lambda x: x[0],
        lambda x: x[:, None],
        lambda x: x.double(),
        lambda _: None,
        torch.Tensor.numpy,
    ],
)
def test_candidates_unlike_the_solutions_are_named(other, returned):
    """A column, say, would be broadcast: trained with, and wrong."""
    diffusion = other(lambda _diffusion, _cond, x_start, *_: returned(x_start))
    with pytest.raises(
        ConfigError, match=r"the mode 'other' returns .*; allowed: a tensor of \(\(8, 9\), torch.float32"
    ):
        diffusion(torch.randn(8, 9), torch.randn(8, 9))


def test_what_it_changes_in_place_is_its_own(other):
    def flipped(_diffusion, _cond, x_start, t, noise, *_):
        noise.zero_()
        t.zero_()
        return x_start.neg_()

    diffusion, target, noise, t = other(flipped), torch.rand(8, 9), torch.randn(8, 9), torch.full((8,), 5)
    _, (_, _, distance) = diffusion(torch.randn(8, 9), target, t=t, nce_noise=noise)
    assert distance.item() == pytest.approx(4 * target.square().mean().item()) and noise.any() and (target >= 0).all()
    assert (t == 5).all()


def test_one_that_leaves_gradients_in_the_weights_is_refused(other, tmp_path):
    def descended(diffusion, cond, x_start, _t, _noise, *_):
        with torch.enable_grad():
            z = x_start.detach().requires_grad_()
            diffusion.model.ebm.energy(cond, z).sum().backward()
        return (z - z.grad).detach()

    with pytest.raises(ConfigError, match=r"'other' calls backward\(\), which spoils .*; use torch.autograd.grad"):
        Trainer1D(other(descended), Inverse("train", 3), device="cpu", results_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_name_of_one_of_the_projects_own_is_refused():
    before = MODES["mixed"]
    for name in ("mixed", "none"):
        with pytest.raises(ConfigError, match=f"the mode '{name}' is one of the project's own; allowed: another name"):
            mode(name)(lambda *_: None)
    assert MODES["mixed"] is before and MODES["none"] is None


def test_a_name_is_declared_once():
    again = mode("jitter", draws=1, spread=setting(0.5, "another default"))(lambda *_: None)
    assert MODES["jitter"] is again and MiningConfig("jitter").spread == 0.5
    with pytest.raises(ConfigError, match="the mode 'other' declares weight"):
        mode("other", weight=setting(1.0, "another"))(lambda *_: None)
    assert "other" not in MODES
    assert len(setting_names()) == len(set(setting_names()))
