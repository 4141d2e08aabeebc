"""The energies of IRED's discrete and planning tasks: the released code's numbers, and what losses and sampler need."""

import copy
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_forms import plain_graph_energy, plain_plan_energy

import models
from diffusion_lib.energies import max_plus as products
from diffusion_lib.energies.max_plus import max_plus
from diffusion_lib.system.errors import ConfigError
from models import EBM, MODELS, DiffusionWrapper, GNNConvEBM, GraphEBM, MLPReverse, NoiseModel, SudokuEBM

GOLDEN = Path(__file__).parent / "golden" / "tasks"
INITIAL = GOLDEN / "init.npz"
OPTIONS = ("width", "use_1d", "is_ebm")  # constructor arguments that a golden file's meta may name
UNUSED = {  # weights in the checkpoints that feed nothing
    "gnn": r"nlm\.layers\.1\.logic\.[013]\.",
    "gnn-reverse": r"nlm\.layers\.1\.logic\.[013]\.",
    "gnn-conv": r"nlm\.layers\.1\.logic\.[013]\.",
    "gnn-conv-1d": r"nlm\.layers\.1\.logic\.[02]\.",
    "sudoku": "time_fc1|attn",
    "sudoku-reverse": "time_fc1",
}

# name: sizes, constructor options, shapes of inp and x without the batch
SMALL = {
    "mlp-reverse": ((5, 3), {}, (5,), (3,)),
    "gnn": ((2, 1), {}, (5, 5, 2), (5, 5)),
    "gnn-reverse": ((2, 1), {}, (5, 5, 2), (5, 5)),
    "gnn-conv-1d-v2": ((2, 1), {}, (5, 5, 2), (8, 5, 1)),
    "gnn-conv-1d-v2-shift": ((2, 1), {}, (5, 5, 2), (8, 5, 1)),
    "gnn-conv-1d-v2-reverse": ((2, 1), {}, (5, 5, 2), (8, 5, 1)),
    "gnn-conv-1d": ((1, 3), {}, (4, 1), (16, 4, 3)),
    "gnn-conv": ((2, 3), {}, (3, 3, 2), (16, 3, 3, 3)),
    "sudoku": ((64, 64), {"width": 4}, (64,), (64,)),
    "sudoku-reverse": ((64, 64), {"width": 4}, (64,), (64,)),
    "sudoku-transformer": ((64, 64), {}, (64,), (64,)),
}
every_model = pytest.mark.parametrize("name", SMALL)
every_energy = pytest.mark.parametrize("name", [name for name in SMALL if MODELS[name].has_energy])


def small(name, batch=3, seed=0):
    """A model in float64, in evaluation mode, with weights at which all parts count, and inputs, x and levels."""
    torch.manual_seed(seed)
    sizes, options, inp_shape, x_shape = SMALL[name]
    model = MODELS[name](*sizes, **options).double().eval()
    for weight in model.parameters():
        if weight.dim() > 1 and len(weight):
            torch.nn.init.normal_(weight, std=2 / weight[0].numel() ** 0.5)
    inp, x = (torch.randn(batch, *shape).double() for shape in (inp_shape, x_shape))
    return model, inp, x, torch.arange(batch) * 4 % 10


def results(model, cond, x):
    """What a model has: the noise alone, or energy and gradient."""
    return (model.predict(cond, x),) if isinstance(model, NoiseModel) else model.energy_and_gradient(cond, x)


def assert_close(actual, expected, tolerance=1e-11):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * expected.norm().clamp_min(1e-12)


@pytest.fixture(params=sorted(GOLDEN.glob("*_*.npz")), ids=lambda path: path.stem)
def golden(request):
    """A golden file in float64, its meta, and our model with its weights."""
    with np.load(request.param) as file:
        meta = json.loads(str(file["meta"]))
        values = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}
    values = {key: value.double() if value.is_floating_point() else value for key, value in values.items()}
    options = {key: meta[key] for key in OPTIONS if key in meta}
    model = getattr(models, meta["class"])(*meta["arguments"], **options).double().eval()
    wrapper = torch.nn.ModuleDict({"model": model if isinstance(model, NoiseModel) else DiffusionWrapper(model)})
    state = {key.removeprefix("state/"): value for key, value in values.items() if key.startswith("state/model.")}
    wrapper.load_state_dict(state, strict=True)
    return model, values


