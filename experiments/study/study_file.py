"""Read, check and write the file that declares a study: docs/studies.md says what it holds."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diffusion_lib.config import configure, fractions, parse_seeds, setting_names
from diffusion_lib.names import SAMPLERS
from diffusion_lib.system.checks import check_name
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import write_atomic
from experiments.study.study import SHARED, Search, Strategy, Study, known_strategies

DECLARATION = "study.toml"  # in a study's folder
STUDIES = Path(__file__).resolve().parents[1] / "studies"  # the declared ones
TABLES = ("config", "vary", "strategies", "search")
KEYS = {"question": str, "seeds": str, "compare": list} | dict.fromkeys(TABLES, dict)
KINDS = {str: "a text", list: "a list of names", dict: "a table"}
LENGTHS = ("compute_of", "time_of")  # of a strategy: whose training it is as long as


def presets() -> list[str]:
    """Return the names of the studies in experiments/studies."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def read_study(path: Path) -> dict:
    """Return what a study's file says, checked: seeds as a list, strategies as `Strategy`, the search as `Search`.

    `vary` and `strategies` are there, also where the file has none.
    Raises ConfigError, which names the file and the key.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
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
            raise ConfigError(f"{key} is {value!r}; allowed: {KINDS[KEYS[key]]}")
    config = fractions(said.get("config", {}))
    configure(config)
    found = {**said, "config": config}
    if "seeds" in said:
        found["seeds"] = parse_seeds(said["seeds"])
    found["vary"] = checked_values(said.get("vary", {}), config)
    found["strategies"] = {name: _strategy(name, each, config) for name, each in said.get("strategies", {}).items()}
    if "compare" in said:
        two, known = said["compare"], [*(known_strategies() | found["strategies"])]
        if len(two) != 2 or two[0] == two[1] or not all(name in known for name in two):
            raise ConfigError(f"compare is {two!r}; allowed: two of {', '.join(known)}")
        found["compare"] = tuple(two)
    if "search" in said:
        found["search"] = _search(dict(said["search"]), config)
    return found


def _search(said: dict, config: dict) -> Search:
    if not isinstance(said.get("seeds"), str) or not isinstance(said.get("vary"), dict):
        raise ConfigError("search lacks its seeds (a text) or its vary (a table)")
    seeds, vary, said = parse_seeds(said.pop("seeds")), said.pop("vary"), fractions(said)
    vary = checked_values(vary, config | said)
    if not vary or set(vary) & set(SHARED):
        raise ConfigError(f"search varies {', '.join(vary) or 'nothing'}; allowed: settings but {', '.join(SHARED)}")
    configure(config | said)
    return Search(seeds, vary, said)


def _strategy(name: str, said, config: dict) -> Strategy:
    for word in name.split(","):  # a choice of a search is called by its settings
        check_name(word.replace("=", "-"))
    if not isinstance(said, dict):
        raise ConfigError(f"strategy {name} is {said!r}; allowed: a table such as {{ mode = 'adversarial' }}")
    own = {key: value for key, value in said.items() if key in (*LENGTHS, "origin", "samplers")}
    settings = fractions({key: value for key, value in said.items() if key not in own})
    for key, value in own.items():
        if key != "samplers":
            right, allowed = isinstance(value, str), "the name of a strategy"
        else:
            right = isinstance(value, list) and all(each in [*SAMPLERS] for each in value)
            allowed = f"a list of samplers of {', '.join(SAMPLERS)}"
        if not right:
            raise ConfigError(f"{key} of strategy {name} is {value!r}; allowed: {allowed}")
    if own.keys() >= {*LENGTHS}:
        raise ConfigError(f"strategy {name} has compute_of and time_of; allowed: one of them")
    require_keys(settings, setting_names(), f"strategy {name}", LENGTHS)
    configure(config | settings)
    shared = [key for key in settings if key in SHARED]
    if shared:
        raise ConfigError(f"strategy {name} has {', '.join(shared)}, which all of a study share; allowed: in [config]")
    choice_of, samplers = own.pop("origin", None), tuple(own.pop("samplers", SAMPLERS))
    return Strategy(name, settings, **own, choice_of=choice_of, samplers=samplers)


def require_keys(said: dict, allowed, where: str, further=()):
    """Raise ConfigError for a key that is not allowed."""
    unknown = [key for key in said if key not in allowed]
    if unknown:
        raise ConfigError(f"unknown {', '.join(unknown)} in {where}; allowed: {', '.join([*further, *allowed])}")


def checked_values(vary: dict, config: dict) -> dict[str, tuple]:
    """Return the values to vary, by setting. Raises ConfigError for one that is not allowed.

    config: the other settings, by name.
    """
    require_keys(vary, [name for name in setting_names() if name not in ("mode", "evaluation_size")], "vary")
    for key, values in vary.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"vary has {key} = {values!r}; allowed: a list of values")
        for value in values:
            configure(config | {key: value})
    return {key: tuple(fractions({key: value})[key] for value in dict.fromkeys(values)) for key, values in vary.items()}


def require_same_vary(folder: Path, study: Study):
    """Raise ConfigError where the study in a folder varies other settings: its runs would be none of this one's."""
    path = folder / DECLARATION
    earlier = read_study(path)["vary"] if path.exists() else study.vary
    if earlier.keys() != study.vary.keys():
        there, now = (", ".join(vary) or "nothing" for vary in (earlier, study.vary))
        raise ConfigError(f"{folder} varies {there}, this command {now}; --vary the same, or choose another --name")


