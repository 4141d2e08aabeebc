"""Negatives: the wrong answers whose energy the contrastive loss pushes up, and how they are made (IRED, section 3.2).

To add a way of making them, a mode: docs/adding-a-negative.md.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, FrozenInstanceError
from typing import TYPE_CHECKING, Any, NamedTuple

from diffusion_lib.masks import restored
from diffusion_lib.system.checks import check_name, require_allowed, require_fraction, setting, with_plain_numbers
from diffusion_lib.system.errors import ConfigError

LARGEST = 10**6  # beyond it a step overflows, or never ends


def _require_descents(name: str, value, least: int = 0):
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number from 1 to {LARGEST:g} (0 where none are made)")


# The settings that several modes share; those of one mode alone stand beside its function.
SHARED = {
    "opt_steps": setting(2, "descents of the energy that make an adversarial negative", check=_require_descents),
    "scale_factor": setting(1.0, "factor on the step size of those descents"),
    "noise_scale": setting(3.0, "noise from which a negative starts, in units of the diffusion's noise at its level"),
    "weight": setting(0.5, "factor of the contrastive loss"),
    "corruption": setting(
        "repaired",
        "how a task's hand-made negatives spoil a solution: mended, or as in the release",
        ("repaired", "released"),
    ),
    "start": setting(
        0.0, "share of the training steps, from the first on, without contrastive loss", check=require_fraction
    ),
    "loss": setting(
        "softplus",
        "contrastive loss of the energies: softplus(real - fake), or max(0, 1 + real - fake)",
        ("softplus", "hinge"),
    ),
}
CONTRAST = ("weight", "start", "loss")  # what every mode uses that has negatives
# What a record always names; another setting only where its mode declares it, or it differs from its default, so that
# a new one leaves the runs and checkpoints of the others as they are.
RECORDED = ("mode", "opt_steps", "scale_factor", "noise_scale", "weight", "corruption")

# By mode, the function that makes the candidates. `none` has no contrastive term, and does no work for one.
MODES = {"none": None}
BUILT_IN: set[str] = set()  # filled below


class Declared(NamedTuple):
    """What a mode declares: see `mode`. One that declares nothing uses all shared settings."""

    uses: tuple[str, ...] = tuple(SHARED)
    draws: int | Callable = 0
    needs: tuple[str, str] | None = None
    own: Mapping = {}


def mode(name: str, uses=(), draws: int | Callable = 0, needs: tuple[str, str] | None = None, **own):
    """Declare a function as a mode: a way of making negatives.

    The function is called without gradients and without dropout, as f(diffusion, cond, x_start, t, noise, mining,
    given): see docs/adding-a-negative.md. It returns candidates (B, *out_shape). `given` holds the entries of the
    solution that the input gives, or is None.

    uses: settings of SHARED that it needs, beside those of the contrastive loss, which every mode has.
    draws: how many normal tensors of the solution's shape it needs for itself, or a function from the MiningConfig to
    that number. The function then has one more argument, drawn (B, draws, *out_shape). Training draws it with the
    batch, from (seed, step) alone: processes and workers get the same, and a captured CUDA graph, which cannot seed a
    generator, takes it as an input.
    needs: an attribute that a task's Rules must have, and its name in words; tasks without it refuse the mode.
    own: its own settings, by name, as `setting` makes them.
    Raises ConfigError for a name that cannot be a folder's, a shared setting that does not exist, a name that another
    setting has, or a default that is not allowed.
    """
    uses = (uses,) if isinstance(uses, str) else uses
    check_name(name)
    unknown = [key for key in uses if key not in SHARED]
    if unknown:
        raise ConfigError(f"the mode {name!r} uses {', '.join(unknown)}; allowed: {', '.join(SHARED)}")
    for key, each in own.items():
        if not isinstance(each, Field):
            raise ConfigError(f"the mode {name!r} has {key} = {each!r}; allowed: {key} = setting({each!r}, help)")
        each.name = key
        require_allowed(each, each.default, LARGEST, LARGEST)

    def declare(make):
        if name in BUILT_IN:
            raise ConfigError(f"the mode {name!r} is one of the project's own; allowed: another name")
        earlier = declared(name).own if name in MODES else {}  # a notebook's cell may run again
        taken = [key for key in own if key in mining_settings() and key not in earlier]
        if taken:
            raise ConfigError(f"the mode {name!r} declares {', '.join(taken)}, which a setting is called already")
        make.declared = Declared((*CONTRAST, *uses, *own), draws, needs, own)
        MODES[name] = make
        return make

    return declare


def declared(name: str) -> Declared:
    """Return what the mode of that name declares."""
    return Declared(uses=()) if MODES[name] is None else getattr(MODES[name], "declared", Declared())


def mining_settings() -> dict:
    """Return all settings of a MiningConfig by name, those of every mode included."""
    found = {"mode": setting("adversarial", "how negatives are made", MODES), **SHARED}
    for name in MODES:
        found |= declared(name).own
    for name, each in found.items():
        each.name = name
    return found


def _noisier(diffusion, x_start, t, noise, mining, given):
    z = diffusion.q_sample(x_start, t, mining.noise_scale * noise)
    return restored(z, given)


def mined(diffusion, cond, x_start, t, noise, mining, given):
    """Descend `opt_steps` times from the noisier sample: z (B, *out_shape) at level t, and the share of steps kept."""
    z = _noisier(diffusion, x_start, t, noise, mining, given)
    return diffusion.descend(cond, z, t, mining.opt_steps, mining.scale_factor, diffusion.bound, given)


@mode("random", uses=("noise_scale",))
def noisier_sample(diffusion, _cond, x_start, t, noise, mining, given):
    """Add `noise_scale` times the noise to the solution. Returns candidates (B, *out_shape)."""
    return diffusion.predict_start(_noisier(diffusion, x_start, t, noise, mining, given), t)


@mode("adversarial", uses=("opt_steps", "scale_factor", "noise_scale"))
def descended_sample(diffusion, cond, x_start, t, noise, mining, given):
    """Descend the energy `opt_steps` times from the noisier sample, as IRED does. Returns (B, *out_shape)."""
    return diffusion.predict_start(mined(diffusion, cond, x_start, t, noise, mining, given)[0], t)


@mode("corrupt", uses=("corruption",), needs=("corruption", "hand-made corruption"))
def corrupted_sample(diffusion, _cond, x_start, _t, _noise, mining, given):
    """Spoil the solution in the task's own way, as the release does on its discrete tasks. Returns (B, *out_shape).

    Training makes these with its batches instead, so that they depend on (seed, step) alone.
    """
    return mining.corrupt(diffusion.rules, x_start, mask=None if given is None else given.mask)


@mode("independent", uses=("noise_scale",), draws=1)
def independent_sample(diffusion, cond, x_start, t, _noise, mining, given, drawn):
    """Do as `random`, but with noise that the real answer does not share. Returns candidates (B, *out_shape)."""
    return noisier_sample(diffusion, cond, x_start, t, drawn[:, 0], mining, given)


@mode(
    "near",
    draws=1,
    needs=("near", "near problem"),
    distance=setting(0.1, "distance of a near negative from the solution, about, as a share of the solution's norm"),
)
def near_solution(diffusion, _cond, x_start, _t, _noise, mining, _given, drawn):
    """Return the solutions of other problems near these, by the task's rules (B, *out_shape)."""
    return diffusion.rules.near(x_start, drawn[:, 0], mining.distance)


