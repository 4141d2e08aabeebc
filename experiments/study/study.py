"""What a study is: strategies, each a named change of the configuration, trained on the same seeds and compared."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from diffusion_lib.config import ExperimentConfig, check_name, configure, parse_seeds, recipe, setting_names
from diffusion_lib.energies import MODELS
from diffusion_lib.names import SAMPLERS
from diffusion_lib.negatives import MODES, MiningConfig
from diffusion_lib.run_folder import run_folders
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS

DECLARATION = "study.toml"  # in a study's folder
STUDIES = Path(__file__).resolve().parents[1] / "studies"  # the declared ones
QUESTION = "Does adversarial negative mining make an IRED energy-based diffusion model better?"
PROBLEM = ("dataset", "rank")  # the settings that say what is solved: each problem is compared by itself
SHARED = (*PROBLEM, "evaluation_size")  # without which errors are of other problems, and cannot be compared
STEPS, FLOPS, TIME = "steps", "FLOPs", "time"  # the accounts by which two strategies are trained equally long
# Settings that change no step's work, so that steps which differ in them alone take the same time.
WITHOUT_WORK = {"train_steps": 1, "learning_rate": 1e-4, "schedule": "constant", "evaluation_size": 1}
WITHOUT_WORK |= {"scale_factor": 1.0, "noise_scale": 1.0, "weight": 1.0, "start": 0.0}


@dataclass(frozen=True)
class Strategy:
    """A way to train: the settings in which it differs from its study's.

    compute_of, time_of: the strategy whose training FLOPs, or measured seconds, it is trained for.
    origin: the strategy of which it is the choice of a search; itself where it is none.
    samplers: those under which it is judged.
    """

    name: str
    settings: Mapping = field(default_factory=dict)
    compute_of: str | None = None
    time_of: str | None = None
    origin: str = ""
    samplers: tuple[str, ...] = tuple(SAMPLERS)

    def __post_init__(self):
        if not self.origin:
            object.__setattr__(self, "origin", self.name)

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
    vary: the values at which each strategy is trained, of the settings that it uses.
    compare: the two strategies that the verdict compares; the second stands for all that differ from it only in how
    long they are trained, `alike`.
    declared: the strategies of its file, of which `strategies` may be some.
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
    alike: tuple[str, ...] = ()

    def __post_init__(self):
        known = self.known
        if not self.alike:
            wanted = known[self.compare[1]].settings
            alike = [name for name, each in known.items() if each.settings == wanted]
            object.__setattr__(self, "alike", tuple(alike))
        for each in (each for each in self.strategies.values() if each.reference):
            if each.reference not in known:
                raise ConfigError(f"{each.name} is trained as long as {each.reference!r}; allowed: {', '.join(known)}")
            if "train_steps" in each.settings:
                raise ConfigError(f"{each.name} has train_steps, but is trained as long as {each.reference}")
            if known[each.reference].reference:
                raise ConfigError(f"{each.name} is trained as long as {each.reference}, which has no steps of its own")
        shared = set(self.search.seeds).intersection(self.seeds) if self.search else ()
        if shared:
            raise ConfigError(f"seeds {' '.join(map(str, sorted(shared)))} are in the search too; allowed: other ones")
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
        """All strategies that can be named, whether this command trains them or not."""
        return known_strategies() | self.declared | self.strategies

    @property
    def paced(self) -> bool:
        """Whether a strategy is trained by the measured time of another."""
        return any(each.time_of for each in self.strategies.values())

    def joined(self, earlier: dict) -> "Study":
        """Return this study with the strategies and values of an earlier command, as `read_study` returns them."""
        vary = {
            key: tuple(dict.fromkeys((*earlier["vary"].get(key, ()), *self.vary.get(key, ()))))
            for key in earlier["vary"] | self.vary
        }
        return replace(self, vary=vary, strategies=earlier["strategies"] | self.strategies)

    def named(self) -> dict[str, Strategy]:
        """Return what its file must say: its strategies, and those that they or the verdict refer to."""
        others = {*(each.reference for each in self.strategies.values()), *self.compare} - {None}
        usual = known_strategies()
        return {
            name: each
            for name, each in (self.declared | self.strategies).items()
            if name in self.strategies or (name in others and usual.get(name) != each)
        }

    def problems(self) -> list["Study"]:
        """Return a study for each problem that this one solves, with a folder of its own where there are several."""
        keys = [key for key in self.vary if key in PROBLEM]
        rest = {key: values for key, values in self.vary.items() if key not in keys}
        found = []
        for values in product(*(self.vary[key] for key in keys)):
            own = dict(zip(keys, values, strict=True))
            name = "/".join([self.name, *([label_of("", own)] if own else [])])
            found.append(replace(self, name=name, settings={**self.settings, **own}, vary=rest))
        return found

    def variants(self, seconds: dict | None = None) -> dict[str, Variant]:
        """Return by label each strategy at each combination of varied settings that it uses or that decide its steps.

        seconds: of a step, by `step_kind`; without them a strategy of equal time gets the steps of equal FLOPs.
        """
        found = {}
        for strategy in self.strategies.values():
            keys = self._keys(strategy)
            grid = [dict(zip(keys, each, strict=True)) for each in product(*(self.vary[key] for key in keys))]
            configs = [self._config(strategy, values, seconds) for values in grid]
            for key in keys:
                if not self._uses(strategy, key) and not _matters(key, grid, configs):
                    grid = [{name: value for name, value in values.items() if name != key} for values in grid]
            for values, config in zip(grid, configs, strict=True):
                label = label_of(strategy.name, values)
                found.setdefault(label, Variant(label, strategy, values, config))
        return found

    def labels(self) -> list[str]:
        """Return the labels of `variants`, whose steps are counted only where values are varied."""
        return list(self.variants() if self.vary else self.strategies)

    def _keys(self, strategy: Strategy) -> list[str]:
        """Return the varied settings that the strategy uses, or that decide how long it is trained."""
        both = [strategy, *([self.known[strategy.reference]] if strategy.reference else [])]
        return [key for key in self.vary if any(self._uses(each, key) for each in both)]

    def _uses(self, strategy: Strategy, key: str) -> bool:
        if key in strategy.settings or (key == "train_steps" and strategy.reference):
            return False
        mode = strategy.settings.get("mode", self.settings.get("mode", MiningConfig.mode))
        return key not in setting_names(MiningConfig) or MiningConfig(mode).uses(key)

    def as_trained(self, folder: Path) -> "Study":
        """Return this study with all strategies that any command trained in its folder, for a report.

        The verdict is about its pair, or, where the first of it was not trained, about the only other strategy that
        was trained beside the baseline.
        """
        trained = {path.parent.name for path in run_folders(folder)}
        every = replace(self, strategies=self.known)
        kept = {each.strategy.name for each in every.variants().values() if each.label in trained}
        strategies = {name: each for name, each in every.strategies.items() if name in kept}
        treated, base = self.compare
        others = {each.origin for each in strategies.values()}.difference(self.alike)
        if treated not in others and len(others) == 1:
            treated = others.pop()
        return replace(self, strategies=strategies, compare=(treated, base))

    def _config(self, strategy: Strategy, values: dict, seconds: dict | None) -> ExperimentConfig:
        own = {key: value for key, value in values.items() if self._uses(strategy, key)}
        config = self.configuration(**{**own, **strategy.settings})
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
        found = []
        for one in (each for each in variants if each.strategy.origin == self.compare[0]):
            for other in (each for each in variants if each.strategy.origin in self.alike):
                reference = other.strategy.reference
                if not agree(one.values, other.values):
                    continue
                if reference and self.known[reference].origin == one.strategy.origin:
                    found.append(Pair(other.strategy.account, one.label, other.label))
                elif not reference and one.config.train_steps == other.config.train_steps:
                    found.append(Pair(STEPS, one.label, other.label))
        return sorted(found, key=lambda pair: (FLOPS, TIME, STEPS).index(pair.account))

    def base(self) -> str:
        """Return the strategy to whose errors a table relates those of all others."""
        plain = [name for name in self.alike if name in self.strategies and not self.strategies[name].reference]
        return next(iter(plain), self.compare[1])

    def bases(self) -> dict[str, str]:
        """Return by label the label of `base` at the same values of the varied settings, where there is just one."""
        variants = self.variants().values()
        plain = [each for each in variants if each.strategy.origin in self.alike and not each.strategy.reference]
        found = {}
        for each in variants:
            own = [
                o for o in plain if agree(each.values, o.values) and {*o.strategy.samplers} & {*each.strategy.samplers}
            ]
            if len(own) == 1 and own[0].label != each.label:
                found[each.label] = own[0].label
        return found

    def varied(self) -> list[str]:
        """Return the settings in which its runs may differ, beside the mining's and the steps."""
        own = {key for each in self.strategies.values() for key in each.settings}
        return sorted(own.union(self.vary) - set(setting_names(MiningConfig)) - {"train_steps"})

    def search_study(self) -> "Study":
        """Return the study of the search."""
        problems = {key: self.vary[key] for key in self.vary if key in PROBLEM and key not in self.search.settings}
        settings = {**self.settings, **self.search.settings}
        return replace(
            self,
            name=f"{self.name}-search",
            settings=settings,
            seeds=self.search.seeds,
            vary=problems | self.search.vary,
            search=None,
            is_search=True,
        )

    def chosen(self, choices: dict[str, dict[str, dict]]) -> "Study":
        """Return this study with each strategy at the values that its search chose.

        choices: by sampler and strategy, those values.
        Where two samplers choose differently both choices are trained, each judged under its sampler.
        """
        strategies = {}
        for sampler, chosen in choices.items():
            names = {name: label_of(name, values) for name, values in chosen.items()}
            for name, values in chosen.items():
                each = self.strategies[name]
                settings = {**each.settings, **values}
                there = strategies.get(names[name])
                judged = (*(there.samplers if there else ()), sampler)
                compute, time = (names.get(other, other) for other in (each.compute_of, each.time_of))
                strategies[names[name]] = Strategy(names[name], settings, compute, time, name, judged)
        return replace(self, strategies=strategies, declared=strategies, search=None)


