"""The matrix energies: their gradients, their symmetry, and that their weights know nothing of n or of the batch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dataset import Inverse
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from diffusion_lib.system.errors import ConfigError
from models import MODELS, DiffusionWrapper, EnergyModel

NAMES = ("matrix", "matrix-free")
both = pytest.mark.parametrize("name", NAMES)


def make_model(name="matrix", n=4, seed=0):
    """A float64 model whose weights have all left their start, so that no term is zero or one by chance."""
    torch.manual_seed(seed)
    model = MODELS[name](n * n, n * n).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def make_inputs(model, n=4, batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inp, _ = Inverse("train", n).sample(batch, generator, dtype=torch.float64)
    x = torch.randn(batch, n * n, generator=generator, dtype=torch.float64)
    return inp, x, torch.randint(0, model.num_timesteps, (batch,), generator=generator)


def traced(model):
    """The path through autograd, which any energy has."""
    return lambda cond, x: EnergyModel.energy_and_gradient(model, cond, x)


def training_loss(model, path, inp, x, t):
    """Denoising and contrastive terms, so that both outputs and both calls are differentiated."""
    cond = model.condition(inp, t)
    energy, gradient = path(cond, x)
    return F.mse_loss(gradient, x.flip(0)) + F.softplus(0.01 * (energy - model.energy(cond, x.flip(1)))).mean()


def parameter_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@given(n=st.integers(1, 6), batch=st.integers(1, 5), seed=st.integers(0, 1000))
def test_closed_form_gradient_equals_autograd(n, batch, seed):
    model = make_model(n=n, seed=seed)
    inp, x, t = make_inputs(model, n, batch, seed)
    cond = model.condition(inp, t)
    for left, right in zip(model.energy_and_gradient(cond, x), traced(model)(cond, x), strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-12)


@given(n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_parameter_gradients_equal_autograd_through_the_gradient(n, seed):
    model = make_model(n=n, seed=seed)
    arguments = make_inputs(model, n, seed=seed)
    closed, through = (
        parameter_gradients(model, training_loss(model, path, *arguments))
        for path in (model.energy_and_gradient, traced(model))
    )
    assert (closed - through).norm() <= 1e-10 * through.norm()


@both
def test_gradient_against_finite_differences(name):
    model = make_model(name, n=3)
    inp, x, t = make_inputs(model, n=3)
    with torch.no_grad():
        cond = model.condition(inp, t)
        _, gradient = model.energy_and_gradient(cond, x)
        for j, unit in enumerate(1e-6 * torch.eye(9, dtype=x.dtype)):
            slope = (model.energy(cond, x + unit) - model.energy(cond, x - unit)) / 2e-6
            assert torch.allclose(slope, gradient[:, j], rtol=1e-5, atol=1e-6)


@both
def test_parameter_gradients_against_finite_differences(name):
    # a written-out derivative of the polynomial would be in both paths that the tests above compare
    model = make_model(name)
    arguments = make_inputs(model)
    found = parameter_gradients(model, training_loss(model, model.energy_and_gradient, *arguments))
    parameters = list(model.parameters())
    start = torch.nn.utils.parameters_to_vector(parameters).detach()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        along = F.normalize(torch.randn(start.shape, generator=generator, dtype=start.dtype), dim=0)
        ends = []
        for side in (1e-6, -1e-6):
            torch.nn.utils.vector_to_parameters(start + side * along, parameters)
            ends.append(training_loss(model, model.energy_and_gradient, *arguments).item())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((found @ along).item(), rel=1e-5)


@both
@given(n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_energy_is_the_same_after_a_rotation(name, n, seed):
    model = make_model(name, n, seed)
    inp, x, t = make_inputs(model, n, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(x), n, n, generator=generator, dtype=x.dtype))
    turned = [(q @ part.view(-1, n, n) @ q.mT).flatten(1) for part in (inp, x)]
    before, after = model.energy(model.condition(inp, t), x), model.energy(model.condition(turned[0], t), turned[1])
    assert (before >= 0).all()
    assert torch.allclose(before, after, rtol=1e-8, atol=1e-10)


@both
def test_retime_equals_condition_and_one_level_a_level_for_each(name):
    model = make_model(name)
    inp, x, mixed = make_inputs(model)
    for levels in (4, torch.full((len(x),), 4), mixed):
        fresh = model.energy_and_gradient(model.condition(inp, levels), x)
        retimed = model.energy_and_gradient(model.retime(model.condition(inp, 0), levels), x)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(fresh, retimed, strict=True))
    one, other = (model.energy(model.condition(inp, t), x) for t in (4, torch.full((len(x),), 4)))
    assert torch.allclose(one, other, rtol=1e-12)
    assert not torch.allclose(one, model.energy(model.condition(inp, 5), x), rtol=1e-3)


@both
def test_a_row_does_not_depend_on_the_batch(name):
    model = make_model(name)
    inp, x, t = make_inputs(model, batch=6)
    all_rows = model.energy_and_gradient(model.condition(inp, t), x)
    some = model.energy_and_gradient(model.condition(inp[2:4], t[2:4]), x[2:4])
    assert all(torch.allclose(a[2:4], b, rtol=1e-10) for a, b in zip(all_rows, some, strict=True))


@both
def test_the_same_few_weights_serve_every_size(name):
    trained = make_model(name, n=4)
    assert sum(p.numel() for p in MODELS[name](400, 400).parameters()) <= 2000
    for n in (2, 6):
        model = MODELS[name](n * n, n * n).double()
        model.load_state_dict(trained.state_dict())
        inp, x, t = make_inputs(model, n)
        own, other = (each.energy_and_gradient(each.condition(inp, t), x) for each in (model, trained))
        assert all(map(torch.equal, own, other))
        assert other[0].isfinite().all() and (other[1].norm(dim=1) > 0).all()
        assert trained.solution_shape(inp) == x.shape


@pytest.mark.parametrize("levels", [10, 4])
def test_the_start_vanishes_at_the_solution_and_nowhere_near(levels):
    model = MODELS["matrix"](16, 16).double()
    diffusion = GaussianDiffusion1D(DiffusionWrapper(model), timesteps=levels, bound=2.0)
    inp, target = Inverse("train", 4).sample(5, torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in range(levels):
        solution = diffusion.sqrt_alphas_cumprod[t].double() * target
        cond = model.condition(inp, t)
        at, beside = model.energy(cond, solution), model.energy(cond, solution + 0.1)
        assert (at < 1e-9 * beside).all()  # float32 tables


@both
def test_another_number_of_levels(name):
    model = MODELS[name](9, 9)
    diffusion = GaussianDiffusion1D(DiffusionWrapper(model), timesteps=4, mining_config={"mode": "random"}, bound=2.0)
    inp, target = Inverse("train", 3).sample(8, torch.Generator().manual_seed(0))
    loss, _ = diffusion(inp, target, t=torch.arange(8) % 4)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert diffusion.sample_loop(inp, start=torch.randn(8, 9), inner_steps=1).isfinite().all()


@both
def test_no_graph_and_no_flags_where_none_is_needed(name):
    model = make_model(name)
    inp, x, t = make_inputs(model)
    with torch.no_grad():
        cond = model.condition(inp, t)
        results = (*model.energy_and_gradient(cond, x), model.energy(cond, x))
    assert not any(value.requires_grad for value in (*results, x))
    model.energy_and_gradient(model.condition(inp, t), x)
    assert not x.requires_grad


@both
@pytest.mark.parametrize("sizes", [(8, 8), (16, 9)])
def test_what_is_no_square_matrix_is_refused(name, sizes):
    with pytest.raises(ConfigError, match="n x n"):
        MODELS[name](*sizes)


def test_training_halves_the_loss_of_predicting_nothing():
    torch.manual_seed(0)
    diffusion = GaussianDiffusion1D(
        DiffusionWrapper(MODELS["matrix"](16, 16)), timesteps=10, mining_config={"mode": "none"}, bound=2.0
    )
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-2)
    task, generator, losses = Inverse("train", 4), torch.Generator().manual_seed(0), []
    for _ in range(60):
        loss, _ = diffusion(*task.sample(64, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5  # the noise has variance 1
