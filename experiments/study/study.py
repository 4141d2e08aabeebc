"""What a study is: strategies, each a named change of the configuration, trained on the same seeds and compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from diffusion_lib.config import ExperimentConfig, configure, recipe, setting_names, step_kind
from diffusion_lib.energies import MODELS
from diffusion_lib.names import SAMPLERS
from diffusion_lib.negatives import MODES, MiningConfig
from diffusion_lib.run_folder import run_folders
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS

QUESTION = "Does adversarial negative mining make an IRED energy-based diffusion model better?"
PROBLEM = ("dataset", "rank")  # the settings that say what is solved: each problem is compared by itself
SHARED = (*PROBLEM, "evaluation_size")  # without which errors are of other problems, and cannot be compared
STEPS, FLOPS, TIME = "steps", "FLOPs", "time"  # the accounts by which two strategies are trained equally long


@dataclass(frozen=True)
class Strategy:
    """A way to train: the settings in which it differs from its study's.

    compute_of: the strategy whose training FLOPs it is trained for.
    time_of: the strategy whose measured seconds it is trained for.
    choice_of: the strategy for which a search chose it.
    samplers: those under which it is judged.
    """

    name: str
    settings: Mapping = field(default_factory=dict)
    compute_of: str | None = None
    time_of: str | None = None
    choice_of: str | None = None
    samplers: tuple[str, ...] = tuple(SAMPLERS)

    @property
    def origin(self) -> str:
        """The name that it has in its study's file."""
        return self.choice_of or self.name

    @property
    def reference(self) -> str | None:
        """The strategy that decides how long this one is trained."""
        return self.compute_of or self.time_of

    @property
    def account(self) -> str:
        """What it shares with the strategy that it is trained as long as: FLOPs, time or steps."""
        return FLOPS if self.compute_of else TIME if self.time_of else STEPS


# What a study compares, unless it says otherwise. To compare another one, add its line, or name it in a study's file.
STRATEGIES = {
    each.name: each
    for each in (
        Strategy("baseline", {"mode": "none"}),  # IRED without its contrastive term
        Strategy("random", {"mode": "random"}),  # contrast with noisier samples
        Strategy("adversarial", {"mode": "adversarial"}),  # IRED: noisier samples, then descended on the energy
        Strategy("baseline-compute", {"mode": "none"}, compute_of="adversarial"),
    )
}


def known_strategies() -> dict[str, Strategy]:
    """Return all that --strategies can name: the default ones, one a further mode, the baseline of equal time."""
    modes = {name: Strategy(name, {"mode": name}) for name in MODES if name != "none" and name not in STRATEGIES}
    return STRATEGIES | modes | {"baseline-time": Strategy("baseline-time", {"mode": "none"}, time_of="adversarial")}


class Variant(NamedTuple):
    """A strategy at one combination of the varied settings; `label` is its name in folders and tables."""

    label: str
    strategy: Strategy
    values: dict
    config: ExperimentConfig

    def value(self, key: str):
        """Return the value of a setting: the varied one, also where it only decides how long the variant is trained."""
        return self.values.get(key, self.config.flat()[key])


class Pair(NamedTuple):
    """Two labels that are compared, and the account by which they were trained equally long."""

    account: str
    treated: str
    other: str


class Run(NamedTuple):
    """One variant on one seed, with its own `config`, the mining included, and the `folder` where it is trained."""

    label: str
    seed: int
    config: ExperimentConfig
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.label} seed {self.seed}"


