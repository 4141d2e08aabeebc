"""The released code's own numbers, reproduced with match_release=True."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from models import EBM, DiffusionWrapper

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
TOLERANCE = 1e-5
# Two energies closer than this are equal to float32 rounding: which is lower depends on the CPU.
TIE = 2e-6
ROW_TOLERANCE = 5e-5  # of the worst single row after five steps; the noisiest level magnifies rounding most


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    with np.load(request.param) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def released(golden, mode="adversarial", **options):
    state = {key.removeprefix("state/"): value for key, value in golden.items() if key.startswith("state/")}
    inp_dim, out_dim, timesteps = golden["inp"].shape[1], golden["y"].shape[1], len(state["betas"])
    diffusion = GaussianDiffusion1D(
        DiffusionWrapper(EBM(inp_dim, out_dim)),
        seq_length=32,
        objective="pred_noise",
        timesteps=timesteps,
        sampling_timesteps=timesteps,
        show_inference_tqdm=False,
        continuous=True,
        match_release=True,
        mining_config={"mode": mode},
        **options,
    )
    diffusion.load_state_dict(state, strict=True)
    return diffusion


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert actual.shape == expected.shape
    error = ((actual - expected).norm() / expected.norm().clamp_min(1e-12)).item()
    assert error < tolerance, f"relative error {error:.2g}"


def test_schedule_is_the_released_one(golden):
    model = GaussianDiffusion1D(DiffusionWrapper(EBM(4, 4)), timesteps=len(golden["state/betas"]))
    for name, value in model.named_buffers():
        assert_close(value, golden[f"state/{name}"], 1e-7)


def test_forward_process_energy_and_gradient(golden):
    diffusion = released(golden)
    x_t = diffusion.q_sample(golden["y"], golden["t"], golden["noise"])
    assert_close(x_t, golden["q_sample"])
    energy, gradient = diffusion.model(golden["inp"], golden["q_sample"], golden["t"], return_both=True)
    assert_close(energy, golden["energy"])
    assert_close(gradient, golden["energy_grad"])
    assert_close(diffusion.model(golden["inp"], golden["q_sample"], golden["t"]), golden["energy_grad"])
    assert_close(diffusion.model(golden["inp"], golden["q_sample"], golden["t"], return_energy=True), golden["energy"])


def test_opt_steps(golden):
    diffusion = released(golden)
    inp = golden["inp"]
    start = diffusion.q_sample(golden["y"], golden["t"], 3.0 * golden["nce_noise"])
    assert_close(diffusion.opt_step(inp, start, golden["t"], step=2), golden["opt_step2_mixed_t"])
    t4 = torch.full_like(golden["t"], 4)
    assert_close(diffusion.opt_step(inp, golden["opt_step5_t4_in"], t4, step=1), golden["opt_step1_t4"])
    assert_close(diffusion.opt_step(inp, golden["opt_step5_t4_in"], t4, step=5), golden["opt_step5_t4"])


@pytest.mark.parametrize("mode", ["none", "random", "adversarial"])
def test_losses_and_gradient_norms(golden, mode):
    diffusion = released(golden, mode)
    loss, (denoise, contrastive, _) = diffusion.p_losses(
        golden["inp"], golden["y"], None, golden["t"], golden["noise"], golden["nce_noise"]
    )
    assert_close(loss, golden[f"loss/{mode}/total"])
    assert_close(denoise, golden[f"loss/{mode}/denoise"])
    if mode == "none":
        assert contrastive == -1
    else:
        assert_close(contrastive, golden[f"loss/{mode}/energy"])
    loss.backward()
    for name, parameter in diffusion.named_parameters():
        assert_close(parameter.grad.norm(), golden[f"gradnorm/{mode}/{name}"])


def test_start_of_the_negatives(golden):
    diffusion = released(golden, "random")
    start = diffusion.q_sample(golden["y"], golden["t"], diffusion.mining.noise_scale * golden["nce_noise"])
    assert_close(start, golden["random_negative_xt"])


def test_plain_sampler(golden):
    diffusion = released(golden, use_innerloop_opt=False)
    solutions = diffusion.sample_loop(golden["inp"], return_traj=True, start=golden["start"])
    assert_close(solutions, golden["sample_traj/plain"])


def test_innerloop_sampler(golden):
    """Level by level from the released trajectory, each row by a path of correct acceptances.

    Late steps change the energy by a rounding error only, so that even the release's own formula accepts
    other steps on another CPU: at such a tie both branches are followed, elsewhere only the right one.
    """
    diffusion = released(golden)
    expected, inp = golden["sample_traj/innerloop"], golden["inp"]
    for i, t in enumerate(reversed(range(diffusion.num_timesteps))):
        x = golden["start"] if i == 0 else diffusion.sqrt_alphas_cumprod[t] * expected[i - 1]
        solutions, reachable = _one_level(diffusion, inp, x, t)
        error = (solutions - expected[i]).norm(dim=2) / expected[i].norm(dim=1)
        nearest = error.masked_fill(~reachable, torch.inf).min(0).values
        assert nearest.max() < ROW_TOLERANCE, f"level {t}: relative error {nearest.max():.2g}"


def test_innerloop_sampler_takes_the_path_that_is_checked(golden):
    """The sampler's first level is one of the paths of the test above, so that test speaks of the sampler."""
    diffusion = released(golden)
    t = diffusion.num_timesteps - 1
    solutions, reachable = _one_level(diffusion, golden["inp"], golden["start"], t)
    sampled = diffusion.sample_loop(golden["inp"], start=golden["start"], return_traj=True)[0]
    error = (solutions - sampled).norm(dim=2) / sampled.norm(dim=1)
    assert error.masked_fill(~reachable, torch.inf).min(0).values.max() < ROW_TOLERANCE


@torch.no_grad()
def _one_level(diffusion, inp, x, t):
    """All ends of a level (2^5, B, out_dim), and which of them a path of correct acceptances reaches (2^5, B)."""
    ebm = diffusion.model.ebm
    x = diffusion._p_sample(ebm.condition(inp, t), x, t, diffusion.bound, None)[None]
    reachable = torch.ones(x.shape[:2], dtype=torch.bool)
    limit = diffusion.bound * diffusion.sqrt_alphas_cumprod[t]
    for step in range(5):
        scale = 1.0 if step == 0 else 2.0  # the release's scale from the second step on
        flat = x.flatten(0, 1)
        cond = ebm.condition(inp.repeat(len(x), 1), t)
        energy, gradient = ebm.energy_and_gradient(cond, flat)
        proposal = (flat - diffusion.opt_step_size[t] * scale * gradient).clamp(-limit, limit)
        rise = ((ebm.energy(cond, proposal) - energy) / energy).view(len(x), -1)
        reachable = torch.cat((reachable & (rise <= TIE), reachable & (rise > -TIE)))
        x = torch.cat((proposal.view_as(x), x))
    return diffusion.predict_start(x, t), reachable
