"""Hand-made wrong solutions, for the mining mode `corrupt`: the release's, as they are and as it meant them.

The release has them for connectivity, the shortest path and sudoku. The others are simple analogues made here.
"""

import torch
import torch.nn.functional as F
from einops import rearrange

from diffusion_lib.tasks.base import Corruption
from diffusion_lib.tasks.encoding import one_hot_signs, signs

SHARE = 0.05  # of the entries, or cells, that are drawn anew


class FlippedEntries(Corruption):
    """A change of sign of each entry with some probability; made here, since the release has none for these tasks."""

    def __init__(self, probability: float):
        self.probability = probability

    def draw(self, target, generator=None):
        return (torch.rand(target.shape, generator=generator, device=target.device),)

    def apply(self, target, uniforms, released=False, mask=None):
        return torch.where(uniforms < self.probability, -target, target)


class FlippedPairs(Corruption):
    """Connectivity (B, N, N): each pair of nodes gets a random sign with probability 0.05, the same in both directions.

    Draws: digits 0 or 1, and uniforms, both (B, N, N); only those above the diagonal count.
    released: each entry by itself, the diagonal too, and only ever to -1.
    """

    def draw(self, target, generator=None):
        options = {"generator": generator, "device": target.device}
        return torch.randint(0, 2, target.shape, **options), torch.rand(target.shape, **options)

    def apply(self, target, digits, uniforms, released=False, mask=None):
        if released:
            return target.masked_fill(uniforms < SHARE, -1)
        chosen = (uniforms < SHARE).triu(1)
        new = signs(digits.triu(1) + digits.triu(1).mT, target.dtype)
        return torch.where(chosen | chosen.mT, new, target)


class ChangedCells(Corruption):
    """Sudoku (B, s^3): blank cells get another digit with probability 0.05, and at least one of them does.

    Draws: digits 0 .. s - 1 and uniforms, both (B, s, s); where the digit drawn is the cell's own, the next one is
    taken.
    mask: 1 at given cells, (B, s^3); without it every cell counts as blank.
    released: all cells alike, givens too, with the digit as drawn.
    """

    def draw(self, target, generator=None):
        side = round(target.shape[1] ** (1 / 3))
        shape = (len(target), side, side)
        options = {"generator": generator, "device": target.device}
        return torch.randint(0, side, shape, **options), torch.rand(shape, **options)

    def apply(self, target, digits, uniforms, released=False, mask=None):
        side = digits.shape[-1]
        by_cell = "b (cell digit) -> b cell digit"
        cells, digits, uniforms = rearrange(target, by_cell, digit=side), digits.flatten(1), uniforms.flatten(1)
        chosen = uniforms < SHARE
        if not released:
            if mask is not None:  # no uniform number is as large as 2
                uniforms = uniforms.masked_fill(rearrange(mask, by_cell, digit=side)[..., 0] > 0, 2)
            chosen = (uniforms < SHARE) | ((uniforms == uniforms.amin(1, keepdim=True)) & (uniforms < 2))
            digits = another(digits, cells.argmax(2), side)
        return torch.where(chosen[..., None], one_hot_signs(digits, side, target.dtype), cells).flatten(1)


class ChangedStep(Corruption):
    """A plan (B, steps, *places, channels): at one step, each of the action's one-hots is moved to another place.

    channels: which ones hold a one-hot over all places.
    Draws: places (B, steps, len(channels)), and the step (B,).
    released: always the first step, whatever the step drawn, and the place as drawn, which may be the same. The release
    has this for the shortest path in one dimension.
    """

    def __init__(self, *channels: int):
        self.channels = channels

    def draw(self, target, generator=None):
        options = {"generator": generator, "device": target.device}
        places = target[0, 0, ..., 0].numel()
        shape = (*target.shape[:2], len(self.channels))
        return torch.randint(0, places, shape, **options), torch.randint(0, target.shape[1], shape[:1], **options)

    def apply(self, target, places, step=None, released=False, mask=None):
        step = torch.zeros(len(target), dtype=torch.long, device=target.device) if released else step
        at = F.one_hot(step, target.shape[1])[..., None] > 0  # (B, steps, 1)
        result = target.clone()
        for channel, place in zip(self.channels, places.unbind(-1), strict=True):
            old = target[..., channel].flatten(2)
            new = place if released else another(place, old.argmax(2), old.shape[2])
            moved = torch.where(at, one_hot_signs(new, old.shape[2], target.dtype), old)
            result[..., channel] = moved.unflatten(2, target.shape[2:-1])
        return result


def another(drawn, own, count: int):
    """Return the numbers drawn, but the next one (modulo count) where the number is `own`."""
    return torch.where(drawn == own, (own + 1) % count, drawn)
