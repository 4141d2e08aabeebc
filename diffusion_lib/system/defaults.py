"""Global settings of torch that a caller may have changed, and whose defaults this code counts on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torchs_defaults() -> Iterator[None]:
    """Set torch's defaults in a `with` block: gradients, also within torch.inference_mode(), float32 and the CPU.

    torch.autocast is off, so that nothing is computed in another type.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            stack.enter_context(without_autocast())
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the tensors' own types in a `with` block, also within torch.autocast."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def usable(value):
    """Return the value; of a tensor that was made within torch.inference_mode() a copy, which autograd takes."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value
