"""Accept the released code's calls: its scripts run as they are, or are told in one line what to write instead."""

import itertools
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from tabulate import tabulate

from diffusion_lib.evaluation import summary
from diffusion_lib.masks import Given
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS
from diffusion_lib.tasks.base import Rules, as_task, rules_of

# The release's flags of its discrete tasks, and the tasks that it trains with each, by hand-made negatives.
FLAGS = {
    "sudoku": ("sudoku", "sudoku-rrn"),
    "connectivity": ("connectivity", "connectivity-2"),
    "shortest_path": ("shortest-path-1d", "shortest-path"),
}
DISCRETE = Rules(bound=1.0, candidate_bound=2.0)  # without any of its keywords
ANY = object()
# Other arguments of the released constructors, at the only value that it uses, or at ANY where nothing needs them.
DIFFUSION_DEFAULTS = {
    "seq_length": ANY,
    "objective": "pred_noise",
    "beta_schedule": "cosine",
    "ddim_sampling_eta": 0.0,
    "auto_normalize": True,
}
TRAINER_DEFAULTS = {
    "num_samples": ANY,
    "gradient_accumulate_every": 1,
    "amp": False,
    "fp16": False,
    "split_batches": True,
    "latent": False,
    "autoencode_model": None,
}
# The release's metrics, each with that of ours which says the same and decides first on its tasks.
METRICS = {
    "mse": "mse",
    "bce": "balanced_accuracy",
    "sudoku": "solved",
    "sort": "array_accuracy",
    "sort-2": "array_accuracy",
    "shortest-path-1d": "first_step_shortens",
}


def require_defaults(owner: str, given: dict, allowed: dict):
    """Raise ConfigError for a released keyword with another value than the continuous tasks use.

    Raises TypeError, as Python does, for a keyword that the release does not have.
    """
    for name, value in given.items():
        if name not in allowed:
            raise TypeError(f"{owner} got an unexpected keyword argument {name!r}")
        if allowed[name] not in (ANY, value):
            raise ConfigError(f"{owner}: {name} is {value!r}; allowed here: {allowed[name]!r}")


def require_metric(released: dict, dataset):
    """Take the released trainer's `metric` out of `released`. Raises ConfigError where the data set has another."""
    own, metric = as_task(dataset).metrics[0], released.pop("metric", None)
    if metric is not None and METRICS.get(metric) != own:
        raise ConfigError(
            f"metric is {metric!r}, and {type(dataset).__name__} is judged by {own}; leave metric out, or give a task "
            f"of dataset.py, or your own (docs/adding-a-task.md), that is judged by it (allowed: {', '.join(METRICS)})"
        )


def released_mode(dataset: str) -> str:
    """Return the release's mining mode for a task, where it supervises the energy landscape."""
    return "corrupt" if any(dataset in tasks for tasks in FLAGS.values()) else "adversarial"


def by_flags(released: dict, rules: Rules | None, mining_config, bound, match_release: bool):
    """Take the released constructor's flags out of `released`, and return the Rules and MiningConfig that they mean.

    A flag brings its task's rules and, where the mining config does not say otherwise, the release's negatives for it.
    Raises ConfigError for two flags at a time, or flags beside rules.
    """
    chosen = [flag for flag in FLAGS if released.pop(flag, False)]
    continuous = released.pop("continuous", None)
    if len(chosen) > 1 or (rules is not None and (chosen or continuous is not None)):
        raise ConfigError(f"give one of {', '.join(FLAGS)}, or rules")
    usual = {"corruption": "released"} if chosen or match_release else {}
    if chosen:
        rules = rules_of(TASKS[FLAGS[chosen[0]][0]], match_release)
        usual |= {"mode": "corrupt", "weight": rules.contrast_weight}
        if continuous:
            rules = replace(rules, bound=Rules.bound, level_bound=None)
    elif rules is None:  # a bound is no word of the release's: it is the candidates' too
        rules = Rules() if continuous or (bound is not None and continuous is None) else DISCRETE
    return rules, MiningConfig.from_dict(mining_config, **usual)


