"""From a command line to the study that it means, and to what is to be done with it. The Namespace ends here."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from diffusion_lib.config import (
    ExperimentConfig,
    add_flags,
    configure,
    given,
    parse_seeds,
    parse_value,
    setting_names,
)
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system.arguments import Parser, directory
from diffusion_lib.system.checks import check_name
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS
from experiments.study.study import Study, known_strategies, usual_strategies
from experiments.study.study_file import DECLARATION, STUDIES, checked_values, presets, read_study


@dataclass(frozen=True)
class Command:
    """What to do with a study, where, and how.

    action: train, report, status or check.
    run: the number of the only run to train, for job arrays.
    fresh: whether an earlier study of this name is deleted first.
    at_once: runs trained at the same time; None: as many as fit.
    use_lock: see RunLock.
    cuda_graph, log_with: as in Trainer1D.
    """

    study: Study
    results: Path
    action: str = "train"
    run: int | None = None
    fresh: bool = False
    device: str | None = None
    cuda_graph: bool = True
    at_once: int | None = None
    use_lock: bool = True
    log_with: str | None = None


def parse_command(description: str, arguments=None) -> Command:
    """Return what a command line asks for; arguments: its words, None for those of this process.

    Raises ConfigError for what argparse does not refuse itself, with exit status 2.
    """
    parser = Parser(description)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group().add_argument
    which("--preset", metavar="NAME", help=f"a study of experiments/studies: {', '.join(presets())}")
    which("--pilot", action="store_const", const="pilot", dest="preset", help="same as --preset pilot")
    which("--study", type=Path, metavar="FILE", help="a study's file, like those in experiments/studies")
    named = ", ".join(known_strategies())
    add("--strategies", nargs="+", metavar="NAME", help=f"which to train: the study's, or any of {named}")
    add("--seeds", nargs="+", metavar="SEED", help="such as 0 2 5, or 0-9; default: the study's, or 0")
    add(
        "--vary",
        nargs="+",
        metavar="KEY=V1,V2",
        help="train every strategy at each value of a setting that it uses: opt_steps=1,2,5 scale_factor=0.5,1",
    )
    add(
        "--task",
        metavar=f"{{{','.join(TASKS)}}}",
        help="same as --dataset; a number is read as --run, as that was called before",
    )
    add_flags(parser, ExperimentConfig, MiningConfig, leave_out=("mode",))
    add("--device", metavar="{cpu,cuda}", help="default: cuda where there is one")
    add("--no-cuda-graph", action="store_true", help="on a GPU, launch each operation of a step by itself")
    add(
        "--at-once",
        type=int,
        metavar="N",
        help="runs trained at the same time, each in its own process; "
        "default: on a CPU as many as torch has threads, one for each; on a GPU as check_gpu.py found best, else 1",
    )
    add("--name", help="name of the study; default: the file's, or PRESET-MODEL")
    add("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    add("--fresh", action="store_true", help="delete an earlier study of this name first, and its tables")
    add("--no-lock", action="store_true", help="train without locks: only if nobody else trains")
    add(
        "--log-with",
        metavar="TRACKER",
        help="an installed tracker of accelerate: tensorboard, wandb, mlflow, …",
    )
    one_of = parser.add_mutually_exclusive_group().add_argument
    for flag, action, text in (
        ("--report-only", "report", "train nothing; report the finished runs"),
        ("--status", "status", "train nothing; show where each run stands"),
        ("--check", "check", "train and write nothing; check the command, and print its plan"),
    ):
        one_of(flag, action="store_const", dest="action", const=action, default="train", help=text)
    add(
        "--run",
        type=int,
        metavar="I",
        help="train only run I, without a report: for job arrays; with N seeds, run I "
        "is seed I mod N of strategy I div N, counted from 0",
    )
    options = parser.parse_args(arguments)
    if options.task is not None:
        name = "run" if options.task.removeprefix("-").isdigit() else "dataset"
        if getattr(options, name) is not None:
            raise ConfigError(f"--task {options.task} and --{name} {getattr(options, name)}; allowed: one of them")
        setattr(options, name, int(options.task) if name == "run" else options.task)
    return Command(
        study=resolve_study(options),
        results=options.results,
        action=options.action,
        run=options.run,
        fresh=options.fresh and os.environ.get("SLURM_RESTART_COUNT", "0") == "0",  # a requeued job continues its own
        device=options.device,
        cuda_graph=not options.no_cuda_graph,
        at_once=options.at_once,
        use_lock=not options.no_lock,
        log_with=options.log_with,
    )


def resolve_study(options: argparse.Namespace) -> Study:
    """Return the study that the flags name, with what they change in it. Raises ConfigError."""
    file = declaring_file(options)
    said = read_study(file) if file else {}
    if options.dataset not in (None, *TASKS):
        raise ConfigError(f"task is {options.dataset!r}; allowed: {', '.join(TASKS)}")
    settings = {**said.get("config", {}), **given(options)}
    extra = parse_vary(options.vary or (), settings)
    vary = {**said.get("vary", {}), **extra}
    for key in settings.keys() & vary.keys():
        if key in given(options):
            raise ConfigError(f"--{key.replace('_', '-')} is what the study varies; allowed: --vary {key}=…")
    configure(settings)
    first = {key: values[0] for key, values in vary.items() if key in ("dataset", "model")}
    study = Study("unnamed", {**settings, **first}, [0], {})
    name = check_name(options.name if options.name is not None else usual_name(options, study.config, vary, extra))
    declared = said.get("strategies")
    if not declared and (file := left(options, name)):
        declared = read_study(file)["strategies"]
    declared = declared or usual_strategies(study.config)
    study = Study(
        name=name,
        settings=settings,
        seeds=parse_seeds(options.seeds) if options.seeds else said.get("seeds", [0]),
        strategies=chosen_strategies(options.strategies, declared),
        declared=declared,
        vary=vary,
        **{key: said[key] for key in ("compare", "search", "question") if key in said},
    )
    unused = extra.keys() - {key for each in study.strategies.values() for key in study.keys_of(each)}
    if unused:
        raise ConfigError(f"vary has {', '.join(sorted(unused))}, which {' and '.join(study.strategies)} do not use")
    return study


def left(options, name: str) -> Path | None:
    """Return the file that an earlier command left in the study's folder, for a command that trains nothing.

    Such a command needs no other flags, and no task and no model, whose imports take seconds.
    """
    path = options.results / name / DECLARATION
    return path if options.action in ("report", "status") and path.exists() else None


def declaring_file(options) -> Path | None:
    """Return what declares the study: the flag's file, the preset's, or what is `left`. Raises ConfigError."""
    if options.study:
        return options.study
    if not options.preset:
        return left(options, options.name or "")
    if options.preset not in presets():
        raise ConfigError(f"preset is {options.preset!r}; allowed: {', '.join(presets())}, or --study FILE")
    return STUDIES / f"{options.preset}.toml"


def usual_name(options, config: ExperimentConfig, vary: dict, extra: dict) -> str:
    """Return the name of a study that was given none.

    vary: what the study varies.
    extra: what the flags vary.
    """
    if options.study:
        return options.study.stem
    task = [config.dataset] if options.dataset else []
    model = [config.model] if "model" not in vary else []
    return "-".join([options.preset or "custom", *task, *model, *(["by", *extra] if extra else [])])


def chosen_strategies(names: list[str] | None, declared: dict) -> dict:
    """Return the strategies of these names, by default those `declared`. Raises ConfigError for an unknown one."""
    if names is None:
        return declared
    known = known_strategies() | declared
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown strategy {name!r}; allowed: {', '.join(known)}")
    return {name: known[name] for name in names}


def parse_vary(words, config: dict) -> dict[str, tuple]:
    """Return the values to vary, by setting, from words such as `opt_steps=1,2,5`. Raises ConfigError.

    config: the other settings, by name.
    """
    vary = {}
    for word in words:
        key, sign, text = word.partition("=")
        key = key.replace("-", "_")
        key = "dataset" if key == "task" else key
        if not sign or key not in setting_names() or not all(text.split(",")):
            raise ConfigError(f"vary is {word!r}; allowed: KEY=V1,V2 with a KEY of {', '.join(setting_names())}")
        vary[key] = [*vary.get(key, ()), *(parse_value(key, value) for value in text.split(","))]
    return checked_values(vary, config)
