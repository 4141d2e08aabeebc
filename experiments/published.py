"""The tables of README.md and docs/results.md, recomputed from the runs in results/published.

    python experiments/published.py
    python experiments/published.py --write

Prints them, and the words in which README.md says what they say; --write puts the tables into the pages, each in the
place of the one with the same header. A test holds the pages to both.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()


from functools import partial
from pathlib import Path

from diffusion_lib.system.arguments import Parser, header
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError, exit_status
from diffusion_lib.system.files import write_atomic
from experiments.analysis.runs import read_ended
from experiments.pages import ladder, matrix_energies, pilot, tasks, tuned
from experiments.pages.words import VERDICT_HEADERS, table

PUBLISHED = ROOT / "results" / "published"


def verdicts_table(root: Path) -> str:
    """Adversarial over baseline at equal compute by val_mse, and the verdicts by the protocol's rule."""
    return table(
        ladder.verdict_rows(root) + tuned.verdict_rows(root) + matrix_energies.verdict_rows(root), VERDICT_HEADERS
    )


def ratios_table(root: Path) -> str:
    """Adversarial over baseline by val_mse, at one learning rate and each at its own best settings."""
    return ladder.ratios_table("val_mse", ladder.ratio_cells(root) + tuned.ratio_cells(root))


TABLES = {
    "README.md": (verdicts_table, tasks.table_of_usual_and_harder),
    "docs/results.md": (
        ratios_table,
        ladder.means_table,
        ladder.rises_table,
        *(partial(ladder.secondary_table, metric=metric) for metric in ladder.METRICS[1:]),
        tuned.means_table,
        pilot.runs_table,
        pilot.curves_table,
        tasks.details_table,
        matrix_energies.others_table,
        matrix_energies.scale_table,
        matrix_energies.free_table,
        matrix_energies.curve_table,
    ),
}


def answer_words(root: Path) -> list[str]:
    """Phrases of README.md."""
    return [words for part in (ladder, tuned, matrix_energies, pilot, tasks) for words in part.answer_words(root)]


def with_table(text: str, table: str, page: str = "the page") -> str:
    """A page's text with the table in place of the one of the same header. Raises ConfigError unless it has one."""
    lines, new = text.splitlines(), table.splitlines()
    places = [i for i, line in enumerate(lines) if header_words(line) == header_words(new[0])]
    if len(places) != 1:
        raise ConfigError(f"{page} has {len(places)} tables with the header {new[0]}; allowed: 1")
    end = next((i for i in range(places[0], len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join([*lines[: places[0]], *new, *lines[end:]]) + "\n"


def header_words(line: str) -> list[str]:
    return [word.strip() for word in line.split("|")]


def main(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    options = parser.parse_args(arguments)
    if not list(PUBLISHED.glob("ladder-*/")):
        raise ConfigError(f"no ladder-* in {PUBLISHED}")
    _, damaged = read_ended(*{path.parent for path in PUBLISHED.rglob("runs/")})
    if damaged:
        raise ConfigError("; ".join(damaged.values()))
    header(results=PUBLISHED)
    tables = {page: [make(PUBLISHED) for make in makers] for page, makers in TABLES.items()}
    print("\n\n".join([table for made in tables.values() for table in made] + ["\n".join(answer_words(PUBLISHED))]))
    if options.write:
        pages = {ROOT / page: (ROOT / page).read_text("utf-8") for page in tables}
        for page, made in tables.items():
            for table in made:
                pages[ROOT / page] = with_table(pages[ROOT / page], table, page)
        for path, text in pages.items():
            write_atomic(path, text)


if __name__ == "__main__":
    with exit_status():
        main()
