"""How matrix products are computed: in float32 unless the user asks for less, and never less in silence."""

import torch

from diffusion_lib.errors import ConfigError

PRECISIONS = {
    "float32": "plain float32 products",
    "fast": "torch's 'medium' float32 products, after a check that their relative error stays under 1e-6",
    "bf16": "operands rounded to bfloat16, sums in float32; weights, energies and everything else in float32",
}
FAST_ERROR = 1e-6


def set_precision(precision: str, model, device: torch.device):
    """Compute the products of an energy model as named. Raises ConfigError where model or machine cannot."""
    torch.set_float32_matmul_precision("medium" if precision == "fast" else "highest")
    if precision == "fast":
        error = product_error(device)
        if error > FAST_ERROR:
            torch.set_float32_matmul_precision("highest")
            raise ConfigError(f"precision is 'fast', but here its products err by {error:.1g} (over {FAST_ERROR:g}); "
                              "allowed: float32, bf16")  # fmt: skip
    if precision == "bf16":
        if not hasattr(model, "product"):
            raise ConfigError(f"precision is 'bf16', which {type(model).__name__} has not; allowed: float32, fast")
        model.product = bf16_product


def product_error(device: torch.device) -> float:
    """Relative error of a float32 product of the size of a training step, against float64."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator).to(device) for size in ((2048, 512), (512, 512)))
    exact = left.double() @ right.double()
    return ((left @ right - exact).norm() / exact.norm()).item()


def bf16_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right with operands rounded to bfloat16 and a float32 result.

    Where the processor has no bfloat16 units the rounded operands are multiplied in float32: the same numbers,
    at float32's speed, so that the accuracy can be studied anywhere.
    """
    left, right = left.bfloat16(), right.bfloat16()
    if left.device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return (left @ right).float()
    return left.float() @ right.float()
