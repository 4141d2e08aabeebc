"""The training loop: exact resume, signals, checkpoints, and what stops it."""

import errno
import os
import signal
import sys
import warnings
import zipfile
from dataclasses import replace
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import advance, assert_same_weights, make_diffusion, make_trainer, weights
from ema_pytorch import EMA
from torch.optim import Adam

from dataset import Inverse
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.evaluation import EvaluationSet, sampler_metrics
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system import files
from diffusion_lib.system.arguments import directory
from diffusion_lib.system.errors import CheckpointError, ConfigError, Interrupted, NonFiniteLossError
from diffusion_lib.training.batches import BatchStream
from models import EBM


def final_state(trainer):
    state = torch.load(trainer.checkpoint_path("last"), weights_only=True)
    return {**weights(trainer.diffusion), **{f"ema.{k}": v for k, v in weights(trainer.ema).items()}}, state


@pytest.mark.parametrize("mode", ["none", "adversarial"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resume_equals_an_uninterrupted_run(tmp_path, mode, stop):
    whole = make_trainer(tmp_path / "whole", mode=mode)
    whole.train()
    first = make_trainer(tmp_path / "parts", mode=mode)
    advance(first, stop)
    first.save()
    second = make_trainer(tmp_path / "parts", mode=mode)
    second.load("last")
    assert second.step == stop
    second.train()
    expected, expected_state = final_state(whole)
    actual, actual_state = final_state(second)
    assert_same_weights(actual, expected)
    for index, moments in expected_state["opt"]["state"].items():
        assert_same_weights(actual_state["opt"]["state"][index], moments)
    for left, right in zip(whole.history, second.history, strict=True):
        assert {**left, "train_seconds": 0} == {**right, "train_seconds": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_rest_is_the_same(tmp_path, number):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    stopped = make_trainer(
        tmp_path / "stopped", log_every=1, on_log=lambda row: row["step"] == 5 and os.kill(os.getpid(), number)
    )
    with pytest.raises(Interrupted, match=f"{number.name} at step 5"):
        stopped.train()
    assert signal.getsignal(number) == signal.SIG_DFL
    again = make_trainer(tmp_path / "stopped")
    again.load("last")
    assert again.step == 5
    again.train()
    assert_same_weights(weights(again.diffusion), weights(whole.diffusion))
    assert_same_weights(weights(again.ema), weights(whole.ema))


def stream(seed=0, contrastive=True, **options):
    return BatchStream(Inverse("train", 3), 8, 10, seed, torch.device("cpu"), contrastive, **options)


def test_batches_are_a_function_of_seed_and_step():
    forward, backward = stream(), stream()
    expected = [forward.batch(k) for k in range(6)]
    for k in reversed(range(6)):
        for left, right in zip(expected[k], backward.batch(k), strict=True):
            assert (left is right is None) or torch.equal(left, right)
    assert not torch.equal(expected[0].inp, expected[1].inp)
    assert not torch.equal(expected[0].noise, stream(seed=1).batch(0).noise)


def test_strategies_see_the_same_data_and_noise():
    with_negatives, without = stream().batch(3), stream(contrastive=False).batch(3)
    assert without.nce_noise is None
    for name in ("inp", "target", "t", "noise"):
        assert torch.equal(getattr(with_negatives, name), getattr(without, name))


def test_workers_and_processes_change_nothing():
    plain, ahead = stream(), stream(workers=2)
    halves = [stream(rank=rank, world=2) for rank in range(2)]
    for k in range(5):
        expected = plain.batch(k)
        for place, value in ((place, value) for place, value in enumerate(expected) if value is not None):
            assert torch.equal(ahead.batch(k)[place], value)
            assert torch.equal(torch.cat([half.batch(k)[place] for half in halves]), value)


def test_evaluation_leaves_training_alone(tmp_path):
    quiet = make_trainer(tmp_path / "quiet", validation_dataset=None)
    watched = make_trainer(tmp_path / "watched", save_and_sample_every=1, log_every=1)
    quiet.train()
    watched.train()
    assert_same_weights(weights(quiet.diffusion), weights(watched.diffusion))
    assert [row["step"] for row in watched.history] == list(range(1, 13))
    assert all("val_mse" in row for row in watched.history)


def test_every_checkpoint_has_its_evaluation(tmp_path):
    history = make_trainer(tmp_path, save_and_sample_every=4, log_every=3).train()
    assert [row["step"] for row in history] == [3, 4, 6, 8, 9, 12]
    assert [row["step"] for row in history if "val_mse" in row] == [4, 8, 12]


@pytest.mark.parametrize("size", [3, 16])
def test_a_curve_has_other_samplers_beside_the_model_s_own(tmp_path, size):
    trainer = make_trainer(tmp_path, evaluation_size=8, curve_samplers={"innerloop": size})
    last = trainer.train()[-1]
    model = trainer.ema.ema_model
    chosen = EvaluationSet(Inverse("val", 3), min(size, 8), "cpu")
    assert last["val_mse_innerloop"] == sampler_metrics(model, chosen, "innerloop")["mse"]
    assert last["val_mse"] == sampler_metrics(model, EvaluationSet(Inverse("val", 3), 8, "cpu"), None)["mse"]


def test_same_seed_same_initial_weights_whatever_the_strategy():
    assert_same_weights(weights(make_diffusion(mining_config={"mode": "none"})), weights(make_diffusion()))


def test_training_lowers_the_loss(tmp_path):
    trainer = make_trainer(
        tmp_path, mode="none", train_num_steps=300, log_every=50, save_and_sample_every=300, train_lr=1e-3
    )
    history = trainer.train()
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_non_finite_loss_stops_before_the_update(tmp_path):
    trainer = make_trainer(tmp_path)
    advance(trainer, 4)
    kept, before = trainer.checkpoint_path("last").read_bytes(), weights(trainer.diffusion)
    make = trainer.stream.batch
    trainer.stream.batch = lambda k: make(k)._replace(target=torch.full((16, 9), float("nan")))
    with pytest.raises(NonFiniteLossError, match="not finite"):
        trainer.train()
    assert_same_weights(weights(trainer.diffusion), before)
    assert trainer.checkpoint_path("last").read_bytes() == kept
    trainer.stream.batch = make
    trainer.load("last")  # from where it was finite, in the same process too
    trainer.train()
    undisturbed = make_trainer(tmp_path / "undisturbed")
    undisturbed.train()
    assert_same_weights(weights(trainer.diffusion), weights(undisturbed.diffusion))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half"])
def test_a_damaged_checkpoint_is_named_and_kept(tmp_path, content):
    trainer = make_trainer(tmp_path)
    trainer.save()
    path = tmp_path / "last.pt"
    content = path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read as a checkpoint") as caught:
        trainer.load("last")
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == content


def test_foreign_checkpoints_are_refused(tmp_path):
    make_trainer(tmp_path).save()
    with pytest.raises(CheckpointError, match="is of task Inverse of 9 to 9 numbers"):
        make_trainer(tmp_path, rank=4).load("last")
    with pytest.raises(CheckpointError, match="is of seed 0, this run has seed 1"):
        make_trainer(tmp_path, seed=1).load("last")
    torch.save({"weights": 1}, tmp_path / "model-7.pt")
    with pytest.raises(CheckpointError, match="see its step, model, opt, ema"):
        make_trainer(tmp_path).load("7")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        make_trainer(tmp_path).load("8")
    with pytest.raises(CheckpointError, match=r"no checkpoint at runs/typo\.pt"):
        make_trainer(tmp_path).load("runs/typo.pt")


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    make_trainer(tmp_path).train()
    make_trainer(tmp_path, mode="none").load("last", to_train=False)
    with pytest.raises(CheckpointError, match=r"is of mining {'mode': 'adversarial'.*, this run has {'mode': 'none'"):
        make_trainer(tmp_path, mode="none").load("last")
    with pytest.raises(CheckpointError, match="is of step 12, this run has 11 steps"):
        make_trainer(tmp_path, train_num_steps=11).load("last")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"train_lr": 1e-3}, "learning_rate"),
        ({"lr_schedule": lambda step: 1 - step / 12}, "learning_rate"),
        ({"train_batch_size": 8}, "batch_size"),
        ({"ema_update_every": 1}, "ema_update_every"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"adam_betas": (0.5, 0.99)}, "adam_betas"),  # which Adam's own state would silently undo
        ({"save_and_sample_every": 3}, "save_and_sample_every"),  # whose milestones would replace earlier ones
        ({"evaluation_size": 16}, "evaluation"),  # whose metrics would stand in one column with those before
        ({"validation_dataset": Inverse("val", 3, True)}, "evaluation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_training_is_continued_with_its_own_settings(tmp_path, changed, key):
    """Where it began from another folder's file, or an earlier version's, they may be others."""
    first = make_trainer(tmp_path)
    advance(first, 2)
    first.save()
    with pytest.raises(CheckpointError, match=f"is of {key} .*, this run has "):
        make_trainer(tmp_path, **changed).load("last")
    with pytest.raises(CheckpointError, match="is of match_release False, this run has True"):
        as_released = make_trainer(tmp_path)
        as_released.diffusion.match_release = True
        as_released.load("last")
    with pytest.raises(CheckpointError, match=r"is of bound 2.0, this run has 0.5"):
        other_bound = make_trainer(tmp_path)
        other_bound.diffusion.rules = replace(other_bound.diffusion.rules, bound=0.5)
        other_bound.load("last")
    with pytest.raises(CheckpointError, match=r"is of rules .*'entry_weights': False"):
        other_rules = make_trainer(tmp_path)
        other_rules.diffusion.rules = replace(other_rules.diffusion.rules, entry_weights=torch.ones_like)
        other_rules.load("last")
    another = make_trainer(tmp_path / "another", **changed)
    another.load(tmp_path / "last.pt")
    (group,) = another.opt.param_groups
    assert (group["lr"], group["betas"]) == (another.train_lr, another.adam_betas)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save(state | {"run": {"mining": state["run"]["mining"]}}, tmp_path / "last.pt")
    make_trainer(tmp_path, **changed).load("last")


WRONG = {"step": 1.5, "model": 5, "opt": [], "ema": {"a": 1}, "history": {}, "seed": "0", "loss_sums": [1.0], "run": 3}


@pytest.mark.parametrize(("key", "value"), WRONG.items())
def test_a_wrong_type_in_a_checkpoint_is_said(tmp_path, key, value):
    trainer = make_trainer(tmp_path)
    trainer.save()
    path = tmp_path / "last.pt"
    torch.save(torch.load(path, weights_only=True) | {key: value}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        trainer.load("last")


@pytest.mark.parametrize("damage", ["a bit", "zeros"])
def test_damaged_weights_are_no_weights(tmp_path, damage):
    trainer = make_trainer(tmp_path)
    trainer.save()
    path = tmp_path / "last.pt"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    middle = largest.header_offset + largest.file_size // 2
    if damage == "a bit":
        data[middle] ^= 0x40
    else:
        data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read as a checkpoint \(the checksum of"):
        trainer.load("last")


def test_a_checkpoint_in_the_released_format_loads_and_evaluates(tmp_path):
    """Saved as the released trainer saves: plain Adam, ema-pytorch's EMA, no fields of ours."""
    diffusion = make_diffusion(seed=3, match_release=True)
    optimizer = Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    inp, target = Inverse("train", 3).sample(8)
    diffusion(inp, target, None)[0].backward()
    optimizer.step()
    ema.update()
    released = {
        "step": 1000,
        "model": diffusion.state_dict(),
        "opt": optimizer.state_dict(),
        "ema": ema.state_dict(),
        "scaler": None,
    }
    torch.save(released, tmp_path / "model-1.pt")
    trainer = make_trainer(tmp_path, train_num_steps=1002)
    trainer.load("1")
    assert trainer.step == 1000
    assert_same_weights(weights(trainer.diffusion), weights(diffusion))
    before = trainer.evaluate()["val_mse"]
    assert 0 < before < float("inf")
    trainer.train()
    assert trainer.step == 1002


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    advance(trainer, 4)
    kept = trainer.checkpoint_path("last").read_bytes()

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert trainer.checkpoint_path("last").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "metrics.csv", "model-1.pt"]


def test_ema_copies_the_schedule_and_averages_the_weights(tmp_path):
    trainer = make_trainer(tmp_path, train_num_steps=130, save_and_sample_every=1000, train_lr=1e-2, mode="none")
    trainer.train()
    averaged = dict(trainer.ema.ema_model.named_parameters())
    assert_same_weights(dict(trainer.ema.ema_model.named_buffers()), dict(trainer.diffusion.named_buffers()))
    assert not torch.equal(averaged["model.ebm.fc2.weight"], trainer.diffusion.model.ebm.fc2.weight)


def test_learning_rate_schedule(tmp_path):
    still = make_trainer(tmp_path, lr_schedule=lambda _: 0.0)
    before = weights(still.diffusion)
    still.train()
    assert_same_weights(weights(still.diffusion), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_num_steps": 0}, "train_num_steps is 0; allowed: a whole number from 1"),
        ({"train_batch_size": 2.5}, "train_batch_size is 2.5"),
        ({"ema_update_every": 0}, "ema_update_every is 0; allowed: a whole number from 1"),
        ({"extra_validation_every_mul": 0}, "extra_validation_every_mul is 0; allowed: a whole number from 1"),
        ({"extra_validation_datasets": {"val": Inverse("val", 3, True)}}, "extra_validation_datasets has 'val'"),
        ({"data_workers": -2}, "data_workers is -2; allowed: a whole number from 0"),
        ({"train_lr": float("nan")}, "train_lr is nan; allowed: a positive number"),
        ({"train_lr": "1e-3"}, "train_lr is '1e-3'; allowed: a positive number"),
        ({"ema_decay": 2.0}, "ema_decay is 2.0; allowed: a number from 0, below 1"),
        ({"adam_betas": (0.9, 1)}, r"adam_betas\[1\] is 1; allowed: a number from 0, below 1"),
        ({"adam_betas": 0.9}, r"adam_betas is \(0.9,\); allowed: two numbers"),
        ({"seed": "3"}, "seed is '3'; allowed: a whole number from 0"),
        ({"lr_schedule": "cosine"}, "lr_schedule is 'cosine'; allowed: a function, or None"),
        ({"lr_schedule": lambda _: float("nan")}, "lr_schedule is nan at step 0; allowed: a number from 0"),
        ({"on_log": 3}, "on_log is 3; allowed: a function, or None"),
        ({"device": "tpu"}, "device is 'tpu'; allowed: cpu, cuda"),
        ({"lr_schedule": lambda _: None}, "lr_schedule is None at step 0; allowed: a number from 0"),
        ({"cond_mask": True}, "cond_mask is True; this task has no mask"),
        ({"curve_samplers": ["plain"]}, "curve_samplers is list; allowed: a dict by name, or None"),
        ({"curve_samplers": {"ddim": 4}}, "curve_samplers has 'ddim'; allowed: plain, innerloop"),
        ({"curve_samplers": {"plain": 0}}, r"curve_samplers\['plain'\] is 0; allowed: a whole number from 1"),
        ({"cond_mask": "False"}, "cond_mask is 'False'; allowed: True or False"),
        ({"keep_milestones": "no"}, "keep_milestones is 'no'; allowed: True or False"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.nn.DataParallel, "diffusion_model is DataParallel; allowed: a GaussianDiffusion1D"),
        (lambda diffusion: diffusion.model.ebm, "diffusion_model is EBM; allowed: a GaussianDiffusion1D"),
        (lambda diffusion: diffusion.double(), "weights of torch.float64; allowed: torch.float32"),
        (torch.compile, "diffusion_model was compiled by torch.compile; allowed: the GaussianDiffusion1D itself"),
        (lambda diffusion: diffusion.compile() or diffusion, "diffusion_model was compiled by torch.compile"),
        (lambda diffusion: diffusion.requires_grad_(False), "none of the model's weights has requires_grad"),
    ],
)
def test_a_model_that_cannot_be_trained_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        Trainer1D(change(make_diffusion()), Inverse("train", 4), results_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


NUMPYS = {
    "seed": {"seed": np.int64(3)},
    "rate": {"train_lr": np.float64(1e-3)},
    "betas": {"adam_betas": (np.float64(0.9), np.float32(0.99))},
    "schedule": {"lr_schedule": lambda step: 1 + np.cos(step / 10)},
    "sizes": {"train_batch_size": np.int32(8), "log_every": np.int64(2)},
    "weight": {"weight": np.linspace(0, 1, 5)[1]},
    "curves": {
        "curve_samplers": {"plain": np.int64(4)},
        "validation_dataset": Inverse("val", 3),
        "evaluation_size": np.int64(8),
    },
    "subclasses": {"weight": type("Number", (float,), {})(0.25), "seed": IntEnum("Seed", {"FIRST": 3}).FIRST},
}


def test_numpy_s_numbers_are_sizes():
    assert type(EBM(np.prod((3, 3)), np.int32(9)).out_dim) is type(Inverse("train", np.int64(3)).rank) is int


@pytest.mark.parametrize("options", NUMPYS.values(), ids=NUMPYS)
def test_numpy_s_numbers_are_numbers(tmp_path, options):
    def made():
        mining = {"mode": "random"} | {key: value for key, value in options.items() if key == "weight"}
        rest = {key: value for key, value in options.items() if key != "weight"}
        return Trainer1D(
            make_diffusion(mining_config=mining, rules=replace(Inverse("train", 3).rules, bound=np.float32(2))),
            Inverse("train", 3),
            **{"train_num_steps": 3, "results_folder": tmp_path, "device": "cpu", **rest},
        )

    made().train()
    again = made()
    again.load("last")  # which reads no other types
    assert again.step == 3


def test_what_is_set_on_a_trainer_counts_or_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(AttributeError, match="opt"):
        trainer.opt = Adam(trainer.diffusion.parameters())
    trainer.train_lr = 1e-9
    before = weights(trainer.diffusion)
    advance(trainer, 1)
    moved = max((value - before[name]).abs().max() for name, value in weights(trainer.diffusion).items())
    assert 0 < moved < 1e-7
    trainer.diffusion.mining = MiningConfig("independent")  # for which its batches hold no noise
    with pytest.raises(ConfigError, match="make another trainer"):
        trainer.train()


def test_a_training_in_the_folder_of_another_says_what_it_replaces(tmp_path):
    make_trainer(tmp_path).train()
    with pytest.warns(UserWarning, match="last.pt is of another training, which this one replaces"):
        make_trainer(tmp_path).train()
    again = make_trainer(tmp_path)
    again.load("last")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.train()


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make_trainer("~/run")
    assert (tmp_path / "home" / "run").exists() and directory("~/run") == tmp_path / "home" / "run"


def test_a_word_names_a_milestone_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trainer = make_trainer(tmp_path / "run")
    trainer.save("best")
    trainer.save("acc0.93")
    assert (tmp_path / "run" / "model-best.pt").exists() and (tmp_path / "run" / "model-acc0.93.pt").exists()
    assert not [*(tmp_path / "elsewhere").iterdir()]
    trainer.load("best")


def test_sample_says_that_it_uses_the_last_weights(tmp_path):
    trainer = make_trainer(tmp_path, train_num_steps=1)
    inp, _ = trainer.dataset.sample(2)
    with pytest.warns(UserWarning, match="the last weights .*trainer.ema.ema_model"):
        trainer.diffusion.sample(inp)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.ema.ema_model.sample(inp)


def test_progress_needs_of_stderr_no_more_than_write(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=said.append, flush=lambda: None))
    make_trainer(tmp_path).train()
    assert any("step 12/12" in line for line in said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_asked_for_and_absent(tmp_path):
    with pytest.raises(ConfigError, match="no usable CUDA device"):
        make_trainer(tmp_path, device="cuda")


def test_the_cpu_and_another_device_agree(tmp_path, device):
    """On the CPU this compares two runs bit for bit; on a GPU, a captured step with the CPU's to rounding."""
    reference, other = make_trainer(tmp_path / "cpu"), make_trainer(tmp_path / "other", device=device)
    for k in range(6):
        batch = reference.stream.batch(k)
        left, _ = reference.train_step(batch)
        right, _ = other.train_step(type(batch)(*(part if part is None else part.to(device) for part in batch)))
        assert right.item() == pytest.approx(left.item(), rel=1e-4 if device == "cuda" else 0)


def test_the_share_of_clipped_gradients_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, train_num_steps=6, log_every=6, save_and_sample_every=6)
    norms, clip = [], trainer.accelerator.clip_grad_norm_

    def watch(parameters, limit):
        norms.append(clip(parameters, limit))
        return norms[-1]

    trainer.accelerator.clip_grad_norm_ = watch
    trainer.train_step.max_norm = 0.1
    (row,) = trainer.train()
    assert 0 < row["clipped"] < 1
    assert row["clipped"] == pytest.approx(sum(norm > 0.1 for norm in norms) / 6)
