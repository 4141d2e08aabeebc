"""IRED's other energy for sudoku: a transformer over the cells guesses the solution, and E is the distance to it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from diffusion_lib.energies.base import EnergyModel
from diffusion_lib.energies.sudoku import digits_of
from diffusion_lib.energies.time_embedding import TimeMLP

WIDTH, HEADS, DROPOUT = 128, 4, 0.1


class SelfAttention(nn.Module):
    """Each cell (B, cells, WIDTH) attends to all. The buffer `mask` is in IRED's checkpoints and is not used."""

    def __init__(self, cells: int):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer("mask", torch.ones(cells, cells).tril()[None, None])

    def forward(self, x):
        query, key, value = (
            rearrange(layer(x), "b cell (head width) -> b head cell width", head=HEADS)
            for layer in (self.query, self.key, self.value)
        )
        # not torch's fused attention, which cannot be differentiated twice
        weights = self.dropout((query @ key.mT * key.shape[-1] ** -0.5).softmax(-1))
        return self.dropout(self.proj(rearrange(weights @ value, "b head cell width -> b cell (head width)")))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, cells: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = SelfAttention(cells)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(DROPOUT)
        )

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    """Embedded cells (B, cells, WIDTH) and levels (B, WIDTH) to (B, cells, digits)."""

    def __init__(self, cells: int, digits: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(1, cells, WIDTH))
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList([Block(cells)])
        self.ln_final = nn.LayerNorm(WIDTH)
        self.time_map = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc_final = nn.Linear(WIDTH, WIDTH)
        self.head_final = nn.Linear(WIDTH, digits)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, cells, e):
        x = self.dropout(cells + self.positional_embedding)
        for block in self.blocks:
            x = block(x)
        gain, shift = self.time_map(e)[:, None].chunk(2, dim=-1)
        return self.head_final(F.gelu(self.fc_final(self.ln_final(x)) * (gain + 1) + shift))


class Condition(NamedTuple):
    """The inputs' share of the embedded cells, with its bias, (B, cells, WIDTH), and the embedded levels (B, WIDTH)."""

    cells: torch.Tensor
    level: torch.Tensor


class SudokuTransformerEBM(EnergyModel):
    """E = || x - transformer([inp, x], e(t)) ||^2, as the release means it; its own raises a TypeError.

    inp and x (B, d^3), the cells row by row and the digit fastest, for d x d boards. In training mode its dropout draws
    from torch's global generator, anew for each energy. Descents, of mining and of the sampler, run without dropout,
    since they compare two energies to keep a step. Raises ConfigError for sizes of no board.
    """

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        self.digits = digits_of(inp_dim, out_dim)
        self.time_mlp = TimeMLP(WIDTH, WIDTH)
        self.input_embedding = nn.Linear(2 * self.digits, WIDTH)
        self.transformer = Transformer(self.digits**2, self.digits)

    def condition(self, inp, t):
        weight = self.input_embedding.weight[:, : self.digits]
        return self.retime(Condition(F.linear(self._cells(inp), weight, self.input_embedding.bias), None), t)

    def retime(self, cond, t):
        return cond._replace(level=self.time_mlp(t))

    def energy(self, cond, x):
        x = self._cells(x)
        cells = cond.cells + F.linear(x, self.input_embedding.weight[:, self.digits :]) + cond.level[:, None]
        return (x - self.transformer(cells, cond.level)).square().sum((1, 2))

    def _cells(self, x):
        return rearrange(x, "b (cell digit) -> b cell digit", digit=self.digits)
