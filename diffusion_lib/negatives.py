"""Negatives: which wrong answers the contrastive loss pushes up, and how they are found (IRED, section 3.2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Real

from diffusion_lib.system.errors import ConfigError

LARGEST = 1e6  # beyond it a step overflows, or never ends


def noisier_sample(diffusion, _cond, x_start, t, noise, mining):
    """The solution with `noise_scale` times the noise: candidates (B, out_dim)."""
    return diffusion.predict_start(diffusion.q_sample(x_start, t, mining.noise_scale * noise), t)


def descended_sample(diffusion, cond, x_start, t, noise, mining):
    """The noisier sample after `opt_steps` descents of the energy, IRED's own choice: candidates (B, out_dim)."""
    z = diffusion.q_sample(x_start, t, mining.noise_scale * noise)
    z, _ = diffusion.descend(cond, z, t, mining.opt_steps, mining.scale_factor, diffusion.bound)
    return diffusion.predict_start(z, t)


# By mode, the function that makes the candidates, called as f(diffusion, cond, x_start, t, noise, mining) without
# gradients. To add a mode, write its function and its line.
MODES = {"none": None, "random": noisier_sample, "adversarial": descended_sample}


@dataclass(frozen=True)
class MiningConfig:
    """How negatives are made (IRED, section 3.2, equation 6, and its released code).

    `none` has no contrastive term and does no work for one. Raises ConfigError (a ValueError) naming what is allowed.
    """

    mode: str = field(default="adversarial", metadata={"help": "how negatives are made", "choices": tuple(MODES)})
    opt_steps: int = field(default=2, metadata={"help": "descents of the energy behind an adversarial negative"})
    scale_factor: float = field(default=1.0, metadata={"help": "factor of the step size of those descents"})
    noise_scale: float = field(
        default=3.0, metadata={"help": "noise of a negative's start, in units of the diffusion's own at its level"}
    )
    weight: float = field(default=0.5, metadata={"help": "factor of the contrastive loss"})

    def __post_init__(self):
        if self.mode not in MODES:
            raise ConfigError(f"mining mode is {self.mode!r}; allowed: {', '.join(MODES)}")
        steps = self.opt_steps
        if (
            isinstance(steps, bool)
            or not isinstance(steps, int)
            or not ((self.mode == "adversarial") <= steps <= LARGEST)
        ):
            raise ConfigError(
                f"opt_steps is {steps!r}; allowed: a whole number from 1 to {LARGEST:g} (0 unless adversarial)"
            )
        for name in ("scale_factor", "noise_scale", "weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= LARGEST:
                raise ConfigError(f"{name} is {value!r}; allowed: a positive number up to {LARGEST:g}")

    @classmethod
    def from_dict(cls, config: "Mapping | MiningConfig | None") -> "MiningConfig":
        """Check a `mining_config` dict once, at the edge. None is IRED's behaviour: adversarial, 2 steps."""
        if isinstance(config, cls):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(f"mining_config is {config!r}; allowed: a dict or None")
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(str(key) for key in (config or {}) if key not in allowed)
        if unknown:
            raise ConfigError(f"unknown mining key {', '.join(unknown)}; allowed: {', '.join(allowed)}")
        return cls(**(config or {}))

    def to_dict(self) -> dict:
        return asdict(self)
