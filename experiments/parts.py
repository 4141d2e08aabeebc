"""List the problems of a command's study, at the choices of its search, and show where their runs stand."""

from diffusion_lib.run_folder import ended_runs, require_study
from diffusion_lib.system.errors import ConfigError, show
from experiments.study.flags import Command
from experiments.study.status import status_table
from experiments.study.study import PROBLEM, Study, run_folder


def show_status(command: Command) -> int:
    """Print where each run stands: until the search has ended, its runs. Raises ConfigError."""
    study = command.study
    require_search_before_run(command)
    if study.search:
        parts = chosen_parts(command) if searched(command) else study.search_study().problems()
    else:
        parts = study.problems()
    if command.run is None:
        shown = [(part, None) for part in begun(command, parts)]
    else:
        shown = [numbered(command, parts)]
    for part, number in shown:
        folder = command.results / part.name
        require_study(folder)
        folders = [run_folder(folder, label, seed) for seed in part.seeds for label in part.labels()]
        show(status_table(folder, folders if number is None else [part.runs(command.results)[number].folder]))
    return 0


def require_search_before_run(command: Command):
    """Raise ConfigError for `--run` of a study whose search has not ended: its runs are not known yet."""
    if command.run is not None and command.study.search and not searched(command):
        raise ConfigError("a run of an array follows the search: start the command without --run first")


def begun(command: Command, parts: list[Study]) -> list[Study]:
    """Return those of several problems that were begun, or all where none was."""
    return [part for part in parts if (command.results / part.name).exists()] or parts


def searched(command: Command) -> bool:
    """Return whether all runs of the search have ended."""
    for part in command.study.search_study().problems():
        if not ended_runs(command.results / part.name).issuperset(run.folder for run in part.runs(command.results)):
            return False
    return True


def chosen_parts(command: Command) -> list[Study]:
    """Return each problem's study at the search's choices. Raises ConfigError where a strategy has none."""
    from experiments.analysis.search import choose  # here, as the report

    searches, made, found = command.study.search_study().problems(), {}, []
    for part in command.study.problems():
        own = [each for each in searches if all(each.settings.get(k) == part.settings.get(k) for k in PROBLEM)]
        source = (own or searches)[0]
        if source.name not in made:  # one search may serve several problems
            writes = command.action in ("train", "report")
            made[source.name] = choose(source, command.results / source.name, writes)
        found.append(part.chosen(made[source.name]))
    return found


def numbered(command: Command, parts: list[Study]) -> tuple[Study, int]:
    """Return the problem of the run `--run`, and the run's index in it. Raises ConfigError where there are fewer."""
    every = [(part, number) for part in parts for number in range(len(part.runs(command.results)))]
    if not 0 <= command.run < len(every):
        raise ConfigError(f"run is {command.run}; allowed: 0 to {len(every) - 1}, one for each strategy and seed")
    return every[command.run]
