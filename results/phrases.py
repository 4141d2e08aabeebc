"""The numbers in the sentences of README.md and docs/results.md, made from the studies in results/published.

    python results/phrases.py

Prints by page the phrases that it must hold; a test says which it lacks.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("results.phrases")

from pathlib import Path

from diffusion_lib.system.arguments import Parser
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, COMPUTE
from results.tables import ACCOUNTS, KINDS, PUBLISHED, RANDOM, SIZES, VAL, Pair, ladder_pairs, read, sizes_pair, study

IRED = "innerloop"  # IRED's sampler
LEVEL = 2  # at which the pages say what the energies rank


def interval(pair: Pair, sampler: str = IRED, write: str = "{:.2f}") -> tuple[str, str]:
    """Return a pair's ratio of val_mse, and its interval."""
    found = pair.runs.compare(pair.one, pair.other, VAL, sampler)
    return write.format(found.ratio), f"[{write.format(found.low)}, {write.format(found.high)}]"


def steps(pair: Pair) -> tuple[int, int]:
    return pair.runs.steps(pair.one), pair.runs.steps(pair.other)


def readme(root: Path) -> list[str]:
    """Return what README.md says."""
    pairs = {equal: sizes_pair(root, SIZES[0], equal, IRED) for equal in ACCOUNTS}
    (flops, flops_low), (time, time_low), (same, same_low) = (interval(pair) for pair in pairs.values())
    ends = {equal: steps(pair) for equal, pair in pairs.items()}
    free = Pair(study(root, "matrix-free-1200"), ADVERSARIAL, COMPUTE)
    costs = [pair.runs.flops(pair.one) / pair.runs.flops(pair.other) for pair in (pairs["steps"], large(root))]
    check = pairs["steps"].runs.values(pairs["steps"].other, VAL, IRED).loc[0]
    return [
        f"for as many steps ({same} times, {same_low})",
        f"{float(time):.1f} times the error in the same time {time_low} and {float(flops):.1f} times for the same "
        f"training compute {flops_low}",
        f"{ends['steps'][0]:,} steps with mining against {ends['steps'][1]:,}, {ends['time'][1]:,} and "
        f"{ends['FLOPs'][1]:,} without",
        f"that does learn to invert has {float(interval(free)[0]):.0f} times the error",
        f"A step with mining costs {costs[0]:.1f} to {costs[1]:.1f} times the floating-point operations",
        f"val_mse under IRED's sampler, {check}, is",
    ]


def large(root: Path) -> Pair:
    """Return the ladder's 5,000 steps with mining against as many without."""
    return ladder_pairs(root, "steps", (5_000,))[0]


def ranks(root: Path, answer: str) -> list[str]:
    """Return how often the solution's energy is below that of a wrong answer: with mining, without, for its FLOPs."""
    levels = read(root / f"sizes-{SIZES[0]}" / "levels.csv", "strategy", t=int, **{answer: float})
    pairs = [sizes_pair(root, SIZES[0], equal, IRED) for equal in ("steps", "FLOPs")]
    means = levels[levels["t"] == LEVEL].groupby("strategy")[answer].mean()
    return [f"{100 * means[label]:.0f}" for label in (pairs[0].one, pairs[0].other, pairs[1].other)]


def tried(root: Path, label: str) -> str:
    """Return a setting's error in the search of the sizes."""
    return f"{study(root, 'sizes-search').mean(label, VAL, IRED).mean:.5f}"


def kinds(root: Path) -> list[str]:
    """Return what docs/results.md says of kinds of negatives."""
    runs = study(root, "arms")
    found = {name: runs.compare(name, BASELINE, VAL, IRED).ratio for name in KINDS}
    more = {name: f"{100 * effect - 100:.0f}" for name, effect in found.items()}
    costs = [runs.flops(name) / runs.flops(BASELINE) for name in KINDS if name != "late"]
    others = [int(words) for name, words in more.items() if name != RANDOM]
    return [
        f"all but `late` cost {min(costs):.1f} to {max(costs):.1f} times the FLOPs",
        f"`random` is level ({found[RANDOM]:.2f}), the others have {min(others)} to {max(others)}% more error",
        f"(`independent`) the contrast acts, and costs {more['independent']}%",
        f"inverses of near matrices cost {more['near']}%, mined negatives {more[ADVERSARIAL]}%",
        f"costs {more['hinge']}% where softplus costs {more[ADVERSARIAL]}%",
        f"in the last fifth of the steps alone it still costs {more['late']}%",
        f"(`levels`) costs most, {more['levels']}%",
    ]


def results(root: Path) -> list[str]:
    """Return what docs/results.md says."""
    n = SIZES[0]
    ends = {equal: steps(sizes_pair(root, n, equal, IRED)) for equal in ACCOUNTS}
    further = {equal: other - one for equal, (one, other) in ends.items()}
    ratio, low = interval(sizes_pair(root, n, "FLOPs", IRED), "plain")
    regression, other = ranks(root, "auc_regression"), ranks(root, "auc_other")
    free = study(root, "matrix-free-1200")
    whole, same, gained = (
        float(interval(Pair(free, *labels))[0])
        for labels in ((ADVERSARIAL, COMPUTE), (ADVERSARIAL, BASELINE), (BASELINE, COMPUTE))
    )
    settings = ("random,{}", "baseline,{}", "adversarial,{},weight=0.5", "adversarial,{},weight=0.05")
    random, baseline, heavy, light = (tried(root, each.format("learning_rate=0.002")) for each in settings)
    pilot = study(root, "pilot").mean(ADVERSARIAL, VAL, IRED).mean
    return [
        f"at equal FLOPs the baseline's further {further['FLOPs']:,} steps halve",
        f"at equal time its further {further['time']:,} nearly do",
        f"At noise level {LEVEL} a linear regression's answer",
        "in {}% of problems with mining, in {}% without, in {}% after the longer run without".format(*regression),
        "the inverse of another matrix in {}, {} and {}%".format(*other),
        f"(search: {random} against {baseline})",
        f"In the search adversarial has {heavy} with it at 2e-3, and {light} with a tenth",
        f"{ratio} {low} at equal FLOPs, exploratory",
        f"the factor of {whole:.0f} at equal FLOPs {gained:.1f} is the steps not taken",
        f"what is left at equal steps, {same:.1f},",
        f"with two defects mended has {pilot:.5f} at 10,000 steps",
        *kinds(root),
    ]


PHRASES = {"README.md": readme, "docs/results.md": results}


def main(arguments=None):
    Parser(__doc__).parse_args(arguments)
    for page, make in PHRASES.items():
        print(page, *make(PUBLISHED), sep="\n- ")
