"""A user's own data set in the training loop: any torch Dataset of items."""

import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import psutil
import pytest
import torch
from conftest import Items, assert_same_weights, make_diffusion, weights

from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.system.errors import CheckpointError, ConfigError


def item_trainer(folder, make, steps=3, **options):
    settings = {"train_num_steps": steps, "train_batch_size": 8, "train_lr": 1e-2, "device": "cpu", **options}
    dims = {key: settings.pop(key) for key in ("inp_dim", "out_dim") if key in settings}
    return Trainer1D(make_diffusion(), Items(make, **dims), results_folder=folder, **settings)


def test_each_item_of_a_validation_set_counts_once(tmp_path):
    own = torch.rand(100, 9)
    data = Items(lambda index: (own[index], own[index]))
    sets = [
        Trainer1D(
            make_diffusion(), data, validation_dataset=data, evaluation_size=size, results_folder=tmp_path, device="cpu"
        ).evaluation_sets["val"]
        for size in (2048, 60)
    ]
    assert [chosen.size for chosen in sets] == [100, 60]
    assert [len(chosen.inp.unique(dim=0)) for chosen in sets] == [100, 60]


def drawn(_index):
    return np.random.rand(9), torch.rand(9)


@pytest.mark.parametrize("workers", [0, 2])
def test_items_that_are_drawn_resume_exactly(tmp_path, workers):
    whole = item_trainer(tmp_path / "whole", drawn, 4, data_workers=workers)
    before = np.random.get_state()[1].copy()
    whole.train()
    assert (np.random.get_state()[1] == before).all()  # the caller's own draws go on as if nothing had been
    item_trainer(tmp_path / "parts", drawn, 2).train()
    second = item_trainer(tmp_path / "parts", drawn, 4, data_workers=workers)
    second.load("last")
    second.train()
    assert_same_weights(weights(second.diffusion), weights(whole.diffusion))


def test_a_training_is_continued_with_its_own_data(tmp_path):
    own, others = torch.rand(2, 100, 9)
    item_trainer(tmp_path, lambda index: (own[index], own[index])).train()
    item_trainer(tmp_path, lambda index: (own[index] * (1 + 1e-7), own[index]), 4).load("last")
    with pytest.raises(CheckpointError, match=r"is of data 100 items, of mean magnitudes .*, this run has 100 items"):
        item_trainer(tmp_path, lambda index: (others[index], others[index]), 4).load("last")
    for mended in (lambda item: -item, lambda item: item.flip(0)):  # of the same size
        with pytest.raises(CheckpointError, match="is of first items mean magnitude and projection"):
            item_trainer(tmp_path, lambda index, mended=mended: (own[index], mended(own[index])), 4).load("last")


def test_what_a_run_would_do_with_examples_in_silence_is_said(tmp_path):
    own = np.random.default_rng(0)
    for make, message in (
        (lambda _: (own.random(9), np.ones(9)), "^the same items of Items differ when they are drawn again"),
        (
            lambda _: (np.ones(9), np.full(9, -4.5)),
            r"^solutions of Items reach 4\.5, and samples are cut at \+-2",
        ),
    ):
        with pytest.warns(UserWarning, match=message) as warned:
            item_trainer(tmp_path, make)
        assert [warning.filename for warning in warned] == [__file__]


