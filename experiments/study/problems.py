"""List the problems of a command's study, at the choices of its search, and show where their runs stand."""

from diffusion_lib.run_folder import ended_runs, require_study
from diffusion_lib.system.errors import ConfigError, show
from experiments.study.flags import Command
from experiments.study.status import status_table
from experiments.study.study import PROBLEM, Study, run_folder


def show_status(command: Command) -> int:
    """Print where each run stands: until the search has ended, its runs. Raises ConfigError."""
    waits = waits_for_search(command)
    problems = command.study.search_study().problems() if waits else chosen_problems(command)
    every = (
        run_folder(command.results / problem.name, label, seed)
        for problem in problems
        for label in problem.labels()
        for seed in problem.seeds
    )
    numbers = {folder: number for number, folder in enumerate(every)}  # as `Study.runs`, which counts FLOPs
    for problem, _ in asked(command, problems if command.run is not None else begun(command, problems)):
        study = command.results / problem.name
        require_study(study)
        folders = [run_folder(study, label, seed) for seed in problem.seeds for label in problem.labels()]
        if command.run is not None:
            folders = [folder for folder in folders if numbers[folder] == command.run]
        # a search's runs have no number: --run comes after it
        show(status_table(study, {folder: "" if waits else numbers[folder] for folder in folders}))
    return 0


def waits_for_search(command: Command) -> bool:
    """Return whether the study has a search that has not ended.

    Raises ConfigError where it has, and `--run` asks for one of the runs that the search decides.
    """
    if not command.study.search or searched(command):
        return False
    if command.run is not None:
        raise ConfigError("a run of an array follows the search: start the command without --run first")
    return True


def searched(command: Command) -> bool:
    """Return whether all runs of the search have ended."""
    return all(
        ended_runs(command.results / problem.name).issuperset(run.folder for run in problem.runs(command.results))
        for problem in command.study.search_study().problems()
    )


def chosen_problems(command: Command) -> list[Study]:
    """Return the study of each problem, at the choices of its search where it has one.

    Raises ConfigError where a strategy has no choice.
    """
    study, made, found = command.study, {}, []
    if not study.search:
        return study.problems()
    from experiments.analysis.search import choose  # here, as the report

    searches = study.search_study().problems()
    for problem in study.problems():
        own = [each for each in searches if all(each.settings.get(k) == problem.settings.get(k) for k in PROBLEM)]
        source = (own or searches)[0]
        if source.name not in made:  # one search may serve several problems
            writes = command.action in ("train", "report")
            made[source.name] = choose(source, command.results / source.name, writes)
        found.append(problem.chosen(made[source.name]))
    return found


def begun(command: Command, problems: list[Study]) -> list[Study]:
    """Return those of several problems that were begun, or all where none was."""
    return [problem for problem in problems if (command.results / problem.name).exists()] or problems


def asked(command: Command, problems: list[Study]) -> list[tuple[Study, int | None]]:
    """Return the problems with None, for all their runs; with `--run` its problem alone, and its index among its runs.

    Raises ConfigError where there are fewer runs.
    """
    if command.run is None:
        return [(problem, None) for problem in problems]
    every = [(problem, number) for problem in problems for number in range(len(problem.runs(command.results)))]
    if not 0 <= command.run < len(every):
        raise ConfigError(f"run is {command.run}; allowed: 0 to {len(every) - 1}, one for each strategy and seed")
    return [every[command.run]]
