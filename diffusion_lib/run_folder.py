"""The folders of a study and of its runs: their recorded configuration and their results."""

import hashlib
import json
import math
import re
from collections import defaultdict
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lib.config import ExperimentConfig, current, setting_names
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system.environment import environment
from diffusion_lib.system.errors import ConfigError, say_once
from diffusion_lib.system.files import TEMPORARY, create_exclusively, json_text, read_json, write_json

if TYPE_CHECKING:
    import torch

REMEDY = "Choose another --name, the earlier values, or --fresh to delete it"
FINGERPRINT_TOLERANCE = 1e-3  # another processor's float32 products differ by a thousandth of it
RESULT_TYPES = {"status": str, "strategy": str, "seed": int}
ENDED_TYPES = {"finished": {"samplers": dict}, "failed": {"reason": str}}  # by status, what else a result has
COSTS = {"parameters", "train_seconds", "steps_per_second", "train_flops", "peak_memory_bytes", "clipped"}
OF_A_RUN = {"strategy", "seed", "train_steps"}  # what the runs of any study may differ in, beside the mining's settings
ANEW = "Delete it, and the same command evaluates the run again"
# All keys of an earlier version's result, which had no digest: a digest under a damaged name is none of these.
WITHOUT_DIGEST = {*RESULT_TYPES, *(key for types in ENDED_TYPES.values() for key in types), *COSTS}


def prepare_folder(
    folder: Path,
    config: dict,
    device: "torch.device",
    remedy=REMEDY,
    renew: bool = False,
    at_once: int = 1,
    data: dict | None = None,
):
    """Make `folder` for `config`, or check that it was made for it; of several processes at once, one makes it.

    Its config.json records the configuration, the data and the environment of the first command.
    remedy: the advice that ends an error.
    renew: record this command instead of the first one.
    at_once: the runs that this command trains at the same time.
    data: what `describe_data` returns.
    Raises ConfigError, which names each key that differs, and OSError for a folder that cannot be written.
    """
    path = folder / "config.json"
    there = path.exists()
    if there:
        require_same(folder, config, remedy)
        require_same_data(folder, data, remedy)
        if not renew:
            return
    record = {"config": config, "data": data, "environment": environment(device, at_once)}
    if there:
        write_json(path, record)
    elif not create_exclusively(path, json_text(record)):
        require_same(folder, config, remedy)
        require_same_data(folder, data, remedy)


def require_same(folder: Path, config: dict, remedy: str):
    """Raise ConfigError where the folder was made for another configuration."""
    differing = differences(read_config(folder), config)
    if differing:
        raise ConfigError(f"{folder} was made by another configuration: {differing}. {remedy}")


def require_same_data(folder: Path, data: dict | None, remedy: str):
    """Raise ConfigError where the folder was made from other data; what an earlier version left unrecorded passes."""
    there = read_data(folder)
    if there and data and not same_data(there, data):
        raise ConfigError(f"{folder} was made from other data: there {shown(there)}, now {shown(data)}. {remedy}")


def same_data(one: dict, other: dict) -> bool:
    """Return whether two fingerprints are of the same examples, whatever the processors."""
    pairs = zip_longest(one["fingerprint"], other["fingerprint"], fillvalue=math.inf)
    return all(abs(here - there) < FINGERPRINT_TOLERANCE for here, there in pairs)


def shown(data: dict) -> str:
    """Return recorded data as one line."""
    return f"{data['source']} ({' '.join(f'{number:.4f}' for number in data['fingerprint'])})"


def read_data(folder: Path) -> dict | None:
    """Return the data in config.json, None of an earlier version's. Raises ConfigError where it is malformed."""
    data = read_json(folder / "config.json").get("data")
    if data is None:
        return None
    numbers = data.get("fingerprint") if isinstance(data, dict) and isinstance(data.get("source"), str) else None
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise ConfigError(f"{folder / 'config.json'} has no source and fingerprint in its 'data'")
    return data


def require_study_data(study: Path, data: dict, remedy: str = REMEDY):
    """Raise ConfigError where a study or one of its runs was made from other data; damaged runs are passed over."""
    for folder in (study, *filter(has_data, run_folders(study))):
        require_same_data(folder, data, remedy)


def has_data(folder: Path) -> bool:
    """Return whether the folder records its data."""
    with suppress(ConfigError, OSError):
        return read_data(folder) is not None
    return False


def require_of_study(folder: Path, config: dict):
    """Raise ConfigError where a run of `config` does not belong to the study that its folder lies in."""
    study, of_a_run = study_of(folder), OF_A_RUN.union(setting_names(MiningConfig))
    differing = differences(read_config(study), config, of_a_run | read_differing(study)) if study else ""
    if differing:
        raise ConfigError(f"{folder} is no run of {study}, which was made by another configuration: {differing}")


def allow_differing(study: Path, names: list[str]):
    """Record the settings in which this study's runs may differ, beside those that may differ in any study."""
    path = study / "config.json"
    there = read_differing(study)
    if not there.issuperset(names):
        write_json(path, read_json(path) | {"differing": sorted(there.union(names))})


