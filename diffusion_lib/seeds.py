"""Random streams, each decided by its use: a domain's name, and whole numbers such as a run's seed and a step."""

import hashlib
import random
from contextlib import contextmanager

import numpy as np
import torch

# The uses of a run's seed: each has a stream of its own, so that adding one leaves the others as they are.
INITIAL_WEIGHTS, DATA, LEVELS_AND_NOISE, NCE_NOISE = "initial weights", "data", "levels and noise", "nce noise"
CORRUPTION, NEGATIVES, DROPOUT = "corruption", "negatives", "dropout"


def derive_seed(domain: str, *parts: int) -> int:
    """Return a 63-bit seed; calls that differ in the domain, a part or the number of parts get unrelated seeds."""
    return _entropy(domain, parts) & (2**63 - 1)


def seeded_generator(domain: str, *parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator on `device` whose stream depends on the domain and the parts alone."""
    if torch.device(device).type != "cpu":
        return torch.Generator(device).manual_seed(derive_seed(domain, *parts))
    # torch's CPU generator, a Mersenne Twister, would keep 32 bits of a seed: a long study needs millions of streams,
    # and some of them would be equal. So its whole state is set.
    words = np.random.SeedSequence(_entropy(domain, parts)).generate_state(624)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state().numpy()
    state[24 : 24 + 624 * 8].view(np.uint64)[:] = words  # at::mt19937_data_pod, each word in 64 bits
    return generator.set_state(torch.from_numpy(state))


@contextmanager
def global_generators(seed: int | None = None, gpus=()):
    """Keep the default generators of Python, NumPy and torch in a `with` block; after it they go on as before.

    seed: what they begin with in the block, torch's on the CPU alone; None: they go on there too.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpus):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_generators(seed: int):
    """Seed the default generators of Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator_states(gpu: torch.device | None = None) -> list:
    """Return where these generators are, to be compared; gpu: also torch's there."""
    numpy = np.random.get_state()
    states = [random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()]
    return [*states, torch.cuda.get_rng_state(gpu).numpy().tobytes()] if gpu else states


def _entropy(domain: str, parts) -> int:
    # the text of the parts, since SeedSequence takes (1, 0) for (1,) and 2**32 for (0, 1)
    text = f"{domain}:{','.join(str(int(part)) for part in parts)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
