"""The given entries of a solution, such as the digits of a puzzle: the input has them, and every sample keeps them."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Given(NamedTuple):
    """The given entries of x_t: where they are (`mask`, bool) and their `values`, both (B, *out_shape)."""

    mask: "torch.Tensor"
    values: "torch.Tensor"


def restored(x: "torch.Tensor", given: Given | None) -> "torch.Tensor":
    """Return x (B, *out_shape) with the given entries put back, or x itself where there are none."""
    return x if given is None else given.values.where(given.mask, x)
