"""One run of one task with IRED's own command line (its default settings too).

    python train.py --dataset inverse --batch_size 2048 --use-innerloop-opt True --supervise-energy-landscape True

Trains in results/ds_<dataset>/model_<model>_diffsteps_<T>, continues there from last.pt, and prints the errors on
both difficulties; `--evaluate` only prints them. On several devices: `accelerate launch train.py ...`.
Exit status: 0 done, 2 bad input or a failed run, 75 stopped by a signal with everything saved.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("train")

import argparse
import math
from contextlib import nullcontext
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.build import build_diffusion, check_fits, describe_data, evaluation_tasks, training_task
from diffusion_lib.checkpoint import checkpoint_path
from diffusion_lib.config import ExperimentConfig, add_flags, configure, current, given, recipe
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.evaluation import EvaluationSet, sampler_metrics, samplers_of
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.precision import denormals_flushed, set_precision
from diffusion_lib.released_api import released_mode
from diffusion_lib.run_folder import prepare_folder, read_config, shown
from diffusion_lib.system.arguments import Parser, directory, header, whole
from diffusion_lib.system.device import chosen_device
from diffusion_lib.system.errors import ConfigError, one_line_for_full_memory, say, show
from diffusion_lib.system.files import write_csv
from diffusion_lib.system.lock import RunHeld, RunLock

CURVE_SIZE = 2048  # examples behind a point of the learning curve
RELEASED = {"train_steps": 1_300_000}  # where the release differs from the comparison
DEAD = {  # of the release
    "--latent": "the release's latent sudoku needs an autoencoder and data that were never published",
    "--inspect-dataset": "it opened a debugger; write dataset.TASKS[name]('train')[0]",
}
NOT_OURS = ("learning_rate", "schedule", "ema_update_every", "clamp")  # of the model's recipe


@one_line_for_full_memory()
@denormals_flushed()
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    config = resolve(options)
    check_fits(config, chosen_device(options.device))
    folder = options.results_folder or default_folder(config)
    if options.evaluate:
        require_same_task(folder, config)
    if options.evaluate or options.load_milestone is not None:
        milestone = checkpoint_path(folder, options.load_milestone or "last")
        if not milestone.exists():
            raise ConfigError(f"load_milestone is {options.load_milestone or 'last'!r}; there is no file {milestone}")
    trainer = build_trainer(options, config, folder)
    if trainer.accelerator.is_main_process:
        where = {"device": trainer.device.type, "folder": folder, "data": shown(describe_data(config, options.ood))}
        header(task=config.dataset, model=config.model, mining=config.mining.mode, **where)
    try:
        if options.evaluate:
            trainer.load(options.load_milestone or "last", to_train=False)
        else:
            train(trainer, options, config)
        # whose numbers a run's own evaluation.csv would not say
        print_errors(trainer, config, write=not (options.evaluate and (folder / "config.json").exists()))
        trainer.accelerator.wait_for_everyone()  # nobody leaves while another still talks to it
    except RunHeld as error:
        raise ConfigError(f"{trainer.results_folder} is {error}") from None
    finally:
        trainer.accelerator.end_training()
    return 0


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add_flags(parser, ExperimentConfig, MiningConfig, leave_out=NOT_OURS, defaults=RELEASED | {"mode": "none"})
    add(
        "--supervise-energy-landscape",
        type=boolean,
        metavar="BOOL",
        help="the release's --mining-mode: corrupt or adversarial, by task; or none",
    )
    add(
        "--use-innerloop-opt",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="the sampler descends the energy (default False)",
    )
    add("--baseline", action="store_true", help="the sampler adds the posterior's noise, as plain diffusion does")
    add("--ood", action="store_true", help="train and validate on the harder examples")
    add(
        "--cond-mask",
        "--cond_mask",
        type=boolean,
        metavar="BOOL",
        help="keep the entries of a solution that the input gives (default: True where the task has such)",
    )
    for flag, reason in DEAD.items():
        add(flag, action=Dead, nargs="?", reason=reason, help=argparse.SUPPRESS)
    add("--load-milestone", help="a number, or the path of a file: where to start a new folder, or what to evaluate")
    add("--evaluate", action="store_true", help="train nothing; print the errors of last.pt or of --load-milestone")
    add(
        "--save-every",
        type=whole(1),
        default=1000,
        metavar="N",
        help="steps between two checkpoints, with an evaluation each (default 1000)",
    )
    add("--data-workers", type=whole(0, 64), default=0, metavar="N", help="threads that make batches ahead (default 0)")
    add("--seed", type=whole(0), default=0, help="decides weights, batches and noise (default 0)")
    add("--device", metavar="{cpu,cuda}", help="default: cuda where there is one")
    add("--no-cuda-graph", action="store_true", help="on a GPU, launch each operation of a step by itself")
    add("--results-folder", type=directory, help="default: results/ds_<dataset>/model_<model>_diffsteps_<T>")
    add("--no-lock", action="store_true", help="where the file system has no locks, and nobody else trains this run")
    add(
        "--log-with",
        metavar="TRACKER",
        help="tensorboard, or another of accelerate that is installed: wandb, mlflow, …",
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
    """The configuration, its task and sampler aside. Raises ConfigError."""
    mode, supervise = options.mode, options.supervise_energy_landscape
    if None not in (mode, supervise) and supervise != (mode != "none"):
        raise ConfigError(f"supervise_energy_landscape is {supervise}, but mining_mode is {mode!r}; give one of them")
    mode = mode or (released_mode(options.dataset) if supervise else "none")
    usual = recipe(options.dataset, options.model, options.match_release)
    return configure({**usual, **RELEASED, **given(options), "mode": mode})


def default_folder(config) -> Path:
    """The release's."""
    suffix = "" if config.diffusion_steps == 100 else f"_diffsteps_{config.diffusion_steps}"
    return Path("results", f"ds_{config.dataset}", f"model_{config.model}{suffix}")