def test_released_numbers(golden):
    model, values = golden
    cases = [("", "x_t"), *((key.removesuffix("inp"), "x") for key in values if re.fullmatch(r"other/\d+/inp", key))]
    for prefix, x in cases:
        cond = model.condition(values[f"{prefix}inp"], values[f"{prefix}t"])
        x = values[f"{prefix}{x}"]
        if isinstance(model, NoiseModel):
            assert_close(model.predict(cond, x), values[f"{prefix}prediction"], 1e-9)
            assert_close(model(values[f"{prefix}inp"], x, values[f"{prefix}t"]), values[f"{prefix}prediction"], 1e-9)
            continue
        energy, gradient = model.energy_and_gradient(cond, x)
        assert_energy(model, cond, x, energy, values[f"{prefix}energy"])
        assert_close(gradient, values[f"{prefix}energy_grad"], 1e-9)
    if "clean/inp" in values:
        cond = model.condition(values["clean/inp"], values["t"])
        assert_energy(model, cond, values["y"], model.energy(cond, values["y"]), values["clean/energy"])


def assert_energy(model, cond, x, actual, expected):
    """The release's energies are (B, 1), or what released_energy says."""
    if isinstance(model, GNNConvEBM):
        assert_close(model.released_energy(cond, x), expected, 1e-9)
    assert_close(actual, expected.view(len(actual), -1).sum(1), 1e-9)


def released_constructors():
    """Names in init.npz, as `GNNConvEBM(1,3,use_1d)`."""
    with np.load(INITIAL) as file:
        return sorted({key.split("/")[0] for key in file.files})


@pytest.mark.parametrize("name", released_constructors())
def test_initial_weights_are_distributed_as_the_released_ones(name):
    class_name, arguments = re.fullmatch(r"(\w+)(?:\((.*)\))?", name).groups()
    given = [part.split("=") for part in (arguments or "729,729").split(",")]
    sizes = [int(part[0]) for part in given if part[0].isdigit()]
    options = {part[0]: part[1:] != ["False"] for part in given if not part[0].isdigit()}
    model = getattr(models, class_name)(*sizes, **options)
    with np.load(INITIAL) as file:
        released = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    ours = model.state_dict()
    assert {key.removesuffix("/shape") for key in released if key.endswith("/shape")} == set(ours)
    for key, weight in ours.items():
        assert weight.shape == tuple(released[f"{key}/shape"]), key
        mean, std, *_ = released[f"{key}/mean_std_min_max"]
        if weight.numel() > 8:
            error = 6 * std / weight.numel() ** 0.5 + 1e-7 * abs(mean)
            assert abs(weight.mean() - mean) <= 1.5 * error, key
            assert abs(weight.std() - std) <= error, key


@every_model
def test_shapes(name):
    model, inp, x, t = small(name)
    cond = model.condition(inp, t)
    assert model.solution_shape(inp) == x.shape
    assert results(model, cond, x)[-1].shape == x.shape
    if MODELS[name].has_energy:
        assert model.energy(cond, x).shape == (len(x),)
        assert DiffusionWrapper(model)(inp, x, t, return_energy=True).shape == (len(x), 1)
    else:
        with pytest.raises(ConfigError, match="has no energy"):
            model.energy(cond, x)


@every_model
def test_one_level_for_all_equals_a_level_for_each(name):
    model, inp, x, _ = small(name)
    expected = results(model, model.condition(inp, torch.full((len(x),), 4)), x)
    for cond in (model.condition(inp, 4), model.retime(model.condition(inp, 0), 4)):
        for actual, value in zip(results(model, cond, x), expected, strict=True):
            assert_close(actual, value)
    retimed = model.retime(model.condition(inp, 0), torch.tensor([1, 5, 9]))
    expected = results(model, model.condition(inp, torch.tensor([1, 5, 9])), x)
    for actual, value in zip(results(model, retimed, x), expected, strict=True):
        assert_close(actual, value)


