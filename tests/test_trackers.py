"""--log-with: each run in the tracker asked for; one that is not there is refused before anything is written."""

from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from diffusion_lib.system import device as devices
from diffusion_lib.system.errors import exit_status
from experiments.matrix_inversion_mining_comparison import main
from tests.conftest import small_study

pytestmark = pytest.mark.usefixtures("cheap_report")


def test_each_run_of_a_study_has_its_events_in_its_folder(tmp_path):
    arguments = ["--strategies", "baseline", "random", "--seeds", "0", "--at-once", "2", "--log-with", "tensorboard"]
    assert main(small_study(tmp_path, *arguments)) == 0
    runs = tmp_path / "shared" / "runs"
    for strategy in ("baseline", "random"):
        (events,) = runs.rglob(f"{strategy}/seed-0/shared/{strategy}/seed-0/events.out.tfevents.*")
        logged = EventAccumulator(str(events)).Reload()
        assert {"loss", "val_mse"} <= set(logged.Tags()["scalars"])
        assert logged.Scalars("loss")[-1].step == 30
    assert main(small_study(tmp_path, "--strategies", "baseline", "--seeds", "1", "--at-once", "1")) == 0
    assert not list((runs / "baseline" / "seed-1").rglob("events.*"))


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("wandb", "error: log_with is 'wandb', which is not installed; installed: tensorboard"),
        ("tensorbord", "error: log_with is 'tensorbord'; allowed, where installed: "),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(tracker, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "get_available_trackers", lambda: ["tensorboard"])
    one_run = ["--rank", "3", "--train-steps", "2", "--device", "cpu", "--results-folder", str(tmp_path / "run")]
    for command, arguments in ((main, small_study(tmp_path / "study")), (train.main, one_run)):
        with pytest.raises(SystemExit) as stop, exit_status():
            command([*arguments, "--log-with", tracker])
        said = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and said[-1].startswith(message) and len(said) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tracker", "project", "options"),
    [
        ("wandb", "study", {"init_kwargs": {"wandb": {"name": "baseline/seed-0"}}}),
        ("mlflow", "study", {"init_kwargs": {"mlflow": {"run_name": "baseline/seed-0"}}}),
        ("tensorboard", "study/baseline/seed-0", {}),
    ],
)
def test_runs_are_named_as_the_tracker_names_them(tracker, project, options):
    said = []
    accelerator = SimpleNamespace(log_with=[tracker], init_trackers=lambda name, **rest: said.append((name, rest)))
    devices.start_tracker(accelerator, "study/baseline/seed-0")
    assert said == [(project, options)]
