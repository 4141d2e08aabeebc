"""The energy models: the MLP's fast gradients against its plain energy, and what released scripts do with a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lib.energies.mlp import PlainEBM
from diffusion_lib.precision import bf16_product
from diffusion_lib.system.errors import ConfigError
from models import EBM, MODELS, DiffusionWrapper, EnergyModel

LEVELS = st.one_of(st.integers(0, 9), st.just("mixed"))


def model_and_inputs(inp_dim=5, out_dim=3, batch=7, seed=0):
    torch.manual_seed(seed)
    model = EBM(inp_dim, out_dim).double()
    inp, x = torch.randn(batch, inp_dim).double(), torch.randn(batch, out_dim).double()
    return model, inp, x, torch.randint(0, model.num_timesteps, (batch,))


def plain_twin(model):
    """The plain model with the same weights: it has no path but autograd's."""
    twin = PlainEBM(model.inp_dim, model.out_dim).double()
    twin.load_state_dict(model.state_dict())
    return twin


def wrapper_and_inputs(name, n=2, batch=3):
    """Any model, on symmetric inputs, which the matrix energies need."""
    torch.manual_seed(0)
    root = torch.randn(batch, n, n).double()
    inp = (root @ root.mT + torch.eye(n).double()).flatten(1)
    wrapper = DiffusionWrapper(MODELS[name](n * n, n * n).double())
    return wrapper, inp, torch.randn(batch, n * n).double(), torch.tensor([0, 4, 9])


def close(left, right):
    """Equal to 1e-10 of the largest entry."""
    return (left - right).abs().max() <= 1e-10 * max(1.0, right.abs().max())


def loss_of(energy, gradient):
    """A loss of both, with uneven weights on the rows."""
    rows = torch.linspace(0.5, 1.5, len(energy)).double()
    return (rows * energy).sum() + (gradient - 1).square().mean() + gradient.pow(3).sum()


def gradients_of(model, loss):
    """Gradients in the parameters of a loss."""
    return torch.autograd.grad(loss, list(model.parameters()))


@given(inp_dim=st.integers(1, 6), out_dim=st.integers(1, 6), batch=st.integers(1, 6), seed=st.integers(0, 1000))
def test_fast_energy_and_gradient_equal_the_plain_ones(inp_dim, out_dim, batch, seed):
    fast, inp, x, t = model_and_inputs(inp_dim, out_dim, batch, seed)
    plain = plain_twin(fast)
    cond = fast.condition(inp, t)
    energy, gradient = plain.energy_and_gradient(plain.condition(inp, t), x)
    assert close(fast.energy(cond, x), energy)
    assert close(fast.gradient(cond, x), gradient)
    assert all(map(close, fast.energy_and_gradient(cond, x), (energy, gradient)))


@given(t=LEVELS, seed=st.integers(0, 1000))
def test_fast_parameter_gradients_equal_the_plain_ones(t, seed):
    """Of a loss in both, of one in the energy (as the contrastive) and of one in the gradient (as the denoising)."""
    fast, inp, x, mixed = model_and_inputs(seed=seed)
    levels = mixed if t == "mixed" else t
    rows, found = torch.linspace(-1, 1, len(x)).double(), []
    for model in (fast, plain_twin(fast)):
        inputs = inp.clone().requires_grad_()
        losses = (
            loss_of(*model.energy_and_gradient(model.condition(inputs, levels), x)),
            (rows * model.energy(model.condition(inputs, levels), x)).sum(),
            (model.gradient(model.condition(inputs, levels), x) - 1).square().mean(),
        )
        found.append([part for loss in losses for part in torch.autograd.grad(loss, [inputs, *model.parameters()])])
    assert all(map(close, *found))


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


@pytest.mark.parametrize("t", [4, "mixed"])
def test_plain_model_at_other_levels(t):
    model, inp, x, mixed = model_and_inputs()
    plain, levels = plain_twin(model), mixed if t == "mixed" else t
    moved = plain.retime(plain.condition(inp, 0), levels)
    assert close(plain.energy(moved, x), model.energy(model.condition(inp, levels), x))


def test_bf16_reaches_both_paths():
    torch.manual_seed(0)
    model, inp, x, t = EBM(5, 3), torch.randn(7, 5), torch.randn(7, 3), torch.arange(7)
    exact = model.energy(model.condition(inp, t), x)
    calls = []

    def counted(left, right):
        calls.append(left.shape)
        return bf16_product(left, right)

    model.product = counted
    for candidate in (x, x.clone().requires_grad_()):
        calls.clear()
        energy = model.energy(model.condition(inp, t), candidate)
        assert len(calls) == 1 + 4  # the inputs' share of layer 1, then a product a layer
        assert not torch.equal(energy, exact)
        assert torch.allclose(energy, exact, rtol=0.02)