def _matters(key: str, grid: list[dict], configs: list[ExperimentConfig]) -> bool:
    """Return whether two combinations that differ in the setting alone have different configurations."""
    seen = {}
    for values, config in zip(grid, configs, strict=True):
        others = tuple((name, value) for name, value in values.items() if name != key)
        if seen.setdefault(others, config) != config:
            return True
    return False


def agree(one: dict, other: dict) -> bool:
    """Return whether two combinations have the same value of each setting that both have."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def label_of(name: str, values: dict) -> str:
    """Return a label such as `adversarial,opt_steps=5`."""
    return ",".join([*([name] if name else []), *(f"{key}={value}" for key, value in values.items())])


def run_folder(study: Path, label: str, seed: int) -> Path:
    return study / "runs" / label / f"seed-{seed}"


def step_kind(config: ExperimentConfig) -> ExperimentConfig:
    """Return what decides how long a step takes: configurations of the same kind take the same time."""
    return config.change(**WITHOUT_WORK)


def usual_strategies(config: ExperimentConfig) -> dict[str, Strategy]:
    """Return the strategies that a configuration's task and model can be trained with, where a study names none."""
    if not MODELS[config.model].has_energy:
        return {"baseline": STRATEGIES["baseline"]}
    corrupt = {"corrupt": known_strategies()["corrupt"]} if TASKS[config.dataset].rules.corruption else {}
    return STRATEGIES | corrupt


