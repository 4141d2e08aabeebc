import pytest
import torch
from conftest import make_diffusion

from dataset import Inverse
from diffusion_lib.errors import ConfigError
from diffusion_lib.precision import bf16_product, product_error, set_precision
from experiments.config import ExperimentConfig
from models import EnergyModel

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored():
    yield
    torch.set_float32_matmul_precision("highest")


def test_bf16_rounds_operands_and_sums_in_float32():
    torch.manual_seed(0)
    left, right = torch.randn(40, 600), torch.randn(600, 30)
    product = bf16_product(left, right)
    exact = left.bfloat16().double() @ right.bfloat16().double()
    assert product.dtype == torch.float32
    # a CPU with bfloat16 units rounds the result to bfloat16, too
    assert ((product - exact).norm() / exact.norm()).item() < 4e-3
    assert ((product - left.double() @ right.double()).norm() / exact.norm()).item() > 1e-3


def test_bf16_reaches_every_product_of_the_step():
    torch.manual_seed(0)
    inp, target = Inverse("train", 3).sample(16)
    t, noise = torch.arange(16) % 10, torch.randn(16, 9)
    losses, calls = [], []

    def counted(left, right):
        calls.append((tuple(left.shape), tuple(right.shape)))
        return bf16_product(left, right)

    for precision in ("float32", "bf16"):
        diffusion = make_diffusion()
        set_precision(precision, diffusion.model.ebm, CPU)
        if precision == "bf16":
            diffusion.model.ebm.product = counted
        loss, _ = diffusion.p_losses(inp, target, None, t, noise, noise)
        loss.backward()
        losses.append(loss.item())
        gradient = diffusion.model.ebm.fc2.weight.grad
        assert gradient.dtype == diffusion.model.ebm.fc2.weight.dtype == torch.float32
        assert gradient.abs().max() > 0
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    # input once; E and dE/dx three times 8 (denoising, two opt_steps); its backward 15; three energies of 4
    assert len(calls) == 1 + 3 * 8 + 15 + 3 * 4


def test_fast_is_refused_where_it_is_not_accurate(monkeypatch):
    assert product_error(CPU) < 1e-6
    monkeypatch.setattr("diffusion_lib.precision.product_error", lambda _: 1e-3)
    with pytest.raises(ConfigError, match=r"products err by 0.001 \(over 1e-06\); allowed: float32, bf16"):
        set_precision("fast", make_diffusion().model.ebm, CPU)
    assert torch.get_float32_matmul_precision() == "highest"


def test_bf16_needs_a_model_that_has_it():
    with pytest.raises(ConfigError, match="which EnergyModel has not; allowed: float32, fast"):
        set_precision("bf16", EnergyModel(1, 1), CPU)


def test_unknown_precision_is_named():
    with pytest.raises(ConfigError, match="precision is 'half'; allowed: float32, fast, bf16"):
        ExperimentConfig(precision="half")
