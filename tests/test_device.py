"""Which device and how many processes train a run, whatever a launcher or a module has put into the environment."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import make_trainer

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.startup import CORES
from diffusion_lib.training import device as devices
from experiments.study.other_process import OtherProcess

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
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "Accelerator", lambda **options: asked.append(SimpleNamespace(**options)))
    devices.make_accelerator(None)
    assert asked[0].cpu is True


def test_a_ctrl_c_while_other_processes_import_is_left_to_the_first(capfd):
    with OtherProcess() as process:
        os.kill(process.process.pid, signal.SIGINT)
        assert process.call(abs, -1) == 1
    assert capfd.readouterr().err == ""


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
