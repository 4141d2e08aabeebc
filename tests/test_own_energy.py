"""Energies, models and modes of a user's own in the training loop."""

import random

import numpy as np
import pytest
import torch
from conftest import Items, advance, assert_same_weights, make_trainer, weights

from dataset import Inverse
from diffusion_lib import negatives
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
from diffusion_lib.seeds import seed_generators
from diffusion_lib.system.errors import ConfigError
from models import EBM, EnergyModel


class OwnEnergy(EnergyModel):
    """Half the squared distance from a linear prediction, of which `change` makes what `energy` returns."""

    def __init__(self, change):
        super().__init__(9, 9)
        self.linear, self.change = torch.nn.Linear(9, 9), change

    def condition(self, inp, t):
        return self.linear(inp)

    def retime(self, cond, t):
        return cond

    def energy(self, cond, x):
        return self.change(0.5 * (x - cond).square())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.mean, r"OwnEnergy.energy returns \(\) for two examples; allowed: \(2,\)"),
        (lambda squares: squares, r"OwnEnergy.energy returns \(2, 9\) for two examples"),
        (lambda squares: squares @ torch.ones(4), r"does not take \(RuntimeError: "),
        (lambda squares: squares[:, 9], r"does not take \(IndexError: index 9 is out of bounds"),
    ],
    ids=["of the batch", "of each entry", "of another size", "an error"],
)
def test_an_energy_of_ones_own_that_is_none_is_named(tmp_path, change, message):
    diffusion = GaussianDiffusion1D(OwnEnergy(change), timesteps=10, bound=2.0, mining_config={"mode": "none"})
    with pytest.raises(ConfigError, match=message) as refused:
        Trainer1D(diffusion, Inverse("train", 3), device="cpu", results_folder=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


class Detached(OwnEnergy):
    """The gradient of a step, without its own graph: a forgotten create_graph."""

    def gradient(self, cond, x):
        return super().gradient(cond, x).detach()


class Closed(OwnEnergy):
    """A function of the constructor holds the weights, which a copy of the energy would not have."""

    def __init__(self, change):
        super().__init__(change)
        self.predict = lambda inp: self.linear(inp)

    def condition(self, inp, t):
        return self.predict(inp)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Detached, "Detached's gradient does not depend on its trained weights"),
        (Closed, "a copy of Closed uses the original's weights"),
    ],
)
@pytest.mark.parametrize("mode", ["none", "random"])
def test_an_energy_that_would_train_amiss_in_silence_is_refused(tmp_path, kind, message, mode):
    own = kind(lambda squares: squares.sum(1))
    diffusion = GaussianDiffusion1D(own, timesteps=10, bound=2.0, mining_config={"mode": mode})
    with pytest.raises(ConfigError, match=message):
        Trainer1D(diffusion, Inverse("train", 3), device="cpu", results_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_without_a_shape_are_refused(tmp_path):
    energy = OwnEnergy(lambda squares: squares.sum(1))
    energy.linear = torch.nn.LazyLinear(9)
    diffusion = GaussianDiffusion1D(energy, timesteps=10, bound=2.0, mining_config={"mode": "none"})
    with pytest.raises(ConfigError, match="the model has weights without a shape"):
        Trainer1D(diffusion, Inverse("train", 3), device="cpu", results_folder=tmp_path)


def test_an_energy_that_changes_its_input_leaves_the_callers_as_it_was():
    class Shifting(OwnEnergy):
        def condition(self, inp, t):
            inp -= 0.5
            return self.linear(inp)

    own, inp = Shifting(lambda squares: squares.sum(1)), torch.rand(4, 9)
    before = inp.clone()
    GaussianDiffusion1D(own, timesteps=10, mining_config={"mode": "none"}).sample(inp)
    assert torch.equal(inp, before)


class Dropping(OwnEnergy):
    """An energy with dropout of its own, made by `drop`."""

    def __init__(self, drop):
        super().__init__(lambda squares: squares.sum(1))
        self.drop = drop

    def condition(self, inp, t):
        return self.drop(self)(self.linear(inp))


DROPOUTS = {
    "a module": lambda energy: torch.nn.Dropout(0.5).train(energy.training),
    "another module": lambda energy: torch.nn.AlphaDropout(0.5).train(energy.training),
    "a function": lambda energy: lambda x: torch.nn.functional.dropout(x, 0.5, energy.training),
}


@pytest.mark.parametrize("drop", DROPOUTS.values(), ids=DROPOUTS)
@pytest.mark.parametrize("items", [False, True], ids=["task", "items"])
def test_with_dropout_a_run_resumes_exactly(tmp_path, drop, items):
    own = torch.rand(100, 9)
    data = Items(lambda index: (own[index], own[index])) if items else Inverse("train", 3)

    def made(folder, steps):
        torch.manual_seed(0)
        model = GaussianDiffusion1D(Dropping(drop), timesteps=10, bound=2.0, mining_config={"mode": "adversarial"})
        settings = {"train_num_steps": steps, "train_batch_size": 8, "device": "cpu", "results_folder": folder}
        return Trainer1D(model, data, **settings)

    whole = made(tmp_path / "whole", 4)
    whole.train()
    made(tmp_path / "parts", 2).train()
    second = made(tmp_path / "parts", 4)
    second.load("last")
    torch.manual_seed(7)  # whatever else draws
    second.train()
    assert_same_weights(weights(second.diffusion), weights(whole.diffusion))
    inp = torch.rand(4, 9)
    whole.diffusion.train()
    samples = [whole.diffusion.sample_loop(inp, start=torch.zeros(4, 9), inner_steps=2) for _ in range(2)]
    assert torch.equal(*samples)  # energies of one function are compared


DRAWS = {
    "torch": torch.randn_like,
    "numpy": lambda like: torch.from_numpy(np.random.standard_normal(like.shape)).float(),
    "python": lambda like: like * random.gauss(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_mode_that_draws_by_itself_resumes_exactly(tmp_path, monkeypatch, draw):
    """Its numbers are not a function of (seed, step) unless the trainer makes them one."""
    monkeypatch.setitem(negatives.MODES, "jitter", lambda _d, _c, x_start, *_: x_start + draw(x_start))
    whole = make_trainer(tmp_path / "whole", mode="jitter")
    before = np.random.get_state()[1].copy(), random.getstate()
    whole.train()
    assert (np.random.get_state()[1] == before[0]).all() and random.getstate() == before[1]  # the caller's own go on
    first = make_trainer(tmp_path / "parts", mode="jitter")
    advance(first, 5)
    first.save()
    second = make_trainer(tmp_path / "parts", mode="jitter")
    second.load("last")
    seed_generators(7)  # whatever else draws
    second.train()
    assert_same_weights(weights(second.diffusion), weights(whole.diffusion))


class Dropped(EBM):
    """A subclass with an argument of its own."""

    def __init__(self, inp_dim, out_dim, share=0.0):
        super().__init__(inp_dim, out_dim)
        self.drop = torch.nn.Dropout(share)

    def condition(self, inp, t):
        return super().condition(self.drop(inp), t)


def test_a_subclass_of_the_mlp_has_its_own_arguments():
    assert type(Dropped(9, 9)) is type(Dropped(9, 9, share=0.5)) is type(Dropped(9, 9, 0)) is Dropped
    for made in (EBM(9, 9, False), EBM(inp_dim=9, out_dim=9, is_ebm=False)):
        assert type(made).__name__ == "MLPReverse"


def test_training_is_with_dropout_whatever_was_done_before(tmp_path):
    trainers = []
    for name in ("whole", "looked at"):
        torch.manual_seed(0)
        diffusion = GaussianDiffusion1D(Dropped(9, 9, 0.5), timesteps=10, bound=2.0)
        if name == "looked at":
            diffusion.eval().sample(torch.rand(2, 9))
        settings = {"train_num_steps": 3, "device": "cpu", "results_folder": tmp_path / name}
        trainers.append(Trainer1D(diffusion, Inverse("train", 3), **settings))
        trainers[-1].train()
    assert_same_weights(*(weights(trainer.diffusion) for trainer in trainers))