def build_trainer(options, config: ExperimentConfig, folder: Path) -> Trainer1D:
    """The untrained model, whose weights are a function of the seed, in its trainer. Raises ConfigError."""
    task = training_task(config, options.ood)
    diffusion = build_diffusion(config, options.seed, task, options.use_innerloop_opt, options.baseline)
    set_precision(config.precision, diffusion.model.ebm, chosen_device(options.device))
    return Trainer1D(
        diffusion,
        task,
        **config.trainer_options(),
        save_and_sample_every=options.save_every,
        validation_dataset=type(task)("val", config.rank, options.ood),
        extra_validation_datasets=type(task)("val", config.rank).extra_sets(),
        cond_mask=options.cond_mask,
        evaluation_size=min(CURVE_SIZE, config.evaluation_size),
        results_folder=folder,
        data_workers=options.data_workers,
        seed=options.seed,
        device=options.device,
        cuda_graph=not options.no_cuda_graph,
        log_with=options.log_with,
        label=config.dataset,
    )


def require_same_task(folder: Path, config: ExperimentConfig):
    """Raises ConfigError where the folder's run is of another task or model than the command names."""
    if not (folder / "config.json").exists():
        return
    there, now = current(read_config(folder)), config.to_dict()
    for key in ("dataset", "model", "rank", "diffusion_steps"):
        if there.get(key, now[key]) != now[key]:
            raise ConfigError(
                f"{folder} is a run with {key} {there[key]!r}, not {now[key]!r}; write --{key} {there[key]}"
            )


def train(trainer: Trainer1D, options, config: ExperimentConfig):
    """Train in the folder, from where it stands. Raises ConfigError where it is another run's, RunHeld where in use."""
    recorded = config.to_dict() | {
        "ood": options.ood,
        "seed": options.seed,
        "use_innerloop_opt": options.use_innerloop_opt,
        "baseline": options.baseline,
        "cond_mask": trainer.stream.masked,
    }
    if config.schedule == "constant":  # then a run may be prolonged
        del recorded["train_steps"]
    folder, accelerator = trainer.results_folder, trainer.accelerator
    if options.load_milestone is not None:  # before anything is written
        if not trainer.checkpoint_path("last").exists():
            trainer.load(options.load_milestone)
        elif accelerator.is_main_process:
            say(f"{folder} continues from its last.pt, not from --load-milestone {options.load_milestone}")
    with accelerator.main_process_first():
        remedy = "Choose another --results-folder or the earlier values"
        prepare_folder(folder, recorded, trainer.device, remedy, data=describe_data(config, options.ood))
    lock = RunLock(folder, not options.no_lock) if accelerator.is_main_process else None
    with lock or nullcontext():
        if lock:
            trainer.on_log, trainer.before_save = lock.note, lock.check
        if trainer.checkpoint_path("last").exists():
            trainer.load("last")
        trainer.train()


def print_errors(trainer: Trainer1D, config: ExperimentConfig, write: bool = True):
    """Print the averaged weights' metrics on all fixed sets, by sampler, and `write` them to evaluation.csv."""
    rows = []
    same, harder = evaluation_tasks(config, trainer.dataset)
    for difficulty, task in {"same": same, "harder": harder, **same.extra_sets()}.items():
        chosen = EvaluationSet(task, config.evaluation_size, trainer.device, trainer.stream.masked)
        for sampler in samplers_of(trainer.diffusion):
            if trainer.accelerator.is_main_process:
                say(f"{config.dataset}: the {sampler} sampler on {config.evaluation_size} examples, {difficulty}")
            measured = sampler_metrics(trainer.ema.ema_model, chosen, sampler, share=trainer.share, execute=True)
            defined = {name: value for name, value in measured.items() if not math.isnan(value)}
            rows.append({"difficulty": difficulty, "sampler": sampler, **defined})
    if trainer.accelerator.is_main_process:
        if write:
            write_csv(trainer.results_folder / "evaluation.csv", [{"step": trainer.step, **row} for row in rows])
        show(f"step {trainer.step}, {config.evaluation_size} examples each")
        show(tabulate(rows, headers="keys", floatfmt=".6g"))
