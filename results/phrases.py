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

import json
import tarfile
from pathlib import Path

import numpy as np

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.flops import step_flops
from diffusion_lib.names import SAMPLERS
from diffusion_lib.system.arguments import Parser
from experiments.analysis.metrics import Metric
from experiments.analysis.statistics import Paired, with_holm
from experiments.analysis.verdict import ACCOUNTS, ADVERSARIAL, BASELINE, COMPUTE
from results.tables import (
    BUDGETS,
    FLAT,
    FLAT_BUDGETS,
    FLAT_SIZE,
    IRED,
    KINDS,
    LONGER,
    OOD,
    PUBLISHED,
    RANDOM,
    RECON,
    SAME_RATE,
    SIZES,
    SIZES_STEPS,
    VAL,
    VARIANTS,
    PublishedPair,
    Runs,
    flat_curves,
    flat_pairs,
    free_means,
    free_pair,
    nearest,
    pair_at,
    public_errors,
    read,
    sizes_pair,
    sizes_pairs,
    sizes_primary,
    study,
    task_studies,
)

LADDER_BATCH, SIZES_BATCH = 128, 256
LEVEL = 2  # at which the pages say what the energies rank


def factor(found: Paired, digits: int = 2) -> str:
    """Write a ratio with its interval."""
    return "{0.effect:.{1}f} times [{0.low:.{1}f}, {0.high:.{1}f}]".format(found, digits)


def interval(pair: PublishedPair) -> str:
    """Write the interval of a pair's ratio of val_mse."""
    found = pair.compare(VAL, IRED)
    return f"[{found.low:.2f}, {found.high:.2f}]"


def times(pair: PublishedPair) -> str:
    """Write how many times the error the first of a pair has."""
    return f"{pair.compare(VAL, IRED).effect:.2f} times"


def at_size(root: Path, n: int) -> str:
    """Write what mining does at a size, by two accounts."""
    flops, steps = (sizes_pair(root, n, equal, IRED) for equal in ("FLOPs", "steps"))
    words = f"mining has {times(flops)} the error {interval(flops)} at equal FLOPs"
    return f"{words}, and {times(steps)} {interval(steps)} at equal steps"


def spent_more(pair: PublishedPair, rank: int, batch_size: int) -> str:
    """Write by how many percent the baseline of a pair at equal charged FLOPs spends more, at the batch that ran."""
    spent = [
        steps * step_flops(ExperimentConfig().change(mode=mode, rank=rank), batch_size)
        for steps, mode in ((pair.steps_with, "adversarial"), (pair.steps_without, "none"))
    ]
    return f"{100 * spent[1] / spent[0] - 100:.0f}%"


def by_plain_sampler(root: Path, steps: int) -> dict[str, Paired]:
    """Compare the plain sampler's choices at the primary size and a budget, by account."""
    pairs = sizes_pairs(root, SIZES[0], "plain", steps)
    return {equal: pair.compare(VAL, "plain") for equal, pair in pairs.items()}


