"""The configuration of a run: each setting declared once, with its default, its check and its help."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from diffusion_lib.energies import MODELS
from diffusion_lib.negatives import MiningConfig, mining_settings, recorded_settings
from diffusion_lib.system.checks import require_allowed, setting, with_plain_numbers
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS

LARGEST = 10**9
# Settings that change no step's work, so that steps which differ in them alone take the same time and products.
WITHOUT_WORK = {"train_steps": 1, "learning_rate": 1e-4, "schedule": "constant", "evaluation_size": 1}
WITHOUT_WORK |= {"scale_factor": 1.0, "noise_scale": 1.0, "weight": 1.0, "start": 0.0}
WARM_UP_STEPS = 50
# By name, the factor of the learning rate at a step of a run.
SCHEDULES = {
    "constant": lambda _step, _total: 1.0,
    "cosine": lambda step, total: min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / total)),
}
PRECISIONS = {
    "auto": "torch's 'medium' float32 products where a check at the start finds their relative error under 1e-6 (a "
    "faster library, on CPUs with AVX-512 but without matrix units), else as float32",
    "float32": "torch's 'highest' float32 products",
    "tf32": "float32 products on the tensor cores of a GPU (NVIDIA's from Ampere on): operands rounded to 11 bits",
    "bf16": "operands and results of products rounded to bfloat16, their sums in float32; weights, the sum of squares "
    "that an energy is, and everything else in float32",
}
COMPILE = {
    "auto": "compile the MLP's step with precision bf16, on CPUs with matrix units and a C++ compiler, from a batch of "
    "256 on: up to a minute or two before the first, once a machine and size",
    "on": "compile it with precision bf16 for any batch, on a GPU too",
    "off": "do not",
}
SHORT = {"learning_rate": 6e-3, "schedule": "cosine", "batch_size": 128, "train_steps": 1500, "ema_update_every": 1}
# What each energy model is trained with, unless a preset or a flag says otherwise.
RECIPES = {
    "mlp": {},  # IRED's own: the defaults below
    "matrix": {**SHORT, "clamp": "task"},
    "matrix-free": {**SHORT, "learning_rate": 1e-2, "clamp": "task"},
}


def recipe(dataset: str | None = None, model: str | None = None, match_release: bool | None = None) -> dict:
    """Return the settings that a task and an energy model bring.

    dataset: the task; None: the default one.
    model: the energy model; None: the task's own.
    match_release: take the released code's hand-made negatives, where the task has some.
    Unknown names bring nothing: the configuration refuses them.
    """
    if dataset in (None, ExperimentConfig.dataset):  # which brings the defaults; its class would import torch
        return RECIPES.get(model or ExperimentConfig.model, {})
    task = TASKS.get(dataset)
    if task is None:
        return {}
    model = model or task.model
    own = {"rank": task.default_rank, "model": model, "weight": task.rules.contrast_weight}
    if match_release and task.rules.corruption:
        own["corruption"] = "released"
    return {**RECIPES.get(model, {}), **own, **task.recipe}


@with_plain_numbers
@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides the numbers of a run, but for its seed.

    `mining` is how its negatives are made: see MiningConfig. Raises ConfigError for a value that is not allowed.
    """

    dataset: str = setting("inverse", "task", TASKS)
    rank: int = setting(20, "size of the task: n of n x n matrices, nodes of a graph, boxes of a sudoku's row")
    model: str = setting("mlp", "energy model", MODELS)
    batch_size: int = setting(2048, "examples per step")
    train_steps: int = setting(100_000, "updates of the weights")
    learning_rate: float = setting(1e-4, "learning rate of Adam")
    schedule: str = setting("constant", "of the learning rate over a run", SCHEDULES)
    ema_update_every: int = setting(10, "steps between updates of the averaged weights (by 0.005 each, once warmed up)")
    clamp: str = setting(
        "training",
        "bound of the sampler's answers to the harder matrices: that of training (2, as published), or of the harder "
        "task (10)",
        ("training", "task"),
    )
    diffusion_steps: int = setting(10, "noise levels T")
    evaluation_size: int = setting(20_480, "examples in each fixed evaluation set")
    precision: str = setting(
        "auto", "precision of the matrix products of training; evaluation is in float32", PRECISIONS
    )
    compile: str = setting("auto", "make a bf16 step of fewer passes over memory, by torch.compile", COMPILE)
    match_release: bool = setting(False, "reproduce the released code's defects")
    mining: MiningConfig = field(default_factory=MiningConfig)

    def __post_init__(self):
        for each in settings(type(self)):
            require_allowed(each, getattr(self, each.name), LARGEST)
        if not isinstance(self.mining, MiningConfig):
            raise ConfigError(f"mining is {self.mining!r}; allowed: a MiningConfig")
        if self.compile == "on" and self.precision != "bf16":
            raise ConfigError(f"compile is 'on', which needs precision 'bf16', not {self.precision!r}")

    def learning_rate_factor(self, step: int) -> float:
        """Return the factor of `learning_rate` at a step, counted from 0."""
        return SCHEDULES[self.schedule](step, self.train_steps)

    def trainer_options(self) -> dict:
        """Return the keyword arguments for Trainer1D."""
        return {
            "train_batch_size": self.batch_size,
            "train_lr": self.learning_rate,
            "lr_schedule": self.learning_rate_factor,
            "ema_update_every": self.ema_update_every,
            "train_num_steps": self.train_steps,
            "log_every": log_interval(self.train_steps),
        }

    def flat(self) -> dict:
        """Return all settings by name, the mining's beside the others, as `configure` takes them."""
        own = {each.name: getattr(self, each.name) for each in settings()}
        return own | {name: getattr(self.mining, name) for name in setting_names(MiningConfig)}

    def change(self, **changed) -> "ExperimentConfig":
        """Return a copy with other values of some settings, the mining's among them. Raises ConfigError."""
        return configure(self.flat() | changed)

    def to_dict(self) -> dict:
        return asdict(self) | {"mining": self.mining.to_dict()}

    @classmethod
    def from_dict(cls, recorded: dict) -> "ExperimentConfig":
        """Make a configuration from what config.json records; other keys are ignored. Raises ConfigError."""
        known = current(recorded)
        values = {each.name: known[each.name] for each in settings(cls)}
        return cls(**values, mining=MiningConfig.from_dict(known["mining"]))


