"""Do what a command says with its study: train it, report it, or show its plan."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from diffusion_lib.build import check_fits, check_mode, check_model, describe_data, memory_needs
from diffusion_lib.config import ExperimentConfig, step_kind
from diffusion_lib.flops import example_flops
from diffusion_lib.names import SAMPLERS
from diffusion_lib.run_folder import (
    REMEDY,
    allow_differing,
    differences,
    ended_runs,
    prepare_folder,
    read_config,
    read_environment,
    recorded_config,
    require_same,
    require_study,
    require_study_data,
    shown,
)
from diffusion_lib.system.arguments import header
from diffusion_lib.system.checks import require_whole
from diffusion_lib.system.device import check_device_name, chosen_device, processes, require_tracker
from diffusion_lib.system.environment import commit, granted_cores
from diffusion_lib.system.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, ConfigError, say, say_once, show
from diffusion_lib.system.files import require_writable
from diffusion_lib.system.memory import memory_limit
from experiments.speed.gpu_sharing import recorded_best
from experiments.study.flags import Command
from experiments.study.problems import asked, begun, chosen_problems, searched, waits_for_search
from experiments.study.run import run_experiment
from experiments.study.study import PROBLEM, Run, Study, Variant
from experiments.study.study_file import DECLARATION, declare, read_study, require_same_vary, united
from experiments.study.timing import read_step_times, step_seconds, write_step_times
from experiments.study.workers import Outcome, delete_study, delete_tables, remove_leftovers, require_deletable, run_all

TIMED_FLOPS = 3e10  # at most, of a step that --check times: a batch that takes more is timed by its first examples


def execute(command: Command) -> int:
    """Do what the command says, and return the exit status. Raises ConfigError before anything is written."""
    study = command.study
    if not command.fresh:
        require_same_vary(command.results / study.name, study)
    if waits_for_search(command) or (study.search and command.fresh):
        status = search(command)
        if status is not None:
            return status
    problems = chosen_problems(command)
    if command.action == "train":  # all are checked before the first is deleted or trained
        check_problems(command, problems)
    if command.action == "report":
        problems = begun(command, problems)
    several = problems[0].name != study.name
    if several and command.action == "train" and command.fresh:  # which would be taken for the new runs'
        delete_tables(command.results / study.name)
    status = max(ProblemCommand(command, *each).execute() for each in asked(command, problems))
    if several and command.run is None and command.action in ("train", "report") and not study.is_search:
        from experiments.analysis.problems import join_reports  # here, as the report

        every = declared_problems(command)
        join_reports(command.results / study.name, {command.results / problem.name: problem for problem in every})
    return status


def declared_problems(command: Command) -> list[Study]:
    """Return the study of each problem with what earlier commands declared: they trained it, and a report is of all."""
    study = united(command.results / command.study.name, command.study)
    return chosen_problems(replace(command, study=study, action="status"))  # the choice of a search is said already


def search(command: Command) -> int | None:
    """Train what is left of the search; return None where the command goes on, else its exit status."""
    if command.action == "train":  # the choices' runs too, whatever the search will find
        check_problems(command, command.study.problems())
    status = execute(replace(command, study=command.study.search_study(), run=None))
    return None if command.action == "train" and searched(command) else status


class ProblemCommand:
    """A command with the study of one problem.

    number: the index of the only run to train or report among the study's; None for all.
    """

    def __init__(self, command: Command, study: Study, number: int | None = None):
        self.command, self.study, self.number = command, study, number
        self.folder = command.results / study.name

    def execute(self) -> int:
        action = self.command.action
        if action == "check":
            check_command(self.command, self.study)
            require_writable(self.folder)
            show(self.plan())
            return 0
        if action == "report":
            require_study(self.folder)
            self.require_as_trained()
        return self.conclude(Outcome({}, {}) if action == "report" else self.train())

    def require_as_trained(self):
        """Raise ConfigError where the declaration, edited since, contradicts what was trained by it."""
        seconds = self.seconds()
        for each in self.study.variants(seconds).values():
            first = runs_of(self.folder, each)[:1]  # with which a report compares the others
            require_same_label(first, each, free_steps=bool(each.strategy.time_of and not seconds))

    def runs(self) -> list[Run]:
        """Return the runs that are asked for, seed by seed, so that pairs complete early."""
        runs = self.study.runs(self.command.results, self.seconds())
        if self.number is not None:
            return [runs[self.number]]
        return sorted(runs, key=lambda run: self.study.seeds.index(run.seed))

    def train(self) -> Outcome:
        """Train what has not ended. Raises ConfigError where no run could start."""
        command, study, folder = self.command, self.study, self.folder
        count = 1 if self.number is not None else len(study.runs(command.results))
        at_once, threads = shares(command, count)
        device = chosen_device(command.device)
        if command.fresh:
            delete_study(folder, command.use_lock)
        remove_leftovers(folder)
        # a published study comes without its runs: those made now are of this machine and version
        data, new = describe_data(study.config), not (folder / "runs").exists()
        prepare_folder(folder, study.config.to_dict(), device, renew=new, at_once=at_once, data=data)
        allow_differing(folder, study.varied())
        declare(command.results / command.study.name, command.study, command.fresh)
        header(
            study=folder,
            model=study.config.model,
            strategies=" ".join(study.variants()),
            runs=count,
            at_once=at_once,
            device=device.type,
            data=shown(data),
        )
        if self.number is None or study.paced:  # before the runs, which are then followed by their report at once
            self.time_steps(threads)
        self.name_other_code()
        options = {"cuda_graph": command.cuda_graph, "log_with": command.log_with, "at_once": at_once}
        call = partial(run_experiment, device=command.device, use_lock=command.use_lock, **options)
        return run_all({run.name: partial(call, *run) for run in self.runs()}, at_once, threads)

    def name_other_code(self):
        """Say of which commits the runs are that this command keeps or continues, where it is not this one's."""
        made = Counter()
        for run in self.runs():
            with suppress(ConfigError, OSError):
                made[read_environment(run.folder)["commit"]] += 1
        for earlier in made.keys() - {commit()}:
            say(f"kept: {made[earlier]} of these runs are of commit {earlier}, not this one; --fresh trains them anew")

    def timed(self) -> dict:
        """Return by label the configurations whose steps are timed: those of pairs, and of what is trained by time.

        A strategy by whose time another is trained need not be of this study.
        """
        study = self.study
        wanted = {label for sampler in SAMPLERS for pair in study.pairs(sampler) for label in pair[1:]}
        by_time = [each for each in study.strategies.values() if each.time_of]
        references = {each.time_of: study.known[each.time_of] for each in by_time}
        names = references.keys() | {each.name for each in by_time}
        variants = replace(study, strategies=study.strategies | references).variants()
        return {
            label: each.config for label, each in variants.items() if label in wanted or each.strategy.name in names
        }

    def time_steps(self, threads: int):
        """Write timing.json, where the study has a pair, or a strategy that is trained by time."""
        timed = self.timed()
        if timed:
            write_step_times(self.folder, timed, self.command.device, threads, self.command.cuda_graph)

    def seconds(self) -> dict | None:
        """Return the seconds of a step by `step_kind`, where a strategy is trained by them and they are known."""
        if not self.study.paced:
            return None
        timed = self.timed()
        times = read_step_times(self.folder, timed)
        return times and {step_kind(config): times[label] for label, config in timed.items()}

    def conclude(self, outcome: Outcome) -> int:
        """Report what has ended, say what has not, and return the exit status."""
        runs, study, whole = self.runs(), self.folder, self.study.runs(self.command.results, self.seconds())
        reports = self.command.action == "report"
        if self.number is not None and not reports and ended_runs(study).issuperset(run.folder for run in whole):
            self.time_steps(shares(self.command, 1)[1])  # an array's last job
        sound = True
        if not self.study.is_search and (reports or (self.number is None and ended_runs(study))):
            every = {problem.name: problem for problem in declared_problems(self.command)}
            declared = ProblemCommand(self.command, every.get(self.study.name, self.study))
            wanted = declared.runs() if self.number is None else runs
            sound = report(declared.study, study, [run.folder for run in wanted])
        for run, reason in outcome.failures.items():
            say(f"failed: {run}: {reason}")
        for run, reason in outcome.held.items():
            say(f"left to its holder: {run}: {reason}")
        if outcome.failures or not sound:
            return EXIT_BAD_INPUT
        if outcome.held and not ended_runs(study).issuperset(run.folder for run in runs):
            say("not done: other processes have the runs above; run the same command again when they have ended")
            return EXIT_INTERRUPTED
        return 0

    def plan(self) -> str:
        """Say what would be trained, and the minutes that it takes by steps that are timed here and now."""
        command, runs = self.command, self.runs()
        counts = Counter(run.label for run in runs)
        configs = {run.label: run.config for run in runs}
        needed = max(sum(memory_needs(each).values()) for each in configs.values())
        memory = f"memory of a run: {needed / 1e9:.3g} GB or more"
        try:
            at_once, threads = shares(command, len(runs))
            device = chosen_device(command.device)
            for config in configs.values():
                check_fits(config, device, at_once)
            most = max(map(example_flops, configs.values()))
            batches = {label: min(each.batch_size, max(1, int(TIMED_FLOPS / most))) for label, each in configs.items()}
            small = {label: each.change(batch_size=batches[label]) for label, each in configs.items()}
            seconds = step_seconds(small, command.device, threads, command.cuda_graph)
        except ConfigError as error:  # of this machine, which need not be the one that trains
            minutes, words = dict.fromkeys(counts), f"{memory}\nno step was timed: {error}"
        else:
            minutes = {
                label: each.train_steps * seconds[label] * each.batch_size / batches[label] / 60
                for label, each in configs.items()
            }
            total = sum(counts[label] * minutes[label] for label in counts) / (at_once if device.type == "cpu" else 1)
            words = (
                f"{memory}, {memory_limit(device) / 1e9:.3g} GB are here\n"
                f"estimated minutes: {total:.3g}, {at_once} runs at once on this machine's {device.type}, evaluation "
                "and report not counted"
            )
        rows = [[label, counts[label], f"{each.train_steps:,}", minutes[label]] for label, each in configs.items()]
        table = tabulate(rows, ("strategy", "runs", "steps of each", "minutes of each"), floatfmt=".3g")
        return f"{self.folder}: {len(runs)} runs\n\n{table}\n\n{words}"


