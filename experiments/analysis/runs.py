"""The runs of studies, as every table reads them."""

from pathlib import Path
from typing import NamedTuple

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.run_folder import read_data, recorded_config, run_folders, trusted_result
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS
from experiments.analysis.metrics import task_metrics


class EndedRun(NamedTuple):
    """A run that ended. config: its own, the mining included. result: the content of result.json."""

    folder: Path
    config: ExperimentConfig
    result: dict

    @property
    def samplers(self) -> dict[str, dict]:
        """Its metrics by sampler; none of a run that failed."""
        return self.result.get("samplers", {})


def read_ended(*studies: Path) -> tuple[list[EndedRun], dict[Path, str]]:
    """The runs that ended, strategy by strategy, and by folder what is wrong with those whose files are damaged."""
    runs, damaged = [], {}
    for folder in (folder for study in studies for folder in run_folders(study)):
        try:
            result = trusted_result(folder)
            if result:
                read_data(folder)
                run = EndedRun(folder, recorded_config(folder), result)
                require_possible(run)
                runs.append(run)
        except (ConfigError, OSError) as error:
            damaged[folder] = str(error)
    return runs, damaged


def require_possible(run: EndedRun):
    """Raises ConfigError where a metric has a value that it cannot have."""
    for metric in task_metrics(TASKS[run.config.dataset]):
        for sampler, values in run.samplers.items():
            value = values.get(metric.column)
            if value is not None and not metric.possible(value):
                raise ConfigError(f"{run.folder / 'result.json'} is damaged ({metric.column} of {sampler} is {value})")