def _uniform(drawn):
    """Return a uniform number for each row (B,), from the first of the normal ones that it drew."""
    from torch.special import ndtr  # here: the flags of a command need this module, and torch takes seconds

    return ndtr(drawn.flatten(1)[:, 0])


@mode(
    "mixed",
    uses=("opt_steps", "scale_factor", "noise_scale"),
    draws=1,
    share=setting(0.5, "share of mixed negatives that are random, not adversarial", check=require_fraction),
)
def mixed_sample(diffusion, cond, x_start, t, noise, mining, given, drawn):
    """Take for each row the random candidate or the adversarial one, by chance. Returns (B, *out_shape)."""
    start = _noisier(diffusion, x_start, t, noise, mining, given)
    descended, _ = mined(diffusion, cond, x_start, t, noise, mining, given)
    uniform = _uniform(drawn).view(-1, *[1] * (x_start.ndim - 1))
    return diffusion.predict_start(start.where(uniform < mining.share, descended), t)


@mode(
    "langevin",
    uses=("opt_steps", "scale_factor", "noise_scale"),
    draws=lambda mining: mining.opt_steps,
    temperature=setting(1.0, "temperature of a Langevin step of the energy: its noise is sqrt(2 step temperature)"),
)
def langevin_sample(diffusion, cond, x_start, t, noise, mining, given, drawn):
    """Take `opt_steps` Langevin steps from the noisier sample, and keep every one. Returns (B, *out_shape)."""
    z = _noisier(diffusion, x_start, t, noise, mining, given)
    for own in drawn.unbind(1):
        z = diffusion.langevin_step(cond, z, t, mining.scale_factor, math.sqrt(mining.temperature) * own, given)
    return diffusion.predict_start(z, t)


