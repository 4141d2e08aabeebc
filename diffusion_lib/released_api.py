"""The released code's calls: scripts written for it run as they are, or are told in one line what to write instead."""

import itertools
from typing import NamedTuple

import torch
from tabulate import tabulate

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.base import mean_squared_error

# Arguments of the released constructors, at the only value that the continuous tasks use.
DIFFUSION_DEFAULTS = {
    "objective": "pred_noise",
    "beta_schedule": "cosine",
    "ddim_sampling_eta": 0.0,
    "auto_normalize": True,
    "sudoku": False,
    "connectivity": False,
    "shortest_path": False,
    "continuous": True,
}
TRAINER_DEFAULTS = {
    "gradient_accumulate_every": 1,
    "amp": False,
    "fp16": False,
    "split_batches": True,
    "metric": "mse",
    "cond_mask": False,
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


def refuse_mask(*parts):
    """Raises ConfigError where a mask, or what it would keep, is given."""
    if any(part is not None for part in parts):
        raise ConfigError("mask is given; allowed: None (the continuous tasks have none)")


class ModelPrediction(NamedTuple):
    """The noise in x_t and the x_0 that follows from it, (B, out_dim) each."""

    pred_noise: torch.Tensor
    pred_x_start: torch.Tensor


class ReleasedCalls:
    """Methods and attributes of the released GaussianDiffusion1D, in terms of this project's."""

    objective, continuous = DIFFUSION_DEFAULTS["objective"], DIFFUSION_DEFAULTS["continuous"]

    @property
    def out_shape(self):
        return (self.out_dim,)

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
        refuse_mask(mask, data_cond)
        if not (eval and detach):
            raise ConfigError("opt_step: eval and detach must be True; for gradients through descents call the model")
        steps = self.inner_steps if step is None else step
        return self.descend(self.model.ebm.condition(inp, t), img, t, steps, sf, self.bound)[0]

    def p_sample_loop(self, batch_size, shape, inp, cond=None, mask=None, return_traj=False):
        """Solutions for inputs (batch_size, inp_dim), of `shape` (out_dim,); `cond` is unused, as in the release."""
        refuse_mask(mask)
        if batch_size != len(inp) or tuple(shape) != self.out_shape:
            raise ConfigError(
                f"p_sample_loop: batch_size is {batch_size} and shape {tuple(shape)}; allowed: the number of inputs, "
                f"{len(inp)}, and {self.out_shape}"
            )
        return self.sample_loop(inp, return_traj=return_traj)

    def sample(self, x, label=None, mask=None, batch_size=None, return_traj=False):
        """Solve inputs x (B, inp_dim); `label` is unused, as in the release, and batch_size must be B."""
        return self.p_sample_loop(
            len(x) if batch_size is None else batch_size, self.out_shape, x, label, mask, return_traj
        )


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
        """Print and return the errors on the fixed sets, and on a batch (inp, label) where one is given.

        device and milestone are there for the release's callers and change nothing. Raises ConfigError for a mask.
        """
        refuse_mask(mask)
        metrics = self.evaluation()
        if inp is not None:
            inp, label = inp.to(self.device), label.to(self.device)
            metrics["mse"] = mean_squared_error(label.double(), self.ema.ema_model.sample(inp))["mse"].mean().item()
        if self.accelerator.is_main_process:
            print(tabulate(metrics.items(), headers=("metric", f"step {self.step}"), floatfmt=".6g"))
        return metrics