def presets() -> list[str]:
    """Return the names of the studies in experiments/studies."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


KEYS = {"question": str, "seeds": str, "compare": list} | dict.fromkeys(
    ("config", "vary", "strategies", "search"), dict
)


def read_study(path: Path) -> dict:
    """Read a study's file: `question`, `seeds`, `compare`, [config], [vary], [strategies], [search].

    Returns what the file says, checked: seeds as a list, strategies as `Strategy`, the search as `Search`. Raises
    ConfigError, which names the file and the key.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a study: {' '.join(str(error).split())}") from None
    try:
        return _checked(said)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _checked(said: dict) -> dict:
    require_keys(said, KEYS, "the study")
    for key, value in said.items():
        if not isinstance(value, KEYS[key]):
            kind = {str: "a text", list: "a list of names", dict: "a table"}[KEYS[key]]
            raise ConfigError(f"{key} is {value!r}; allowed: {kind}")
    configure(said.get("config", {}))
    found = dict(said)
    if "seeds" in said:
        found["seeds"] = parse_seeds(said["seeds"])
    found["vary"] = checked_values(said.get("vary", {}))
    found["strategies"] = {name: _strategy(name, each) for name, each in said.get("strategies", {}).items()}
    if "compare" in said:
        known = known_strategies() | found["strategies"]
        two = said["compare"]
        if len(two) != 2 or two[0] == two[1] or not all(name in list(known) for name in two):
            raise ConfigError(f"compare is {two!r}; allowed: two of {', '.join(known)}")
        found["compare"] = tuple(two)
    if "search" in said:
        search = dict(said["search"])
        if not isinstance(search.get("seeds"), str) or not isinstance(search.get("vary"), dict):
            raise ConfigError("search lacks its seeds (a text) or its vary (a table)")
        seeds, vary = parse_seeds(search.pop("seeds")), checked_values(search.pop("vary"))
        if not vary or set(vary) & set(SHARED):
            there = ", ".join(vary) or "nothing"
            raise ConfigError(f"search varies {there}; allowed: settings but {', '.join(SHARED)}")
        configure(search)
        found["search"] = Search(seeds, vary, search)
    return found


