"""Train one energy on one task, with the command line and the default settings of IRED's release.

    python train.py --dataset inverse --batch_size 2048 --use-innerloop-opt True --supervise-energy-landscape True

Trains in results/ds_<dataset>/model_<model>_diffsteps_<T>, continues from last.pt there, and prints the errors on the
usual and the harder examples; `--evaluate` only prints them. Defaults below are those of --dataset inverse: other tasks
and models may have their own. On several devices: `accelerate launch train.py ...`.
Exit status: 0 done, 2 bad input or a failed run, 75 stopped by a signal with everything saved.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("train")

import argparse
from pathlib import Path

from diffusion_lib.config import ExperimentConfig, add_flags, configure, given, recipe
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system.arguments import Parser, directory, whole
from diffusion_lib.system.errors import ConfigError, one_line_for_full_memory
from diffusion_lib.system.startup import importing

RELEASED = {"train_steps": 1_300_000}  # where the release differs from the comparison
DEAD = {  # of the release
    "--latent": "the release's latent sudoku needs an autoencoder and data that were never published",
    "--inspect-dataset": "it opened a debugger; write dataset.TASKS[name]('train')[0]",
}
NOT_OURS = ("learning_rate", "schedule", "ema_update_every", "clamp")  # of the model's recipe


@one_line_for_full_memory()
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    config = resolve(options)
    with importing():
        from diffusion_lib.training.one_run import execute  # here, since it imports torch: a help does without

    return execute(options, config, options.results_folder or default_folder(config))


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add_flags(parser, ExperimentConfig, MiningConfig, leave_out=NOT_OURS, defaults=RELEASED | {"mode": "none"})
    add(
        "--supervise-energy-landscape",
        type=boolean,
        metavar="BOOL",
        help="the release's flag for --mining-mode: True is corrupt or adversarial, by task; False is none",
    )
    add(
        "--use-innerloop-opt",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="the sampler descends the energy at each level (default False)",
    )
    add("--baseline", action="store_true", help="the sampler adds the posterior's noise, as plain diffusion does")
    add("--ood", action="store_true", help="train and validate on the harder examples")
    add(
        "--cond-mask",
        "--cond_mask",
        type=boolean,
        metavar="BOOL",
        help="keep the entries of a solution that the input gives (default: True if the task has such)",
    )
    for flag, reason in DEAD.items():
        add(flag, action=Dead, nargs="?", reason=reason, help=argparse.SUPPRESS)
    add("--load-milestone", help="checkpoint (number, word or path): where to start a new folder, or what to evaluate")
    add("--evaluate", action="store_true", help="train nothing; print the errors of last.pt or of --load-milestone")
    add(
        "--save-every",
        type=whole(1),
        default=1000,
        metavar="N",
        help="steps between two checkpoints, with an evaluation each, the same for all of a run (default 1000)",
    )
    add("--data-workers", type=whole(0, 64), default=0, metavar="N", help="threads that make batches ahead (default 0)")
    add("--seed", type=whole(0), default=0, help="decides weights, batches and noise (default 0)")
    add("--device", metavar="{cpu,cuda}", help="default: cuda where there is one")
    add("--no-cuda-graph", action="store_true", help="on a GPU, launch each operation of a step by itself")
    add("--results-folder", type=directory, help="default: results/ds_<dataset>/model_<model>_diffsteps_<T>")
    add("--no-lock", action="store_true", help="train without a lock: only if nobody else trains this run")
    add(
        "--log-with",
        metavar="TRACKER",
        help="an installed tracker of accelerate: tensorboard, wandb, mlflow, …",
    )
    return parser.parse_args(arguments)


class Dead(argparse.Action):
    """A flag of the release that nothing can follow: one line says why."""

    def __init__(self, *arguments, reason, **options):
        super().__init__(*arguments, **options)
        self.reason = reason

    def __call__(self, parser, _namespace, _values, option_string=None):
        parser.error(f"{option_string}: {self.reason}")


def boolean(text: str) -> bool:
    """True for what begins with 1, y or t, False for 0, n or f, as the release reads it."""
    meanings = dict.fromkeys("1yt", True) | dict.fromkeys("0nf", False)
    if text[:1].lower() not in meanings:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return meanings[text[:1].lower()]


def resolve(options) -> ExperimentConfig:
    """Return the configuration, its task and sampler aside. Raises ConfigError."""
    mode, supervise = options.mode, options.supervise_energy_landscape
    if None not in (mode, supervise) and supervise != (mode != "none"):
        raise ConfigError(f"supervise_energy_landscape is {supervise}, but mining_mode is {mode!r}; give one of them")
    if mode is None and supervise:
        from diffusion_lib.released_api import released_mode  # here, since it imports torch

        mode = released_mode(options.dataset)
    usual = recipe(options.dataset, options.model, options.match_release)
    return configure({**usual, **RELEASED, **given(options), "mode": mode or "none"})


def default_folder(config) -> Path:
    """Return the folder that the release would use."""
    suffix = "" if config.diffusion_steps == 100 else f"_diffsteps_{config.diffusion_steps}"
    return Path("results", f"ds_{config.dataset}", f"model_{config.model}{suffix}")
