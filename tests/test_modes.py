"""The further ways of making negatives, and of the contrastive loss: each against its formula, on all tasks."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_weights, make_diffusion, make_trainer, weights

from dataset import TASKS, Inverse
from diffusion_lib.config import ExperimentConfig, configure
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from diffusion_lib.energies import MODELS
from diffusion_lib.flops import equal_compute_steps, example_flops, train_flops
from diffusion_lib.masks import restored
from diffusion_lib.negatives import MODES, MiningConfig, mode, other_levels
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.checks import setting
from diffusion_lib.system.errors import CheckpointError, ConfigError
from diffusion_lib.tasks.matrices import near_inverse
from diffusion_lib.training.batches import stream_of
from experiments.speed.gpu_correctness import small_task
from experiments.study.flags import parse_command
from experiments.study.study import usual_strategies

B = 4
FURTHER = ("independent", "near", "mixed", "levels", "langevin")


def example(name: str, **mining):
    """A diffusion on a task with IRED's model for it, its condition, and a batch of it."""
    task = small_task(name, 3)
    torch.manual_seed(0)
    ebm = MODELS[task.model](task.inp_dim, task.out_dim)
    diffusion = GaussianDiffusion1D(ebm, timesteps=10, rules=task.rules, mining_config=mining).eval()
    batch = stream_of(diffusion, task, B, 0, torch.device("cpu")).batch(0)
    return diffusion, ebm.condition(batch.inp, batch.t), batch


def candidates(diffusion, cond, batch, mining=None):
    return diffusion.candidates(cond, batch.target, batch.t, batch.nce_noise, mining, batch.mask, batch.drawn)


def start(diffusion, batch, noise):
    given = diffusion.given(batch.target, batch.t, batch.mask)
    return restored(diffusion.q_sample(batch.target, batch.t, 3.0 * noise), given), given


def at_bound(diffusion, found):
    bound = diffusion.rules.candidate_bound or diffusion.bound
    return found.clamp(-bound, bound)


every_task = pytest.mark.parametrize("name", TASKS)


@every_task
def test_an_independent_negative_starts_from_noise_of_its_own(name):
    diffusion, cond, batch = example(name, mode="independent")
    z, _ = start(diffusion, batch, batch.drawn[:, 0])
    found = candidates(diffusion, cond, batch)
    assert torch.equal(found, at_bound(diffusion, diffusion.predict_start(z, batch.t)))
    other = diffusion.candidates(cond, batch.target, batch.t, -batch.nce_noise, None, batch.mask, batch.drawn)
    assert torch.equal(found, other)  # of the shared noise it knows nothing
    assert not torch.equal(found, candidates(diffusion, cond, batch, MiningConfig("random")))


@every_task
def test_a_mixed_negative_is_of_the_one_or_the_other_kind(name):
    diffusion, cond, batch = example(name, mode="mixed", share=0.6)
    kinds = [candidates(diffusion, cond, batch, MiningConfig(mode)) for mode in ("random", "adversarial")]
    is_random = torch.special.ndtr(batch.drawn.flatten(1)[:, 0]) < 0.6
    found = candidates(diffusion, cond, batch)
    for row, chosen in enumerate(is_random.tolist()):
        assert torch.equal(found[row], kinds[0 if chosen else 1][row])


def test_the_share_of_random_ones_is_as_set():
    diffusion = make_diffusion(mining_config={"mode": "mixed", "share": 0.25})
    batch = stream_of(diffusion, Inverse("train", 3), 4000, 0, torch.device("cpu")).batch(0)
    cond = diffusion.model.ebm.condition(batch.inp, batch.t)
    modes = (None, MiningConfig("random"), MiningConfig("adversarial"))
    found, random, adversarial = (candidates(diffusion, cond, batch, mining) for mining in modes)
    differ = (random != adversarial).any(1)
    assert (found == random).all(1)[differ].float().mean() == pytest.approx(0.25, abs=0.03)


@every_task
def test_langevin_steps_follow_their_formula(name):
    settings = {"opt_steps": 3, "scale_factor": 0.5, "temperature": 0.7}
    diffusion, cond, batch = example(name, mode="langevin", **settings)
    assert batch.drawn.shape == (B, 3, *batch.target.shape[1:])
    z, given = start(diffusion, batch, batch.nce_noise)
    shape = (-1, *[1] * (z.ndim - 1))
    step = 0.5 * diffusion.opt_step_size[batch.t].view(shape)
    limit = diffusion.bound * diffusion.sqrt_alphas_cumprod[batch.t].view(shape)
    for noise in batch.drawn.unbind(1):
        gradient = diffusion.model.ebm.energy_and_gradient(cond, z)[1].detach()
        z = restored(z - step * gradient + torch.sqrt(2 * step * 0.7) * noise, given).clamp(-limit, limit)
    expected = at_bound(diffusion, diffusion.predict_start(z, batch.t))
    assert torch.allclose(candidates(diffusion, cond, batch), expected, rtol=1e-4, atol=1e-5)


