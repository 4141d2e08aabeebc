"""Each task with its own model: a run resumes bit for bit, its batches are a function of (seed, step)."""

import pytest
import torch
from conftest import assert_same_weights, weights

from diffusion_lib.build import build_diffusion
from diffusion_lib.config import configure
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.evaluation import EvaluationSet, sampler_metrics
from diffusion_lib.tasks import TASKS
from diffusion_lib.training.batches import stream_of
from experiments.speed.gpu_correctness import small_task

CPU = torch.device("cpu")
LIGHT = {"sudoku": "sudoku-small"}  # instead of 47 million weights
PAIRS = [(name, LIGHT.get(task.model, task.model)) for name, task in TASKS.items()] + [("sudoku", "sudoku-transformer")]
every_pair = pytest.mark.parametrize(("name", "model"), PAIRS)


def mode_of(name: str) -> str:
    """Every other task that has a corruption of its own is trained with it."""
    own = [other for other, task in TASKS.items() if task.rules.corruption]
    return "corrupt" if name in own[::2] else "adversarial"


def diffusion_of(name: str, model: str, rank: int = 2):
    task = small_task(name, rank)
    return build_diffusion(configure({"dataset": name, "model": model, "mode": mode_of(name)}), 0, task), task


def trainer_of(name: str, model: str, folder) -> Trainer1D:
    diffusion, task = diffusion_of(name, model)
    return Trainer1D(
        diffusion, task, train_batch_size=2, train_num_steps=4, ema_update_every=1, results_folder=folder, device="cpu"
    )


@every_pair
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name, model):
    whole = trainer_of(name, model, tmp_path / "whole")
    before = weights(whole.diffusion)
    whole.train()
    first = trainer_of(name, model, tmp_path / "run")
    for _ in range(2):
        first.run_one_step()
    first.save()
    second = trainer_of(name, model, tmp_path / "run")
    second.load()
    second.train()
    assert_same_weights(weights(second.diffusion), weights(whole.diffusion))
    assert_same_weights(weights(second.ema), weights(whole.ema))
    assert any(not torch.equal(before[key], value) for key, value in weights(whole.diffusion).items())


@every_pair
def test_a_trained_model_is_judged_by_the_metrics_of_its_task(tmp_path, name, model):
    """By the averaged weights, twice alike: dropout is off."""
    trainer, task = trainer_of(name, model, tmp_path), small_task(name, split="val")
    trainer.run_one_step()
    chosen = EvaluationSet(task, 3, CPU)
    found, again = (sampler_metrics(trainer.ema.ema_model, chosen, 1, 3, levels=[4, 0], execute=True) for _ in range(2))
    assert tuple(found) == task.metrics
    assert list(map(str, found.values())) == list(map(str, again.values()))  # a rate of nothing is nan


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_is_a_function_of_seed_and_step(name):
    diffusion, task = diffusion_of(name, LIGHT.get(TASKS[name].model, TASKS[name].model), rank=4)
    forward, backward, other = (stream_of(diffusion, task, 4, seed, CPU) for seed in (0, 0, 1))
    expected = [forward.batch(k) for k in range(3)]
    for k in reversed(range(3)):
        for left, right in zip(expected[k], backward.batch(k), strict=True):
            assert (left is right is None) or torch.equal(left, right)
    for part in (expected[1], other.batch(0)):
        assert not torch.equal(expected[0].noise, part.noise)
        assert not torch.equal(expected[0].inp, part.inp)
    assert (expected[0].candidates is None) == (mode_of(name) != "corrupt")


def test_descents_are_without_dropout():
    """They keep a step where the energy falls: with a noise in each energy that would be chance."""
    diffusion, task = diffusion_of("sudoku", "sudoku-transformer")
    batch = stream_of(diffusion, task, 4, 0, CPU).batch(0)
    cond = diffusion.train().model.ebm.condition(batch.inp, batch.t)
    found, again = (diffusion.descend(cond, batch.noise, batch.t, 3, 1.0, 1.0)[0] for _ in range(2))
    assert torch.equal(found, again)
    assert not torch.equal(*(diffusion.model.ebm.energy(cond, batch.noise) for _ in range(2)))  # and on after it


@pytest.mark.parametrize("name", ["parents", "shortest-path-10-1d"])
def test_rows_that_are_left_out_of_a_descent_end_where_they_would_have(name, monkeypatch):
    diffusion, task = diffusion_of(name, TASKS[name].model, rank=8)
    for parameter in diffusion.parameters():
        parameter.data *= 3  # steep, so that rows come to rest
    chosen, counts = EvaluationSet(task, 12, CPU), []
    kind, counted = type(diffusion.model.ebm), type(diffusion.model.ebm).rows
    monkeypatch.setattr(kind, "rows", lambda self, cond, rows: counts.append(len(rows)) or counted(self, cond, rows))
    some = diffusion.sample_loop(chosen.inp, start=chosen.start, inner_steps=8)
    assert counts and max(counts) < 12
    monkeypatch.delattr(kind, "rows")
    assert torch.equal(some, diffusion.sample_loop(chosen.inp, start=chosen.start, inner_steps=8))
