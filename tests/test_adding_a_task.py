"""The worked example of docs/adding-a-task.md is a task: it samples, scores and trains."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
from diffusion_lib.evaluation import EvaluationSet, prediction_metrics
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.base import Corruption
from models import MODELS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "adding-a-task.md"


@pytest.fixture
def largest(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType("largest")
    monkeypatch.setitem(sys.modules, "largest", module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module.Largest


def test_it_samples_and_scores(largest):
    usual, harder = (EvaluationSet(largest("val", 5, ood), 400, "cpu") for ood in (False, True))
    assert prediction_metrics(usual, usual.target) == {"accuracy": 1}
    guess = usual.task.reference_predictions(usual.inp, None)["the first"]
    assert prediction_metrics(usual, guess)["accuracy"] == pytest.approx(0.2, abs=0.07)
    assert harder.inp.abs().max() < 0.11 < usual.inp.abs().max()
    spoiled = usual.task.rules.corruption(usual.target)
    assert prediction_metrics(usual, spoiled) == {"accuracy": 0}


def test_a_corruption_that_changes_the_solution_in_place_leaves_it_to_the_training():
    class Zero(Corruption):
        def draw(self, target, generator=None):
            return ()

        def apply(self, target, *_draws, released=False, mask=None):
            return target.zero_()

    target = torch.ones(4, 5)
    assert not Zero()(target).any() and target.all()
    with pytest.raises(ConfigError, match=r"Half returns \(\(4, 2\), torch.float32\); allowed: a tensor of \(\(4, 5\)"):
        type("Half", (Zero,), {"apply": lambda _, target, **__: target[:, :2]})()(target)


@pytest.mark.parametrize(
    "score",
    [
        lambda target, prediction: {"accuracy": prediction.argmax(1) == target.argmax(1)},
        lambda target, prediction: {"accuracy": (prediction - target).square()},
        lambda target, prediction: {"accurcy": (prediction - target).square().mean(1)},
        lambda *_: {"accuracy": 1.0},
    ],
    ids=["bool", "of each entry", "another name", "a number"],
)
def test_a_score_that_is_none_is_refused_before_the_training(largest, tmp_path, monkeypatch, score):
    monkeypatch.setattr(largest, "score", lambda _task, _inp, target, prediction: score(target, prediction))
    task = largest("train", 5)
    diffusion = GaussianDiffusion1D(MODELS[task.model](task.inp_dim, task.out_dim), timesteps=10, rules=task.rules)
    with pytest.raises(ConfigError, match=r"Largest.score does not give 'accuracy' of each example; allowed: by name"):
        Trainer1D(diffusion, task, validation_dataset=largest("val", 5), results_folder=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["corrupt", "adversarial"])
def test_it_trains(largest, tmp_path, mode):
    task = largest("train", 5)
    torch.manual_seed(0)
    model = MODELS[task.model](task.inp_dim, task.out_dim)
    diffusion = GaussianDiffusion1D(model, timesteps=10, rules=task.rules, mining_config={"mode": mode})
    trainer = Trainer1D(
        diffusion,
        task,
        train_batch_size=16,
        train_num_steps=2,
        evaluation_size=32,
        results_folder=tmp_path,
        device="cpu",
        validation_dataset=largest("val", 5),
    )
    before = {name: value.clone() for name, value in diffusion.state_dict().items()}
    trainer.train()
    assert trainer.step == 2
    assert any(not torch.equal(value, before[name]) for name, value in diffusion.state_dict().items())
    assert 0 <= trainer.history[-1]["val_accuracy"] <= 1
