"""What train.py does once its command line is read: one run, trained in its folder, and its errors."""

import math
from contextlib import nullcontext
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.build import build_diffusion, check_fits, describe_data, evaluation_tasks, set_step, training_task
from diffusion_lib.checkpoint import checkpoint_path
from diffusion_lib.config import ExperimentConfig, current
from diffusion_lib.evaluation import EvaluationSet, sampler_metrics, samplers_of
from diffusion_lib.precision import denormals_flushed, float32_products
from diffusion_lib.run_folder import prepare_folder, read_config, shown
from diffusion_lib.system.arguments import header
from diffusion_lib.system.device import chosen_device
from diffusion_lib.system.errors import ConfigError, say, show
from diffusion_lib.system.files import write_csv
from diffusion_lib.system.lock import RunHeld, RunLock
from diffusion_lib.training.trainer import Trainer1D

CURVE_SIZE = 2048  # examples behind a point of the learning curve


@denormals_flushed()
def execute(options, config: ExperimentConfig, folder: Path) -> int:
    """Train the run, or evaluate it, as the options say; return the exit status. Raises ConfigError."""
    check_fits(config, chosen_device(options.device))
    if options.evaluate:
        require_same_task(folder, config, options)
    if options.evaluate or options.load_milestone is not None:
        milestone = checkpoint_path(folder, options.load_milestone or "last")
        if not milestone.exists():
            raise ConfigError(f"load_milestone is {options.load_milestone or 'last'!r}; there is no file {milestone}")
    trainer = build_trainer(options, config, folder)
    if trainer.accelerator.is_main_process:
        where = {"device": trainer.device.type, "folder": folder, "data": shown(describe_data(config, options.ood))}
        mining = {} if options.evaluate else {"mining": config.mining.mode}  # the run may have had another
        header(task=config.dataset, model=config.model, **mining, **where)
    try:
        if options.evaluate:
            trainer.load(options.load_milestone or "last", to_train=False)
        else:
            train(trainer, options, config)
        # whose numbers a run's own evaluation.csv would not say
        print_errors(trainer, config, write=not (options.evaluate and (folder / "config.json").exists()))
        trainer.accelerator.wait_for_everyone()  # nobody leaves while another still talks to it
    finally:
        trainer.accelerator.end_training()
    return 0


def build_trainer(options, config: ExperimentConfig, folder: Path) -> Trainer1D:
    """Put the untrained model, whose weights depend on the seed alone, in its trainer. Raises ConfigError."""
    task = training_task(config, options.ood)
    diffusion = build_diffusion(config, options.seed, task, options.use_innerloop_opt, options.baseline)
    set_step(config, diffusion, chosen_device(options.device))
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


def require_same_task(folder: Path, config: ExperimentConfig, options):
    """Raise ConfigError where the folder's run is of another task, model or sampler than the command names."""
    if not (folder / "config.json").exists():
        return
    there, now = current(read_config(folder)), config.to_dict()
    for key, value in (("ood", options.ood), ("baseline", options.baseline), ("match_release", config.match_release)):
        if there.get(key, value) != value:
            flag = f"--{key.replace('_', '-')}"
            said = f"was trained {'with' if there[key] else 'without'} {flag}"
            raise ConfigError(f"{folder} {said}; {'write it too' if there[key] else 'leave it out'}")
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
    try:
        with lock or nullcontext():
            if lock:
                trainer.on_log, trainer.before_save = lock.note, lock.check
            if trainer.checkpoint_path("last").exists():
                trainer.load("last")
            trainer.train()
    except RunHeld as error:
        raise ConfigError(f"{folder} is {error}") from None


def print_errors(trainer: Trainer1D, config: ExperimentConfig, write: bool = True):
    """Print the averaged weights' metrics on all fixed sets, by sampler, and `write` them to evaluation.csv."""
    rows = []
    same, harder = evaluation_tasks(config, trainer.dataset)
    for difficulty, task in {"same": same, "harder": harder, **same.extra_sets()}.items():
        chosen = EvaluationSet(task, config.evaluation_size, trainer.device, trainer.stream.masked)
        for sampler in samplers_of(trainer.diffusion):
            if trainer.accelerator.is_main_process:
                say(f"{config.dataset}: the {sampler} sampler on {config.evaluation_size} examples, {difficulty}")
            with float32_products(trainer.ema.ema_model):
                measured = sampler_metrics(trainer.ema.ema_model, chosen, sampler, share=trainer.share, execute=True)
            defined = {name: value for name, value in measured.items() if not math.isnan(value)}
            rows.append({"difficulty": difficulty, "sampler": sampler, **defined})
    if trainer.accelerator.is_main_process:
        if write:
            write_csv(trainer.results_folder / "evaluation.csv", [{"step": trainer.step, **row} for row in rows])
        show(f"step {trainer.step}, {config.evaluation_size} examples each")
        show(tabulate(rows, headers="keys", floatfmt=".6g"))
