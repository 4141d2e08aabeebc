"""The released code's losses, descents and samples on its discrete tasks, in float64: tests/golden/tasks/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from diffusion_lib.masks import restored

GOLDEN = sorted(
    p for p in (Path(__file__).parent / "golden" / "tasks").glob("*.npz") if p.stem not in ("init", "metrics")
)
TOLERANCE = 1e-6
# What the release calls its model's arguments, where it has more than the two sizes.
ARGUMENTS = ("is_ebm", "use_1d", "width")


class Golden:
    """One file: its arrays in float64 and the released model that made them, in ours."""

    def __init__(self, path: Path):
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        self.about = json.loads(str(arrays.pop("meta")))
        self.values = {key: self.tensor(value) for key, value in arrays.items() if value.dtype.kind != "U"}
        self.names = {key: value.tolist() for key, value in arrays.items() if value.dtype.kind == "U"}
        self.state = {key[6:]: value for key, value in self.values.items() if key.startswith("state/")}
        self.reverse = "prediction" in self.values
        self.inp, self.y, self.t = (self.values[key] for key in ("inp", "y", "t"))
        self.mask = self.values.get("mask")

    @staticmethod
    def tensor(value):
        tensor = torch.from_numpy(np.asarray(value))
        return tensor.double() if tensor.is_floating_point() else tensor

    def __getitem__(self, key):
        return self.values[key]

    def has(self, key):
        return key in self.values

    def diffusion(self, flags=None, **options) -> GaussianDiffusion1D:
        extra = {name: self.about[name] for name in ARGUMENTS if name in self.about}
        model = getattr(models, self.about["class"])(*self.about["arguments"], **extra)
        flags = self.about["flags"] if flags is None else flags
        continuous = flags.get("continuous", False)
        diffusion = GaussianDiffusion1D(
            model,
            timesteps=10,
            match_release=True,
            use_innerloop_opt=False,
            **{"continuous": continuous, **{k: v for k, v in flags.items() if k != "continuous"}},
            **({"supervise_energy_landscape": False} if self.reverse else {}),
            **options,
        ).double()
        diffusion.load_state_dict(self.state, strict=True)
        return diffusion.eval()


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert actual.shape == expected.shape
    error = ((actual - expected).norm() / expected.norm().clamp_min(1e-12)).item()
    assert error < tolerance, f"relative error {error:.2g}"


@pytest.mark.parametrize("branch", ["none", "released", "default", "default_none"])
def test_losses_and_their_gradients(golden, branch):
    if not golden.has(f"loss/{branch}/total"):
        pytest.skip("the release has no such numbers for this model")
    supervised = {} if branch in ("released", "default") else {"supervise_energy_landscape": False}
    if golden.reverse:
        supervised = {}
    diffusion = golden.diffusion({} if branch.startswith("default") else None, **supervised)
    candidates = None
    if golden.has(f"loss/{branch}/draw_randint"):
        draws = [golden[key] for key in (f"loss/{branch}/draw_randint", f"loss/{branch}/draw_rand") if golden.has(key)]
        candidates = diffusion.rules.corruption.apply(golden.y, *draws, released=True)
        if golden.mask is None:
            assert_close(candidates, golden[f"loss/{branch}/candidate"])
    arguments = (
        golden.inp,
        golden.y,
        golden.mask,
        golden.t,
        golden["noise"],
        golden.values.get("nce_noise"),
        candidates,
    )
    total, (denoise, contrastive, _) = diffusion.p_losses(*arguments)
    assert_close(denoise, golden[f"loss/{branch}/denoise"])
    assert_close(total, golden[f"loss/{branch}/total"])
    if golden.has(f"loss/{branch}/contrastive"):
        assert_close(contrastive, golden[f"loss/{branch}/contrastive"])
    total.backward()
    norms = {name: p.grad.norm() for name, p in diffusion.named_parameters() if p.grad is not None}
    expected = dict(zip(golden.names[f"loss/{branch}/grad_names"], golden[f"loss/{branch}/grad_norms"], strict=True))
    assert norms.keys() >= {name for name, norm in expected.items() if norm > 0}
    largest = max(expected.values())
    for name, norm in norms.items():
        assert norm.item() == pytest.approx(expected.get(name, 0.0).item(), rel=TOLERANCE, abs=1e-9 * largest.item())


@pytest.mark.parametrize("branch", ["released", "default"])
def test_negatives(golden, branch):
    if not golden.has(f"loss/{branch}/negative"):
        pytest.skip("no negatives of the release")
    diffusion = golden.diffusion({} if branch == "default" else None)
    cond = diffusion.model.ebm.condition(golden.inp, golden.t)
    noise = golden["nce_noise"]
    real = diffusion.noised(golden.y, golden.t, noise, golden.y, golden.mask)
    if golden.has(f"loss/{branch}/draw_randint"):
        candidates = golden[f"loss/{branch}/candidate"]
    else:
        candidates = diffusion.candidates(cond, golden.y, golden.t, noise, mask=golden.mask)
        assert_close(candidates, golden[f"loss/{branch}/candidate"])
    fake = diffusion.noised(candidates, golden.t, noise, golden.y, golden.mask)
    assert_close(fake, golden[f"loss/{branch}/negative"])
    energies = torch.cat([diffusion.model.ebm.energy(cond, x) for x in (real, fake)])
    assert_close(energies[:, None], golden[f"loss/{branch}/energies"])


@pytest.mark.parametrize("name", ["sort_conv2d", "sort2_conv1d"])
def test_the_contrast_of_a_model_with_an_energy_per_node(name):
    """In the release a softmax over those of both samples, (B, 2N), in which the first counts as the real one."""
    golden = Golden(Path(__file__).parent / "golden" / "tasks" / f"{name}.npz")
    diffusion = golden.diffusion()
    cond, ebm = diffusion.model.ebm.condition(golden.inp, golden.t), diffusion.model.ebm
    assert_close(ebm.released_energy(cond, golden["x_t"]), golden["energy"])
    noise, second = golden["noise"], golden["noise"].flip(0)
    candidates = diffusion.candidates(cond, golden.y, golden.t, second)
    total, (denoise, contrastive, _) = diffusion.p_losses(golden.inp, golden.y, None, golden.t, noise, second)
    real, fake = (
        ebm.released_energy(cond, diffusion.q_sample(x, golden.t, second)).view(2, -1) for x in (golden.y, candidates)
    )
    expected = F.cross_entropy(-torch.cat([real, fake], 1), torch.zeros(2, dtype=torch.long))
    assert_close(denoise, golden["loss/none/denoise"])
    assert_close(contrastive, expected)
    assert_close(total, denoise + 0.5 * expected)


def test_descents(golden):
    if not golden.has("opt/start"):
        pytest.skip("without an energy there are none")
    diffusion, start, levels = golden.diffusion(), golden["opt/start"], {"mixed_t": golden.t}
    levels["t4"] = torch.full_like(golden.t, 4)

    def descents(x, t, step, sf=1.0):
        given = diffusion.given(golden.inp, t, golden.mask)
        return diffusion.opt_step(
            golden.inp, x, t, golden.mask, None if given is None else given.values, step=step, sf=sf
        )

    def moved(x, t):
        rows = []
        for _ in range(5):
            after = descents(x, t, 1)
            rows.append((after != x).flatten(1).any(1))
            x = after
        return torch.stack(rows)

    for name, t in levels.items():
        for step in (1, 2, 5, 20):
            if golden.has(f"opt/{name}/step{step}"):
                assert_close(descents(start, t, step), golden[f"opt/{name}/step{step}"])
    for step in (1, 3):
        assert_close(descents(start, golden.t, step, sf=30.0), golden[f"opt/mixed_t/sf30_step{step}"])
    assert torch.equal(moved(start, golden.t), golden["opt/mixed_t/accepted"].bool())
    for level in (2, 4, 8):
        t = torch.full_like(golden.t, level)
        inside = golden["opt/inside/start"] * diffusion.sqrt_alphas_cumprod[level]
        inside = restored(inside, diffusion.given(golden.inp, t, golden.mask))
        for step in (1, 5):
            assert_close(descents(inside, t, step), golden[f"opt/inside/t{level}/step{step}"])
        assert torch.equal(moved(inside, t), golden[f"opt/inside/t{level}/accepted"].bool())


@pytest.mark.parametrize("sampler", ["plain", "inner", "baseline"])
def test_samples(golden, sampler, monkeypatch):
    if not golden.has(f"sample/{sampler}/trajectory"):
        pytest.skip("the release has no such samples for this model")
    diffusion = golden.diffusion(baseline=sampler == "baseline")
    options = {"mask": golden.mask, "inner_steps": diffusion.rules.inner_steps if sampler == "inner" else 0}

    def sample(**more):
        if sampler == "baseline":
            noises = iter(golden["sample/baseline/noise"])
            monkeypatch.setattr(torch, "randn", lambda *_, **__: next(noises))
        return diffusion.sample_loop(golden.inp, start=golden["sample/start"], **options, **more)

    assert_close(sample(return_traj=True), golden[f"sample/{sampler}/trajectory"])
    if sampler == "plain":
        assert_close(sample(), golden["sample/plain/returned"])