def test_no_graph_and_no_flags_where_none_is_needed():
    model, inp, x, t = model_and_inputs()
    with torch.no_grad():
        results = [EnergyModel.energy_and_gradient(model, model.condition(inp, t), x)]
        for candidate in (x, x.clone().requires_grad_()):
            cond = model.condition(inp, t)
            results.append((*model.energy_and_gradient(cond, candidate), model.gradient(cond, candidate)))
    assert not any(value.requires_grad for values in results for value in values)
    assert not x.requires_grad


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


def hessians(model, inp, x, t):
    """d2E/dx2 (B, out_dim, out_dim) by central differences of the fast gradient."""
    step, columns = 1e-5, []
    with torch.no_grad():
        cond = model.condition(inp, t)
        for shift in step * torch.eye(x.shape[1]).double():
            columns.append((model.gradient(cond, x + shift) - model.gradient(cond, x - shift)) / (2 * step))
    return torch.stack(columns, dim=2)


def test_second_derivatives_of_the_plain_energy():
    """By torch's own hessian, against differences of the fast gradient; and by the released call of the model."""
    model, inp, x, t = model_and_inputs()
    expected = hessians(model, inp, x, t)
    for i in range(len(x)):
        row = slice(i, i + 1)
        cond = model.condition(inp[row], t[row])
        by_energy = torch.autograd.functional.hessian(lambda v, cond=cond: model.energy(cond, v[None])[0], x[i])
        by_gradient = torch.autograd.functional.jacobian(lambda v, cond=cond: model.gradient(cond, v[None])[0], x[i])
        assert close(by_gradient, by_energy)
        assert torch.allclose(by_energy, expected[i], rtol=1e-6, atol=1e-8)
        released = torch.autograd.functional.hessian(
            lambda v, row=row: model(torch.cat((inp[row], v[None]), -1), t[row])[0, 0], x[i]
        )
        assert close(released, by_energy)


any_model = pytest.mark.parametrize("name", ["mlp", "matrix", "matrix-free"])


@any_model
def test_wrapper_makes_the_callers_candidate_differentiable(name):
    """As the release does: the caller differentiates in a plain tensor, whichever result it asked for."""
    wrapper, inp, x, t = wrapper_and_inputs(name)
    expected = wrapper.ebm.gradient(wrapper.ebm.condition(inp, t), x)
    for options in ({"return_energy": True}, {"return_both": True}):
        plain = x.clone()
        result = wrapper(inp, plain, t, **options)
        energy = result[0] if "return_both" in options else result
        (gradient,) = torch.autograd.grad(energy.sum(), plain)
        assert close(gradient, expected.detach())
    plain = x.clone()
    (second,) = torch.autograd.grad(wrapper(inp, plain, t).sum(), plain)
    assert torch.allclose(second, hessians(wrapper.ebm, inp, x, t).sum(1), rtol=1e-6, atol=1e-7)


@any_model
def test_wrapper_is_differentiable_in_the_candidate_to_any_order(name):
    wrapper, inp, x, t = wrapper_and_inputs(name)
    z = x.clone().requires_grad_()
    gradient = wrapper(inp, z, t)
    (found,) = torch.autograd.grad(gradient.square().sum(), z, create_graph=True)
    expected = 2 * (hessians(wrapper.ebm, inp, x, t) @ gradient.detach()[:, :, None])[:, :, 0]
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(lambda z: wrapper(inp, z, t), z, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: wrapper(inp, z, t), z, fast_mode=True)  # third derivatives of E


@any_model
def test_wrapper_result_is_differentiable_in_the_parameters(name):
    """Through the wrapper, whose candidate has a graph, as through the fast path, whose candidate has none."""
    wrapper, inp, x, t = wrapper_and_inputs(name)
    cond = wrapper.ebm.condition(inp, t)
    expected = gradients_of(wrapper, loss_of(*wrapper.ebm.energy_and_gradient(cond, x)))
    for candidate in (x.clone(), x.clone().requires_grad_(), x.clone().requires_grad_() * 1):
        energy, gradient = wrapper(inp, candidate, t, return_both=True)
        assert all(map(close, gradients_of(wrapper, loss_of(energy[:, 0], gradient)), expected))
        assert close(wrapper(inp, candidate, t), gradient)


@any_model
def test_wrapper_without_gradients_leaves_no_graph_and_no_flag(name):
    wrapper, inp, x, t = wrapper_and_inputs(name)
    with torch.no_grad():
        energy = wrapper(inp, x, t, return_energy=True)
        both = wrapper(inp, x, t, return_both=True)
        gradient = wrapper(inp, x, t)
    assert not any(value.requires_grad for value in (energy, *both, gradient, x))
    assert close(energy, both[0])
    assert close(gradient, both[1])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_names_a_size_that_it_cannot_have(name):
    with pytest.raises(ConfigError, match="inp_dim is 0; allowed: a whole number from 1"):
        MODELS[name](0, 1)


def test_released_arguments_of_the_model():
    assert EBM(inp_dim=4, out_dim=2, is_ebm=True).is_ebm is True
    assert EBM(4, 2, True).is_ebm is True


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