class ModelPrediction(NamedTuple):
    """The noise in x_t and the x_0 that follows from it, (B, out_dim) each."""

    pred_noise: torch.Tensor
    pred_x_start: torch.Tensor


class ReleasedCalls:
    """Methods and attributes of the released GaussianDiffusion1D, in terms of this project's."""

    objective = DIFFUSION_DEFAULTS["objective"]
    self_condition = is_ddim_sampling = False
    has_average = False  # whether a Trainer1D trains this model, and keeps the average of its weights

    @property
    def out_shape(self):
        return (self.out_dim,)

    @property
    def continuous(self):
        return self.bound > DISCRETE.bound

    @property
    def inner_steps(self):
        return self.rules.inner_steps

    @property
    def sampling_timesteps(self):
        return self.num_timesteps

    @property
    def supervise_energy_landscape(self):
        return self.mining.mode != "none"

    def predict_start_from_noise(self, x_t, t, noise):
        return self.predict_start(x_t, t, noise)

    def predict_noise_from_start(self, x_t, t, x0):
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return (self._at(recip, t, x_t) * x_t - x0) / self._at(recipm1, t, x_t)

    def predict_v(self, x_start, t, noise):
        kept, added = self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod
        return self._at(kept, t, x_start) * noise - self._at(added, t, x_start) * x_start

    def predict_start_from_v(self, x_t, t, v):
        kept, added = self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod
        return self._at(kept, t, x_t) * x_t - self._at(added, t, x_t) * v

    def q_posterior(self, x_start, x_t, t):
        """Return the mean (B, *out_shape), variance and its clipped logarithm (B, 1, …) of q(x_{t-1} | x_t, x_0)."""
        of_start, of_x_t = self._at(self.posterior_mean_coef1, t, x_t), self._at(self.posterior_mean_coef2, t, x_t)
        spread = (self._at(table, t, x_t) for table in (self.posterior_variance, self.posterior_log_variance_clipped))
        return of_start * x_start + of_x_t * x_t, *spread

    def model_predictions(self, inp, x, t, x_self_cond=None, clip_x_start=False, rederive_pred_noise=False):
        """Predict at x (B, *out_shape) and levels t (B,). clip_x_start: to [-1, 1], as in the release."""
        if x_self_cond is not None:
            raise ConfigError("leave out x_self_cond: the release's models take no former prediction")
        noise = self.model(inp, x, t)
        x_start = self.predict_start(x, t, noise)
        if clip_x_start:
            x_start = x_start.clamp(-1, 1)
            noise = self.predict_noise_from_start(x, t, x_start) if rederive_pred_noise else noise
        return ModelPrediction(noise, x_start)

    def p_mean_variance(self, cond, x, t, x_self_cond=None, clip_denoised=False):
        """Return `q_posterior` at the model's x_0 for inputs `cond`, and that x_0, in the bound if clip_denoised."""
        x_start = self.model_predictions(cond, x, t, x_self_cond).pred_x_start
        if clip_denoised:
            x_start = x_start.clamp(-self.bound, self.bound)
        return *self.q_posterior(x_start, x, t), x_start

    @torch.no_grad()
    def p_sample(self, cond, x, t, x_self_cond=None, clip_denoised=True, with_noise=False, scale=False):
        """Make one denoising step for inputs `cond`; return the new x, at its level's scale, and x_0.

        t: the level, (B,) or an int.
        with_noise: whether the posterior's noise is added.
        scale: whether x is the posterior's mean instead.
        """
        times = torch.full((len(x),), t, device=x.device) if isinstance(t, int) else t
        new, _, log_variance, x_start = self.p_mean_variance(cond, x, times, x_self_cond, clip_denoised)
        if not scale:
            new = self._at(self.sqrt_alphas_cumprod, times, x) * x_start
        if with_noise and (t is times or t > 0):
            new = new + (0.5 * log_variance).exp() * torch.randn_like(x)
        return new, x_start

    @torch.no_grad()
    def opt_step(self, inp, img, t, mask=None, data_cond=None, step=None, eval=True, sf=1.0, detach=True):
        """Descend the energy `step` times (None: inner_steps) from img (B, out_dim) at levels t (B,); see `descend`."""
        if (mask is None) != (data_cond is None):
            raise ConfigError("opt_step: mask and data_cond go together; data_cond is what the mask keeps at level t")
        if not (eval and detach):
            raise ConfigError("opt_step: eval and detach must be True; for gradients through descents call the model")
        steps = self.inner_steps if step is None else step
        given = None if mask is None else Given(mask.bool(), data_cond)
        return self.descend(self.model.ebm.condition(inp, t), img, t, steps, sf, self.bound, given)[0]

    def p_sample_loop(self, batch_size, shape, inp, cond=None, mask=None, return_traj=False):
        """Solve inputs (batch_size, inp_dim); `shape` is (out_dim,), and `cond` is unused, as in the release."""
        out_shape = self.model.ebm.solution_shape(inp)[1:]
        if batch_size != len(inp) or tuple(shape) != out_shape:
            raise ConfigError(
                f"p_sample_loop: batch_size is {batch_size} and shape {tuple(shape)}; allowed: the number of inputs, "
                f"{len(inp)}, and {out_shape}"
            )
        return self.sample_loop(inp, mask=mask, return_traj=return_traj)

    def sample(
        self,
        x: torch.Tensor,
        label: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        batch_size: int | None = None,
        return_traj: bool = False,
    ) -> torch.Tensor:
        """Solve inputs x (B, inp_dim) with this model's own weights: after training they are the last, not the average.

        `label` is unused, as in the release, and batch_size must be B. Warns where a trainer has the averaged weights.
        """
        if self.has_average:
            warnings.warn(
                "sample uses the last weights of the training; the averaged ones, of which all metrics are, are those "
                "of trainer.ema.ema_model",
                stacklevel=2,
            )
        out_shape = self.model.ebm.solution_shape(x)[1:]
        return self.p_sample_loop(len(x) if batch_size is None else batch_size, out_shape, x, label, mask, return_traj)


