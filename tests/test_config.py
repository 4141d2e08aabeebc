"""One configuration, read by every command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_diffusion

from diffusion_lib.config import ExperimentConfig, current, settings
from diffusion_lib.negatives import MODES, MiningConfig
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train.py", "experiments/matrix_inversion_mining_comparison.py")


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_setting_with_its_default_and_choices(script):
    text = " ".join(run(script, "--help").stdout.split())
    shown = [*settings(), *settings(MiningConfig)]
    if script == "train.py":
        shown = [each for each in shown if each.name not in ("learning_rate", "schedule", "ema_update_every", "clamp")]
    for each in (each for each in shown if each.name != "mode"):
        assert f"--{each.name.replace('_', '-')}" in text
        assert each.metadata["help"] in text
    assert "{mlp,matrix,matrix-free" in text
    assert "(default 20)" in text


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [("--train-step", "5"), ("--rank", "x"), ("--model", "transformer")])
def test_a_mistake_is_one_line_and_status_2(script, arguments):
    done = run(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_flat_record_of_the_first_version_is_the_same_configuration():
    now = ExperimentConfig(rank=5, mining=MiningConfig(opt_steps=7, weight=0.1))
    flat = {key: value for key, value in now.to_dict().items() if key not in ("mining", "precision")}
    flat |= {"opt_steps": 7, "scale_factor": 1.0, "noise_scale": 3.0, "weight": 0.1}
    assert ExperimentConfig.from_dict(flat) == now
    assert current(flat) == current(now.to_dict())
    run = flat | {"strategy": "random", "seed": 3, "mining_config": {"mode": "random", "opt_steps": 7, "weight": 0.1}}
    assert current(run)["mining"] == MiningConfig("random", opt_steps=7, weight=0.1).to_dict()
    assert current({"mining_mode": "none"})["mining"]["mode"] == "none"
    assert current(flat | {"rank": 6}) != current(now.to_dict())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_steps": 10**10}, "train_steps is 10000000000; allowed: a whole number from 1 to 1,000,000,000"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; allowed: a positive number"),
        ({"rank": True}, "rank is True"),
        ({"mining": {"mode": "random"}}, "allowed: a MiningConfig"),
    ],
)
def test_what_is_not_allowed_is_named(values, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ExperimentConfig(**values)


def test_a_number_of_numpy_is_the_number_that_it_is():
    config = ExperimentConfig(learning_rate=np.float32(0.25), rank=np.int64(3))
    assert json.loads(json.dumps(config.to_dict())) == ExperimentConfig(learning_rate=0.25, rank=3).to_dict()


def test_a_new_mode_is_one_function_and_one_line(monkeypatch):
    def zero_matrix(_diffusion, _cond, x_start, *_):
        return torch.zeros_like(x_start)

    monkeypatch.setitem(MODES, "zero", zero_matrix)
    diffusion = make_diffusion(mining_config={"mode": "zero"})
    inp, target, t = torch.rand(4, 9), torch.rand(4, 9), torch.arange(4)
    _, (_, contrastive, distance) = diffusion.p_losses(inp, target, None, t)
    assert distance.item() == pytest.approx(target.square().mean().item())
    assert contrastive > 0


def test_the_default_task_needs_no_recipe_since_it_brings_the_defaults():
    task, own = TASKS[ExperimentConfig.dataset], ExperimentConfig()
    assert (task.default_rank, task.model, task.rules.contrast_weight) == (own.rank, own.model, own.mining.weight)
    assert not task.recipe and not task.rules.corruption
