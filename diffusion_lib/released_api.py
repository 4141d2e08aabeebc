"""The released code's calls: scripts written for it run as they are, or are told in one line what to write instead."""

import itertools
import warnings
from typing import NamedTuple

import torch
from tabulate import tabulate

from diffusion_lib.evaluation import summary
from diffusion_lib.masks import Given
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS
from diffusion_lib.tasks.base import Rules, as_task, rules_of

# The release's flags of its discrete tasks, and a task that it trains with each.
FLAGS = {"sudoku": "sudoku", "connectivity": "connectivity", "shortest_path": "shortest-path-1d"}
DISCRETE = Rules(bound=1.0, candidate_bound=2.0)  # what `continuous=False` alone changes
# Other arguments of the released constructors, at the only value that it uses.
DIFFUSION_DEFAULTS = {
    "objective": "pred_noise",
    "beta_schedule": "cosine",
    "ddim_sampling_eta": 0.0,
    "auto_normalize": True,
}
TRAINER_DEFAULTS = {
    "gradient_accumulate_every": 1,
    "amp": False,
    "fp16": False,
    "split_batches": True,
    "metric": "mse",
    "latent": False,
    "autoencode_model": None,
}


def require_defaults(owner: str, given: dict, allowed: dict):
    """Accept released keywords at the only value that the continuous tasks use.

    Raises ConfigError for another value and TypeError, as Python does, for a keyword the release had not.
    """
    for name, value in given.items():
        if name not in allowed:
            raise TypeError(f"{owner} got an unexpected keyword argument {name!r}")
        if value != allowed[name]:
            raise ConfigError(f"{owner}: {name} is {value!r}; allowed here: {allowed[name]!r}")


def by_flags(released: dict, rules: Rules | None, mining_config, match_release: bool):
    """Rules and mining config, with the released constructor's flags taken out of `released`.

    A flag brings its task's rules, and where no mining config is given also the release's negatives for it. Raises
    ConfigError for two flags at a time, or flags beside rules.
    """
    chosen = [flag for flag in FLAGS if released.pop(flag, False)]
    continuous = released.pop("continuous", None)
    if len(chosen) > 1 or (rules is not None and (chosen or continuous is not None)):
        raise ConfigError(f"give one of {', '.join(FLAGS)}, or rules")
    if chosen:
        task = TASKS[FLAGS[chosen[0]]]
        rules = rules_of(task, match_release)
        if mining_config is None:
            mining_config = {"mode": "corrupt", "corruption": "released", "weight": rules.contrast_weight}
    return rules or (DISCRETE if continuous is False else Rules()), mining_config


class ModelPrediction(NamedTuple):
    """The noise in x_t and the x_0 that follows from it, (B, out_dim) each."""

    pred_noise: torch.Tensor
    pred_x_start: torch.Tensor


class ReleasedCalls:
    """Methods and attributes of the released GaussianDiffusion1D, in terms of this project's."""

    objective = DIFFUSION_DEFAULTS["objective"]
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

    def model_predictions(self, inp, x, t, x_self_cond=None, clip_x_start=False, rederive_pred_noise=False):
        """The prediction at x (B, out_dim) and levels t (B,)."""
        if x_self_cond is not None or rederive_pred_noise:
            raise ConfigError("model_predictions: leave out x_self_cond and rederive_pred_noise")
        noise = self.model(inp, x, t)
        x_start = self.predict_start(x, t, noise)
        return ModelPrediction(noise, x_start.clamp(-self.bound, self.bound) if clip_x_start else x_start)

    @torch.no_grad()
    def opt_step(self, inp, img, t, mask=None, data_cond=None, step=None, eval=True, sf=1.0, detach=True):
        """`step` descents (None: 5) of the energy from img (B, out_dim) at levels t (B,); see `descend`."""
        if (mask is None) != (data_cond is None):
            raise ConfigError("opt_step: mask and data_cond go together; data_cond is what the mask keeps at level t")
        if not (eval and detach):
            raise ConfigError("opt_step: eval and detach must be True; for gradients through descents call the model")
        steps = self.inner_steps if step is None else step
        given = None if mask is None else Given(mask.bool(), data_cond)
        return self.descend(self.model.ebm.condition(inp, t), img, t, steps, sf, self.bound, given)[0]

    def p_sample_loop(self, batch_size, shape, inp, cond=None, mask=None, return_traj=False):
        """Solutions for inputs (batch_size, inp_dim), of `shape` (out_dim,); `cond` is unused, as in the release."""
        out_shape = self.model.ebm.solution_shape(inp)[1:]
        if batch_size != len(inp) or tuple(shape) != out_shape:
            raise ConfigError(
                f"p_sample_loop: batch_size is {batch_size} and shape {tuple(shape)}; allowed: the number of inputs, "
                f"{len(inp)}, and {out_shape}"
            )
        return self.sample_loop(inp, mask=mask, return_traj=return_traj)

    def sample(self, x, label=None, mask=None, batch_size=None, return_traj=False):
        """Solve inputs x (B, inp_dim) with this model's own weights: of one that was trained the last, not the average.

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

    metric = TRAINER_DEFAULTS["metric"]

    @property
    def out_dim(self):
        return self.diffusion.out_dim

    @property
    def dl(self):
        """The training batches from the present step on, without end: (inp, target)."""
        for step in itertools.count(self.step):
            batch = self.stream.batch(step)
            yield batch.inp, batch.target

    @property
    def validation_dl(self):
        """The fixed validation set in batches (inp, target); none without a validation_dataset."""
        chosen = self.evaluation_sets.get("val")
        rows = chosen.batches(self.validation_batch_size, self.share) if chosen else ()
        return [(chosen.inp[part], chosen.target[part]) for part in rows]

    def evaluate(self, device=None, milestone=None, inp=None, label=None, mask=None):
        """Print and return the metrics on the fixed sets, and on a batch (inp, label) where one is given.

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
