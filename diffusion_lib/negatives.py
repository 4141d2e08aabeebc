"""Negatives: which wrong answers the contrastive loss pushes up, and how they are found (IRED, section 3.2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from diffusion_lib.masks import restored
from diffusion_lib.system.checks import require_positive, with_plain_numbers
from diffusion_lib.system.errors import ConfigError

LARGEST = 1e6  # beyond it a step overflows, or never ends


def _noisier(diffusion, x_start, t, noise, mining, given):
    z = diffusion.q_sample(x_start, t, mining.noise_scale * noise)
    return restored(z, given)


def mined(diffusion, cond, x_start, t, noise, mining, given):
    """The noisier sample after `opt_steps` descents, z (B, *out_shape) at level t, and the share of descents kept."""
    z = _noisier(diffusion, x_start, t, noise, mining, given)
    return diffusion.descend(cond, z, t, mining.opt_steps, mining.scale_factor, diffusion.bound, given)


def noisier_sample(diffusion, _cond, x_start, t, noise, mining, given):
    """The solution with `noise_scale` times the noise: candidates (B, *out_shape)."""
    return diffusion.predict_start(_noisier(diffusion, x_start, t, noise, mining, given), t)


def descended_sample(diffusion, cond, x_start, t, noise, mining, given):
    """The noisier sample after `opt_steps` descents of the energy, IRED's own choice: candidates (B, *out_shape)."""
    return diffusion.predict_start(mined(diffusion, cond, x_start, t, noise, mining, given)[0], t)


def corrupted_sample(diffusion, _cond, x_start, _t, _noise, mining, given):
    """The solution spoiled in the task's own way, the release's choice for its discrete tasks: (B, *out_shape).

    Training draws these with its batches instead, so that they are a function of (seed, step).
    """
    return mining.corrupt(diffusion.rules, x_start, mask=None if given is None else given.mask)


# By mode, the function that makes the candidates, called as f(diffusion, cond, x_start, t, noise, mining, given)
# without gradients; `given` holds what a mask keeps, or is None. To add a mode, write its function and its line.
MODES = {
    "none": None,
    "random": noisier_sample,
    "adversarial": descended_sample,
    "corrupt": corrupted_sample,
}
# The settings that a mode uses; one without a line uses all.
USES = {
    "none": (),
    "random": ("noise_scale", "weight"),
    "adversarial": ("opt_steps", "scale_factor", "noise_scale", "weight"),
    "corrupt": ("weight", "corruption"),
}
CORRUPTIONS = ("repaired", "released")
# Of keys that look like one of a mining config: what to write.
INSTEAD = {
    "strategy": f"instead of strategy write mode ({', '.join(MODES)})",
    "inference_opt_steps": "instead of inference_opt_steps give the sampler its inner_steps (sample_loop)",
}


@with_plain_numbers
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
    corruption: str = field(
        default="repaired",
        metadata={
            "help": "the task's own way of spoiling a solution, mended or as in the release",
            "choices": CORRUPTIONS,
        },
    )

    def __post_init__(self):
        if self.mode not in MODES:
            raise ConfigError(f"mining mode is {self.mode!r}; allowed: {', '.join(MODES)}")
        if self.corruption not in CORRUPTIONS:
            raise ConfigError(f"corruption is {self.corruption!r}; allowed: {', '.join(CORRUPTIONS)}")
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
            require_positive(name, getattr(self, name), LARGEST)

    @classmethod
    def from_dict(cls, config: "Mapping | MiningConfig | None", **usual) -> "MiningConfig":
        """Check a `mining_config` dict once, at the edge. None is IRED's behaviour: adversarial, 2 steps.

        usual: what holds where a dict does not say otherwise.
        """
        if isinstance(config, cls):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(f"mining_config is {config!r}; allowed: a dict or None")
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(str(key) for key in (config or {}) if key not in allowed)
        if unknown:
            instead = "".join(f"; {INSTEAD[key]}" for key in unknown if key in INSTEAD)
            raise ConfigError(f"unknown mining key {', '.join(unknown)}; allowed: {', '.join(allowed)}{instead}")
        return cls(**{**usual, **(config or {})})

    def corrupt(self, rules, target, generator=None, mask=None):
        """Solutions (B, *out_shape) spoiled in the way of a task's `rules`, mended or as released."""
        return rules.corruption(target, generator, released=self.corruption == "released", mask=mask)

    def uses(self, setting: str) -> bool:
        """Whether the mode's negatives depend on a setting."""
        return self.mode not in USES or setting in USES[self.mode]

    def to_dict(self) -> dict:
        return asdict(self)