@every_task
def test_levels_tells_a_samples_own_level_from_another(name):
    diffusion, _cond, batch = example(name, mode="levels", weight=0.7)
    ebm, t = diffusion.model.ebm, batch.t
    uniform = torch.special.ndtr(batch.drawn.flatten(1)[:, 0])
    other = [(own + 1 + int(9 * u)) % 10 for own, u in zip(t.tolist(), uniform, strict=True)]
    real = diffusion.noised(batch.target, t, batch.nce_noise, batch.target, batch.mask)
    own, wrong = (ebm.energy(ebm.condition(batch.inp, level), real) for level in (t, torch.tensor(other)))
    total, (denoising, contrastive, distance) = diffusion(*batch)
    assert contrastive.item() == pytest.approx(F.softplus(own - wrong).mean().item(), rel=1e-4)
    assert total.item() == pytest.approx(denoising.item() + 0.7 * contrastive.item(), rel=1e-5)
    assert distance == 0


def test_the_other_levels_are_all_others_alike():
    t = torch.arange(10).repeat_interleave(9000)
    found = other_levels(t, torch.randn(len(t), 1, 4, generator=seeded_generator("levels")), 10)
    counts = torch.bincount(10 * t + found, minlength=100).view(10, 10)
    assert (counts.diagonal() == 0).all()
    assert ((counts + 1000 * torch.eye(10)) - 1000).abs().max() < 150


def test_a_near_inverse_is_the_inverse_of_a_near_matrix():
    n, distance = 8, 0.1
    inp, y = (part.double() for part in Inverse("train", n).sample(200, seeded_generator("near")))
    noise = torch.randn(200, n * n, generator=seeded_generator("noise"), dtype=torch.float64)
    near = near_inverse(y, noise, distance)
    relative = (near - y).norm(dim=1) / y.norm(dim=1)
    assert relative.mean() == pytest.approx(distance, rel=0.2)
    a, changed = inp.view(-1, n, n), torch.linalg.inv(near.view(-1, n, n))
    assert torch.allclose(changed, changed.mT, rtol=1e-6, atol=1e-9)
    assert (torch.linalg.eigvalsh(changed) > 0).all()
    s = distance / math.sqrt(2 * n) * noise.view(-1, n, n)
    inverse = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + s)
    assert torch.allclose(changed, inverse.mT @ torch.linalg.inv(y.view(-1, n, n)) @ inverse, rtol=1e-6, atol=1e-8)
    small = torch.linalg.inv(near_inverse(y, noise, 1e-6).view(-1, n, n)) - torch.linalg.inv(y.view(-1, n, n))
    first_order = -1e-5 * (a @ s + s.mT @ a)
    assert torch.allclose(small, first_order, rtol=1e-2, atol=1e-3 * first_order.abs().max().item())


def test_near_negatives_are_those_of_the_rules():
    diffusion, cond, batch = example("inverse", mode="near", distance=0.2)
    expected = at_bound(diffusion, near_inverse(batch.target, batch.drawn[:, 0], 0.2))
    assert torch.equal(candidates(diffusion, cond, batch), expected)
    with pytest.raises(ConfigError, match="mining mode is 'near', and this task has no near problem of its own"):
        example("addition", mode="near")
    assert list(usual_strategies(configure({}))) == ["baseline", "random", "adversarial", "baseline-compute"]


@pytest.mark.parametrize("mode", FURTHER)
def test_a_run_of_each_resumes_exactly(tmp_path, mode):
    whole = make_trainer(tmp_path / "whole", mode=mode)
    whole.train()
    first = make_trainer(tmp_path / "parts", mode=mode)
    for _ in range(5):
        first.run_one_step()
    first.save()
    torch.manual_seed(99)
    second = make_trainer(tmp_path / "parts", mode=mode)
    second.load("last")
    second.train()
    assert_same_weights(weights(second.diffusion), weights(whole.diffusion))


def test_the_hinge_is_what_is_missing_of_the_margin():
    losses = {}
    for loss in ("softplus", "hinge"):
        diffusion = make_diffusion(mining_config={"mode": "random", "loss": loss, "weight": 0.7})
        batch = stream_of(diffusion, Inverse("train", 3), 32, 0, torch.device("cpu")).batch(0)
        total, (denoising, losses[loss], _) = diffusion(*batch)
        assert total.item() == pytest.approx(denoising.item() + 0.7 * losses[loss].item(), rel=1e-6)
    cond = diffusion.model.ebm.condition(batch.inp, batch.t)
    real = diffusion.q_sample(batch.target, batch.t, batch.nce_noise)
    fake = diffusion.negatives(cond, batch.target, batch.t, batch.nce_noise)
    real, fake = (diffusion.model.ebm.energy(cond, x) for x in (real, fake))
    assert losses["hinge"].item() == pytest.approx((1 + real - fake).clamp(min=0).mean().item(), rel=1e-5)
    assert losses["softplus"].item() == pytest.approx(F.softplus(real - fake).mean().item(), rel=1e-5)
    with pytest.raises(ConfigError, match="loss is 'square'; allowed: softplus, hinge"):
        MiningConfig(loss="square")


