"""The features of a plan's steps beside those of their neighbours."""

import torch


def beside(z: torch.Tensor) -> torch.Tensor:
    """Return [previous step's z, z, next step's z] (B, T, ..., 3c) of z (B, T, ..., c); zero where there is no step."""
    nothing = torch.zeros_like(z[:, :1])
    return torch.cat((torch.cat((nothing, z[:, :-1]), 1), z, torch.cat((z[:, 1:], nothing), 1)), dim=-1)


def beside_as_released(z: torch.Tensor) -> torch.Tensor:
    """Do as the release's `beside`, which shifts nothing: [z but 0 at the first step, z, z but 0 at the last]."""
    nothing = torch.zeros_like(z[:, :1])
    return torch.cat((torch.cat((nothing, z[:, 1:]), 1), z, torch.cat((z[:, :-1], nothing), 1)), dim=-1)
