"""Which device and how many processes train a run, whatever a launcher or a module has put into the environment."""

import os
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import assert_same_weights, fork, make_diffusion, make_trainer, weights

from dataset import TASKS
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from diffusion_lib.system import device as devices
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.other_process import OtherProcess
from diffusion_lib.system.startup import CORES
from models import MODELS

LAUNCHERS = {
    "srun with PMI": {"PMI_SIZE": "2", "PMI_RANK": "0"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    "half of torchrun": {"LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    "one of torchrun": dict(zip(devices.ONE_OF_SEVERAL, ("0", "1", "0", "nowhere", "1"), strict=True)),
    "accelerate's settings": {"ACCELERATE_TORCH_DEVICE": "cuda:1", "ACCELERATE_USE_FSDP": "true"},
}


@pytest.mark.parametrize("variables", LAUNCHERS.values(), ids=LAUNCHERS)
def test_a_launchers_variables_leave_a_run_alone(variables, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    AcceleratorState._reset_state(reset_partial_state=True)  # what an earlier test has found
    trainer = make_trainer(tmp_path)
    assert (trainer.accelerator.num_processes, trainer.device.type) == (1, "cpu")
    assert variables.items() <= os.environ.items()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_rank_that_is_none_is_said(monkeypatch):
    for name, value in LAUNCHERS["one of torchrun"].items():
        monkeypatch.setenv(name, value)
    assert devices.processes() == 1
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="RANK is '2', LOCAL_RANK is '0', WORLD_SIZE is '1'; allowed"):
        devices.processes()


@pytest.mark.parametrize("name", devices.GRANTED)
def test_a_gpu_that_was_granted_in_vain_is_said(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for other in devices.GRANTED:
        monkeypatch.delenv(other, raising=False)
    assert devices.chosen_device(None) == torch.device("cpu")
    for value in devices.NO_GPU:
        monkeypatch.setenv(name, value)
        assert devices.chosen_device(None) == torch.device("cpu")
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"{name} is 1, but torch .* cannot use a GPU here"):
        devices.chosen_device(None)
    assert devices.chosen_device("cpu") == torch.device("cpu")


def test_other_accelerators_are_not_chosen_by_chance(monkeypatch):
    """accelerate alone would take an Apple GPU, say."""
    asked, made = [], SimpleNamespace(device=torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "Accelerator", lambda **options: asked.append(options) or made)
    devices.make_accelerator(None)
    assert asked[0]["cpu"] is True


def test_a_ctrl_c_while_other_processes_import_is_left_to_the_first(capfd):
    with OtherProcess() as process:
        os.kill(process.process.pid, signal.SIGINT)
        assert process.call(abs, -1) == 1
    assert capfd.readouterr().err == ""


def call_from_here():
    with OtherProcess() as process:
        return process.call(abs, -1)


def test_a_worker_of_a_pool_has_processes_too():
    with fork.Pool(1) as pool:
        assert pool.apply(call_from_here) == 1


@contextmanager
def set_for_the_process(switch, value, before):
    switch(value)
    try:
        yield
    finally:
        switch(before)


CALLERS = {
    "inference_mode": lambda: torch.inference_mode(),
    "no_grad": lambda: torch.no_grad(),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: set_for_the_process(torch.set_default_dtype, torch.float64, torch.float32),
    "another device": lambda: set_for_the_process(torch.set_default_device, "meta", None),
}


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
def test_what_a_caller_has_set_changes_no_training(caller, tmp_path):
    alone = make_trainer(tmp_path / "alone", train_num_steps=3)
    alone.train()
    diffusion = make_diffusion(mining_config={"mode": "adversarial"}, use_innerloop_opt=False)
    task, options = alone.dataset, {"train_batch_size": 16, "evaluation_size": 64, "device": "cpu"}
    with caller():
        beside = type(alone)(diffusion, task, train_num_steps=3, results_folder=tmp_path / "beside", **options)
        beside.train()
    assert_same_weights(weights(beside.diffusion), weights(alone.diffusion))


@pytest.mark.parametrize("caller", ["inference_mode", "autocast"])
def test_what_a_caller_has_set_changes_no_sample(caller):
    task = TASKS["connectivity-2"]("train", 4)
    diffusion = GaussianDiffusion1D(MODELS["gnn"](task.inp_dim, task.out_dim), timesteps=3)
    inp, start = task.sample(2, torch.Generator().manual_seed(0))
    expected = diffusion.sample_loop(inp, start=start, inner_steps=1)
    with CALLERS[caller]():
        inp, start = inp.clone(), start.clone()  # inference_mode's, which autograd refuses
        assert torch.equal(diffusion.sample_loop(inp, start=start, inner_steps=1), expected)


def test_another_accelerator_and_this_one_leave_each_other_alone(tmp_path):
    alone = make_trainer(tmp_path / "alone", train_num_steps=3)
    alone.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    other = Accelerator(gradient_accumulation_steps=4, mixed_precision="bf16", cpu=True)
    model = other.prepare(torch.nn.Linear(2, 2))
    with other.accumulate(model):
        beside = make_trainer(tmp_path / "beside", train_num_steps=3)
        beside.train()
    assert_same_weights(weights(beside.diffusion), weights(alone.diffusion))
    assert (other.gradient_accumulation_steps, other.mixed_precision, other.sync_gradients) == (4, "bf16", False)
    AcceleratorState._reset_state(reset_partial_state=True)


def in_use():
    return os.sched_getaffinity(0), os.environ.get("OMP_PROC_BIND")


@pytest.mark.skipif(len(CORES) < 2 or not hasattr(os, "sched_setaffinity"), reason="needs two cores, and Linux")
def test_processes_at_once_are_not_bound_to_the_first_core(monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    os.sched_setaffinity(0, {min(CORES)})  # as the import of torch does then
    try:
        with OtherProcess() as process:
            assert process.call(in_use) == (CORES, None)
        assert in_use() == ({min(CORES)}, "true")
    finally:
        os.sched_setaffinity(0, CORES)
