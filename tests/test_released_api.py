"""Scripts written for the released code: its signatures, attributes, milestones and data sets of items."""

import pytest
import torch
from conftest import assert_same_weights, make_diffusion, make_trainer, weights

from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
from diffusion_lib.system.errors import ConfigError
from models import EBM


class Items(torch.utils.data.Dataset):
    """A data set with `__getitem__` alone."""

    inp_dim = out_dim = 9

    def __len__(self):
        return 50

    def __getitem__(self, index):
        numbers = torch.rand(18, generator=torch.Generator().manual_seed(index)).numpy()
        return numbers[:9], numbers[9:]


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
    with pytest.raises(ConfigError, match="the data set list has no inp_dim"):
        Trainer1D(make_diffusion(), [1, 2], results_folder=tmp_path, device="cpu")