@dataclass(frozen=True)
class Search:
    """Settings that every strategy tries on other seeds, so that the study trains it at its own best ones."""

    seeds: list[int]
    vary: dict[str, tuple]
    settings: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Strategies trained on the same seeds. Raises ConfigError for what is not allowed.

    settings: by name, what differs from the recipe of its task and model.
    strategies: those that are trained.
    vary: the values at which each strategy is trained, of the settings that it uses.
    compare: the two strategies that the verdict compares; the second stands for all that are `alike`.
    declared: the strategies of its file, of which `strategies` may be some, and a search's choices.
    is_search: whether its runs only serve to choose settings: none are compared.
    """

    name: str
    settings: Mapping
    seeds: list[int]
    strategies: dict[str, Strategy]
    vary: dict[str, tuple] = field(default_factory=dict)
    compare: tuple[str, str] = ("adversarial", "baseline")
    search: Search | None = None
    question: str = QUESTION
    declared: dict[str, Strategy] = field(default_factory=dict)
    is_search: bool = False

    def __post_init__(self):
        known = self.known
        for each in (each for each in self.strategies.values() if each.reference):
            if each.reference not in known:
                raise ConfigError(f"{each.name} is trained as long as {each.reference!r}; allowed: {', '.join(known)}")
            if "train_steps" in each.settings:
                raise ConfigError(f"{each.name} has train_steps, but is trained as long as {each.reference}")
            if known[each.reference].reference:
                raise ConfigError(f"{each.name} is trained as long as {each.reference}, which has no steps of its own")
        for each in self.strategies.values() if self.search else ():
            if each.reference and each.reference not in self.strategies:
                needed = f"{each.reference}, whose settings the search chooses"
                raise ConfigError(f"{each.name} is trained as long as {needed}; name both in --strategies")
        shared = set(self.search.seeds).intersection(self.seeds) if self.search else ()
        if shared:
            raise ConfigError(f"seeds {' '.join(map(str, sorted(shared)))} are in the search too; allowed: other ones")
        if self.search and "train_steps" in self.search.vary and any(s.reference for s in self.strategies.values()):
            raise ConfigError("search varies train_steps; allowed where no strategy is trained as long as another")
        if "mode" in self.vary:
            raise ConfigError("mode is not varied: each mode is a strategy's")

    def configuration(self, **changed) -> ExperimentConfig:
        """Return the study's configuration: its task and model's recipe, under its own settings and those `changed`."""
        said = {**self.settings, **changed}
        return configure(recipe(*(said.get(key) for key in ("dataset", "model", "match_release"))) | said)

    @property
    def config(self) -> ExperimentConfig:
        return self.configuration()

    @property
    def known(self) -> dict[str, Strategy]:
        """Return all strategies that can be named, whether this command trains them or not."""
        return known_strategies() | self.declared | self.strategies

    @property
    def alike(self) -> list[str]:
        """Return the strategies that differ from the second of `compare` only in how long they are trained, with it."""
        wanted, named = self.known[self.compare[1]].settings, known_strategies() | self.declared
        return [name for name, each in named.items() if name == each.origin and each.settings == wanted]

    @property
    def paced(self) -> bool:
        """Return whether a strategy is trained by the measured time of another."""
        return any(each.time_of for each in self.strategies.values())

    def problems(self) -> list["Study"]:
        """Return a study for each problem that this one solves, with a folder of its own where there are several."""
        keys = [key for key in self.vary if key in PROBLEM]
        rest = {key: values for key, values in self.vary.items() if key not in keys}
        found = []
        for own in self._combinations(keys):
            name = f"{self.name}/{label_of('', own)}" if own else self.name
            found.append(replace(self, name=name, settings={**self.settings, **own}, vary=rest))
        return found

    def _combinations(self, keys: list[str]) -> list[dict]:
        return [dict(zip(keys, values, strict=True)) for values in product(*(self.vary[key] for key in keys))]

    def variants(self, seconds: dict | None = None) -> dict[str, Variant]:
        """Return by label each strategy at each combination of varied settings that it uses or that decide its steps.

        seconds: of a step, by `step_kind`; without them a strategy of equal time gets the steps of equal FLOPs.
        """
        found = {}
        for strategy in self.strategies.values():
            keys = self.keys_of(strategy)
            grid = self._combinations(keys)
            configs = [self._config(strategy, values, seconds) for values in grid]
            for key in keys:
                if not self.uses(strategy, key) and not _matters(key, grid, configs):
                    grid = [{name: value for name, value in values.items() if name != key} for values in grid]
            for values, config in zip(grid, configs, strict=True):
                label = label_of(strategy.name, values)
                found.setdefault(label, Variant(label, strategy, values, config))
        return found

    def labels(self) -> list[str]:
        """Return the labels of `variants`, whose steps are counted only where values are varied."""
        return list(self.variants() if self.vary else self.strategies)

    def keys_of(self, strategy: Strategy) -> list[str]:
        """Return the varied settings that the strategy uses, or that decide how long it is trained."""
        both = [strategy, *([self.known[strategy.reference]] if strategy.reference else [])]
        return [key for key in self.vary if any(self.uses(each, key) for each in both)]

    def uses(self, strategy: Strategy, key: str) -> bool:
        """Return whether a strategy is trained otherwise at another value of a setting, as long as it is trained."""
        if key in strategy.settings or (key == "train_steps" and strategy.reference):
            return False
        mode = strategy.settings.get("mode", self.settings.get("mode", MiningConfig.mode))
        return key not in setting_names(MiningConfig) or MiningConfig(mode).uses(key)

    def _settings(self, strategy: Strategy, values: dict) -> dict:
        """Return a strategy's own settings, and those of the varied values that it uses."""
        return {**strategy.settings, **{key: value for key, value in values.items() if self.uses(strategy, key)}}

    def as_trained(self, folder: Path) -> "Study":
        """Return this study with all strategies that any command trained in its folder, for a report.

        The verdict is about its pair, or, where the first of it was not trained, about the only other strategy that
        was trained beside the baseline.
        """
        trained = {path.parent.name for path in run_folders(folder)}
        # of no other, which may be one that these settings cannot have
        named = {
            name: each
            for name, each in self.known.items()
            if any(label == name or label.startswith(f"{name},") for label in trained)
        }
        variants = replace(self, strategies=named, declared=self.known).variants().values()
        strategies = {each.strategy.name: each.strategy for each in variants if each.label in trained}
        treated, base = self.compare
        others = {each.origin for each in strategies.values()}.difference(self.alike)
        if treated not in others and len(others) == 1:
            treated = others.pop()
        return replace(self, strategies=strategies, compare=(treated, base))

    def _config(self, strategy: Strategy, values: dict, seconds: dict | None) -> ExperimentConfig:
        config = self.configuration(**self._settings(strategy, values))
        if not strategy.reference:
            return config
        reference = self._config(self.known[strategy.reference], values, seconds)
        if strategy.time_of and any(each.mining.first_contrast(each.train_steps) for each in (config, reference)):
            raise ConfigError(f"{strategy.name} is of equal time, and its reference's steps differ; allowed: start 0")
        if strategy.time_of and seconds:
            ratio = seconds[step_kind(reference)] / seconds[step_kind(config)]
            return config.change(train_steps=max(1, round(reference.train_steps * ratio)))
        from diffusion_lib.flops import equal_compute_steps  # here, since it imports torch, which takes seconds

        return config.change(train_steps=equal_compute_steps(config, reference))

    def runs(self, results: Path, seconds: dict | None = None) -> list[Run]:
        """Return all runs, strategy by strategy, so that one added at the end renumbers none of those before it."""
        variants = self.variants(seconds).values()
        return [
            Run(each.label, seed, each.config, run_folder(results / self.name, each.label, seed))
            for each in variants
            for seed in self.seeds
        ]

    def pairs(self, sampler: str) -> list[Pair]:
        """Return the pairs that the verdict is about under a sampler, at equal FLOPs first, then time, then steps."""
        variants = [each for each in self.variants().values() if sampler in each.strategy.samplers]
        treated = [each for each in variants if each.strategy.origin == self.compare[0]]
        others = [each for each in variants if each.strategy.origin in self.alike]
        found = [
            Pair(other.strategy.account, one.label, other.label)
            for one, other in product(treated, others)
            if agree(one.values, other.values) and self._equally_long(one, other)
        ]
        return sorted(found, key=lambda pair: (FLOPS, TIME, STEPS).index(pair.account))

    def _equally_long(self, one: Variant, other: Variant) -> bool:
        reference = other.strategy.reference
        if reference:
            return self.known[reference].origin == one.strategy.origin
        return one.config.train_steps == other.config.train_steps

    def base(self) -> str:
        """Return the strategy to whose errors a table relates those of all others."""
        plain = [name for name in self.alike if name in self.strategies and not self.strategies[name].reference]
        return plain[0] if plain else self.compare[1]

    def bases(self) -> dict[str, str]:
        """Return by label the label of `base` at the same values of the varied settings, where there is just one."""
        variants, found = self.variants().values(), {}
        plain = [each for each in variants if each.strategy.origin in self.alike and not each.strategy.reference]
        for each in variants:
            judged = [other for other in plain if {*other.strategy.samplers} & {*each.strategy.samplers}]
            own = [other.label for other in judged if agree(each.values, other.values)]
            if len(own) == 1 and own != [each.label]:
                found[each.label] = own[0]
        return found

    def columns(self) -> list[str]:
        """Return the settings that tables show: those that vary, and those that strategies have of their own."""
        own = [key for each in self.strategies.values() for key in each.settings if key not in ("mode", "train_steps")]
        return list(dict.fromkeys((*self.vary, *own)))

    def varied(self) -> list[str]:
        """Return the settings in which its runs may differ, beside the mining's and the steps."""
        own = {key for each in self.strategies.values() for key in each.settings}
        return sorted(own.union(self.vary) - set(setting_names(MiningConfig)) - {"train_steps"})

    def search_study(self) -> "Study":
        """Return the study of the search."""
        problems = {key: self.vary[key] for key in self.vary if key in PROBLEM and key not in self.search.settings}
        return replace(
            self,
            name=f"{self.name}-search",
            settings={**self.settings, **self.search.settings},
            seeds=self.search.seeds,
            vary=problems | self.search.vary,
            search=None,
            is_search=True,
        )

    def chosen(self, choices: dict[str, dict[str, dict]]) -> "Study":
        """Return this study with each strategy at the values that its search chose.

        choices: by sampler and strategy, those values.
        Where two samplers choose differently both choices are trained, each judged under its sampler; so are equal
        choices that are trained as long as choices of another cost.
        """
        strategies = {}
        for sampler, chosen in choices.items():
            labels = {name: label_of(name, values) for name, values in chosen.items()}
            for name, label in labels.items():
                each = self.strategies[name]
                compute, time = (labels.get(other, other) for other in (each.compute_of, each.time_of))
                made = Strategy(label, self._settings(each, chosen[name]), compute, time, name, (sampler,))
                there = strategies.get(label)
                differs = there and there.reference != made.reference
                if differs and self._steps(there, choices) != self._steps(made, choices):
                    label = label_of(label, {"sampler": sampler})
                    made, there = replace(made, name=label), None
                strategies[label] = replace(made, samplers=(*(there.samplers if there else ()), sampler))
        return replace(self, strategies=strategies, declared=self.declared | strategies, search=None)

    def _steps(self, choice: Strategy, choices: dict[str, dict[str, dict]]) -> int:
        """Return how long one of the `choices` of a search is trained."""
        references = {
            label_of(name, chosen[name]): replace(each, settings=self._settings(each, chosen[name]))
            for name, each in self.strategies.items()
            for chosen in choices.values()
            if not each.reference
        }
        return replace(self, strategies=self.strategies | references)._config(choice, {}, None).train_steps


def _matters(key: str, grid: list[dict], configs: list[ExperimentConfig]) -> bool:
    """Return whether two combinations that differ in the setting alone have different configurations."""
    others = [tuple(value for name, value in values.items() if name != key) for values in grid]
    return len({*others}) < len({*zip(others, configs, strict=True)})


def agree(one: dict, other: dict) -> bool:
    """Return whether two combinations have the same value of each setting that both have."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def label_of(name: str, values: dict) -> str:
    """Return a label such as `adversarial,opt_steps=5`."""
    return ",".join([*([name] if name else []), *(f"{key}={value}" for key, value in values.items())])


def run_folder(study: Path, label: str, seed: int) -> Path:
    return study / "runs" / label / f"seed-{seed}"


def usual_strategies(config: ExperimentConfig) -> dict[str, Strategy]:
    """Return the strategies that a configuration's task and model can be trained with, where a study names none."""
    if not MODELS[config.model].has_energy:
        return {"baseline": STRATEGIES["baseline"]}
    corrupt = {"corrupt": known_strategies()["corrupt"]} if TASKS[config.dataset].rules.corruption else {}
    return STRATEGIES | corrupt