def readme(root: Path) -> list[str]:
    """Return what README.md says."""
    pairs = sizes_pairs(root, SIZES[0], IRED)
    plain, plain_longer = (
        "{FLOPs.effect:.2f}, {time.effect:.2f} and {steps.effect:.2f}".format(**by_plain_sampler(root, steps))
        for steps in (SIZES_STEPS, LONGER)
    )
    small = pairs["steps"]
    large = pair_at(root, "ladder", "FLOPs", steps=5_000)
    level, in_step = (sizes_pair(root, n, "steps", IRED) for n in SIZES[1:])
    early = pair_at(root, "ladder", "FLOPs", steps=BUDGETS[0])
    whole = sizes_pair(root, SIZES[0], "FLOPs", IRED, LONGER)
    longer = whole.compare(VAL, IRED).effect
    same_rate = [found.effect for found in at_one_rate(root)]
    later, public = pair_at(root, FLAT, "FLOPs"), public_errors(root)
    mined = public["adversarial", 35_000]
    others = VAL.compare(mined.to_numpy(), public["none", 98_000].reindex(mined.index).to_numpy())
    return [
        f"With four times the steps the ratio at equal FLOPs is {longer:.2f} {interval(whole)}, {same_rate[0]:.2f} "
        f"where both keep mining's learning rate, {same_rate[1]:.2f} where both have the longer run's",
        f"Under the plain sampler the three ratios are {plain}, with four times the steps {plain_longer}",
        f"a step with mining costs {small.cost:.1f} times the FLOPs",
        f"makes {level.verdict(IRED)} at 4 × 4 ({times(level)} {interval(level)})",
        f"behind ({times(in_step)} {interval(in_step)})",
        f"At IRED's weight it has {kinds_more(root)[ADVERSARIAL]}% more error at equal steps",
        f"mining of {early.steps_with:,} steps has {early.compare(VAL, IRED).effect:.2f} times the error of "
        f"{early.steps_without:,} without",
        f"the baseline got {spent_more(large, 20, LADDER_BATCH)} more at 20 × 20, "
        f"{spent_more(pairs['FLOPs'], SIZES[0], SIZES_BATCH)} at 6 × 6",
        f"of IRED's own setting say {factor(others, 3)}",
        f"{later.steps_with:,} steps with mining on 4 × 4 (one seed, IRED's sampler) have "
        f"{later.compare(VAL, IRED).effect:.2f} times the error at equal FLOPs, but "
        f"{later.compare(OOD, IRED).effect:.2f} times on harder matrices",
    ]


def ranks(root: Path, answer: str) -> list[str]:
    """Return how often the solution's energy is below that of a wrong answer: with mining, without, for its FLOPs."""
    levels = read(root / f"sizes-{SIZES[0]}" / "levels.csv", "strategy", t=int, **{answer: float})
    pairs = [sizes_pair(root, SIZES[0], equal, IRED) for equal in ("steps", "FLOPs")]
    means = levels[levels["t"] == LEVEL].groupby("strategy")[answer].mean()
    return [f"{100 * means[label]:.0f}" for label in (pairs[0].treated, pairs[0].other, pairs[1].other)]


def at_one_rate(root: Path) -> tuple[Paired, Paired]:
    """Compare the larger budget at equal FLOPs where both have mining's rate, then where both have the longer run's."""
    chosen = sizes_pair(root, SIZES[0], "FLOPs", IRED, LONGER)
    at_minings = chosen._replace(other=f"{COMPUTE},learning_rate=0.002,train_steps={LONGER}")
    mined = study(root, "sizes-6-rate").by_seed(ADVERSARIAL, VAL, IRED)
    others = chosen.values(VAL, IRED)[1].reindex(mined.index)
    return at_minings.compare(VAL, IRED), VAL.compare(mined.to_numpy(), others.to_numpy())


def solved_longer(root: Path, sampler: str) -> dict[str, Paired]:
    """Compare the strategies, by account, where IRED's sampler takes more descents at each level."""
    errors = {}
    with tarfile.open(root / f"sizes-{SIZES[0]}" / "finished-runs.tar.xz") as archive:
        for name in archive.getnames():
            if name.startswith(f"sizes/rank={SIZES[0]}/") and name.endswith("/result.json"):
                result = json.load(archive.extractfile(name))
                errors[Path(name).parts[3], result["seed"]] = result["samplers"][sampler][VAL.column]
    found = {}
    for equal in ("FLOPs", "steps"):
        pair = sizes_pair(root, SIZES[0], equal, IRED)
        seeds = pair.values(VAL, IRED)[0].index
        found[equal] = VAL.compare(
            *(np.array([errors[label, s] for s in seeds]) for label in (pair.treated, pair.other))
        )
    return found


def tried(root: Path, label: str) -> str:
    """Return a setting's error in the search of the sizes."""
    return f"{study(root, 'sizes-search').mean(label, VAL, IRED).mean:.5f}"


def kinds_more(root: Path) -> dict[str, str]:
    """Return by kind of negatives by how many percent its error is above that of none, at equal steps."""
    pairs = {name: PublishedPair(study(root, "arms"), name, BASELINE) for name in KINDS | VARIANTS}
    return {name: f"{100 * pair.compare(VAL, IRED).effect - 100:.0f}" for name, pair in pairs.items()}


