"""How matrix products are computed: as accurate as float32 unless the user asks for less, and never less in silence."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

from diffusion_lib.system.errors import ConfigError

LARGEST_ERROR = 1e-6
OMP_PAUSE_SOFT = 1  # from omp.h


def set_precision(precision: str, model, device: torch.device):
    """Compute the products of an energy model as named. Raises ConfigError where the model or the device cannot."""
    choose_products(precision, device)
    require_product(precision, model)
    if precision == "bf16":
        model.product = bf16_product


@contextmanager
def float32_products(diffusion) -> Iterator[None]:
    """Inside, compute a model's products as accurately as float32, whatever it is trained in: for evaluation.

    The inner loop keeps a descent where the energy falls, often by less than TF32 or bfloat16 round: with such
    products it loses half of what it gains (docs/speed.md).
    """
    ebm, before, backends, rounded = diffusion.model.ebm, None, (), {}
    if vars(ebm).get("product") is bf16_product:
        rounded = {name: vars(ebm)[name] for name in ("product", "evaluation") if name in vars(ebm)}
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program chose for each backend by itself, torch's newer way
        backends = {each: each.fp32_precision for each in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)}
    try:
        for name in rounded:
            delattr(ebm, name)
        if before not in (None, "highest"):
            choose_products("auto", diffusion.betas.device)
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if before:
            torch.set_float32_matmul_precision(before)
        for backend, chosen in dict(backends).items():
            backend.fp32_precision = chosen
        for name, value in rounded.items():
            setattr(ebm, name, value)


def require_product(precision: str, model):
    """Raise ConfigError where the model has no products that could be made another way."""
    if precision == "bf16" and not hasattr(model, "product"):
        raise ConfigError(f"precision is 'bf16', which {type(model).__name__} has not; allowed: auto, float32")


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Inside, torch takes numbers below 1.2e-38 for 0, in this thread and in those that share its operations.

    The gradient of a negative that is already far above the real sample is that small, and a processor takes a hundred
    times as long with such numbers: on a CPU up to two thirds of a step with negatives. Outside, the caller's
    arithmetic is as it was.
    """
    if not torch.full((), torch.finfo(torch.float32).tiny) / 2:  # they are flushed already
        yield
        return
    _flush_denormals(True)
    try:
        yield
    finally:
        _flush_denormals(False)


def _flush_denormals(on: bool):
    torch.set_flush_denormal(on)
    # GNU's OpenMP threads keep what they were started with: these end, and the next operation starts others
    if torch.get_num_threads() > 1:
        with suppress(AttributeError):  # another OpenMP, whose threads follow the one that they work for
            ctypes.CDLL(torch._C.__file__).omp_pause_resource_all(OMP_PAUSE_SOFT)


def choose_products(precision: str, device: torch.device):
    """Set how torch computes float32 products from here on; `torch.get_float32_matmul_precision` tells.

    Raises ConfigError for tf32 on a device without it, which would compute float32 in silence.
    """
    if precision == "tf32" and not has_tf32(device):
        raise ConfigError("precision is 'tf32', which this device has not; allowed here: auto, float32, bf16")
    accurate = precision == "auto" and medium_error(device.type) < LARGEST_ERROR
    # "high" is TF32 on a GPU, by this call in every version of torch
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "medium" if accurate else "highest")


def has_tf32(device: torch.device) -> bool:
    """Return whether its tensor cores take float32 operands: compute capability 8.0, Ampere, and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def medium_error(device: str) -> float:
    """Largest relative error of 'medium' products, of those that the steps consist of, against float64."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    generator = torch.Generator().manual_seed(0)
    sizes = (((2048, 512), (512, 512)), ((512, 2048), (2048, 512)), ((64, 20, 20), (64, 20, 20)))
    errors = [product_error(*(torch.randn(size, generator=generator).to(device) for size in pair)) for pair in sizes]
    torch.set_float32_matmul_precision(before)
    return max(errors)


def product_error(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the relative error (Frobenius norm) of left @ right, as torch is set, against float64."""
    exact = left.double() @ right.double()
    return ((left @ right - exact).norm() / exact.norm()).item()


def bf16_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply matrices with operands and result rounded to bfloat16: left @ right as a float32 tensor.

    Where the processor has no bfloat16 units the rounded operands are multiplied in float32: the same accuracy, at
    float32's speed, so that it can be studied anywhere.
    """
    if multiplies_bf16(left.device.type):
        return multiply_bf16(left, right)
    return (left.bfloat16().float() @ right.bfloat16().float()).bfloat16().float()


def multiply_bf16(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Do as `bf16_product`, on a device that multiplies bfloat16 matrices."""
    return (left.bfloat16() @ right.bfloat16()).float()


def multiplies_bf16(device: str) -> bool:
    """Return whether a device multiplies bfloat16 matrices as such, faster than float32's."""
    return device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
