"""Scripts written for the released code: its signatures, attributes, milestones and data sets of items."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights, make_diffusion, make_trainer, weights

import models
from dataset import TASKS
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
from diffusion_lib.inference import load_model
from diffusion_lib.released_api import METRICS, require_metric
from diffusion_lib.system.errors import CheckpointError, ConfigError
from diffusion_lib.tasks.base import has_mask
from models import EBM, DiffusionWrapper

PUBLISHED = Path(__file__).parent.parent / "results" / "published" / "matrix-energy"


class Items(torch.utils.data.Dataset):
    """A data set with `__getitem__` alone."""

    inp_dim = out_dim = 9

    def __len__(self):
        return 50

    def __getitem__(self, index):
        numbers = torch.rand(18, generator=torch.Generator().manual_seed(index)).numpy()
        return numbers[:9], numbers[9:]


class SizedList(list):
    inp_dim = out_dim = 9


class Puzzles(Items):
    """The same with a mask: the first four entries of the solution are given."""

    def __getitem__(self, index):
        inp, target = super().__getitem__(index)
        given = torch.arange(9) < 4
        return torch.where(given, torch.from_numpy(target), torch.from_numpy(inp)), target, given


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return (*torch.rand(2, 5, 9, generator=generator), torch.tensor([0, 3, 5, 7, 9]))


def test_the_samplers_positional_signature_gives_what_sample_gives(batch):
    diffusion, (x, y, _) = make_diffusion(), batch
    torch.manual_seed(1)
    one = diffusion.p_sample_loop(5, (9,), x, y, None, return_traj=True)
    torch.manual_seed(1)
    two = diffusion.sample(x, y, None, batch_size=5, return_traj=True)
    assert one.shape == (10, 5, 9)
    assert torch.equal(one, two)
    with pytest.raises(ConfigError, match="batch_size is 4"):
        diffusion.p_sample_loop(4, (9,), x, y, None)
    kept = torch.zeros(5, 9)
    kept[:, :4] = 1
    assert torch.allclose(diffusion.sample(x, y, kept)[:, :4], x[:, :4].clamp(-2, 2))


def test_the_descents_take_the_releases_arguments(batch):
    diffusion, (x, y, t) = make_diffusion(), batch
    expected = diffusion.descend(diffusion.model.ebm.condition(x, t), y, t, 3, 1.0, diffusion.bound)[0]
    assert torch.equal(diffusion.opt_step(x, y, t, None, None, step=3, eval=True, sf=1.0, detach=True), expected)
    for refused in ({"eval": False}, {"detach": False}):
        with pytest.raises(ConfigError, match="must be True"):
            diffusion.opt_step(x, y, t, None, None, **refused)


def test_predictions_and_losses_have_the_releases_parts(batch):
    diffusion, (x, y, t) = make_diffusion(), batch
    noise, start = diffusion.model_predictions(x, y, t)
    assert torch.allclose(diffusion.q_sample(start, t, noise), y, atol=1e-4)
    assert torch.equal(diffusion.predict_start_from_noise(y, t, noise), start)
    _, (_, _, distance) = diffusion(x, y, None)
    assert distance > 0
    _, parts = make_diffusion(supervise_energy_landscape=False)(x, y, None)
    assert parts[1:] == (-1, -1)


def test_a_missing_number_of_levels_is_not_passed_over_in_silence():
    with pytest.warns(UserWarning, match="timesteps is not given: it is 10"):
        assert GaussianDiffusion1D(EBM(9, 9)).num_timesteps == 10
    with pytest.raises(ConfigError, match="allowed: an EnergyModel"):
        GaussianDiffusion1D(torch.nn.Linear(3, 3), timesteps=10)
    bare = GaussianDiffusion1D(EBM(9, 9), timesteps=10)
    assert (bare.out_shape, bare.sampling_timesteps, bare.objective) == ((9,), 10, "pred_noise")
    assert bare.supervise_energy_landscape


@pytest.mark.parametrize(
    ("keywords", "bounds", "mode"),
    [
        ({}, (1, 2, None, 5), "adversarial"),
        ({"continuous": False}, (1, 2, None, 5), "adversarial"),
        ({"continuous": True}, (2, None, None, 5), "adversarial"),
        ({"bound": 10.0}, (10, None, None, 5), "adversarial"),
        ({"sudoku": True}, (1, 2, None, 20), "corrupt"),
        ({"connectivity": True, "continuous": False}, (1, 2, None, 5), "corrupt"),
        ({"shortest_path": True, "match_release": True}, (1, 2, 0.1, 5), "corrupt"),
        ({"shortest_path": True, "match_release": True, "continuous": True}, (2, 2, None, 5), "corrupt"),
    ],
)
def test_what_the_releases_keywords_mean(keywords, bounds, mode):
    made = GaussianDiffusion1D(EBM(9, 9), timesteps=10, **keywords)
    rules = made.rules
    assert (rules.bound, rules.candidate_bound, rules.level_bound, rules.inner_steps) == bounds
    assert made.mining.mode == mode
    assert made.mining.weight == (0.05 if keywords.keys() & {"sudoku", "connectivity"} else 0.5)
    assert made.mining.corruption == ("released" if mode == "corrupt" else "repaired")


def test_a_mode_of_ones_own_keeps_the_rest_of_the_release():
    made = GaussianDiffusion1D(EBM(9, 9), timesteps=10, sudoku=True, mining_config={"mode": "random"})
    assert (made.mining.mode, made.mining.weight, made.rules.inner_steps) == ("random", 0.05, 20)
    matched = make_diffusion(match_release=True, mining_config={"mode": "random"})
    assert matched.mining.corruption == "released"


def test_the_releases_arithmetic(batch):
    diffusion, (x, y, t) = make_diffusion(), batch
    noise = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    x_t, within = diffusion.q_sample(y, t, noise), t < 9  # nearly nothing of y is left at level 9
    assert torch.allclose(diffusion.predict_noise_from_start(x_t, t, y)[within], noise[within], atol=1e-4)
    assert torch.allclose(diffusion.predict_start_from_v(x_t, t, diffusion.predict_v(y, t, noise)), y, atol=1e-5)
    mean, variance, log_variance = diffusion.q_posterior(y, x_t, t)
    assert torch.allclose(mean[0], y[0], atol=1e-4)  # x_{-1} is the solution
    assert variance.shape == log_variance.shape == (5, 1)
    same, _, _, start = diffusion.p_mean_variance(x, x_t, t, clip_denoised=True)
    assert torch.equal(same, diffusion.q_posterior(start, x_t, t)[0])
    assert start.abs().max() <= 2
    assert diffusion.model_predictions(x, 9 * y, t, clip_x_start=True).pred_x_start.abs().max() <= 1
    assert not diffusion.self_condition
    with pytest.raises(ConfigError, match="leave out x_self_cond"):
        diffusion.p_sample(x, x_t, 3, start)


def test_stepping_by_hand_is_sampling(batch):
    diffusion, x = make_diffusion(use_innerloop_opt=False), batch[0]
    image = start = torch.randn(5, 9, generator=torch.Generator().manual_seed(2))
    trajectory = []
    for t in reversed(range(10)):
        image, _ = diffusion.p_sample(x, image, t)
        limit = 2 * diffusion.sqrt_alphas_cumprod[t]
        trajectory.append(image.clamp(-limit, limit) / diffusion.sqrt_alphas_cumprod[t])
        image = diffusion.sqrt_alphas_cumprod[t - 1] * trajectory[-1]
    assert torch.allclose(torch.stack(trajectory), diffusion.sample_loop(x, start=start, return_traj=True), atol=1e-5)
    last = torch.zeros(5, dtype=torch.long) + 4
    assert torch.equal(diffusion.p_sample(x, start, 4)[0], diffusion.p_sample(x, start, last)[0])
    assert not torch.equal(diffusion.p_sample(x, start, 4, with_noise=True)[0], diffusion.p_sample(x, start, 4)[0])
    assert torch.equal(diffusion.p_sample(x, start, 0, with_noise=True)[0], diffusion.p_sample(x, start, 0)[0])


@pytest.mark.parametrize(
    ("wrapper", "model"),
    [
        ("GNNDiffusionWrapper", models.GraphEBM(1, 1)),
        ("GNNConvDiffusionWrapper", models.GNNConvEBM(6, 7)),
        ("GNNConv1DV2DiffusionWrapper", models.GNNConv1DEBMV2(4, 1)),
    ],
)
def test_each_wrapper_of_the_release(wrapper, model):
    made = GaussianDiffusion1D(getattr(models, wrapper)(model), timesteps=10)
    assert made.model.ebm is model


def test_the_releases_metrics_are_those_of_its_tasks(tmp_path):
    for metric, names in {
        "mse": ("inverse", "lowrank"),
        "bce": ("parents", "connectivity-2", "parity"),
        "sudoku": ("sudoku",),
        "sort": ("sort",),
        "sort-2": ("sort-2",),
        "shortest-path-1d": ("shortest-path-1d", "shortest-path-10-1d"),
    }.items():
        for task in (TASKS[name]("val") for name in names):
            require_metric({"metric": metric}, task)
            for other in METRICS.keys() - {metric, "sort", "sort-2"}:
                with pytest.raises(ConfigError, match=f"metric is '{other}', and {type(task).__name__} is judged by"):
                    require_metric({"metric": other}, task)
    assert make_trainer(tmp_path, metric="mse").metric == "mse"
    with pytest.raises(ConfigError, match="metric is 'sudoku', and Items is judged by mse; leave metric out, or give"):
        Trainer1D(make_diffusion(), Items(), metric="sudoku", results_folder=tmp_path, device="cpu")


def test_items_bring_their_masks(tmp_path):
    def trainer(**options):
        settings = {"train_batch_size": 8, "evaluation_size": 16, "device": "cpu", "validation_dataset": Puzzles()}
        return Trainer1D(make_diffusion(), Puzzles(), results_folder=tmp_path, **settings | options)

    made = trainer(cond_mask=True)
    inp, target, mask = next(made.dl)
    assert torch.equal(mask, (torch.arange(9) < 4).float().expand(8, 9))
    assert torch.equal(inp[mask > 0], target[mask > 0])
    inp, target, mask = made.validation_dl[0]
    solved = made.ema.ema_model.sample(inp, mask=mask)
    assert torch.allclose(solved[mask > 0].double(), target[mask > 0], atol=1e-5)
    assert made.train_step(made.stream.batch(0))[0].isfinite()
    assert len(next(trainer(cond_mask=False).dl)) == 2
    with pytest.raises(ConfigError, match=r"SizedList gives no batch .*other than two or three parts"):
        has_mask(SizedList([(torch.zeros(9),)]))


def test_a_checkpoint_without_its_optimizer_can_be_used(tmp_path):
    state = torch.load(PUBLISHED / "last.pt", weights_only=True)
    del state["opt"]
    torch.save(state, tmp_path / "last.pt")
    shutil.copy(PUBLISHED / "config.json", tmp_path)
    assert_same_weights(weights(load_model(tmp_path)), weights(load_model(PUBLISHED)))
    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "opt"}, tmp_path / "run" / "last.pt")
    again = make_trainer(tmp_path / "run")
    again.load("last", to_train=False)
    assert_same_weights(weights(again.diffusion), weights(trainer.diffusion))
    with pytest.raises(CheckpointError, match="see its opt"):
        again.load("last")


def test_each_saving_keeps_a_milestone_that_can_be_loaded(tmp_path):
    trainer = make_trainer(tmp_path, train_num_steps=9, save_and_sample_every=4)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("model-*.pt")) == ["model-1.pt", "model-2.pt"]
    again = make_trainer(tmp_path, train_num_steps=9, save_and_sample_every=4)
    again.load(1)
    assert again.step == 4
    again.train()
    assert_same_weights(weights(again.diffusion), weights(trainer.diffusion))


def test_evaluate_prints_and_returns_the_errors(tmp_path, capsys, batch):
    trainer = make_trainer(tmp_path)
    metrics = trainer.evaluate(trainer.device, 1, inp=batch[0], label=batch[1], mask=None)
    assert set(metrics) == {"val_mse", "mse", "recon_error"}
    assert "val_mse" in capsys.readouterr().out
    inp, _ = next(trainer.dl)
    assert torch.equal(inp, trainer.stream.batch(0).inp)
    assert len(trainer.validation_dl[0]) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_of_items_trains_and_continues_exactly(tmp_path, workers):
    def trainer(folder, steps):
        return Trainer1D(
            make_diffusion(),
            Items(),
            train_batch_size=8,
            train_num_steps=steps,
            validation_dataset=Items(),
            results_folder=tmp_path / folder,
            device="cpu",
            evaluation_size=16,
            data_workers=workers,
        )

    whole = trainer("whole", 6)
    rows = whole.train()
    assert rows[-1]["val_mse"] > 0
    first = trainer("parts", 3)
    first.train()
    rest = trainer("parts", 6)
    rest.load("last")
    rest.train()
    assert_same_weights(weights(rest.diffusion), weights(whole.diffusion))


def test_a_data_set_without_sizes_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="the data set list has no inp_dim; set it"):
        Trainer1D(make_diffusion(), [1, 2], results_folder=tmp_path, device="cpu")


class OwnWrapper(torch.nn.Module):
    """Of a network written for the release."""

    ebm, inp_dim, out_dim = torch.nn.Linear(18, 1), 9, 9


@pytest.mark.parametrize("make", [OwnWrapper, lambda: DiffusionWrapper(torch.nn.Linear(18, 1))])
def test_a_network_written_for_the_release_is_told_what_to_write(make):
    with pytest.raises(ConfigError, match=r"EnergyModel.*docs/adding-an-energy-model\.md"):
        GaussianDiffusion1D(make(), timesteps=10)