def kinds(root: Path) -> list[str]:
    """Return what docs/results.md says of kinds of negatives."""
    runs = study(root, "arms")
    pairs = {name: PublishedPair(runs, name, BASELINE) for name in KINDS | VARIANTS}
    found, more = {name: pair.compare(VAL, IRED).effect for name, pair in pairs.items()}, kinds_more(root)
    costs = [pair.cost for name, pair in pairs.items() if name != "late"]
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


def sizes(root: Path) -> list[str]:
    """Return what docs/results.md says of sizes at which the MLP inverts."""
    pairs = sizes_pairs(root, SIZES[0], IRED)
    alone = pairs["steps"].other
    further = {equal: pair.steps_without - pair.steps_with for equal, pair in pairs.items()}
    own = {equal: pair.values(VAL, IRED)[1].mean() for equal, pair in pairs.items()}
    less = {equal: f"{100 - 100 * error / own['steps']:.0f}" for equal, error in own.items()}
    regression, other = ranks(root, "auc_regression"), ranks(root, "auc_other")
    levels = read(root / f"sizes-{SIZES[0]}" / "levels.csv", "strategy", "seed", auc_random=float)
    untaught = levels[~levels["strategy"].str.startswith(RANDOM)]
    worst = untaught.groupby(["strategy", "seed"])["auc_random"].min()
    wrong = 100 * worst[worst < 1]
    settings = ("adversarial,{},weight=0.5", "adversarial,{},weight=0.05")
    heavy, light = (tried(root, each.format("learning_rate=0.002")) for each in settings)
    random = pairs["steps"]._replace(treated=alone.replace(BASELINE, RANDOM))
    primary = sizes_primary(root)
    longer = sizes_pairs(root, SIZES[0], IRED, LONGER)
    whole = longer["FLOPs"]
    fast, slow = at_one_rate(root)
    plain = by_plain_sampler(root, LONGER)
    in_time, in_step = (longer[equal].compare(VAL, IRED) for equal in ("time", "steps"))
    harder = {equal: pair.compare(OOD, IRED) for equal, pair in pairs.items()}
    later = whole.compare(OOD, IRED)
    settled = solved_longer(root, "innerloop40")
    by_recon = [sizes_pair(root, SIZES[2], "steps", IRED).means(RECON, IRED)[i] for i in (0, 1)]
    return [
        f"on the harder matrices mining has {harder['FLOPs'].effect:.2f} times the error at equal FLOPs and "
        f"{harder['steps'].effect:.2f} times at equal steps; after 8,000 steps {factor(later)} at equal FLOPs",
        f"with 40 descents at each level it has {factor(settled['FLOPs'])} at equal FLOPs, and "
        f"{factor(settled['steps'])} at equal steps (256 matrices)",
        "(recon_error {} and {}, answering zero {:.3g})".format(
            *by_recon, reference(root, SIZES[2], "zero matrix", RECON)
        ),
        f"{whole.steps} steps end at {' and '.join(whole.means(VAL, IRED))}, {factor(whole.compare(VAL, IRED))}; at "
        f"equal time, {longer['time'].steps_without:,} steps, it has {factor(in_time)}, in as many steps "
        f"{factor(in_step)}, {longer['steps'].verdict(IRED)}",
        f"where both keep 2e-3, it has {factor(fast)} at equal FLOPs, where both have 1e-3 {factor(slow)} "
        f"({slow.n} seeds",
        f"Under the plain sampler's choices it has {factor(plain['FLOPs'])} at equal FLOPs, {factor(plain['time'])} at "
        f"equal time, and {factor(plain['steps'])} at equal steps",
        f"the ratio of the smaller budget, {longer['time'].steps_without / longer['time'].steps_with:.2f}",
        *(at_size(root, n) for n in SIZES[1:]),
        f"at equal FLOPs the baseline takes {further['FLOPs']:,} steps more, at its best rate for them, and has "
        f"{less['FLOPs']}% less error, at equal time {further['time']:,} more and {less['time']}% less",
        f"p of the {len(primary)} primary tests, by Holm's method over them, is at most {max(primary.values()):.2g}",
        f"At noise level {LEVEL}, of 0 to 9, a linear regression's answer",
        "in {}% of problems with mining, in {}% without, in {}% after the longer run without".format(*regression),
        "the inverse of another matrix in {}, {} and {}%".format(*other),
        f"{len(worst) - len(wrong)} of the {len(worst)} energies here that were trained without them",
        f"the other {len(wrong)}, without mining, in {wrong.min():.0f} to {wrong.max():.1f}% at their worst level",
        f"their run is the baseline's, with {factor(random.compare(VAL, IRED))} its error at equal steps",
        f"In the search (one seed) adversarial has {heavy} with it at 2e-3, and {light} with a tenth",
    ]


