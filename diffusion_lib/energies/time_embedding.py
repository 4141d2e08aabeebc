"""The learned embedding of the noise level that IRED's models share."""

import math

import torch
from torch import nn


class SinusoidalPosEmb(nn.Module):
    """Sinusoidal embedding (N,) -> (N, dim) of the level, in the type of t (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, t):
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(10000) / (half - 1)))
        angles = t[:, None] * rates
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TimeMLP(nn.Sequential):
    """e(t) = L2 GELU(L1 f(t)), f sinusoidal of size `frequencies`, from levels, (B,) or one int, to (B or 1, width)."""

    def __init__(self, frequencies: int, width: int):
        super().__init__(
            SinusoidalPosEmb(frequencies), nn.Linear(frequencies, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, t: torch.Tensor | int) -> torch.Tensor:
        weight = self[1].weight
        return super().forward(torch.as_tensor(t, device=weight.device).view(-1).to(weight.dtype))