def united(folder: Path, study: Study, fresh: bool = False) -> Study:
    """Return a study with the strategies, values and seeds that earlier commands declared in its folder.

    fresh: without their seeds.
    """
    path = folder / DECLARATION
    if not path.exists():
        return study
    earlier = read_study(path)
    each = earlier["vary"] | study.vary
    vary = {key: tuple(dict.fromkeys((*earlier["vary"].get(key, ()), *study.vary.get(key, ())))) for key in each}
    seeds = sorted({*study.seeds, *(() if fresh else earlier.get("seeds", ()))})
    strategies = earlier["strategies"] | study.strategies
    return replace(
        study, vary=vary, seeds=seeds, strategies=strategies, declared=earlier["strategies"] | study.declared
    )


def declare(folder: Path, study: Study, fresh: bool = False):
    """Write a study's file into its folder, for commands that train nothing, and for readers: see `united`."""
    write_atomic(folder / DECLARATION, study_text(united(folder, study, fresh)))


def study_text(study: Study) -> str:
    """Return the text of a study's file: its strategies, and those that they or the verdict refer to."""
    lines = _lines({"question": study.question, "seeds": _text(study.seeds), "compare": study.compare})
    lines += ["", "[config]", *_lines(study.settings), "", "[vary]", *_lines(study.vary), "", "[strategies]"]
    usual = known_strategies().items()  # which need not be written to be known
    referred = {*(each.reference for each in study.strategies.values()), *study.compare}
    for name, each in (study.declared | study.strategies).items():
        if name not in study.strategies and (name not in referred or (name, each) in usual):
            continue
        lengths = {key: value for key in LENGTHS if (value := getattr(each, key))}
        chosen = {} if each.origin == each.name else {"origin": each.origin, "samplers": each.samplers}
        table = ", ".join(_lines({**each.settings, **lengths, **chosen}))
        lines.append(f"{json.dumps(name, ensure_ascii=False)} = {{ {table} }}")
    if study.search:
        own = {"seeds": _text(study.search.seeds), **study.search.settings}
        lines += ["", "[search]", *_lines(own), "", "[search.vary]", *_lines(study.search.vary)]
    return "\n".join(lines) + "\n"


def _text(seeds: list[int]) -> str:
    return ",".join(map(str, seeds))


def _lines(values: Mapping) -> list[str]:
    """Write values in TOML, where texts, numbers, truths and lists of them look as in JSON."""
    # TOML has no surrogates, by which JSON escapes some characters.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