@every_model
def test_float32_agrees_with_float64(name):
    model, inp, x, t = small(name)
    expected = results(model, model.condition(inp, t), x)
    model, inp, x = model.float(), inp.float(), x.float()
    for actual, value in zip(results(model, model.condition(inp, t), x), expected, strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual.double(), value, 1e-3)


@every_model
def test_a_row_does_not_depend_on_the_batch(name, monkeypatch):
    model, inp, x, t = small(name, batch=4)
    together = results(model, model.condition(inp, t), x)
    monkeypatch.setattr(products, "CACHED", 1)  # row by row
    alone = results(model, model.condition(inp[2:3], t[2:3]), x[2:3])
    for one, all_rows in zip(alone, together, strict=True):
        assert_close(one, all_rows[2:3])
    with torch.no_grad():
        for actual, value in zip(results(model, model.condition(inp, t), x), together, strict=True):
            assert not actual.requires_grad
            assert_close(actual, value)


@every_energy
def test_gradients_against_finite_differences(name):
    """dE/dx, and the derivatives of dE/dx that the denoising loss needs, in x and in the inputs."""
    model, inp, x, t = small(name, batch=1)
    inp.requires_grad_()
    x.requires_grad_()

    def energy(inp, x):
        return model.energy(model.condition(inp, t), x)

    torch.manual_seed(0)
    assert torch.autograd.gradcheck(energy, (inp, x), fast_mode=True, atol=1e-4)
    assert torch.autograd.gradgradcheck(energy, (inp, x), fast_mode=True, atol=1e-4)


@every_model
def test_all_weights_learn_but_those_that_feed_nothing(name):
    model, inp, x, t = small(name)
    loss = sum(part.square().mean() for part in results(model, model.condition(inp, t), x))
    loss.backward()
    without = {key for key, weight in model.named_parameters() if weight.grad is None}
    assert without == {key for key, _ in model.named_parameters() if re.search(UNUSED.get(name, "^$"), key)}


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize(
    ("name", "plain"),
    [("gnn", plain_graph_energy), ("gnn-conv-1d-v2", plain_plan_energy), ("gnn-conv-1d-v2-shift", plain_plan_energy)],
)
def test_taken_apart_or_as_written(name, plain, n):
    """Energy, gradient, and the gradients of a loss of both in the weights and the inputs."""
    model, *_ = small(name)
    x_shape = (n, n) if name == "gnn" else (8, n, 1)
    inp, x = torch.randn(3, n, n, 2).double().requires_grad_(), torch.randn(3, *x_shape).double().requires_grad_()
    t, found = torch.tensor([0, 4, 9]), []
    weights = {key: weight for key, weight in model.named_parameters() if not re.search(UNUSED.get(name, "^$"), key)}
    for energy in (model.energy(model.condition(inp, t), x), plain(model, inp, x, t)):
        (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        loss = (torch.arange(3) * energy).sum() + (gradient - 1).pow(3).sum()
        found.append([energy, gradient, *torch.autograd.grad(loss, [inp, x, *weights.values()])])
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected)


def test_the_graph_energy_does_not_know_the_nodes_numbers():
    """The energy also where many entries tie for a maximum, at the clamp; there the first one gets the gradient."""
    model, *_ = small("gnn")
    clamped, x = (torch.randint(0, 2, shape).double() * 2 - 1 for shape in ((3, 7, 7, 2), (3, 7, 7)))
    inp = clamped + 0.1 * torch.randn(clamped.shape).double()
    order = torch.randperm(7)

    def renumber(pairs):
        return pairs[:, order][:, :, order]

    assert_close(
        model.energy(model.condition(renumber(clamped), 4), renumber(x)), model.energy(model.condition(clamped, 4), x)
    )
    x = x + 0.1 * torch.randn(x.shape).double()
    _, gradient = model.energy_and_gradient(model.condition(inp, 4), x)
    _, other_gradient = model.energy_and_gradient(model.condition(renumber(inp), 4), renumber(x))
    assert_close(other_gradient, renumber(gradient))


