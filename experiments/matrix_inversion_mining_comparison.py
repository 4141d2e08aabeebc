"""Does adversarial negative mining help IRED invert matrices? Trains each strategy on each seed and compares.

    python experiments/matrix_inversion_mining_comparison.py --preset demo

The same command again continues; finished runs are kept. Started several times, on one machine or many that
share the results folder, the processes divide the runs among themselves. Exit status: 0 done, 2 bad input or a
failed run, 75 stopped by a signal with everything saved, or other processes have runs that have not ended.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()

import argparse
import os
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from diffusion_lib.build import check_fits, check_model, check_modes, describe_data, memory_needs
from diffusion_lib.config import ExperimentConfig, add_flags, check_name, given, parse_seeds, recipe
from diffusion_lib.energies import MODELS
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system.arguments import Parser, directory, header
from diffusion_lib.system.checks import require_whole
from diffusion_lib.system.environment import ROOT, granted_cores
from diffusion_lib.system.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, ConfigError, exit_status, say, show
from diffusion_lib.system.files import require_writable
from diffusion_lib.system.memory import memory_limit
from diffusion_lib.tasks import TASKS
from diffusion_lib.training.device import check_device_name, chosen_device, processes
from diffusion_lib.training.flops import equal_compute_steps, example_flops
from diffusion_lib.training.run_folder import (
    REMEDY,
    ended_runs,
    prepare_folder,
    recorded_config,
    require_same,
    require_study,
    require_study_data,
    say_once,
    shown,
)
from experiments.analysis.verdict import ADVERSARIAL, BASELINE
from experiments.speed.gpu_sharing import recorded_best
from experiments.study.run import run_experiment
from experiments.study.run_list import Outcome, delete_study, remove_leftovers, require_deletable, run_all
from experiments.study.status import status_table
from experiments.study.step_times import step_seconds, write_step_times

# The strategies, by what they change in training. To compare another one, add its line.
STRATEGIES = {
    "baseline": {"mode": "none"},  # IRED without its contrastive term
    "random": {"mode": "random"},  # contrast with noisier samples
    "adversarial": {"mode": "adversarial"},  # IRED as published: noisier samples, then descended on the energy
    "baseline-compute": {"mode": "none"},  # the baseline, with adversarial's compute
}
# Further ones, of tasks that have a hand-made way to spoil a solution.
TASK_STRATEGIES = {"corrupt": {"mode": "corrupt"}}  # IRED's choice for connectivity, shortest path and sudoku
# Strategies that train as long as the training FLOPs of another one last.
EQUAL_COMPUTE = {"baseline-compute": "adversarial"}
TIMED_FLOPS = 3e10  # at most, of a step that --check times: a batch that takes more is timed by its first examples


# What each preset fixes; every value can be overridden by its own flag. `seeds` is a range as on the command line.
PRESETS = {
    # A short run needs a higher learning rate that falls, and an average that forgets its start. At this rate all
    # strategies get below the mean predictor with a tenth of IRED's weight: results/published/trial has the search.
    "demo": {
        "train_steps": 650,
        "batch_size": 128,
        "seeds": "0-2",
        "evaluation_size": 256,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "ema_update_every": 1,
        "mining": {"weight": 0.05},
    },
    "pilot": {"train_steps": 10_000, "seeds": "0-2"},
    "full": {"train_steps": 100_000, "seeds": "0-9"},
}


def get_mining_config(strategy: str, config: ExperimentConfig | None = None) -> dict:
    """The `mining_config` dict of a strategy. Raises ConfigError for an unknown one."""
    known = STRATEGIES | TASK_STRATEGIES
    if strategy not in known:
        raise ConfigError(f"unknown strategy {strategy!r}; allowed: {', '.join(known)}")
    return {**(config or ExperimentConfig()).mining.to_dict(), **known[strategy]}


def possible_strategies(config: ExperimentConfig) -> list[str]:
    """All strategies that the task and the model of a configuration can be trained with."""
    if not MODELS[config.model].has_energy:
        return ["baseline"]
    return [*STRATEGIES, *(TASK_STRATEGIES if TASKS[config.dataset].rules.corruption else ())]


def run_config(strategy: str, config: ExperimentConfig, mining_config: dict) -> ExperimentConfig:
    """The configuration of a strategy's runs: the study's, but for `mining` and, at equal compute, `train_steps`."""
    own = replace(config, mining=MiningConfig(**mining_config))
    if strategy not in EQUAL_COMPUTE:
        return own
    other = EQUAL_COMPUTE[strategy]
    steps = equal_compute_steps(own, run_config(other, config, get_mining_config(other, config)))
    return replace(own, train_steps=steps)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_study_flags(parser)
    return parser.parse_args(arguments)


def add_study_flags(parser: Parser, leave_out=(), run_flag="--task"):
    """What a command takes that trains a study. run_flag: what chooses one run, by its number."""
    add = parser.add_argument
    preset = parser.add_mutually_exclusive_group().add_argument
    preset("--preset", choices=PRESETS, help="demo (minutes on a laptop), pilot (10K steps), full (100K)")
    preset("--pilot", action="store_const", const="pilot", dest="preset", help="same as --preset pilot")
    add(
        "--strategies",
        nargs="+",
        metavar="NAME",
        help=f"default: {', '.join(STRATEGIES)}, and corrupt where the task has a hand-made corruption",
    )
    add("--seeds", nargs="+", metavar="SEED", help="0 2 5, or 0-9; default: the preset's, or 0")
    add_flags(parser, ExperimentConfig, MiningConfig, leave_out=("mode", *leave_out))
    add("--device", metavar="{cpu,cuda}", help="default: cuda where there is one")
    add("--no-cuda-graph", action="store_true", help="on a GPU, launch each operation of a step by itself")
    add(
        "--at-once",
        type=int,
        metavar="N",
        help="runs trained at the same time, each in a process of its own; "
        "default: on a CPU as many as torch has threads, which they share; on a GPU as check_gpu.py found best, else 1",
    )
    add("--name", help="name of the study, default: the preset's and the model's")
    add("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    add("--fresh", action="store_true", help="delete an earlier study of this name, its tables too")
    add("--no-lock", action="store_true", help="where the file system has no locks, and nobody else trains")
    add("--report-only", action="store_true", help="train nothing; report the finished runs")
    add("--status", action="store_true", help="train nothing; show where each run stands")
    add("--check", action="store_true", help="train and write nothing; check the command, print its plan")
    add(
        run_flag,
        type=int,
        metavar="I",
        help="only run I of strategies x seeds, without a report: for job arrays; I "
        "counts from 0, run I is seed I mod N of strategy I div N, N seeds",
    )


def resolve(options: argparse.Namespace) -> tuple[ExperimentConfig, list[int], str]:
    """Configuration, seeds and name: the flags, over the preset, the recipe, the defaults. Raises ConfigError."""
    preset = dict(PRESETS.get(options.preset, {}))
    seeds = options.seeds or [preset.pop("seeds", "0")]
    preset.pop("seeds", None)
    usual, usual_mining = recipe(options.dataset, options.model, options.match_release)
    mining = MiningConfig(**usual_mining | preset.pop("mining", {}) | given(options, MiningConfig))
    config = ExperimentConfig(**{**usual, **preset, **given(options, ExperimentConfig)}, mining=mining)
    usual_name = "-".join([options.preset or "custom", *([config.dataset] if options.dataset else []), config.model])
    name = usual_name if options.name is None else options.name
    return config, parse_seeds(seeds), check_name(name)


def run_folder(study: Path, strategy: str, seed: int) -> Path:
    return study / "runs" / strategy / f"seed-{seed}"


def main(arguments=None) -> int:
    return compare(parse_arguments(arguments))


def compare(options) -> int:
    """The study that the options describe; returns the exit status."""
    config, seeds, name = resolve(options)
    strategies = options.strategies or possible_strategies(config)
    mining_configs = {strategy: get_mining_config(strategy, config) for strategy in strategies}
    return run_study(options, config, options.results / name, mining_configs, seeds)


def run_studies(studies: list[tuple]) -> list[int]:
    """`run_study` of each tuple of its arguments; all are checked before the first is deleted or trained."""
    for options, config, study, mining_configs, seeds in studies:
        if trains(options):
            check_command(options, config, study, mining_configs)
            check_here(options, config, study, 1 if options.task is not None else len(mining_configs) * len(seeds))
    return [run_study(*arguments) for arguments in studies]


def trains(options) -> bool:
    return not (options.check or options.status or options.report_only)


def run_study(options, config: ExperimentConfig, study: Path, mining_configs: dict[str, dict], seeds: list[int]) -> int:
    """Train, report, or show the status of one study, as `options` say, and return the exit status.

    mining_configs: name -> mining_config. The runs go seed by seed, so that pairs complete early. Raises ConfigError.
    """
    runs = {run_folder(study, strategy, seed): (strategy, seed) for seed in seeds for strategy in mining_configs}
    whole = set(runs)  # the study's, whichever of them this process trains
    if options.task is not None:
        if not 0 <= options.task < len(runs):
            raise ConfigError(f"task is {options.task}; allowed: 0 to {len(runs) - 1}, one for each strategy and seed")
        # strategy by strategy, so that one that is added at the end renumbers none of those before it
        numbered = [run_folder(study, strategy, seed) for strategy in mining_configs for seed in seeds]
        runs = {numbered[options.task]: runs[numbered[options.task]]}
    if options.check:
        check_command(options, config, study, mining_configs)
        require_writable(study)
        print(plan(options, config, study, runs, mining_configs))
        return 0
    if options.status or options.report_only:
        require_study(study)
    if options.status:
        show(status_table(study, list(runs)))
        return 0
    outcome = Outcome({}, {}) if options.report_only else train(options, config, study, runs, mining_configs)
    if options.task is not None and not options.report_only and whole <= ended_runs(study):  # an array's last job
        time_steps(options, config, study, mining_configs, shares(options, len(runs))[1])
    sound = True
    if options.report_only or (options.task is None and ended_runs(study)):
        sound = report(study, list(runs), list(dict.fromkeys([*STRATEGIES, *mining_configs])))
    for run, reason in outcome.failures.items():
        say(f"failed: {run}: {reason}")
    for run, reason in outcome.held.items():
        say(f"left to its holder: {run}: {reason}")
    if outcome.failures or not sound:
        return EXIT_BAD_INPUT
    if outcome.held and not ended_runs(study).issuperset(runs):
        say("not done: other processes have the runs above; run the same command again when they have ended")
        return EXIT_INTERRUPTED
    return 0


def train(options, config: ExperimentConfig, study: Path, runs: dict[Path, tuple[str, int]], mining_configs) -> Outcome:
    """Train what has not ended of `runs`, folder -> (strategy, seed). Raises ConfigError where no run could start."""
    check_command(options, config, study, mining_configs)
    check_here(options, config, study, len(runs))
    at_once, threads = shares(options, len(runs))
    device = chosen_device(options.device)
    if deletes(options):
        delete_study(study, not options.no_lock)
    remove_leftovers(study)
    # a published study comes without its runs: those made now are of this machine and version
    data, new = describe_data(config), not (study / "runs").exists()
    prepare_folder(study, config.to_dict(), device, renew=new, at_once=at_once, data=data)
    header(
        study=study,
        model=config.model,
        strategies=" ".join(mining_configs),
        runs=len(runs),
        at_once=at_once,
        device=device.type,
        data=shown(data),
    )
    if options.task is None:  # before the runs, which are then followed by their report at once
        time_steps(options, config, study, mining_configs, threads)
    wanted = dict.fromkeys(strategy for strategy, _ in runs.values())
    configs = {strategy: run_config(strategy, config, mining_configs[strategy]) for strategy in wanted}
    return run_all(
        {
            f"{strategy} seed {seed}": partial(
                run_experiment,
                strategy,
                seed,
                configs[strategy],
                mining_configs[strategy],
                folder,
                options.device,
                not options.no_lock,
                cuda_graph=not options.no_cuda_graph,
                at_once=at_once,
            )
            for folder, (strategy, seed) in runs.items()
        },
        at_once,
        threads,
    )


def time_steps(options, config: ExperimentConfig, study: Path, mining_configs: dict[str, dict], threads: int):
    """timing.json, where the study has both strategies of the verdict's time clause."""
    if {BASELINE, ADVERSARIAL} <= set(mining_configs):
        timed = {name: mining_configs[name] for name in (BASELINE, ADVERSARIAL)}
        write_step_times(study, config, timed, options.device, threads, not options.no_cuda_graph)