def check_problems(command: Command, problems: list[Study]):
    """Raise ConfigError for what is wrong with any of the problems, here or on every machine."""
    for problem in problems:
        check_command(command, problem)
        check_here(command, problem)


def check_command(command: Command, study: Study):
    """Raise ConfigError for what is wrong on every machine, whatever its device and memory; write nothing."""
    if processes() > 1:
        raise ConfigError("a run is trained by one process; start this script once for each GPU, they share the runs")
    require_tracker(command.log_with)
    if command.at_once is not None:
        require_whole("at_once", command.at_once)
    check_device_name(command.device)
    for config in of_each_size(study):
        check_model(config)
    for each in study.variants().values():
        check_mode(each.config)
    if command.fresh and command.run is not None:
        raise ConfigError("--fresh would delete the runs of the other jobs; choose another --name")
    folder = command.results / study.name
    require_own_name(folder, "/" in study.name)
    if (folder / "config.json").exists() and not command.fresh:
        require_same(folder, study.config.to_dict(), REMEDY)
        require_study_data(folder, describe_data(study.config))
        for each in study.variants().values():
            require_same_label(runs_of(folder, each), each, free_steps=bool(each.strategy.time_of))
    require_one_declaration(command, study)


def require_one_declaration(command: Command, study: Study):
    """Raise ConfigError where other problems of the study were trained with other settings than this one would be."""
    root = command.results / command.study.name
    begun = {path.parent for path in root.glob("*/config.json")}
    if command.results / study.name == root or not begun or not (root / DECLARATION).exists():
        return
    if command.fresh:
        begun -= {command.results / problem.name for problem in command.study.problems()}
    own = {key: study.settings[key] for key in PROBLEM if key in study.settings}
    earlier = replace(study, settings=read_study(root / DECLARATION)["config"] | own)
    differing = differences(earlier.config.to_dict(), study.config.to_dict())
    if begun and differing:
        raise ConfigError(f"{root} was declared with another configuration: {differing}. {REMEDY}")


