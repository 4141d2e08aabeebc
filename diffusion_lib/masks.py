"""Entries of a solution that the input gives, such as the digits of a puzzle: they are kept, whatever is sampled."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Given(NamedTuple):
    """The given entries of x_t: where they are, and their values, both (B, *out_shape); `mask` is boolean."""

    mask: "torch.Tensor"
    values: "torch.Tensor"


def restored(x: "torch.Tensor", given: Given | None) -> "torch.Tensor":
    """x (B, *out_shape) with the given entries put back; x itself where there are none."""
    return x if given is None else given.values.where(given.mask, x)
