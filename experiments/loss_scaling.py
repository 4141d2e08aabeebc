"""Train IRED's setting as ten public runs were trained, whose loss scale made their steps shrink.

    python experiments/loss_scaling.py --mode none --train-steps 2000

They asked accelerate for fp16 and, as the release does, set its `native_amp` to False. Products then stay in float32,
but the loss is multiplied by a scale: 65,536, twice that every 2,000 steps. The gradient is clipped to a length of 1
with the scale in it, and divided by the scale afterwards. So its length is 1 / scale, and its entries are as small as
the 1e-8 that Adam adds to its denominator: steps shrink to about a half at once, and again every 2,000 steps.

Trains in results/loss-scaling/<mode>-<seed>, and continues there; val_mse in its metrics.csv is by IRED's sampler on
1,024 matrices, every 1,000 steps. Exit status: 0 done, 2 bad input, 75 stopped by a signal with everything saved.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("experiments.loss_scaling")

import argparse

import torch

import train
from diffusion_lib.system.arguments import Parser, directory, whole
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import one_line_for_full_memory
from diffusion_lib.training import one_run

FIRST_SCALE, DOUBLED_EVERY = 2.0**16, 2000  # torch.amp.GradScaler's defaults
MOST_STEPS = 50_000  # soon after them the square of a scaled gradient is more than a float32
SETTING = "--match-release --use-innerloop-opt True --evaluation-size 1024 --precision float32"
NO_GRAPH = "--no-cuda-graph"  # a captured step would keep the scale that it was captured with


def parse_arguments(arguments=None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--mode", choices=("none", "adversarial"), required=True, help="how negatives are made")
    parser.add_argument("--train-steps", type=whole(1, MOST_STEPS), default=2000, metavar="N", help="default 2000")
    parser.add_argument("--seed", type=whole(0), default=0, help="decides weights, batches and noise (default 0)")
    parser.add_argument("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    return parser.parse_args(arguments)


def scale_at(step: int) -> float:
    """Return the loss scale of a step, counted from 0."""
    return FIRST_SCALE * 2 ** (step // DOUBLED_EVERY)


def clip_with_scale(trainer):
    """Shorten a trainer's clipped gradients to 1 / scale, before each update; shorter ones stay as they are."""

    def hook(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (1 / (scale_at(trainer.step) * length)).clamp(max=1.0))

    trainer.opt.register_step_pre_hook(hook)


@one_line_for_full_memory()
def main(arguments=None) -> int:
    """Train the run. Raises ConfigError where the folder is another run's."""
    asked = parse_arguments(arguments)
    folder = asked.results / "loss-scaling" / f"{asked.mode}-{asked.seed}"
    own = {"--mining-mode": asked.mode, "--train-steps": asked.train_steps, "--seed": asked.seed}
    words = [str(word) for pair in own.items() for word in pair]
    options = train.parse_arguments([*SETTING.split(), NO_GRAPH, *words, "--results-folder", str(folder)])
    config = train.resolve(options)
    trainer = one_run.build_trainer(options, config, folder)
    clip_with_scale(trainer)
    one_run.train(trainer, options, config)
    return 0