def check_command(options, config: ExperimentConfig, study: Path, mining_configs: dict[str, dict]):
    """Raises ConfigError for what is wrong on every machine, whatever its device and memory; writes nothing."""
    if processes() > 1:
        raise ConfigError("a run is trained by one process; start this script once for each GPU, they share the runs")
    if options.at_once is not None:
        require_whole("at_once", options.at_once)
    check_device_name(options.device)
    check_model(config)
    check_modes(config, [mining["mode"] for mining in mining_configs.values()])
    if options.fresh and options.task is not None:
        raise ConfigError("--fresh would delete the runs of the other tasks; choose another --name")
    if (study / "config.json").exists() and not options.fresh:
        require_same(study, config.to_dict(), REMEDY)
        require_study_data(study, describe_data(config))


def check_here(options, config: ExperimentConfig, study: Path, runs: int):
    """Raises ConfigError for what is wrong on this machine: too little memory, or a folder that --fresh must leave."""
    check_fits(config, chosen_device(options.device), shares(options, runs)[0])
    if deletes(options):
        require_deletable(study, not options.no_lock)


def deletes(options) -> bool:
    """Whether the command deletes what is there: a requeued job continues its own work."""
    return options.fresh and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"


def plan(options, config: ExperimentConfig, study: Path, runs: dict, mining_configs: dict[str, dict]) -> str:
    """What the command would train, and the minutes that the steps take by steps that are timed here and now."""
    counts = Counter(strategy for strategy, _ in runs.values())
    configs = {name: run_config(name, config, mining_configs[name]) for name in counts}
    same = {name: next(other for other in counts if mining_configs[other] == mining_configs[name]) for name in counts}
    memory = f"memory of a run: {sum(memory_needs(config).values()) / 1e9:.3g} GB or more"
    try:
        at_once, threads = shares(options, len(runs))
        device = chosen_device(options.device)
        check_fits(config, device, at_once)
        timed = {name: mining_configs[name] for name in same.values()}
        most = max(example_flops(each) for each in configs.values())
        batch = min(config.batch_size, max(1, int(TIMED_FLOPS / most)))
        seconds = step_seconds(
            replace(config, batch_size=batch), timed, options.device, threads, not options.no_cuda_graph
        )
    except ConfigError as error:  # of this machine, which need not be the one that trains
        minutes, words = dict.fromkeys(counts), f"{memory}\nno step was timed: {error}"
    else:
        minutes = {
            name: each.train_steps * seconds[same[name]] * config.batch_size / batch / 60
            for name, each in configs.items()
        }
        total = sum(counts[name] * minutes[name] for name in counts) / (at_once if device.type == "cpu" else 1)
        words = (
            f"{memory}, {memory_limit(device) / 1e9:.3g} GB are here\n"
            f"estimated minutes: {total:.3g}, {at_once} runs at once on this machine's {device.type}, evaluation and "
            "report not counted"
        )
    rows = [[name, counts[name], f"{each.train_steps:,}", minutes[name]] for name, each in configs.items()]
    table = tabulate(rows, ("strategy", "runs", "steps of each", "minutes of each"), floatfmt=".3g")
    return f"{study}: {len(runs)} runs\n\n{table}\n\n{words}"