def runs_of(folder: Path, variant: Variant) -> list[Path]:
    """Return the folders of a variant's runs in a study."""
    return sorted((folder / "runs" / variant.label).glob("seed-*"))


def require_same_label(runs: list[Path], variant: Variant, free_steps: bool):
    """Raise ConfigError where one of the variant's runs was made by another configuration.

    free_steps: whether the steps may be others, since those of a strategy of equal time are known later, and checked
    run by run. Damaged runs are passed over.
    """
    free = {"strategy", "seed"} | ({"train_steps"} if free_steps else set())
    for run in runs:
        recorded = None
        with suppress(ConfigError, OSError):
            recorded = read_config(run)
        differing = recorded and differences(recorded, variant.config.to_dict(), free)
        if differing:
            raise ConfigError(f"{run} was made by another configuration: {differing}. {REMEDY}")


def require_own_name(folder: Path, of_several: bool):
    """Raise ConfigError where a problem, or one of several, would replace the report and tables of the other kind."""
    there = [folder.parent / "config.json"] if of_several else sorted(folder.glob("*/config.json"))
    if there and there[0].exists():
        kinds = ("one problem", "several") if of_several else ("several problems", "one")
        raise ConfigError(f"{there[0]} is of a study of {kinds[0]}, this is of {kinds[1]}; choose another --name")


