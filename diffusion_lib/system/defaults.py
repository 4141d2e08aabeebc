"""What a caller can have set for the whole of torch, where this code counts on what torch begins with."""

from contextlib import contextmanager

import torch


@contextmanager
def torchs_defaults():
    """Inside, gradients can be had, also within torch.inference_mode(), and float32 is what no dtype means."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(before)


def usable(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, or where it was made within torch.inference_mode() a copy that autograd takes."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor
