"""Negative mining: which wrong answers the contrastive loss pushes up, and how they are found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real

from diffusion_lib.system.errors import ConfigError

LARGEST = 1e6  # beyond it a step overflows, or never ends
MODES = ("none", "random", "adversarial")


@dataclass(frozen=True)
class MiningConfig:
    """How negatives are made (IRED, section 3.2, equation 6, and its released code).

    mode: 'none' (no contrastive term, and no work for one), 'random' (a noisier sample), or 'adversarial'
        (the noisier sample after `opt_steps` descents of the energy: IRED's own choice).
    opt_steps: number of those descents; scale_factor: multiplies each of their step sizes.
    noise_scale: the noise of the negative's start, in units of the diffusion's own at that t.
    weight: factor of the contrastive loss.
    Raises ConfigError (a ValueError) naming what is allowed.
    """

    mode: str = "adversarial"
    opt_steps: int = 2
    scale_factor: float = 1.0
    noise_scale: float = 3.0
    weight: float = 0.5

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