def step_kind(config: ExperimentConfig) -> ExperimentConfig:
    """Return what decides how long a step takes: configurations of the same kind take the same time."""
    return config.change(**WITHOUT_WORK)


def configure(flat: dict) -> ExperimentConfig:
    """Make a configuration from settings by name, the mining's beside the others; the rest have their defaults.

    Raises ConfigError for an unknown name, and for a value that is not allowed.
    """
    unknown = [name for name in flat if name not in setting_names()]
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(map(str, unknown))}; allowed: {', '.join(setting_names())}")
    mining = {name: value for name, value in flat.items() if name in setting_names(MiningConfig)}
    rest = {name: value for name, value in flat.items() if name not in mining}
    return ExperimentConfig(**rest, mining=MiningConfig(**mining))


def fractions(values: Mapping) -> dict:
    """Return settings by name, whole numbers as fractions where the setting is one: 1 and 1.0 are one value."""
    kinds = {each.name: type(each.default) for each in (*settings(), *settings(MiningConfig))}
    return {
        name: float(value) if kinds.get(name) is float and type(value) is int else value
        for name, value in values.items()
    }


def setting_names(*kinds) -> list[str]:
    """Return the names of the settings of some configurations, by default of all."""
    names = [each.name for kind in kinds or (ExperimentConfig, MiningConfig) for each in settings(kind)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"a mode declares {', '.join(sorted(twice))}, which a setting of a run is called already")
    return names


def parse_value(name: str, text: str):
    """Read the value of a setting from a command line's text. Raises ConfigError where the text is of another type."""
    kinds = {each.name: type(each.default) for each in (*settings(), *settings(MiningConfig))}
    kind, words = kinds[name], "true or false" if kinds[name] is bool else kinds[name].__name__
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{name} is {text!r}; allowed: {words}") from None


def settings(kind=ExperimentConfig) -> list:
    """Return the settings of a configuration, as `setting` declares them; of MiningConfig those of every mode too."""
    if kind is MiningConfig:
        return list(mining_settings().values())
    return [each for each in fields(kind) if "help" in each.metadata]


def current(recorded: dict) -> dict:
    """Bring a recorded configuration, also one of an earlier version, into today's form.

    A setting that it lacks had its default; earlier the mining's settings stood beside the others.
    """
    mining = {each.name: recorded[each.name] for each in settings(MiningConfig) if each.name in recorded}
    if "mining_mode" in recorded:
        mining["mode"] = recorded["mining_mode"]
    mining |= recorded.get("mining_config", {}) | recorded.get("mining", {})
    gone = {*mining, "mining_mode", "mining_config"}
    rest = {key: value for key, value in recorded.items() if key not in gone}
    defaults = {each.name: each.default for each in settings()}
    usual = {each.name: each.default for each in settings(MiningConfig)}
    return defaults | rest | {"mining": recorded_settings(usual | mining)}


def add_flags(parser, *kinds, leave_out=(), only=None, defaults=None):
    """Add a flag for each setting of the configurations `kinds`; where the flag is not used its value is None.

    leave_out: names of settings without a flag.
    only: names of the only settings with a flag; None: all.
    defaults: by name, what the help shows instead of a setting's own default.
    """
    setting_names(*kinds)  # each a flag of its own
    for each in (each for kind in kinds for each in settings(kind)):
        if each.name in leave_out or (only and each.name not in only):
            continue
        shown = (defaults or {}).get(each.name, each.default)
        flag, text = "--" + each.name.replace("_", "-"), each.metadata["help"]
        if each.name == "mode":
            flag = "--mining-mode"
        if type(each.default) is bool:
            parser.add_argument(flag, action="store_true", default=None, help=text, dest=each.name)
            continue
        choices = each.metadata.get("choices")
        names = [flag, flag.replace("-", "_").replace("__", "--", 1)] if "-" in flag[2:] else [flag]
        parser.add_argument(
            *names,
            dest=each.name,
            type=type(each.default),
            metavar=f"{{{','.join(choices)}}}" if choices else type(each.default).__name__.upper(),
            help=f"{text} (default {shown})",
        )


def given(options) -> dict:
    """Return the settings that the command line sets, the mining's beside the others."""
    values = {name: getattr(options, name, None) for name in setting_names()}
    return {name: value for name, value in values.items() if value is not None}


def parse_seeds(words) -> list[int]:
    """Read words such as '0-9', '3' or '0,2,5-7' as a sorted list of seeds without repeats. Raises ConfigError."""
    text = words if isinstance(words, str) else ",".join(words)
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise ConfigError(f"seeds are {text!r}; allowed: whole numbers such as 0 2 5, or ranges such as 0-9")
    seeds = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise ConfigError(f"seeds are {text!r}: the range {part} is empty; write {last}-{first}")
        if int(last or first) - int(first) > 10_000:
            raise ConfigError(f"seeds are {text!r}; allowed: at most 10,000 of them")
        seeds.update(range(int(first), int(last or first) + 1))
    return sorted(seeds)


def log_interval(train_steps: int) -> int:
    """Return the steps between rows of metrics.csv: about fifty rows, at most 100 steps apart."""
    return max(1, min(100, math.ceil(train_steps / 50)))
