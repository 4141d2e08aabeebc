"""IRED's energy for sudoku: a residual convolutional network over the board, its output squared and summed."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from diffusion_lib.energies.base import EnergyModel, NoiseModel
from diffusion_lib.energies.time_embedding import TimeMLP
from diffusion_lib.system.errors import ConfigError

FREQUENCIES, TIME_DIM = 128, 64
HEADS, HEAD_DIM = 4, 128


def digits_of(inp_dim: int, out_dim: int) -> int:
    """Return d of boards of d x d cells with d digits each, d a square. Raises ConfigError for other sizes."""
    digits = round(inp_dim ** (1 / 3))
    if digits**3 != inp_dim or round(digits**0.5) ** 2 != digits or inp_dim != out_dim:
        raise ConfigError(f"inp_dim, out_dim are {inp_dim}, {out_dim}; allowed for sudoku: twice 64, 729 or 4096")
    return digits


class Residual(nn.Module):
    """r + swish(gain conv2(swish(conv1 r)) + shift), [gain - 1, shift] = time_fc2(e); time_fc1 feeds nothing."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, width, 5, padding=2)
        self.time_fc1 = nn.Linear(TIME_DIM, 2 * width)
        self.time_fc2 = nn.Linear(TIME_DIM, 2 * width)
        nn.init.normal_(self.conv2.weight, std=1e-5)

    def level(self, e):
        """Return gain and shift, (B, width, 1, 1) each, of the embedded levels (B, TIME_DIM)."""
        gain, shift = self.time_fc2(e)[:, :, None, None].chunk(2, dim=1)
        return gain + 1, shift

    def forward(self, r, level):
        gain, shift = level
        return r + F.silu(gain * self.conv2(F.silu(self.conv1(r))) + shift)


class ChannelNorm(nn.Module):
    """x over the root of its channels' mean square, times g."""

    def __init__(self, width: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x):
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class Attention(nn.Module):
    """Each cell of a board (B, width, n, n) attends to all, without a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = ChannelNorm(width)
        self.to_qkv = nn.Conv2d(width, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_DIM, width, 1)

    def forward(self, x):
        parts = self.to_qkv(self.norm(x))
        split = "b (part head width) row column -> part b head width (row column)"
        query, key, value = rearrange(parts, split, part=3, head=HEADS)
        weights = (query.mT @ key * HEAD_DIM**-0.5).softmax(-1)
        merged = "b head width (row column) -> b (head width) row column"
        return self.to_out(rearrange(value @ weights.mT, merged, row=x.shape[2]))


class Condition(NamedTuple):
    """conv1's share of the inputs, with its bias, (B, width, d, d), and gain and shift of each residual block."""

    image: torch.Tensor
    levels: list[tuple[torch.Tensor, torch.Tensor]]


class SudokuEBM(EnergyModel):
    """E = sum of conv5(h)^2, h six residual blocks over swish(conv1 [inp, x]), as images with a channel per digit.

    inp and x (B, d^3), the cells row by row and the digit fastest, for d x d boards.
    width: channels of h.
    The attentions are in IRED's checkpoints and feed nothing. Raises ConfigError for sizes of no board.
    """

    position_channels = 0

    def __init__(self, inp_dim: int, out_dim: int, width: int = 384):
        super().__init__(inp_dim, out_dim)
        self.digits = digits_of(inp_dim, out_dim)
        self.time_mlp = TimeMLP(FREQUENCIES, TIME_DIM)
        self.conv1 = nn.Conv2d(2 * self.digits + self.position_channels, width, 3, padding=1)
        self.res1a, self.res1b, self.attn1 = Residual(width), Residual(width), Attention(width)
        self.res2a, self.res2b, self.attn2 = Residual(width), Residual(width), Attention(width)
        self.res3a, self.res3b, self.attn3 = Residual(width), Residual(width), Attention(width)
        self.conv5 = nn.Conv2d(width, self.digits, 1)

    def condition(self, inp, t):
        weight = self.conv1.weight[:, : self.digits]
        return self.retime(Condition(F.conv2d(self._image(inp), weight, self.conv1.bias, padding=1), []), t)

    def retime(self, cond, t):
        e = self.time_mlp(t)
        return cond._replace(levels=[block.level(e) for block in self._blocks()])

    def energy(self, cond, x):
        return self.outputs(cond, x).square().sum(1)

    def outputs(self, cond, x):
        """Return conv5 h (B, d^3), in the order of x."""
        h = F.conv2d(self._image(x), self.conv1.weight[:, self.digits : 2 * self.digits], padding=1)
        h = self.board(F.silu(h + cond.image), cond.levels)
        return rearrange(self.conv5(h), "b digit row column -> b (row column digit)")

    def board(self, h, levels):
        """Return h (B, width, d, d) after all blocks, from that of conv1."""
        for block, level in zip(self._blocks(), levels, strict=True):
            h = block(h, level)
        return h

    def _blocks(self):
        return self.res1a, self.res1b, self.res2a, self.res2b, self.res3a, self.res3b

    def _image(self, x):
        n = self.digits
        return rearrange(x, "b (row column digit) -> b digit row column", row=n, column=n)


class SmallSudokuEBM(SudokuEBM):
    """SudokuEBM of width 64, for a CPU: 1.7 million weights instead of 47."""

    def __init__(self, inp_dim: int, out_dim: int, width: int = 64):
        super().__init__(inp_dim, out_dim, width)


class SudokuDenoise(NoiseModel, SudokuEBM):
    """SudokuEBM without the square, with attention after every two blocks, and told each cell's column and row."""

    position_channels = 2

    def __init__(self, inp_dim: int, out_dim: int, width: int = 128):
        super().__init__(inp_dim, out_dim, width)

    def condition(self, inp, t):
        cond = super().condition(inp, t)
        place = torch.linspace(0, 1, self.digits, dtype=inp.dtype, device=inp.device)
        places = torch.stack(torch.meshgrid(place, place, indexing="xy"))[None]
        share = F.conv2d(places, self.conv1.weight[:, 2 * self.digits :], padding=1)
        return cond._replace(image=cond.image + share)

    def board(self, h, levels):
        for i, attention in enumerate((self.attn1, self.attn2, self.attn3)):
            for block, level in zip(self._blocks()[2 * i : 2 * i + 2], levels[2 * i : 2 * i + 2], strict=True):
                h = block(h, level)
            h = attention(h)
        return h

    def predict(self, cond, x):
        return self.outputs(cond, x)
