"""The configuration of a comparison: one frozen dataclass, checked once, recorded with every run."""

import math
import re
from dataclasses import asdict, dataclass

from diffusion_lib.energies import MODELS
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.training.precision import PRECISIONS

# What each energy model is trained with, unless a preset or a flag says otherwise.
RECIPES = {
    "mlp": {},  # IRED's own: the defaults below
    "matrix": {
        "learning_rate": 6e-3,
        "schedule": "cosine",
        "batch_size": 128,
        "train_steps": 1500,
        "ema_update_every": 1,
        "clamp": "task",
    },
    "matrix-free": {
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "batch_size": 128,
        "train_steps": 1500,
        "ema_update_every": 1,
        "clamp": "task",
    },
}
WARM_UP_STEPS = 50
# By name, the factor of the learning rate at a step of a run.
SCHEDULES = {
    "constant": lambda _step, _total: 1.0,
    "cosine": lambda step, total: min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / total)),
}

# What each preset fixes; every value can be overridden by its own flag. `seeds` is a range as on the command line.
PRESETS = {
    # a short run needs a higher learning rate that falls, and an average that forgets its start
    "demo": {
        "train_steps": 700,
        "batch_size": 128,
        "seeds": "0-1",
        "evaluation_size": 2048,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "ema_update_every": 1,
    },
    "pilot": {"train_steps": 10_000, "seeds": "0-2"},
    "full": {"train_steps": 100_000, "seeds": "0-9"},
}


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides the numbers of a study, but for its strategies and seeds, which may be added to.

    rank: n of the n x n matrices. model: a key of MODELS. batch_size: matrices a step. train_steps: updates.
    learning_rate, schedule: Adam's, and its course (a key of SCHEDULES).
    clamp: whose bound on solutions the sampler keeps on the harder matrices, the training task's (2, as published)
    or the harder task's own (10).
    ema_update_every: steps between updates of the averaged weights, by 0.005 each once warmed up.
    diffusion_steps: T. opt_steps, scale_factor, noise_scale, weight: see MiningConfig. evaluation_size: matrices
    in each fixed evaluation set. precision: see diffusion_lib.training.precision. match_release: the released code's
    defects. Raises ConfigError for anything that is not allowed.
    """

    rank: int = 20
    model: str = "mlp"
    batch_size: int = 2048
    train_steps: int = 100_000
    learning_rate: float = 1e-4
    schedule: str = "constant"
    ema_update_every: int = 10
    clamp: str = "training"
    diffusion_steps: int = 10
    opt_steps: int = 2
    scale_factor: float = 1.0
    noise_scale: float = 3.0
    weight: float = 0.5
    evaluation_size: int = 20_480
    precision: str = "auto"
    match_release: bool = False

    def __post_init__(self):
        whole = ("rank", "batch_size", "train_steps", "ema_update_every", "diffusion_steps", "evaluation_size")
        for name in whole:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; allowed: a whole number from 1")
        for name, allowed in (
            ("model", MODELS),
            ("precision", PRECISIONS),
            ("schedule", SCHEDULES),
            ("clamp", ("training", "task")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate is {self.learning_rate!r}; allowed: a positive number")
        self.mining_config("adversarial")  # checks the four keys

    def learning_rate_factor(self, step: int) -> float:
        """The factor of `learning_rate` at a step counted from 0."""
        return SCHEDULES[self.schedule](step, self.train_steps)

    def trainer_options(self) -> dict:
        """All that it says of Trainer1D, as keywords: whoever trains by a configuration passes them on."""
        return {
            "train_batch_size": self.batch_size,
            "train_lr": self.learning_rate,
            "lr_schedule": self.learning_rate_factor,
            "ema_update_every": self.ema_update_every,
            "train_num_steps": self.train_steps,
            "log_every": log_interval(self.train_steps),
        }

    def mining_config(self, mode: str) -> dict:
        """The `mining_config` of GaussianDiffusion1D for a mode."""
        return MiningConfig(mode, self.opt_steps, self.scale_factor, self.noise_scale, self.weight).to_dict()

    def to_dict(self) -> dict:
        return asdict(self)


def parse_seeds(text: str) -> list[int]:
    """'0-9', '3' or '0,2,5-7' as a sorted list without repeats. Raises ConfigError for anything else."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ConfigError(f"seeds are {text!r}; allowed: a list such as 0,2,5 or a range such as 0-9")
    seeds = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise ConfigError(f"seeds are {text!r}: the range {part} is empty; write {last}-{first}")
        if int(last or first) - int(first) > 10_000:
            raise ConfigError(f"seeds are {text!r}; allowed: at most 10,000 of them")
        seeds.update(range(int(first), int(last or first) + 1))
    return sorted(seeds)


def check_name(name: str) -> str:
    """The name of a study, which becomes a folder. Raises ConfigError for one that could lead elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(f"name is {name!r}; allowed: letters, digits, dots, dashes, underscores, at most 100")
    return name


def log_interval(train_steps: int) -> int:
    """Steps between rows of metrics.csv: about fifty rows, at most 100 steps apart."""
    return max(1, min(100, math.ceil(train_steps / 50)))