def shares(options, runs: int) -> tuple[int, int]:
    """How many runs are trained at once, and torch's threads for each. Raises ConfigError.

    A function of the command and the machine, not of what is left to do: the number of threads may decide a last bit.
    """
    threads = min(torch.get_num_threads(), granted_cores())
    on_cpu = chosen_device(options.device).type == "cpu"
    at_once = min(runs, options.at_once or (threads if on_cpu else recorded_best(options.results)))
    return at_once, max(1, threads // at_once)


def report(study: Path, asked: list[Path], order: list[str]) -> bool:
    """Report all runs that ended, and say if those asked for are not among them; False where a run is damaged.

    Raises ConfigError if none ended.
    """
    # here, since it imports matplotlib and SciPy, which take seconds, and a task of an array reports nothing
    from experiments.analysis.report import write_report

    config, reported, ended = recorded_config(study), None, ended_runs(study)
    while ended != reported:  # again if a run ended meanwhile: of two reports made at a time the last must have all
        damaged = write_report(study, config, order)
        reported, ended = ended, ended_runs(study)
    for reason in damaged.values():
        say_once(f"left out: {reason}")
    missing = len(set(asked) - ended - damaged.keys())
    if missing:
        say(
            f"this report is partial, without the {missing} runs that have not ended: --status shows where they "
            "stand, and --report-only reports again"
        )
    return not damaged


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
