"""Does adversarial negative mining help IRED invert matrices? Trains each strategy on each seed and compares.

    python experiments/matrix_inversion_mining_comparison.py --preset demo

The same command again continues; finished runs are kept. Exit status: 0 done, 2 bad input or a failed run,
75 stopped by a signal with everything saved.
"""

import argparse
import shutil
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from diffusion_lib.errors import EXIT_BAD_INPUT, ConfigError, exit_status  # noqa: E402
from experiments.config import PRESETS, ExperimentConfig, check_name, parse_seeds  # noqa: E402
from experiments.report import write_report  # noqa: E402
from experiments.run import run_experiment  # noqa: E402
from experiments.run_folder import prepare_folder, read_json  # noqa: E402

# The strategies, by what they change in training. To compare another one, add its line.
STRATEGIES = {
    "baseline": {"mode": "none"},  # IRED without its contrastive term
    "random": {"mode": "random"},  # contrast with noisier samples
    "adversarial": {"mode": "adversarial"},  # IRED as published: noisier samples, then descended on the energy
}


def get_mining_config(strategy: str, config: ExperimentConfig | None = None) -> dict:
    """The `mining_config` dict of a strategy. Raises ConfigError for an unknown one."""
    if strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    return {**(config or ExperimentConfig()).mining_config("adversarial"), **STRATEGIES[strategy]}


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="demo (minutes on a laptop), pilot (10K steps), full (100K)")
    parser.add_argument("--pilot", action="store_const", const="pilot", dest="preset", help="same as --preset pilot")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), metavar="NAME", help=", ".join(STRATEGIES))
    parser.add_argument("--seeds", help="0-9, or 0,2,5")
    for field in fields(ExperimentConfig):
        flag = "--" + field.name.replace("_", "-")
        if field.type in (bool, "bool"):
            parser.add_argument(flag, action="store_true", default=None, help="reproduce the released code's defects")
        else:
            parser.add_argument(flag, type=type(field.default), help=f"default {field.default}")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--name", help="name of the study, default: the preset's and the model's")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="default: results/ of this project")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier study of this name left")
    parser.add_argument("--report-only", action="store_true", help="train nothing; report the finished runs")
    return parser.parse_args(arguments)


def resolve(options: argparse.Namespace) -> tuple[ExperimentConfig, list[int], str]:
    """Configuration, seeds and name: the flags, over the preset, over the defaults. Raises ConfigError."""
    preset = dict(PRESETS.get(options.preset, {}))
    preset_seeds = preset.pop("seeds", "0")
    given = {f.name: getattr(options, f.name) for f in fields(ExperimentConfig) if getattr(options, f.name) is not None}
    config = ExperimentConfig(**{**preset, **given})
    seeds = parse_seeds(options.seeds if options.seeds is not None else preset_seeds)
    for strategy in options.strategies:
        get_mining_config(strategy, config)
    return config, seeds, check_name(options.name or f"{options.preset or 'custom'}-{config.model}")


def run_all(options, config: ExperimentConfig, seeds: list[int], study: Path) -> list[str]:
    """Run what is not finished, seed by seed so that pairs complete early. Returns the failures, one line each."""
    failures = []
    for seed in seeds:
        for strategy in options.strategies:
            folder = study / "runs" / strategy / f"seed-{seed}"
            result = run_experiment(strategy, seed, config, get_mining_config(strategy, config), folder, options.device)
            if result["status"] == "failed":
                failures.append(f"{strategy} seed {seed}: {result['reason']}")
    return failures


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    config, seeds, name = resolve(options)
    study = options.results / name
    if options.fresh and (study / "config.json").exists():
        shutil.rmtree(study)
    failures = []
    if options.report_only:
        config = ExperimentConfig(**read_json(study / "config.json")["config"])
    else:
        prepare_folder(study, config.to_dict())
        failures = run_all(options, config, seeds, study)
    write_report(study, config, list(STRATEGIES))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return EXIT_BAD_INPUT if failures else 0


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
