"""Plan steps beside each other."""

import torch


def beside(z: torch.Tensor) -> torch.Tensor:
    """[z of the previous step, z, z of the next] (B, T, ..., 3c) of z (B, T, ..., c); zero where there is no step."""
    nothing = torch.zeros_like(z[:, :1])
    return torch.cat((torch.cat((nothing, z[:, :-1]), 1), z, torch.cat((z[:, 1:], nothing), 1)), dim=-1)


def beside_as_released(z: torch.Tensor) -> torch.Tensor:
    """The release's `beside`, which shifts nothing: [z without the first step, z, z without the last]."""
    nothing = torch.zeros_like(z[:, :1])
    return torch.cat((torch.cat((nothing, z[:, 1:]), 1), z, torch.cat((z[:, :-1], nothing), 1)), dim=-1)
