import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset import Addition, Inverse, LowRankDataset
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.matrices import spd_inverse


@given(n=st.integers(1, 24), batch=st.integers(1, 5), ridge=st.floats(0.02, 2.0), seed=st.integers(0, 10**6))
def test_spd_inverse_against_lapack(n, batch, ridge, seed):
    r = np.random.default_rng(seed).uniform(-1, 1, (batch, n, n))
    a = 2 * r @ r.transpose(0, 2, 1) + ridge * np.eye(n)
    inverse = spd_inverse(torch.from_numpy(a)).numpy()
    expected = np.linalg.inv(a)
    # both err by about the condition number times the rounding of float64
    tolerance = 1e-14 * np.linalg.cond(a).max() * n
    assert np.abs(inverse - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("ood", "ridge"), [(False, 0.5), (True, 0.1)])
def test_inverse_distribution(ood, ridge):
    task = Inverse("train", 6, ood)
    inp, target = task.sample(4000, seeded_generator("test", 1), dtype=torch.float64)
    a = inp.view(-1, 6, 6)
    assert torch.allclose(a @ target.view(-1, 6, 6), torch.eye(6, dtype=torch.float64), atol=1e-9)
    assert torch.equal(a, a.mT)
    # E[2 R R^T] = 2 n / 3 on the diagonal, for entries U(-1,1)
    diagonal = a.diagonal(dim1=1, dim2=2)
    assert diagonal.mean().item() == pytest.approx(2 * 6 / 3 + ridge, abs=0.05)
    assert torch.linalg.eigvalsh(a).min() >= ridge - 1e-5  # A is rounded to float32
    assert target.abs().max() <= 1.0001 * task.bound
    assert task.bound == pytest.approx(1 / ridge)


def test_addition_distribution():
    for ood, scale in ((False, 1.0), (True, 2.5)):
        inp, target = Addition("train", 4, ood).sample(5000, seeded_generator("test", 2))
        assert torch.equal(target, inp[:, :16] + inp[:, 16:])
        assert 0.99 * scale < inp.abs().max() <= scale
        assert inp.var().item() == pytest.approx(scale**2 / 3, rel=0.03)


def test_addition_at_rank_2_has_the_released_shape():
    task = Addition("train", 2)
    assert (task.inp_dim, task.out_dim) == (4, 2)


def test_lowrank_distribution():
    for ood, divisor in ((False, 20), (True, 5)):
        inp, target = LowRankDataset("train", 8, ood).sample(5000, seeded_generator("test", 3))
        seen = inp != 0
        assert torch.equal(inp[seen], target[seen])
        assert seen.float().mean().item() == pytest.approx(0.5, abs=0.01)
        assert target.var().item() == pytest.approx(0.01 + 10 / divisor**2, rel=0.05)


@pytest.mark.parametrize("task", [Inverse, Addition, LowRankDataset])
def test_items_are_fixed_and_differ(task, device):
    train, val = task("train", 4), task("val", 4)
    inp, target = train[7]
    assert inp.shape == (train.inp_dim,)
    assert target.shape == (train.out_dim,)
    assert torch.equal(inp, train[7][0])
    assert not torch.equal(inp, train[8][0])
    assert not torch.equal(inp, val[7][0])
    assert len(train) == 10_000_000
    with pytest.raises(IndexError):
        train[len(train)]
    batch, _ = train.sample(3, seeded_generator("test", 0, device=device), device)
    assert batch.device.type == device
    assert batch.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", 0), "rank is 0; allowed: a whole number from 1"),
        (("train", 2.5), "rank is 2.5"),
        (("dev", 3), "split is 'dev'; allowed: train, val, test"),
        (("train", 3, False, -1.0), "ridge is -1.0; allowed: a positive number"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Inverse(*arguments)
