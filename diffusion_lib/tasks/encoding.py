"""How discrete solutions are written as numbers: +1 and -1."""

import torch


def signs(flags: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return +1 where a flag is set, else -1."""
    return flags.to(dtype) * 2 - 1


def one_hot_signs(index: torch.Tensor, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Encode whole numbers (...) as (..., size): +1 at the number's place, -1 elsewhere."""
    return signs(index[..., None] == torch.arange(size, device=index.device), dtype)


def half_as_large_again(rank: int) -> int:
    """Return the size of the harder problems of most discrete tasks: 18 for 12, 15 for 10."""
    return (3 * rank + 1) // 2


def permutations(batch_size: int, size: int, generator, device) -> torch.Tensor:
    """Draw uniform permutations (B, size) of 0 .. size - 1."""
    return torch.rand(batch_size, size, generator=generator, device=device).argsort(1)
