"""The step as a CUDA graph, without a GPU: a graph that records a step's operations on the CPU and repeats them.

As on a GPU nothing is computed at capture, each tensor of the step keeps its place in memory, and a number that was on
the host stays as it was at capture.
"""

from typing import ClassVar

import pytest
import torch
from conftest import assert_same_weights, make_trainer, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from diffusion_lib.system.errors import NonFiniteLossError
from diffusion_lib.training import one_run
from diffusion_lib.training.step import EAGER_STEPS
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.speed.gpu_correctness import modes_of
from experiments.study import run

STEPS = EAGER_STEPS + 5


def tensors(values) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Recording(TorchDispatchMode):
    """The operations inside, in order, and what they changed."""

    def __init__(self):
        super().__init__()
        self.operations, self.made, self.before = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            known = {id(tensor) for tensor in self.made} | {id(tensor) for tensor, _ in self.before}
            self.before += [(tensor, tensor.clone()) for tensor in tensors((args, kwargs)) if id(tensor) not in known]
        out = func(*args, **kwargs)
        self.made += tensors(out)
        self.operations.append((func, args, kwargs, out))
        return out


class Graph:
    """A torch.cuda.CUDAGraph, as far as TrainStep uses one."""

    made: ClassVar[list] = []

    def __init__(self):
        self.made.append(self)
        self.replays = 0

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.operations:
            for place, value in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if place.data_ptr() != value.data_ptr():  # else it is a view, or was changed in place
                    place.copy_(value)


class Capture:
    """A torch.cuda.graph. error: what its end raises, as CUDA does where something inside could not be captured."""

    error = None

    def __init__(self, graph, capture_error_mode):
        self.graph, self.recording = graph, Recording()

    def __enter__(self):
        self.recording.__enter__()

    def __exit__(self, *raised):
        self.recording.__exit__(*raised)
        for tensor, value in self.recording.before:
            tensor.data.copy_(value)
        self.graph.operations = self.recording.operations
        if self.error:
            raise self.error


@pytest.fixture
def streams(monkeypatch):
    """A GPU's graphs, and the streams that were made current."""
    made_current = []
    monkeypatch.setattr(Graph, "made", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the stream before")
    monkeypatch.setattr(torch.cuda, "set_stream", made_current.append)
    return made_current


def trainer_with_graph(folder, **options):
    """Settings of a GPU, which the trainer gives no CPU: a learning rate in memory, and the captured step."""
    trainer = make_trainer(folder, train_num_steps=STEPS, lr_schedule=rate, **options)
    trainer.fixed_groups["capturable"] = True
    trainer._fix_optimizer(trainer.opt)
    trainer.train_step.captures = True
    return trainer


def rate(step):
    return 1 - step / (2 * STEPS)


def losses(trainer, steps):
    return [trainer.run_one_step().item() for _ in range(steps)]


def eager(folder, **options):
    """Losses of STEPS steps without a graph, and the trainer."""
    trainer = trainer_with_graph(folder, **options)
    trainer.train_step.captures = False
    return losses(trainer, STEPS), trainer


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("mode", modes_of("mlp"))
def test_replayed_steps_are_those_without_a_graph(tmp_path, mode):
    expected, plain = eager(tmp_path, mode=mode)
    trainer = trainer_with_graph(tmp_path, mode=mode)
    assert losses(trainer, STEPS) == expected
    assert [graph.replays for graph in Graph.made] == [STEPS - EAGER_STEPS]
    assert_same_weights(weights(trainer.diffusion), weights(plain.diffusion))
    assert_same_weights(weights(trainer.ema), weights(plain.ema))
    assert torch.equal(trainer.loss_sums, plain.loss_sums)


@pytest.mark.usefixtures("streams")
def test_a_loaded_checkpoint_is_captured_anew(tmp_path):
    """The first graph's memory holds weights and moments that are no longer the trainer's."""
    expected, plain = eager(tmp_path / "whole")
    first = trainer_with_graph(tmp_path / "run")
    losses(first, EAGER_STEPS + 1)
    first.save()
    continued = trainer_with_graph(tmp_path / "run")
    losses(continued, EAGER_STEPS + 1)  # a graph of its own, before the checkpoint is loaded
    continued.load()
    assert losses(continued, STEPS - EAGER_STEPS - 1) == expected[EAGER_STEPS + 1 :]
    assert len(Graph.made) == 3
    assert_same_weights(weights(continued.diffusion), weights(plain.diffusion))


@pytest.mark.usefixtures("streams")
def test_a_late_start_is_captured_anew(tmp_path):
    late = {"mining": {"start": 0.5}}
    expected, plain = eager(tmp_path, **late)
    trainer = trainer_with_graph(tmp_path, **late)
    assert losses(trainer, STEPS) == expected
    assert [graph.replays for graph in Graph.made] == [1, 1]  # steps 3 and 7
    assert_same_weights(weights(trainer.diffusion), weights(plain.diffusion))


@pytest.mark.usefixtures("streams")
def test_a_replayed_loss_that_is_not_finite_changes_nothing(tmp_path):
    trainer = trainer_with_graph(tmp_path)
    losses(trainer, EAGER_STEPS + 1)
    before, batch = weights(trainer.diffusion), trainer.stream.batch
    trainer.stream.batch = lambda step: batch(step)._replace(target=torch.full((16, 9), torch.nan))
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert_same_weights(weights(trainer.diffusion), before)


@pytest.mark.parametrize("where", ["inside", "at its end"])
def test_a_step_that_cannot_be_captured_runs_without(tmp_path, monkeypatch, capsys, streams, where):
    expected, plain = eager(tmp_path)
    trainer = trainer_with_graph(tmp_path)
    monkeypatch.setattr(Capture, "error", RuntimeError("capture failed because of an earlier error\nmore"))
    if where == "inside":
        loss = trainer.diffusion.p_losses

        def refused(*arguments):
            if trainer.train_step.calls == EAGER_STEPS + 1 and trainer.train_step.captures:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            return loss(*arguments)

        monkeypatch.setattr(trainer.diffusion, "p_losses", refused)
    assert losses(trainer, STEPS) == expected
    assert_same_weights(weights(trainer.diffusion), weights(plain.diffusion))
    assert len(Graph.made) == 1 and not trainer.train_step.captures
    assert streams == ["the stream before"]
    cause = "operation not permitted when stream is capturing" if where == "inside" else "capture failed because"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the step cannot be a CUDA graph and runs without one") and cause in line


@pytest.mark.parametrize("given", [[], ["--no-cuda-graph"]])
def test_the_switch_reaches_the_step(tmp_path, monkeypatch, given):
    seen = []

    def trainer(*_, cuda_graph, **_options):
        seen.append(cuda_graph)
        raise SystemExit

    monkeypatch.setattr(one_run, "Trainer1D", trainer)
    monkeypatch.setattr(run, "Trainer1D", trainer)
    with pytest.raises(SystemExit):
        train.main([*given, "--rank", "3", "--device", "cpu", "--results-folder", str(tmp_path / "one")])
    for number, strategies in enumerate((["baseline"], ["baseline", "adversarial"])):  # a run's steps, and those timed
        study = ["--strategies", *strategies, "--at-once", "1", "--results", str(tmp_path), "--name", f"study-{number}"]
        with pytest.raises(SystemExit):
            comparison.main([*given, "--rank", "3", "--device", "cpu", *study])
    assert seen == [not given] * 3
