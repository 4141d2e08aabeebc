"""The MLP energy's written-out gradient against autograd and finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lib.system.errors import ConfigError
from models import EBM, DiffusionWrapper, EnergyModel


def model_and_inputs(inp_dim=5, out_dim=3, batch=7, seed=0):
    torch.manual_seed(seed)
    model = EBM(inp_dim, out_dim).double()
    inp, x = torch.randn(batch, inp_dim).double(), torch.randn(batch, out_dim).double()
    return model, inp, x, torch.randint(0, model.num_timesteps, (batch,))


def loss_of(model, path, inp, x, t):
    """A loss that needs both the energy and the gradient, with uneven weights on the rows."""
    energy, gradient = path(model.condition(inp, t), x)
    rows = torch.linspace(0.5, 1.5, len(x)).double()
    return (rows * energy).sum() + (gradient - 1).square().mean() + gradient.pow(3).sum()


@given(inp_dim=st.integers(1, 6), out_dim=st.integers(1, 6), batch=st.integers(1, 6), seed=st.integers(0, 1000))
def test_explicit_gradient_equals_autograd(inp_dim, out_dim, batch, seed):
    model, inp, x, t = model_and_inputs(inp_dim, out_dim, batch, seed)
    explicit = model.energy_and_gradient(model.condition(inp, t), x)
    traced = EnergyModel.energy_and_gradient(model, model.condition(inp, t), x)
    for left, right in zip(explicit, traced, strict=True):
        assert torch.allclose(left, right, rtol=1e-11, atol=1e-13)


@given(t=st.one_of(st.integers(0, 9), st.just("mixed")), seed=st.integers(0, 1000))
def test_parameter_gradients_equal_autograd_through_the_gradient(t, seed):
    model, inp, x, mixed = model_and_inputs(seed=seed)
    levels = mixed if t == "mixed" else t
    found = []
    for path in (model.energy_and_gradient, lambda cond, x: EnergyModel.energy_and_gradient(model, cond, x)):
        model.zero_grad()
        loss_of(model, path, inp, x, levels).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for left, right in zip(*found, strict=True):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-11)


@given(t=st.one_of(st.integers(0, 9), st.just("mixed")), seed=st.integers(0, 1000))
def test_energy_without_its_gradient_equals_autograd(t, seed):
    """The contrastive loss's path, in values and in parameters' gradients, and the descent's last look."""
    model, inp, x, mixed = model_and_inputs(seed=seed)
    levels, rows = mixed if t == "mixed" else t, torch.linspace(-1, 1, len(x)).double()
    found = []
    for candidate in (x, x.clone().requires_grad_()):  # who differentiates in x gets autograd
        model.zero_grad()
        energy = model.energy(model.condition(inp, levels), candidate)
        (rows * energy).sum().backward()
        found.append([energy.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    with torch.no_grad():
        assert torch.allclose(model.energy(model.condition(inp, levels), x), found[1][0], rtol=1e-12)
    for left, right in zip(*found, strict=True):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-11)


def test_evaluation_without_gradients_equals_that_with_them():
    model, inp, x, t = model_and_inputs()
    before = x.clone()
    kept = model.energy_and_gradient(model.condition(inp, t), x)
    with torch.no_grad():
        cond = model.condition(inp, t)
        overwritten = [model.energy_and_gradient(cond, x) for _ in range(2)]
        alone = [model.gradient(cond, x) for _ in range(2)]
    for values in overwritten:  # the second one would see what the first one overwrote
        assert all(torch.allclose(left, right, rtol=1e-12) for left, right in zip(values, kept, strict=True))
    assert all(torch.allclose(values, kept[1], rtol=1e-11) for values in alone)
    assert torch.equal(x, before)


def test_gradient_against_finite_differences():
    model, inp, x, t = model_and_inputs()
    cond = model.condition(inp, t)
    _, gradient = model.energy_and_gradient(cond, x)
    step = 1e-6
    for j in range(x.shape[1]):
        shift = step * torch.eye(x.shape[1]).double()[j]
        slope = (model.energy(cond, x + shift) - model.energy(cond, x - shift)) / (2 * step)
        assert torch.allclose(slope, gradient[:, j], rtol=1e-6, atol=1e-8)


def test_one_level_for_all_equals_a_level_for_each():
    model, inp, x, _ = model_and_inputs()
    t = torch.full((len(x),), 4)
    for cond in (model.condition(inp, 4), model.retime(model.condition(inp, 0), 4)):
        one, each = model.energy_and_gradient(cond, x), model.energy_and_gradient(model.condition(inp, t), x)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(one, each, strict=True))


def test_released_call_takes_the_concatenation():
    model, inp, x, t = model_and_inputs()
    energy = model(torch.cat([inp, x], -1), t)
    assert energy.shape == (len(x), 1)
    assert torch.allclose(energy[:, 0], model.energy(model.condition(inp, t), x))


def test_no_graph_and_no_flags_where_none_is_needed():
    model, inp, x, t = model_and_inputs()
    with torch.no_grad():
        energy, gradient = model.energy_and_gradient(model.condition(inp, t), x)
        traced = EnergyModel.energy_and_gradient(model, model.condition(inp, t), x)
    assert not any(value.requires_grad for value in (energy, gradient, *traced, x))


def test_float32_is_within_1e_5_of_float64():
    torch.manual_seed(0)
    exact = EBM(400, 400).double()
    model = EBM(400, 400)
    model.load_state_dict(exact.state_dict())
    inp, x, t = torch.randn(64, 400), torch.randn(64, 400), torch.arange(64) % 10
    energy, gradient = model.energy_and_gradient(model.condition(inp, t), x)
    expected = exact.energy_and_gradient(exact.condition(inp.double(), t), x.double())
    for value, truth in zip((energy, gradient), expected, strict=True):
        assert (value - truth).norm() / truth.norm() < 1e-5


def test_wrapper_shapes_and_refusal():
    model, inp, x, t = model_and_inputs()
    wrapper = DiffusionWrapper(model)
    energy, gradient = wrapper(inp, x, t, return_both=True)
    assert energy.shape == (7, 1)
    assert gradient.shape == x.shape
    assert torch.equal(wrapper(inp, x, t), gradient)
    assert torch.allclose(wrapper(inp, x, t, return_energy=True), energy)
    with pytest.raises(ConfigError, match="needs an EnergyModel, not Linear"):
        DiffusionWrapper(torch.nn.Linear(2, 2))