class ReleasedTrainerCalls:
    """Methods and attributes of the released Trainer1D, in terms of this project's."""

    @property
    def metric(self):
        """Return the release's name of the metric that decides first, or ours where it has none."""
        own = as_task(self.dataset).metrics[0]
        return next((name for name, ours in METRICS.items() if ours == own), own)

    @property
    def out_dim(self):
        return self.diffusion.out_dim

    @property
    def dl(self):
        """Yield training batches without end, from the present step on: (inp, target), and the mask if it is kept."""
        for step in itertools.count(self.step):
            inp, target, mask, *_ = self.stream.batch(step)
            yield (inp, target) if mask is None else (inp, target, mask)

    @property
    def validation_dl(self):
        """Return the fixed validation set in batches like those of `dl`; none without a validation_dataset."""
        chosen = self.evaluation_sets.get("val")
        if not chosen:
            return []
        rows, parts = self.share.of(chosen.size), (chosen.inp, chosen.target, chosen.mask)
        own = (part[rows.start : rows.stop] for part in parts if part is not None)
        return list(zip(*(part.split(self.validation_batch_size) for part in own), strict=True))

    def evaluate(self, device=None, milestone=None, inp=None, label=None, mask=None):
        """Print and return the metrics on the fixed sets, and on a batch (inp, label) where one is passed.

        device and milestone are there for the release's callers and change nothing.
        """
        metrics = self.evaluation()
        if inp is not None:
            inp, label = inp.to(self.device), label.to(self.device)
            mask = None if mask is None else mask.to(self.device)
            task = as_task(self.dataset)
            scores = task.score(inp, label.double(), self.ema.ema_model.sample(inp, mask=mask))
            metrics |= summary(task, scores)
        if self.accelerator.is_main_process:
            print(tabulate(metrics.items(), headers=("metric", f"step {self.step}"), floatfmt=".6g"))
        return metrics