def flat(root: Path) -> list[str]:
    """Return what docs/results.md says of the longest runs."""
    longer, same = (pair_at(root, FLAT, equal) for equal in ("FLOPs", "steps"))
    curve = flat_curves(root)[longer.other]
    last = curve.index[-1]
    fall = VAL.compare(curve.loc[nearest(curve, last / 2)].to_numpy(), curve.loc[last].to_numpy()).effect
    same_rate = [pairs[SAME_RATE] for steps in FLAT_BUDGETS if SAME_RATE in (pairs := flat_pairs(root, steps))]
    shares = [found.effect for _, found in same_rate]
    harder = [runs.compare(OOD, IRED).effect for runs in (longer, same)]
    others = [longer.runs.mean(label, OOD, IRED).mean for label in (longer.treated, longer.other, same.other)]
    return [
        f"{longer.steps} steps end at {' and '.join(longer.means(VAL, IRED))}, {times(longer)}",
        f"the last doubling of the run without mining divides its error by {fall:.1f}",
        f"in as many steps at one rate mining has {times(same)}",
        f"At equal FLOPs and one rate {min(shares):.1f} to {max(shares):.1f} times",
        f"On the harder matrices mining is ahead there, with {harder[0]:.2f} times the error of the longer run and "
        f"{harder[1]:.2f} times that of the one of as many steps: {others[0]:.2f}, against {others[1]:.2f} and "
        f"{others[2]:.2f}, and {reference(root, FLAT_SIZE, 'linear regression', OOD):.2f} of a linear regression",
    ]


def published_setting(root: Path) -> list[str]:
    """Return what docs/results.md says of the published setting."""
    regression = reference(root, 20, "linear regression")
    mined = public_errors(root)["adversarial", 10_000]
    steps = read(root / "benchmark.csv", "measured", ours_ms=float).set_index("measured")["ours_ms"]
    pilot = study(root, "pilot").mean(ADVERSARIAL, VAL, IRED).mean
    return [
        f"both stand at a linear regression's error ({regression:.4f})",
        f"a step with mining takes {steps['step, adversarial'] / steps['step, none']:.2f} times as long",
        f"with two defects mended, has {pilot:.5f} at 10,000 steps, where theirs have {mined.min():.5f} to "
        f"{mined.max():.5f}",
    ]


def reference(root: Path, n: int, answer: str, metric: Metric = VAL) -> float:
    """Return the error of an answer without a network."""
    table = read(root / "references.csv", "rank", "strategy", **{metric.column: float})
    return table.set_index(["rank", "strategy"])[metric.column][n, answer]


