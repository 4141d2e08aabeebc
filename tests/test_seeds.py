import itertools

import pytest
import torch

from dataset import Inverse
from diffusion_lib.seeds import derive_seed, seeded_generator
from diffusion_lib.training.batches import BatchStream


def test_every_difference_gives_another_stream():
    calls = [
        ("a",),
        ("a", 0),
        ("a", 1),
        ("a", 1, 0),
        ("a", 0, 1),
        ("a", 2**32),
        ("a", 2**32, 0),
        ("b", 1),
        ("a", 10),
        ("a1", 0),
    ]
    draws = [torch.rand(4, generator=seeded_generator(*call)) for call in calls]
    for (i, left), (j, right) in itertools.combinations(enumerate(draws), 2):
        assert not torch.equal(left, right), (calls[i], calls[j])
    assert len({derive_seed(*call) for call in calls}) == len(calls)
    assert torch.equal(draws[3], torch.rand(4, generator=seeded_generator("a", 1, 0)))


def test_more_than_32_bits_of_a_seed_count_on_the_cpu():
    """Of 200,000 streams some pairs agree in the 32 bits of a seed that torch's CPU generator would keep."""
    seen, pairs = {}, []
    for i in range(200_000):
        other = seen.setdefault(derive_seed("a", i) % 2**32, i)
        pairs += [(other, i)] if other != i else []
    assert pairs
    for pair in pairs:
        one, other = (torch.randint(0, 2**62, (4,), generator=seeded_generator("a", i)) for i in pair)
        assert not torch.equal(one, other)


def test_the_numbers_are_uniform_and_normal():
    uniform = torch.rand(200_000, generator=seeded_generator("a", 3), dtype=torch.float64)
    normal = torch.randn(200_000, generator=seeded_generator("a", 4), dtype=torch.float64)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.003)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.001)
    assert normal.mean().item() == pytest.approx(0, abs=0.01)
    assert normal.var().item() == pytest.approx(1, abs=0.02)


def test_no_training_batch_holds_a_fixed_example():
    items = torch.stack([Inverse(split, 3)[i][0] for split in ("train", "val", "test") for i in range(4)])
    for seed in range(4):
        stream = BatchStream(Inverse("train", 3), 64, 10, seed, torch.device("cpu"), contrastive=False)
        for step in range(4):
            assert torch.cdist(items, stream.batch(step).inp).min() > 0.01
