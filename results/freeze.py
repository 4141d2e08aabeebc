"""Freeze a study for results/published: study.toml, runs.csv, levels.csv (what its energies rank) and its report.

python results/freeze.py --name arms --to arms --figures intervals
python results/freeze.py --name ladder --to ladder --figures budget --curves
python results/freeze.py --name sizes --to sizes-6 --problem sizes/rank=6 --figures budget causes
python results/freeze.py --name sizes --to sizes-search --problem sizes-search

What stands in the frozen report above the study's question, where the runs are from, is written by hand and kept.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("results.freeze")

import re
import shutil
from pathlib import Path

import pandas as pd

from diffusion_lib.system.arguments import Parser, header
from diffusion_lib.system.checks import check_name
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import read_json, write_atomic
from experiments.analysis.runs import long_form, read_runs
from experiments.study.flags import parse_command
from experiments.study.problems import chosen_problems
from experiments.study.study_file import study_text
from results.tables import PUBLISHED, read


def main(arguments=None):
    """Write a study's files. Raises ConfigError where it has none of that name, a damaged run, or none that ended."""
    parser = Parser(__doc__)
    parser.add_argument("--name", required=True, help="the study")
    parser.add_argument("--results", default="results", help="the folder that it is in")
    parser.add_argument("--problem", help="the folder of one of its problems, or of its search, in that one")
    parser.add_argument("--to", required=True, help="its name in results/published")
    parser.add_argument("--figures", nargs="*", default=[], metavar="NAME", help="those that its report keeps")
    parser.add_argument("--curves", action="store_true", help="write the learning curves too, as curves.csv")
    options = parser.parse_args(arguments)
    command = parse_command("", ["--name", options.name, "--results", options.results, "--report-only"])
    searches = command.study.search_study().problems() if command.study.search else []
    parts = {part.name: part for part in (*searches, *chosen_problems(command))}
    part = parts.get(options.problem or options.name)
    if part is None:
        raise ConfigError(f"problem is {options.problem}; allowed: {', '.join(parts)}")
    folder, target = command.results / part.name, PUBLISHED / options.to
    check_name(options.to)
    frame, damaged = read_runs(folder)
    if damaged or frame.empty:
        raise ConfigError("\n".join(damaged.values()) or f"{folder} has no run that ended")
    header(study=folder, published=target)
    table = long_form(frame, part)
    table["command"] = table["command"].map(in_project)
    texts = {"study.toml": study_text(part), "runs.csv": table.to_csv(index=False)}
    curves, levels = [], []
    for run in frame.drop_duplicates("run").itertuples():
        about = {"strategy": run.strategy, "seed": run.seed}
        if options.curves:
            curves.append(read(folder / run.run / "metrics.csv", "step").assign(**about))
        if run.status == "finished":  # one that diverged has no diagnosis
            path = folder / run.run / "diagnostics.json"
            rows = read_json(path).get("levels")
            if not rows:
                raise ConfigError(f"{path} is damaged (no levels)")
            levels += [about | {key: row[key] for key in row if key == "t" or key.startswith("auc_")} for row in rows]
    tables = {"levels": pd.DataFrame(levels)} | ({"curves": pd.concat(curves)} if curves else {})
    for name, table in tables.items():
        table = table.set_index(["strategy", "seed"]).dropna(axis="columns", how="all")
        texts[f"{name}.csv"] = table.to_csv(float_format="%.6g")
    figures = [folder / f"{name}.png" for name in options.figures]
    absent = [str(figure) for figure in figures if not figure.exists()]
    if absent:
        raise ConfigError(f"there is no {', '.join(absent)}")
    if (folder / "report.md").exists():  # a search has none
        report = (folder / "report.md").read_text("utf-8")
        texts["report.md"] = frozen_report(report, target, part.question, options.figures)
    target.mkdir(exist_ok=True)
    for name, text in texts.items():
        write_atomic(target / name, text)
    for figure in figures:
        shutil.copy(figure, target)


def frozen_report(report: str, target: Path, question: str, figures: list[str]) -> str:
    """Return a study's report with its links to the frozen files, under the head of the one that was frozen before."""
    above = f"\n\n{question}\n"
    before = (target / "report.md").read_text("utf-8") if (target / "report.md").exists() else f"# {target.name}{above}"
    for page, text in ((target / "report.md", before), ("the study's report", report)):
        if above not in text:
            raise ConfigError(f"{page} lacks the study's question, {question!r}")
    sections = re.split(r"(?m)^(?=## )", report.partition(above)[2])
    drawn = [re.search(r"^!\[.*\]\((.*)\.png\)$", each, re.MULTILINE) for each in sections]
    kept = "".join(each for each, image in zip(sections, drawn, strict=True) if not image or image[1] in figures)
    linked = re.sub(r"\]\(\.\./[^)]*\.csv\)", "](runs.csv)", kept)
    return before.partition(above)[0] + above + in_project(linked)


def in_project(text: str) -> str:
    """Return a text with its commands as they are written in the project's folder."""
    return re.sub(r" /\S*/(?=experiments/\S+\.py|results\b)", " ", text)
