"""The folders of a study and of its runs: their recorded configuration and their results."""

import re
from collections import defaultdict
from pathlib import Path

import torch

from diffusion_lib.config import ExperimentConfig, current
from diffusion_lib.system.environment import environment
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import create_exclusively, json_text, read_json, write_json

REMEDY = "Choose another --name, the earlier values, or --fresh to delete it"
RESULT_TYPES = {"status": str, "strategy": str, "seed": int}
ENDED_TYPES = {"finished": {"samplers": dict}, "failed": {"reason": str}}  # by status, what else a result has


def prepare_folder(
    folder: Path, config: dict, device: torch.device, remedy=REMEDY, renew: bool = False, at_once: int = 1
):
    """Make `folder` for `config`, or check that it was made for it; of several processes at once, one makes it.

    config.json records the configuration and the environment of the first command, or with `renew` of this one.
    at_once: the runs that this command trains at the same time.
    Raises ConfigError that names each differing key and the `remedy`, and OSError for a folder that cannot be written.
    """
    path = folder / "config.json"
    if path.exists():
        require_same(folder, config, remedy)
        if not renew:
            return
    record = {"config": config, "environment": environment(device, at_once)}
    if renew:
        write_json(path, record)
    elif not create_exclusively(path, json_text(record)):
        require_same(folder, config, remedy)


def require_same(folder: Path, config: dict, remedy: str):
    """Raises ConfigError where the folder was made for another configuration."""
    there, now = (flat(current(each)) for each in (read_config(folder), config))
    differing = [
        f"{key} (there {there.get(key)!r}, now {now.get(key)!r})"
        for key in sorted(there | now)
        if there.get(key) != now.get(key)
    ]
    if differing:
        raise ConfigError(f"{folder} was made by another configuration: {'; '.join(differing)}. {remedy}")


def flat(config: dict) -> dict:
    """The mining's settings beside the others, for messages: 'opt_steps', as its flag is called."""
    return {key: value for key, value in config.items() if key != "mining"} | config["mining"]


def read_config(folder: Path) -> dict:
    """The configuration in config.json. Raises ConfigError where there is none."""
    config = read_json(folder / "config.json").get("config")
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / 'config.json'} lacks its 'config'")
    return config


def read_environment(folder: Path) -> dict:
    """The environment in config.json, 'unknown' what an earlier version did not record. Raises ConfigError."""
    about = read_json(folder / "config.json").get("environment")
    if not isinstance(about, dict):
        raise ConfigError(f"{folder / 'config.json'} lacks its 'environment'")
    return defaultdict(lambda: "unknown", about)


def read_experiment(folder: Path) -> ExperimentConfig:
    """The configuration in config.json, in the form of today. Raises ConfigError, which names the file."""
    recorded = read_config(folder)
    try:
        return ExperimentConfig.from_dict(recorded)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None


def ended_result(folder: Path) -> dict | None:
    """The result of a run that ended, or None. Raises ConfigError for one that no run has written."""
    path = folder / "result.json"
    if not path.exists():
        return None
    result = read_json(path)
    wanted = RESULT_TYPES | ENDED_TYPES.get(str(result.get("status")), {})
    wrong = [key for key, kind in wanted.items() if type(result.get(key)) is not kind]
    if not wrong:
        wrong = [name for name, part in result.get("samplers", {}).items() if not _numbers(part)]
    if wrong or result["status"] not in ENDED_TYPES:
        raise ConfigError(f"{path} is no result of a run: see its {', '.join(wrong or ['status'])}")
    return result


def _numbers(part) -> bool:
    return isinstance(part, dict) and all(type(value) in (int, float) for value in part.values())


def read_result(folder: Path) -> dict | None:
    """The result of a run that ended, for a report: None, too, where it or its configuration cannot be read."""
    try:
        read_config(folder)
        return ended_result(folder)
    except (ConfigError, OSError):
        return None


def require_study(study: Path):
    """Raises ConfigError where there is no study, or one that was published without its runs."""
    if not (study / "config.json").exists():
        raise ConfigError(f"there is no study {study}; train first, or choose another --name or --results")
    if not (study / "runs").exists():
        raise ConfigError(f"{study} was published without its runs: there is nothing to show or to report anew")


def run_folders(study: Path) -> list[Path]:
    """The folders of a study's runs; other names in it are passed over."""
    return sorted(path for path in study.glob("runs/*/seed-*") if re.fullmatch(r"seed-\d+", path.name))


def ended_runs(study: Path) -> set[Path]:
    """The folders of the runs that have a result that can be read."""
    return {folder for folder in run_folders(study) if read_result(folder)}