ONES = np.ones(9)
MISFITS = {
    "another inp_dim": (lambda _: (ONES, ONES), {"inp_dim": 8}, "Items has inp_dim 8; the model's is 9"),
    "wider": (
        lambda _: (np.ones(10), ONES),
        {},
        r"Items gives inputs \(10,\) and solutions \(9,\), which a",
    ),
    "a number for a vector": (lambda _: (ONES, 1.0), {}, r"solutions \(\), which a model"),
    "of several widths": (lambda i: (np.ones(1 + i % 9), ONES), {}, "Items"),
    "words": (lambda _: ("a", "b"), {}, "Items gives no batch"),
    "one part": (lambda _: np.ones((2, 9)), {}, "Items gives no batch"),
    "complex": (lambda _: (ONES + 1j, ONES), {}, r"no batch \(TypeError: complex numbers\)"),
    "masked": (lambda _: (np.ma.masked_array(ONES, ONES), ONES), {}, "masked arrays"),
    "nan": (lambda _: (ONES, ONES * np.nan), {}, "entries that are not finite"),
    "a mask's shape": (lambda _: (ONES, ONES, np.ones(1)), {}, "a mask of another shape than the target"),
    "a mask's numbers": (lambda _: (ONES, ONES, np.full(9, 255)), {}, "of other numbers than 0 and 1"),
    "an error": (lambda i: {}[i], {}, r"Items gives no batch \(KeyError: \d+\)"),
}


@pytest.mark.parametrize(("make", "dims", "message"), MISFITS.values(), ids=MISFITS)
def test_a_data_set_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, make, dims, message):
    with pytest.raises(ConfigError, match=message) as refused:
        item_trainer(tmp_path / "run", make, **dims)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_an_item_that_breaks_later_is_one_line_from_a_worker_too(tmp_path):
    def make(index):
        assert index < 95, "two\nlines"
        return ONES, ONES

    with pytest.raises(ConfigError, match=r"Items gives no batch \(AssertionError: two\); allowed") as refused:
        item_trainer(tmp_path, make, 30, data_workers=1).train()
    assert "\n" not in str(refused.value)


GROUP = """
import time, torch
from diffusion_lib import EBM, GaussianDiffusion1D, Trainer1D

class Items(torch.utils.data.Dataset):
    inp_dim = out_dim = 4
    def __len__(self):
        return 100
    def __getitem__(self, index):
        time.sleep(0.001)
        return torch.ones(4), torch.ones(4)

model = GaussianDiffusion1D(EBM(4, 4), timesteps=10, mining_config={"mode": "none"})
settings = {"train_num_steps": 100000, "train_batch_size": 8, "data_workers": 2, "log_every": 5, "device": "cpu"}
Trainer1D(model, Items(), save_and_sample_every=10, results_folder="run", **settings).train()
"""


def test_a_signal_to_the_workers_too_saves(tmp_path):
    """A cluster signals all processes of a job, and a worker that ends by it must not end the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", GROUP], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "run" / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children()
    os.killpg(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    step = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"]
    assert f"Interrupted: SIGTERM at step {step}" in errors and "DataLoader worker" not in errors
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=30)[1]


def test_a_mask_of_the_other_convention_is_said(tmp_path):
    """Much code has 1 where an entry is unknown."""
    own = torch.rand(100, 9) + 0.1
    known = (torch.rand(100, 9) < 0.5).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        item_trainer(tmp_path, lambda index: (own[index] * known[index], own[index], known[index]))
    with pytest.warns(UserWarning, match="a mask is 1 where the input gives the solution's entry; in Items .* at 100%"):
        item_trainer(tmp_path, lambda index: (own[index] * known[index], own[index], 1 - known[index]))


def test_a_validation_set_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Items has entries that are not finite"):
        item_trainer(tmp_path, ones, validation_dataset=Items(lambda _: (ONES, ONES * np.nan)))


def test_validation_data_are_looked_at_as_those_of_training_are(tmp_path):
    with pytest.warns(UserWarning, match="solutions of Items reach 9, and samples are cut"):
        item_trainer(tmp_path, ones, validation_dataset=Items(lambda _: (ONES, 9 * ONES)))
    with pytest.raises(ConfigError, match="curve_samplers need a validation_dataset"):
        item_trainer(tmp_path, ones, curve_samplers={"plain": 64})
    masked = Items(lambda _: (ONES, ONES, ONES))
    with pytest.raises(ConfigError, match="Items differs from the training data in having a mask; allowed: in both"):
        item_trainer(tmp_path, ones, validation_dataset=masked)
    item_trainer(tmp_path, ones, validation_dataset=masked, cond_mask=False)


def ones(_index):
    return ONES, ONES