def read_differing(study: Path) -> set[str]:
    """Return what `allow_differing` recorded. Raises ConfigError where it is malformed."""
    names = read_json(study / "config.json").get("differing", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{study / 'config.json'} has a 'differing' that no study has written")
    return set(names)


def study_of(folder: Path) -> Path | None:
    """Return the study that a run's folder lies in, or None."""
    runs = folder.parent.parent
    return runs.parent if runs.name == "runs" else None


def differences(there: dict, now: dict, but=()) -> str:
    """Return in words the settings, without those in `but`, that two recorded configurations differ in; "" for none."""
    there, now = (flat(current(each)) for each in (there, now))
    return "; ".join(
        f"{key} (there {there.get(key)!r}, now {now.get(key)!r})"
        for key in sorted((there | now).keys() - but)
        if there.get(key) != now.get(key)
    )


def flat(config: dict) -> dict:
    """Put the mining's settings beside the others, for messages: 'opt_steps', as its flag is called."""
    return {key: value for key, value in config.items() if key != "mining"} | config["mining"]


def read_config(folder: Path) -> dict:
    """Return the configuration as config.json records it. Raises ConfigError where it is malformed."""
    config = read_json(folder / "config.json").get("config")
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / 'config.json'} lacks its 'config'")
    mining = {key: config.get(key, {}) for key in ("mining", "mining_config")}
    rest = {key: value for key, value in config.items() if key not in mining}
    for part in (rest, *mining.values()):
        if not isinstance(part, dict) or any(isinstance(value, dict | list) for value in part.values()):
            raise ConfigError(f"{folder / 'config.json'} has a 'config' of another shape than a run's")
    return config


def read_environment(folder: Path) -> dict:
    """Return the environment in config.json, with 'unknown' for what it does not record. Raises ConfigError."""
    about = read_json(folder / "config.json").get("environment")
    if not isinstance(about, dict):
        raise ConfigError(f"{folder / 'config.json'} lacks its 'environment'")
    return defaultdict(lambda: "unknown", about)


def recorded_config(folder: Path) -> ExperimentConfig:
    """Return the configuration in config.json, in today's form. Raises ConfigError, which names the file."""
    recorded = read_config(folder)
    try:
        return ExperimentConfig.from_dict(recorded)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None


def ended_result(folder: Path) -> dict | None:
    """Return the result of a run that ended, without its digest, or None.

    Raises ConfigError for one that is damaged, and for another run's.
    """
    path = folder / "result.json"
    try:
        result = read_json(path)
    except FileNotFoundError:
        return None
    wanted = RESULT_TYPES | ENDED_TYPES.get(str(result.get("status")), {})
    wrong = [key for key, kind in wanted.items() if type(result.get(key)) is not kind]
    if not wrong:
        wrong = [name for name, part in result.get("samplers", {}).items() if not _numbers(part)]
    if wrong or result["status"] not in ENDED_TYPES:
        raise ConfigError(f"{path} is no result of a run: see its {', '.join(wrong or ['status'])}")
    recorded = result.pop("digest", None)
    digested = recorded or not WITHOUT_DIGEST.issuperset(result)
    if digested and not (folder / "config.json").exists():
        raise ConfigError(f"{path} has no config.json beside it. Delete {folder}, and the same command trains it anew")
    if digested and recorded != digest(folder, result):
        raise ConfigError(f"{path} is damaged, or of another configuration: its digest differs. {ANEW}")
    named = (folder.parent.name, folder.name)
    if study_of(folder) and named != (result["strategy"], f"seed-{result['seed']}"):
        raise ConfigError(f"{path} is of {result['strategy']} seed {result['seed']}. {ANEW}")
    return result


def _numbers(part) -> bool:
    return isinstance(part, dict) and all(type(value) in (int, float) for value in part.values())


def write_result(folder: Path, result: dict):
    """Write result.json, with a digest of the result and of the run's configuration."""
    write_json(folder / "result.json", result | {"digest": digest(folder, result)})


def digest(folder: Path, result: dict) -> str:
    return hashlib.sha256(json.dumps([read_config(folder), result], sort_keys=True).encode()).hexdigest()


def trusted_result(folder: Path) -> dict | None:
    """Return `ended_result`, for a run that belongs to its study.

    Raises ConfigError as that does and for a configuration that is not the study's, OSError where none is recorded.
    """
    result = ended_result(folder)
    if result:
        recorded_config(folder)
        require_of_study(folder, read_config(folder))
    return result


def require_study(study: Path):
    """Raise ConfigError where there is no study, or one that was published without its runs."""
    if not (study / "config.json").exists():
        raise ConfigError(f"there is no study {study}; train first, or choose another --name or --results")
    if not (study / "runs").exists():
        raise ConfigError(f"{study} was published without its runs: there is nothing to show or to report anew")


def is_study(folder: Path) -> bool:
    """Return whether a folder is a study's: it holds runs, or the configuration of a study, or nothing yet."""
    with suppress(ConfigError, OSError):
        config = read_config(folder)
        if "train_steps" in config and "seed" not in config:  # a run has one
            return True
    return bool(run_folders(folder)) or all(path.suffix == TEMPORARY for path in folder.iterdir())


def run_folders(study: Path) -> list[Path]:
    """Return the folders of a study's runs; other names in it are passed over."""
    return sorted(path for path in study.glob("runs/*/seed-*") if re.fullmatch(r"seed-\d+", path.name))


def ended_runs(study: Path) -> set[Path]:
    """Return the folders of the runs that ended; one whose result cannot be trusted is named on stderr, once."""
    ended = set()
    for folder in run_folders(study):
        try:
            if trusted_result(folder):
                ended.add(folder)
        except (ConfigError, OSError) as error:
            say_once(f"left out: {error}")
    return ended