def _strategy(name: str, said) -> Strategy:
    for part in name.split(","):  # a choice of a search is called by its settings
        check_name(part.replace("=", "-"))
    if not isinstance(said, dict):
        raise ConfigError(f"strategy {name} is {said!r}; allowed: a table such as {{ mode = 'adversarial' }}")
    own = {key: value for key, value in said.items() if key in ("compute_of", "time_of", "origin", "samplers")}
    settings = {key: value for key, value in said.items() if key not in own}
    for key, value in own.items():
        if key == "samplers":
            right = isinstance(value, list) and all(each in list(SAMPLERS) for each in value)
        else:
            right = isinstance(value, str)
        if not right:
            allowed = f"a list of samplers of {', '.join(SAMPLERS)}" if key == "samplers" else "the name of a strategy"
            raise ConfigError(f"{key} of strategy {name} is {value!r}; allowed: {allowed}")
    if own.keys() >= {"compute_of", "time_of"}:
        raise ConfigError(f"strategy {name} has compute_of and time_of; allowed: one of them")
    require_keys(settings, setting_names(), f"strategy {name}", ("compute_of", "time_of"))
    configure(settings)
    shared = [key for key in settings if key in SHARED]
    if shared:
        raise ConfigError(f"strategy {name} has {', '.join(shared)}, which all of a study share; allowed: in [config]")
    if "samplers" in own:
        own["samplers"] = tuple(own["samplers"])
    return Strategy(name, settings, **own)


def require_keys(said: dict, allowed, where: str, further=()):
    """Raise ConfigError for a key that is not allowed."""
    unknown = [key for key in said if key not in allowed]
    if unknown:
        raise ConfigError(f"unknown {', '.join(unknown)} in {where}; allowed: {', '.join([*further, *allowed])}")


def checked_values(vary: dict) -> dict[str, tuple]:
    """Return the values to vary, by setting. Raises ConfigError for one that is not allowed."""
    require_keys(vary, [name for name in setting_names() if name != "mode"], "vary")
    for key, values in vary.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"vary has {key} = {values!r}; allowed: a list of values")
        for value in values:
            configure({key: value})
    return {key: tuple(dict.fromkeys(values)) for key, values in vary.items()}


def study_text(study: Study) -> str:
    """Write a study as the text of its file, which `read_study` reads."""
    seeds = ",".join(map(str, study.seeds))
    lines = _lines({"question": study.question, "seeds": seeds, "compare": study.compare})
    lines += ["", "[config]", *_lines(study.settings), "", "[vary]", *_lines(study.vary), "", "[strategies]"]
    for each in study.named().values():
        lengths = {key: value for key in ("compute_of", "time_of") if (value := getattr(each, key))}
        chosen = {} if each.origin == each.name else {"origin": each.origin, "samplers": each.samplers}
        table = ", ".join(_lines({**each.settings, **lengths, **chosen}))
        lines.append(f"{json.dumps(each.name, ensure_ascii=False)} = {{ {table} }}")
    if study.search:
        own = {"seeds": ",".join(map(str, study.search.seeds)), **study.search.settings}
        lines += ["", "[search]", *_lines(own), "", "[search.vary]", *_lines(study.search.vary)]
    return "\n".join(lines) + "\n"


def _lines(values: Mapping) -> list[str]:
    """Write values in TOML, where texts, numbers, truths and lists of them look as in JSON."""
    # TOML has no surrogates, by which JSON escapes some characters.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