@pytest.mark.parametrize(
    ("name", "seen"), [("gnn-conv-1d-v2", [3]), ("gnn-conv-1d-v2-shift", [1, 2, 3, 4, 5]), ("gnn-conv", range(16))]
)
def test_which_steps_of_a_plan_see_another(name, seen):
    """As released the steps of a path do not; with the shift each of the two blocks sees one step further."""
    model, inp, x, t = small(name)
    changed = x.clone()
    changed[:, 3] += 1
    cond = model.condition(inp, t)
    moved = (model.outputs(cond, changed) - model.outputs(cond, x)).abs().transpose(0, 1).flatten(1).amax(1) > 0
    reach = 3 if name == "gnn-conv" else 2
    assert moved.nonzero().flatten().tolist() == [step for step in seen if abs(step - 3) <= reach]


def reference_max_plus(left, right):
    return (left[:, :, None] + right[:, None]).amax(3)


@pytest.mark.parametrize("cached", [1, products.CACHED])
def test_max_plus_and_its_derivatives_to_the_third_order(cached, monkeypatch):
    monkeypatch.setattr(products, "CACHED", cached)
    torch.manual_seed(0)
    left, right = torch.randn(2, 3, 5, 4).double(), torch.randn(2, 6, 5, 4).double()
    left[:, :, 1], right[:, :, 1] = left[:, :, 0], right[:, :, 0]  # ties, which share the gradient
    left[0, 0, 2], right[0, 3, 2] = -torch.inf, -torch.inf
    found = []
    for product in (max_plus, reference_max_plus):
        a, b = left.clone().requires_grad_(), right.clone().requires_grad_()
        values = [product(a, b).sin()]
        for order in range(3):
            loss = sum((value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)).sum() for value in values)
            values = torch.autograd.grad((loss**2 if order else loss), (a, b), create_graph=True)
            found.append(values)
    for actual, expected in zip(itertools.chain(*found[:3]), itertools.chain(*found[3:]), strict=True):
        assert_close(actual, expected)


def test_max_plus_of_nothing_but_minus_infinity():
    """A node excluded from every maximum gets no gradient, and its neighbours get theirs."""
    left, right = torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3, 1)
    left[0, 0] = -torch.inf
    left.requires_grad_()
    best = max_plus(left, right)
    assert best[0, 0].eq(-torch.inf).all()
    (gradient,) = torch.autograd.grad(best.sigmoid().sum(), left)
    assert gradient[0, 0].eq(0).all()
    assert torch.allclose(gradient[0, 1], torch.tensor(2 * 0.25 / 3))


def test_dropout_in_training_only():
    model, inp, x, t = small("sudoku-transformer")
    cond = model.condition(inp, t)
    assert torch.equal(model.energy(cond, x), model.energy(cond, x))
    model.train()
    assert not torch.equal(model.energy(cond, x), model.energy(cond, x))


def test_released_arguments_choose_the_class():
    assert type(EBM(4, 2, is_ebm=False)) is type(EBM(4, 2, False)) is MLPReverse
    assert type(GNNConvEBM(1, 3, use_1d=True)) is MODELS["gnn-conv-1d"]
    assert type(GNNConvEBM(inp_dim=6, out_dim=7)) is GNNConvEBM


@every_model
def test_a_model_can_be_copied(name):
    """As the average of the weights does."""
    model, inp, x, t = small(name)
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    assert torch.equal(results(twin, twin.condition(inp, t), x)[-1], results(model, model.condition(inp, t), x)[-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GraphEBM(1, 2), "out_dim is 2; allowed for GraphEBM: 1"),
        (lambda: SudokuEBM(100, 100), "100, 100; allowed for sudoku"),
        (lambda: SudokuEBM(729, 64), "729, 64; allowed for sudoku"),
        (lambda: MODELS["sudoku-transformer"](27, 27), "27, 27; allowed for sudoku"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