def of_each_size(study: Study) -> list[ExperimentConfig]:
    """Return a configuration of each kind of step and evaluation set, for checks that take a moment."""
    configs = [each.config for each in study.variants().values()]
    return list({(step_kind(config), config.evaluation_size): config for config in configs}.values())


def check_here(command: Command, study: Study):
    """Raise ConfigError for what is wrong on this machine: too little memory, or a folder that --fresh must leave."""
    count = 1 if command.run is not None else len(study.runs(command.results))
    for config in of_each_size(study):
        check_fits(config, chosen_device(command.device), shares(command, count)[0])
    if command.fresh:
        require_deletable(command.results / study.name, command.use_lock)


def shares(command: Command, runs: int) -> tuple[int, int]:
    """Return how many runs are trained at once, and torch's threads for each. Raises ConfigError.

    They depend on the command and the machine, not on what is left to do: the number of threads may decide a last bit.
    """
    threads = min(torch.get_num_threads(), granted_cores())
    on_cpu = chosen_device(command.device).type == "cpu"
    at_once = min(runs, command.at_once or (threads if on_cpu else recorded_best(command.results)))
    return at_once, max(1, threads // at_once)


def report(study: Study, folder: Path, asked: list[Path]) -> bool:
    """Report all runs that ended, and return False where one is damaged. Raises ConfigError if none ended.

    asked: runs without which the report is called partial.
    """
    # here, since it imports matplotlib and SciPy, which take seconds, and a run of an array reports nothing
    from experiments.analysis.report import write_report

    config, reported, ended = recorded_config(folder), None, ended_runs(folder)
    while ended != reported:  # again if a run ended meanwhile: of two reports made at a time the last must have all
        damaged = write_report(folder, config, study.as_trained(folder))
        reported, ended = ended, ended_runs(folder)
    for reason in damaged.values():
        say_once(f"left out: {reason}")
    missing = len(set(asked) - ended - damaged.keys())
    if missing:
        say(
            f"this report is partial, without the {missing} runs that have not ended: --status shows where they "
            "stand, and --report-only reports again"
        )
    return not damaged