def late(folder, steps=12):
    return make_trainer(folder, mining={"start": 0.5}, train_num_steps=steps, log_every=1)


def test_before_its_start_a_run_is_the_baseline_and_does_its_work(tmp_path, monkeypatch):
    run, plain = late(tmp_path / "late"), make_trainer(tmp_path / "none", mode="none")
    calls = []
    descend = GaussianDiffusion1D.descend
    monkeypatch.setattr(GaussianDiffusion1D, "descend", lambda *a, **k: calls.append(1) or descend(*a, **k))
    for step in range(6):
        batch = run.stream.batch(step)
        assert batch.nce_noise is batch.candidates is batch.drawn is None
        run.run_one_step(), plain.run_one_step()
    assert_same_weights(weights(run.diffusion), weights(plain.diffusion))
    assert not calls
    assert torch.equal(run.stream.batch(6).nce_noise, make_trainer(tmp_path / "all").stream.batch(6).nce_noise)
    calls.clear()  # a trainer looks at a step before it trains
    run.train()
    assert len(calls) == 6
    rows = late(tmp_path / "rows").train()
    assert [row["loss_contrastive"] > 0 for row in rows] == [False] * 6 + [True] * 6


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_late_start_resumes_exactly(tmp_path, stop):
    whole = late(tmp_path / "whole")
    whole.train()
    first = late(tmp_path / "parts")
    for _ in range(stop):
        first.run_one_step()
    first.save()
    second = late(tmp_path / "parts")
    second.load("last")
    second.train()
    assert_same_weights(weights(second.diffusion), weights(whole.diffusion))
    with pytest.raises(CheckpointError, match="is of start step 6, this run has step 10"):
        late(tmp_path / "parts", steps=20).load("last")
    late(tmp_path / "parts", steps=20).load("last", to_train=False)


def test_a_late_start_is_charged_for_its_steps():
    plain, whole, half = (
        ExperimentConfig(rank=5, batch_size=16, train_steps=100, mining=mining)
        for mining in (MiningConfig("none"), MiningConfig(), MiningConfig(start=0.25))
    )
    expected = 16 * (25 * example_flops(plain) + 75 * example_flops(whole))
    assert train_flops(half) == round(expected)
    assert train_flops(plain.change(start=0.5)) == train_flops(plain)
    for one, other in ((plain, half), (half, plain)):
        steps = equal_compute_steps(one, other)
        assert train_flops(one.change(train_steps=steps)) == pytest.approx(train_flops(other), rel=0.03)


def test_they_are_strategies_and_settings_of_a_study(tmp_path):
    file = tmp_path / "arms.toml"
    modes = "\n".join(f'{mode} = {{mode = "{mode}"}}' for mode in FURTHER)
    file.write_text(f'[config]\nrank = 3\n[strategies]\nbaseline = {{mode = "none"}}\n{modes}\n')
    study = parse_command("", ["--study", str(file), "--vary", "start=0.0,0.5", "temperature=0.1,1"]).study
    assert list(study.variants()) == [
        "baseline",
        *(f"{mode},start={value}" for mode in FURTHER[:4] for value in (0.0, 0.5)),
        *(f"langevin,start={value},temperature={t}" for value in (0.0, 0.5) for t in (0.1, 1.0)),
    ]
    words = ["--strategies", "adversarial", "baseline-time", "--start", "0.5"]
    with pytest.raises(ConfigError, match="baseline-time is of equal time"):
        parse_command("", words).study.variants()


@pytest.mark.parametrize("name", ["hard negatives", "top/k", "../x", "", "n\u00e9gatif", "x.runs"])
def test_a_modes_name_is_one_that_a_folder_can_have(name):
    with pytest.raises(ConfigError, match="allowed: letters, digits"):
        mode(name)
    assert name not in MODES


def test_a_modes_setting_is_no_setting_of_the_run(monkeypatch):
    def same(_diffusion, _cond, x_start, *_):
        return x_start

    monkeypatch.setitem(MODES, "own", None)
    mode("own", rank=setting(3, "of this mode"))(same)
    with pytest.raises(ConfigError, match="a mode declares rank, which a setting of a run is called already"):
        configure({"rank": 4})


def test_levels_needs_another_level():
    with pytest.raises(ConfigError, match="timesteps 1; allowed with it: timesteps from 2"):
        make_diffusion(timesteps=1, mining_config={"mode": "levels"})


@pytest.mark.parametrize("name", ["use_innerloop_opt", "match_release", "baseline", "supervise_energy_landscape"])
def test_a_text_is_no_truth(name):
    with pytest.raises(ConfigError, match=f"{name} is 'False'; allowed: True or False"):
        make_diffusion(**{name: "False"})
