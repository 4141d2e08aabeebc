"""The folder of one run: its recorded configuration and its result."""

from pathlib import Path

import torch

from diffusion_lib.config import current
from diffusion_lib.system.environment import environment
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import read_json, write_json

REMEDY = "Choose another --name, the earlier values, or --fresh to delete it"


def prepare_folder(folder: Path, config: dict, device: torch.device, remedy=REMEDY, renew: bool = False):
    """Make `folder` for `config`, or check that it was made for it.

    config.json records the configuration and the environment of the first command, or with `renew` of this one.
    Raises ConfigError that names each differing key and the `remedy`, and OSError for a folder that cannot be written.
    """
    path = folder / "config.json"
    if path.exists():
        require_same(folder, config, remedy)
        if not renew:
            return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": config, "environment": environment(device)})


def require_same(folder: Path, config: dict, remedy: str):
    """Raises ConfigError where the folder was made for another configuration."""
    path = folder / "config.json"
    there, now = (flat(current(each)) for each in (read_json(path).get("config", {}), config))
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


def read_result(folder: Path) -> dict | None:
    """The result of a run that ended, or None."""
    path = folder / "result.json"
    return read_json(path) if path.exists() else None