def energies(root: Path) -> list[str]:
    """Return what docs/results.md says of other energies."""
    pairs = {equal: free_pair(root, equal) for equal in ACCOUNTS}
    found = {equal: pair.compare(VAL, IRED) for equal, pair in pairs.items()}
    shorter, longer = (pairs[equal].values(VAL, IRED)[1] for equal in ("steps", "FLOPs"))
    gained = VAL.compare(shorter.to_numpy(), longer.reindex(shorter.index).to_numpy()).effect
    early, later = (pair_at(root, "ladder", "steps", steps=steps) for steps in BUDGETS[:2])
    large = pair_at(root, "ladder", "FLOPs", steps=5_000)
    off = large.runs.mean(large.other, RECON, IRED).mean / reference(root, 20, "zero matrix", RECON)
    means = free_means(root)
    falls = (means.shift() / means).stack()
    return [
        f"(recon_error {off:.1f} times that of answering zero)",
        f"in a trial twice the steps divide its error by {falls.min():.0f} to {falls.max():.0f}",
        f"mining has {factor(found['FLOPs'], 1)} the error at equal FLOPs, {factor(found['time'], 1)} at equal time "
        f"({pairs['time'].steps_without:,} steps), and {factor(found['steps'])} at equal steps, undecided (by "
        f"recon_error {factor(pairs['steps'].compare(RECON, IRED), 1)})",
        f"the longer run without mining has {gained:.1f} times less error than the shorter one",
        f"at one rate for all mining had {factor(pair_at(root, 'matrix-free-1200', 'FLOPs').compare(VAL, IRED), 1)}",
        f"at equal steps it is behind there ({times(early)}), ahead at 2,500 ({factor(later.compare(VAL, IRED))})",
    ]


def connectivity(runs: Runs, metrics: tuple[Metric, ...]) -> list[str]:
    """Return what docs/results.md says of connectivity."""
    balanced, right = metrics[0], Metric("ood_accuracy", rate=True)
    alone, mined = (100 * runs.by_seed(strategy, balanced, IRED) for strategy in (BASELINE, ADVERSARIAL))
    least = [100 * runs.by_seed(strategy, balanced, "plain").min() for strategy in (BASELINE, ADVERSARIAL)]
    harder = [100 * runs.mean(strategy, right, IRED).mean for strategy in (ADVERSARIAL, COMPUTE)]
    p = runs.comparison(ADVERSARIAL, COMPUTE, right, IRED).p
    return [
        f"runs of the baseline alone lie between {alone.min():.0f} and {alone.max():.0f}",
        f"{(alone < 55).sum()} of {len(alone)} baselines are below 55, runs with mining between {mined.min():.0f} and "
        f"{mined.max():.0f}; under the plain sampler baselines reach {least[0]:.0f} or more, mining {least[1]:.0f} or "
        "more",
        f"mining has {harder[0]:.1f}% of the harder pairs right, the longer baseline {harder[1]:.1f}% "
        f"({runs.effect(ADVERSARIAL, COMPUTE, right, IRED)}, p {p:.3f} before".replace("p 0.", "p ."),
    ]


def tasks(root: Path) -> list[str]:
    """Return what docs/results.md says of other tasks."""
    found = task_studies(root)
    tests = {
        (name, sampler): PublishedPair(runs, ADVERSARIAL, COMPUTE).compare(metrics[0], sampler)
        for name, (runs, metrics) in found.items()
        for sampler in SAMPLERS
    }
    adjusted = {test: found.p_holm for test, found in with_holm(tests).items()}
    runs, metrics = found["sudoku"]
    seeds = runs.mean(ADVERSARIAL, metrics[0], IRED).n
    own = with_holm({sampler: tests["sudoku", sampler] for sampler in SAMPLERS})  # by the protocol's change 10
    return [
        *connectivity(*found["connectivity-2"]),
        f"does not confirm ({adjusted['shortest-path-10-1d', 'plain']:.3f})".replace("(0.", "(."),
        f"hurts at equal FLOPs on {seeds} seeds (p by Holm over both samplers: plain "
        f"{own['plain'].p_holm:.1g}, IRED's {own[IRED].p_holm:.1g})",
        f"mining is ahead, {runs.effect(ADVERSARIAL, BASELINE, metrics[0], IRED)}",
        f"by the plain one {runs.effect(ADVERSARIAL, BASELINE, metrics[0], 'plain')}",
    ]


def results(root: Path) -> list[str]:
    """Return what docs/results.md says."""
    return [*sizes(root), *flat(root), *kinds(root), *published_setting(root), *energies(root), *tasks(root)]


PHRASES = {"README.md": readme, "docs/results.md": results}


def main(arguments=None):
    Parser(__doc__).parse_args(arguments)
    for page, make in PHRASES.items():
        print(page, *make(PUBLISHED), sep="\n- ")