@mode("levels", draws=1)
def solution_itself(_diffusion, _cond, x_start, _t, _noise, _mining, _given, _drawn):
    """Return the solution: only the level at which its energy is taken is wrong, see `other_levels`."""
    return x_start


def other_levels(t, drawn, num_timesteps: int):
    """Draw for each sample a uniform level (B,) other than its own, t (B,).

    The contrast then classifies the noise level, two classes at a time, and needs no negatives (density-ratio contrast,
    arXiv 2601.21025).
    """
    further = (_uniform(drawn) * (num_timesteps - 1)).long().clamp(max=num_timesteps - 2)
    return (t + 1 + further) % num_timesteps


BUILT_IN.update(MODES)

# Of keys that look like one of a mining config: what to write.
INSTEAD = {
    "strategy": "instead of strategy write mode ({modes})",
    "inference_opt_steps": "instead of inference_opt_steps give the sampler its inner_steps (sample_loop)",
}


@with_plain_numbers
class MiningConfig:
    """How negatives are made (IRED, section 3.2, equation 6, and its released code).

    mode: how they are made, one of MODES.
    settings: the others of `mining_settings()`, by name. All are attributes, which cannot be changed.
    Raises ConfigError (a ValueError), which names what is allowed.
    """

    mode: str = "adversarial"

    if TYPE_CHECKING:  # the other settings, which modes declare

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, mode: str = mode, **settings: Any):
        known = mining_settings()
        if not settings.keys() <= known.keys():
            raise TypeError(f"MiningConfig takes {', '.join(known)}, not {', '.join(settings)}")
        vars(self).update({name: each.default for name, each in known.items()} | {"mode": mode} | settings)
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ConfigError(f"mining mode is {self.mode!r}; allowed: {', '.join(MODES)}")
        for name, each in known.items():
            require_allowed(each, getattr(self, name), LARGEST, LARGEST)
        if self.uses("opt_steps"):
            _require_descents("opt_steps", self.opt_steps, 1)

    def __setattr__(self, name, value):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __eq__(self, other):
        return vars(self) == vars(other) if isinstance(other, MiningConfig) else NotImplemented

    def __hash__(self):
        return hash(tuple(vars(self).items()))

    def __repr__(self):
        return f"MiningConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    @classmethod
    def from_dict(cls, config: "Mapping[str, Any] | MiningConfig | None", **usual: Any) -> "MiningConfig":
        """Make a MiningConfig from a `mining_config` dict; None means IRED's own: adversarial, 2 descents.

        usual: other defaults for settings that the dict leaves out.
        Raises ConfigError for an unknown key, and for a value that is not allowed.
        """
        if isinstance(config, cls):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(f"mining_config is {config!r}; allowed: a dict or None")
        allowed = list(mining_settings())
        unknown = sorted(str(key) for key in (config or {}) if key not in allowed)
        if unknown:
            instead = "".join(f"; {INSTEAD[key].format(modes=', '.join(MODES))}" for key in unknown if key in INSTEAD)
            raise ConfigError(f"unknown mining key {', '.join(unknown)}; allowed: {', '.join(allowed)}{instead}")
        return cls(**{**usual, **(config or {})})

    def corrupt(self, rules, target, generator=None, mask=None):
        """Return solutions (B, *out_shape) spoiled in the way of a task's `rules`, mended or as released."""
        return rules.corruption(target, generator, released=self.corruption == "released", mask=mask)

    def uses(self, setting: str) -> bool:
        """Return whether the mode's negatives depend on a setting."""
        return setting in declared(self.mode).uses

    def draws(self) -> int:
        """Return how many normal tensors of the solution's shape the mode needs for itself."""
        draws = declared(self.mode).draws
        return draws(self) if callable(draws) else draws

    def first_contrast(self, train_steps: int) -> int:
        """Return the first step, counted from 0, with a contrastive loss, in a run of `train_steps`."""
        return round(self.start * train_steps) if self.uses("start") else 0

    def to_dict(self) -> dict[str, Any]:
        return recorded_settings(vars(self))


def recorded_settings(values: dict) -> dict:
    """Return the mining settings, by name, that config.json records: see RECORDED. Unknown ones stay."""
    usual = {name: each.default for name, each in mining_settings().items()}
    own = declared(values["mode"]).own if values["mode"] in MODES else ()
    kept = (*RECORDED, *own)
    return {name: value for name, value in values.items() if name in kept or value != usual.get(name)}
