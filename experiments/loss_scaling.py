"""Does a loss scale explain the public curves? Train IRED's setting with the arithmetic that theirs had.

    python experiments/loss_scaling.py none adversarial --train-steps 2000

The public runs asked accelerate for fp16 and, as the release does, set its `native_amp` to False. Products then stay in
float32, but the loss is multiplied by a scale: 65,536, twice that every 2,000 steps. The gradient is clipped to a
length of 1 with the scale in it, and divided by the scale afterwards. So its length is 1 / scale, and its entries are
as small as the 1e-8 that Adam adds to its denominator: steps shrink by half at once, and again every 2,000 steps.

Writes results/loss-scaling/curves.csv: val_mse every 1,000 steps, by sampler, on 1,024 matrices. A stopped command
continues when run again. Exit status: 0 done, 2 bad input, 75 stopped by a signal with everything saved.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("experiments.loss_scaling")

import argparse

import torch

from diffusion_lib.build import build_diffusion, evaluation_tasks, training_task
from diffusion_lib.config import configure
from diffusion_lib.names import SAMPLERS
from diffusion_lib.system.arguments import Parser, directory, whole
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.files import write_csv
from diffusion_lib.training.trainer import Trainer1D

FIRST_SCALE, DOUBLED_EVERY = 2.0**16, 2000  # torch.amp.GradScaler's defaults
EVERY, EXAMPLES = 1000, 1024


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("modes", nargs="+", choices=("none", "adversarial"), metavar="MODE", help="none, adversarial")
    parser.add_argument("--train-steps", type=whole(1, 10**9), default=2000, help="default 2000")
    parser.add_argument("--seed", type=whole(0, 2**31), default=0, help="default 0")
    parser.add_argument("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    return parser.parse_args(arguments)


def scale_at(step: int) -> float:
    """Return the loss scale of a step, counted from 0; no step of float32 overflows, which would halve it."""
    return FIRST_SCALE * 2 ** (step // DOUBLED_EVERY)


def clip_with_scale(trainer: Trainer1D):
    """Give the clipped gradients of a trainer the length that they have where the scale is taken out after the clip.

    A gradient longer than 1 / scale, as all are, ends at that length.
    """

    def hook(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (1 / (scale_at(trainer.step) * length)).clamp(max=1.0))

    trainer.opt.register_step_pre_hook(hook)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    rows = []
    for mode in options.modes:
        config = configure({"mode": mode, "match_release": True, "train_steps": options.train_steps})
        task = training_task(config)
        trainer = Trainer1D(
            build_diffusion(config, options.seed, task),
            task,
            **config.trainer_options(),
            save_and_sample_every=EVERY,
            validation_dataset=evaluation_tasks(config, task)[0],
            evaluation_size=EXAMPLES,
            curve_samplers=dict.fromkeys(SAMPLERS, EXAMPLES),
            results_folder=options.results / "loss-scaling" / f"{mode}-{options.seed}",
            keep_milestones=False,
            seed=options.seed,
            label=f"{mode} seed {options.seed}",
        )
        clip_with_scale(trainer)
        if trainer.checkpoint_path("last").exists():
            trainer.load()
        for row in trainer.train():
            errors = {name: row[key] for name in SAMPLERS if (key := f"val_mse_{name}") in row}
            if errors:
                rows.append({"strategy": mode, "seed": options.seed, "step": row["step"], **errors})
        write_csv(options.results / "loss-scaling" / "curves.csv", rows)
    return 0
