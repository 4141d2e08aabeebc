"""What a study's file and flags mean: its runs, its pairs, its search; and that a wrong word is one line."""

import csv
import json
import re
import shutil
import tomllib
from dataclasses import replace

import pandas as pd
import pytest
from conftest import small_study

from diffusion_lib.config import ExperimentConfig, step_kind
from diffusion_lib.flops import equal_compute_steps, train_flops
from diffusion_lib.run_folder import write_result
from diffusion_lib.system.errors import ConfigError
from experiments.analysis import search as searching
from experiments.analysis.runs import read_runs
from experiments.analysis.tables import load_results
from experiments.matrix_inversion_mining_comparison import main
from experiments.study import driver, timing
from experiments.study.flags import parse_command
from experiments.study.study import Pair
from experiments.study.study_file import STUDIES, presets, read_study, study_text

TINY = ["--rank", "3", "--batch-size", "8"]


def study_of(*words):
    return parse_command("", [*TINY, *words]).study


def write(path, text):
    path.write_text(text)
    return path


def labels(study):
    return list(study.variants())


def test_a_sweep_has_one_baseline_and_each_strategy_only_what_it_uses():
    found = study_of("--vary", "opt_steps=1,2,5", "scale_factor=0.5,1,2").variants()
    by_strategy = {}
    for each in found.values():
        by_strategy.setdefault(each.strategy.name, []).append(each)
    counts = {name: len(variants) for name, variants in by_strategy.items()}
    # the scale of a step costs nothing, so the baseline of equal compute has a variant for each opt_steps alone
    assert counts == {"baseline": 1, "random": 1, "adversarial": 9, "baseline-compute": 3}
    for each in by_strategy["adversarial"]:
        assert each.config.mining.opt_steps == each.values["opt_steps"]
        assert (
            each.label == f"adversarial,opt_steps={each.values['opt_steps']},scale_factor={each.values['scale_factor']}"
        )
        other = found[f"baseline-compute,opt_steps={each.values['opt_steps']}"]
        a_step = train_flops(other.config.change(train_steps=1))
        assert abs(train_flops(other.config) - train_flops(each.config)) <= a_step / 2 + 1


def test_a_setting_that_is_named_twice_is_varied_over_all_its_values():
    assert study_of("--vary", "opt_steps=1", "opt_steps=5,1").vary == {"opt_steps": (1, 5)}


def test_every_mined_strategy_of_a_sweep_has_its_pairs():
    study = study_of("--vary", "opt_steps=1,2", "scale_factor=1,2")
    pairs = study.pairs("plain")
    mined = [label for label in labels(study) if label.startswith("adversarial")]
    assert [pair for pair in pairs if pair.account == "FLOPs"] == [
        Pair("FLOPs", label, f"baseline-compute,{label.split(',')[1]}") for label in mined
    ]
    assert [pair[1:] for pair in pairs if pair.account == "steps"] == [(label, "baseline") for label in mined]
    assert study.bases() == dict.fromkeys(set(labels(study)) - {"baseline"}, "baseline")


def test_a_setting_of_all_strategies_is_compared_at_its_own_values():
    study = study_of("--vary", "learning_rate=1e-3,2e-3")
    assert Pair("FLOPs", "adversarial,learning_rate=0.002", "baseline-compute,learning_rate=0.002") in study.pairs(
        "plain"
    )
    assert len(study.pairs("plain")) == 4
    assert study.bases()["random,learning_rate=0.001"] == "baseline,learning_rate=0.001"
    budgets = study_of("--vary", "train_steps=10,20", "--strategies", "adversarial", "baseline", "baseline-compute")
    found = budgets.variants()
    longest = found["adversarial,train_steps=20"].config
    compute = found["baseline-compute,train_steps=20"].config
    assert compute.train_steps == equal_compute_steps(compute, longest)
    assert {pair.account for pair in budgets.pairs("plain")} == {"FLOPs", "steps"}


def test_a_rank_is_a_problem_of_its_own():
    study = parse_command("", ["--vary", "rank=3,4", "opt_steps=1,2", "--name", "s", "--batch-size", "8"]).study
    problems = study.problems()
    assert [problem.name for problem in problems] == ["s/rank=3", "s/rank=4"]
    assert [problem.config.rank for problem in problems] == [3, 4]
    assert all("rank" not in label for problem in problems for label in labels(problem))


def test_flags_go_over_the_file_and_the_file_over_the_recipe(tmp_path):
    path = write(tmp_path / "a.toml", 'seeds = "3-4"\n[config]\nmodel = "matrix"\ntrain_steps = 7\nopt_steps = 5\n')
    study = parse_command("", ["--study", str(path), "--train-steps", "9"]).study
    assert (study.name, study.seeds) == ("a", [3, 4])
    config = study.config
    assert (config.model, config.train_steps, config.mining.opt_steps) == ("matrix", 9, 5)
    assert (config.clamp, config.schedule) == ("task", "cosine")  # matrix's recipe
    assert study.variants()["adversarial"].config.mining.opt_steps == 5


def test_the_pair_is_the_studys(tmp_path):
    text = """
compare = ["weak", "strong"]
[strategies]
weak = { mode = "random", weight = 0.1 }
strong = { mode = "random", weight = 0.9 }
strong-compute = { mode = "random", weight = 0.9, compute_of = "weak" }
strong-time = { mode = "random", weight = 0.9, time_of = "weak" }
"""
    study = parse_command("", [*TINY, "--study", str(write(tmp_path / "a.toml", text))]).study
    assert study.pairs("innerloop") == [
        Pair("FLOPs", "weak", "strong-compute"),
        Pair("time", "weak", "strong-time"),
        Pair("steps", "weak", "strong"),
    ]
    assert study.base() == "strong"
    assert study.bases()["weak"] == "strong"


def test_equal_time_is_by_the_seconds_of_a_step():
    study = study_of("--strategies", "adversarial", "baseline-time", "--train-steps", "100")
    variants = study.variants()
    seconds = {step_kind(variants["adversarial"].config): 0.3, step_kind(variants["baseline-time"].config): 0.1}
    assert study.variants(seconds)["baseline-time"].config.train_steps == 300
    assert study.variants(seconds)["adversarial"].config.train_steps == 100


@pytest.mark.parametrize(
    ("trained", "treated"),
    [
        (("baseline", "random"), "random"),
        (("baseline", "random", "baseline-compute"), "random"),
        (("baseline", "random", "adversarial"), "adversarial"),
        (("baseline", "random", "independent"), "adversarial"),
    ],
)
def test_a_single_strategy_trained_beside_the_baseline_is_what_the_verdict_is_about(tmp_path, trained, treated):
    for name in trained:
        (tmp_path / "runs" / name / "seed-0").mkdir(parents=True)
        (tmp_path / "runs" / name / "seed-0" / "config.json").touch()
    study = study_of("--strategies", "baseline", "random").as_trained(tmp_path)
    assert study.compare == (treated, "baseline") and set(study.strategies) == set(trained)


def test_a_report_asks_nothing_of_strategies_that_were_not_trained(tmp_path):
    for name in ("baseline", "adversarial"):
        (tmp_path / "runs" / name / "seed-0").mkdir(parents=True)
        (tmp_path / "runs" / name / "seed-0" / "config.json").touch()
    study = study_of("--strategies", "baseline", "adversarial", "--start", "0.5").as_trained(tmp_path)
    assert list(study.strategies) == ["baseline", "adversarial"]  # `baseline-time` cannot be of equal time


def test_a_studys_file_names_what_was_trained_and_what_that_refers_to(tmp_path):
    def written(*words):
        return list(read_study(write(tmp_path / "a.toml", study_text(study_of(*words))))["strategies"])

    assert written("--strategies", "baseline", "adversarial") == ["baseline", "adversarial"]
    own = "a = { mode = 'random', weight = 0.1 }\nb = { mode = 'none', compute_of = 'a' }\nc = { mode = 'none' }\n"
    file = write(tmp_path / "own.toml", f"compare = ['a', 'c']\n[strategies]\n{own}")
    assert written("--study", str(file), "--strategies", "b") == ["a", "b", "c"]


WRONG = (
    ("trian_steps = 3", "unknown trian_steps in the study; allowed: question, seeds"),
    ("[config]\nbatchsize = 3", "unknown setting batchsize; allowed: dataset, rank"),
    ("[config]\nbatch_size = 'a'", "batch_size is 'a'"),
    ("[config]\nbatch_size = true", "batch_size is True"),
    ("[vary]\nopt_steps = 3", "vary has opt_steps = 3; allowed: a list"),
    ("[vary]\nopt_steps = []", r"vary has opt_steps = \[\]"),
    ("[vary]\nopt_steps = [0]", "opt_steps is 0"),
    ("[vary]\nmode = ['none']", "unknown mode in vary"),
    ("[strategies]\na = { modus = 'none' }", "unknown modus in strategy a; allowed: compute_of, time_of"),
    ("[strategies]\na = { mode = 'x' }", "mining mode is 'x'"),
    ("[strategies]\na = 3", "strategy a is 3"),
    ("[strategies]\na = { mode = 'none', rank = 4 }", "strategy a has rank, which all of a study share"),
    ("[strategies]\na = { mode = 'none', evaluation_size = 4 }", "strategy a has evaluation_size, which all"),
    ("[strategies]\n'a/b' = { mode = 'none' }", "name is 'a/b'"),
    ("[strategies]\na = { mode = 'none', compute_of = 'b' }", "a is trained as long as 'b'; allowed: baseline"),
    ("[strategies]\na = { mode = 'none', compute_of = 'random', time_of = 'random' }", "allowed: one of them"),
    ("[strategies]\na = { mode = 'none', compute_of = 'baseline-compute' }", "which has no steps of its own"),
    ("[strategies]\na = { mode = 'none', compute_of = 'random', train_steps = 3 }", "a has train_steps, but"),
    ("[strategies]\na = { mode = ['none', 'random'] }", r"mining mode is \['none', 'random'\]"),
    ("[strategies]\na = { mode = 'none', samplers = 'plain' }", "samplers of plain, innerloop"),
    ("[strategies]\na = { mode = 'none', samplers = 5 }", "samplers of plain, innerloop"),
    ("[strategies]\na = { mode = 'none', samplers = [['plain']] }", "samplers of plain, innerloop"),
    ("compare = ['adversarial']", "compare is"),
    ("compare = ['adversarial', 'b']", "compare is"),
    ("compare = [['adversarial'], 'baseline']", "compare is"),
    ("compare = ['adversarial', 'adversarial']", "compare is"),
    ("seeds = '3-1'", "the range 3-1 is empty"),
    ("seeds = 3", "seeds is 3; allowed: a text"),
    ("[search]\nseeds = '1'", "search lacks its seeds"),
    ("[search]\nseeds = '1'\nvary = { rank = [3] }", "search varies rank"),
    ("[search]\nseeds = '0'\nvary = { weight = [0.5] }", "seeds 0 are in the search too"),
    ("[search]\nseeds = '1'\nvary = { train_steps = [3, 4] }", "search varies train_steps; allowed where no strategy"),
    ("[vary]\nevaluation_size = [4, 8]", "unknown evaluation_size in vary"),
    ("a = ", "cannot be read as a study"),
)


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_file_is_one_line_and_nothing_is_written(text, message, tmp_path):
    path = write(tmp_path / "a.toml", text)
    short = ["--train-steps", "1", "--evaluation-size", "4"]  # where the file is not refused
    with pytest.raises(ConfigError, match=message) as error:
        main(["--study", str(path), *TINY, *short, "--results", str(tmp_path / "results")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results").exists()


WRONG_WORDS = (
    (["--vary", "opt_steps"], "vary is 'opt_steps'; allowed: KEY=V1,V2"),
    (["--vary", "opt_step=1"], "vary is 'opt_step=1'"),
    (["--vary", "opt_steps=1,x"], "opt_steps is 'x'; allowed: int"),
    (["--vary", "noise_scale=1,nan"], "noise_scale is nan"),
    (["--vary", "opt_steps=1,2", "--opt-steps", "3"], "--opt-steps is what the study varies"),
    (["--preset", "x"], "preset is 'x'; allowed: arms"),
    (["--study", "/nowhere.toml"], "/nowhere.toml cannot be read as a study"),
    (["--strategies", "x"], "unknown strategy 'x'; allowed: baseline"),
    (["--task", "x"], "task is 'x'; allowed: inverse"),
    (["--task", "12"], "run is 12; allowed: 0 to 3"),
    (["--task", "0", "--run", "1"], "allowed: one of them"),
    (["--preset", "tuned", "--run", "0"], "a run of an array follows the search"),
)


@pytest.mark.parametrize(("words", "message"), WRONG_WORDS, ids=range(len(WRONG_WORDS)))
def test_a_wrong_word_is_one_line_and_nothing_is_written(words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        main([*TINY, *words, "--results", str(tmp_path / "results")])
    assert not (tmp_path / "results").exists()


def test_a_question_in_any_letters_is_read_again(tmp_path):
    file = write(tmp_path / "own.toml", 'question = "Is it lower at é\\n\\"there\\" 😀?"')
    study = parse_command("", ["--study", str(file)]).study
    again = parse_command("", ["--study", str(write(tmp_path / "again.toml", study_text(study)))]).study
    assert again.question == study.question == 'Is it lower at é\n"there" 😀?'


@pytest.mark.parametrize("name", presets())
def test_a_declared_study_is_whole(name, tmp_path):
    assert tomllib.loads((STUDIES / f"{name}.toml").read_text())
    study = parse_command("", ["--preset", name]).study
    again = parse_command("", ["--study", str(write(tmp_path / "a.toml", study_text(study)))]).study
    assert replace(again, name=study.name, declared={}) == replace(study, declared={})
    for problem in study.problems():
        assert problem.pairs("plain") or name in ("check", "published-rate")
        assert all(isinstance(each.config, ExperimentConfig) for each in problem.variants().values())


def test_a_number_is_one_value_however_it_is_written(tmp_path):
    """By a file and by a command line: else each of its runs would be made twice."""
    text = '[vary]\nscale_factor = [1, 2]\n[strategies]\nadversarial = { mode = "adversarial", noise_scale = 2 }\n'
    path = write(tmp_path / "a.toml", "\ufeff" + text)  # as some editors begin a file
    study = parse_command("", ["--study", str(path)]).study
    more = parse_command("", ["--study", str(path), "--vary", "scale_factor=1,2,4"]).study
    assert study.labels() == ["adversarial,scale_factor=1.0", "adversarial,scale_factor=2.0"] == more.labels()[:2]
    assert type(study.strategies["adversarial"].settings["noise_scale"]) is float


def test_values_are_checked_beside_the_others_of_their_file(tmp_path):
    both = '[config]\nprecision = "bf16"\n'
    for text in ('[vary]\ncompile = ["off", "on"]\n', '[strategies]\na = { mode = "none", compile = "on" }\n'):
        parse_command("", ["--study", str(write(tmp_path / "a.toml", both + text))])
        with pytest.raises(ConfigError, match="compile is 'on', which needs precision 'bf16'"):
            parse_command("", ["--study", str(write(tmp_path / "a.toml", text))])
    parse_command("", ["--precision", "bf16", "--vary", "compile=off,on"])
    with pytest.raises(ConfigError, match="vary has opt_steps, which baseline and random do not use"):
        parse_command("", ["--strategies", "baseline", "random", "--vary", "opt_steps=1,2"])


def test_a_new_strategy_renumbers_no_run(tmp_path):
    folders = [run.folder for run in study_of("--seeds", "0-2").runs(tmp_path)]
    more = study_of("--seeds", "0-2", "--strategies", *labels(study_of()), "corrupt")
    assert [run.folder for run in more.runs(tmp_path)][: len(folders)] == folders


def quick(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP", 0.0)
    monkeypatch.setattr(timing, "LIMIT", 0.0)


@pytest.mark.usefixtures("cheap_report")
def test_a_sweep_end_to_end(tmp_path, monkeypatch):
    quick(monkeypatch)
    words = small_study(tmp_path, "--vary", "learning_rate=1e-3,1e-2", "--train-steps", "3", "--at-once", "1")
    words += ["--strategies", "baseline", "adversarial", "baseline-compute", "baseline-time", "--seeds", "0"]
    assert main(words) == 0
    text = (tmp_path / "shared" / "report.md").read_text()
    for account in ("FLOPs", "time", "steps"):
        assert len(re.findall(rf"^No verdict at equal {account} \(.*(?:plain|innerloop)\): ", text, re.MULTILINE)) == 4
    with open(tmp_path / "shared.runs.csv", newline="") as file:
        assert len({row["run"] for row in csv.DictReader(file)}) == 8
    times = json.loads((tmp_path / "shared" / "timing.json").read_text())
    run = tmp_path / "shared" / "runs" / "baseline-time,learning_rate=0.01" / "seed-0"
    steps = json.loads((run / "config.json").read_text())["config"]["train_steps"]
    ratio = times["adversarial,learning_rate=0.01"] / times["baseline-time,learning_rate=0.01"]
    assert steps == max(1, round(3 * ratio))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shared/runs/*/*/result.json")}
    assert len(before) == 4 * 2
    assert main(words) == 0  # continued, by the seconds that were measured first
    tables = [(tmp_path / f"shared{ending}").read_bytes() for ending in (".csv", ".runs.csv")]
    assert main(["--report-only", "--name", "shared", "--results", str(tmp_path)]) == 0  # as the folder declares it
    assert tables == [(tmp_path / f"shared{ending}").read_bytes() for ending in (".csv", ".runs.csv")]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("shared/runs/*/*/result.json")}


def test_seconds_that_are_written_stay(tmp_path, monkeypatch):
    """A strategy of equal time was trained as long as they say."""
    quick(monkeypatch)
    configs = {name: each.config for name, each in study_of("--strategies", "baseline", "random").variants().items()}
    timing.write_step_times(tmp_path, {"baseline": configs["baseline"]}, "cpu", 1, False)
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"baseline": 1e6}))
    timing.write_step_times(tmp_path, configs, "cpu", 1, False)
    times = json.loads(path.read_text())
    assert times["baseline"] == 1e6 and times["random"] > 1e4  # of a machine as slow
    timing.write_step_times(tmp_path, configs | {"baseline-time": configs["baseline"]}, "cpu", 1, False)
    assert json.loads(path.read_text())["baseline-time"] == 1e6  # whose steps are of the same kind


EDITED = """
seeds = "0"
compare = ["gentle", "baseline"]
[config]
rank = 3
batch_size = 8
train_steps = 2
evaluation_size = 64
[strategies]
baseline = { mode = "none" }
gentle = { mode = "adversarial", weight = 0.05 }
"""


@pytest.mark.usefixtures("cheap_report")
def test_a_strategy_that_was_edited_is_not_mixed_with_its_earlier_runs(tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    words = ["--study", str(write(tmp_path / "m.toml", EDITED)), "--results", str(tmp_path), "--device", "cpu"]
    assert main(words) == 0
    write(tmp_path / "m.toml", EDITED.replace('"0"', '"1"').replace("0.05", "50.0"))
    with pytest.raises(ConfigError, match=r"gentle/seed-0 .*weight \(there 0.05, now 50.0\)"):
        parsed = parse_command("", words)
        driver.execute(parsed)
    assert not (tmp_path / "m/runs/gentle/seed-1").exists()
    capsys.readouterr()
    run = tmp_path / "m" / "runs" / "gentle"
    shutil.copytree(run / "seed-0", run / "seed-1")
    for name in ("config", "result"):
        text = (run / "seed-1" / f"{name}.json").read_text().replace('"seed": 0', '"seed": 1')
        (run / "seed-1" / f"{name}.json").write_text(text.replace('"weight": 0.05', '"weight": 5.0'))
    result = json.loads((run / "seed-1/result.json").read_text())
    result.pop("digest", None)
    write_result(run / "seed-1", result)
    frame, damaged = read_runs(tmp_path / "m")
    assert set(frame[frame["strategy"] == "gentle"]["seed"]) == {0}
    assert list(damaged) == [run / "seed-1"]


SEARCH = """
seeds = "0"
[config]
rank = 3
batch_size = 8
train_steps = 4
evaluation_size = 16
diffusion_steps = 3
[strategies]
baseline = { mode = "none" }
adversarial = { mode = "adversarial" }
baseline-compute = { mode = "none", compute_of = "adversarial" }
[search]
seeds = "7"
evaluation_size = 8
[search.vary]
learning_rate = [1e-4, 1e-2]
weight = [0.5, 0.05]
"""


@pytest.mark.usefixtures("cheap_report")
def test_each_sampler_judges_the_settings_that_were_best_under_it(tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    path = write(tmp_path / "t.toml", SEARCH)
    best = {"plain": (1e-2, 0.5), "innerloop": (1e-4, 0.05)}
    real = searching.read_runs

    def read(folder):
        frame, damaged = real(folder)
        found = frame.to_dict("records")
        for row in found:
            rate = float(re.search("learning_rate=([^,]*)", row["strategy"]).group(1))
            weight = re.search("weight=([^,]*)", row["strategy"])
            wanted = best[row["sampler"]]
            row["val_mse"] = 1.0 + (rate != wanted[0]) + bool(weight and float(weight.group(1)) != wanted[1])
        return pd.DataFrame(found), damaged

    monkeypatch.setattr(searching, "read_runs", read)
    words = ["--study", str(path), "--results", str(tmp_path), "--device", "cpu", "--at-once", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    runs = {path.parent.parent.name for path in tmp_path.glob("t/runs/*/*/result.json")}
    tuned = ("learning_rate=0.01", "learning_rate=0.0001")
    assert runs == {
        *(f"{name},{rate}" for name in ("baseline", "baseline-compute") for rate in tuned),
        "adversarial,learning_rate=0.01,weight=0.5",
        "adversarial,learning_rate=0.0001,weight=0.05",
    }
    text = (tmp_path / "t" / "report.md").read_text()
    verdicts = re.findall(r"^No verdict at equal FLOPs \(adversarial,(.*?), mlp.*, (\w+)\)", text, re.MULTILINE)
    assert verdicts == [("learning_rate=0.01,weight=0.5", "plain"), ("learning_rate=0.0001,weight=0.05", "innerloop")]
    assert "adversarial under plain: learning_rate 0.01, weight 0.5 (learning_rate, weight: an end of the grid" in said
    rows = [line.split("|") for line in (tmp_path / "t-search" / "search.md").read_text().splitlines() if "| " in line]
    assert len(rows) == 1 + 2 + 4 + 2
    assert sum(bool(row[-2].strip()) for row in rows[1:]) == 6
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("t*/runs/*/*/result.json")}
    assert main([*words, "--status"]) == 0 and main(words) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("t*/runs/*/*/result.json")}
    assert main([*words, "--run", "5"]) == 0
    with pytest.raises(ConfigError, match="run is 6; allowed: 0 to 5"):
        main([*words, "--run", "6"])


@pytest.mark.parametrize(
    ("varied", "costs"),
    [
        # what the baseline does not use decides how long it is trained, and what both use may differ between them
        ("opt_steps = [1, 3]", {"plain": "opt_steps=3", "innerloop": "opt_steps=1"}),
        ("batch_size = [8, 16]", {"plain": "batch_size=16", "innerloop": "batch_size=8"}),
    ],
)
def test_a_baseline_of_equal_compute_follows_the_choice_of_its_reference(tmp_path, monkeypatch, varied, costs):
    text = re.sub("(learning_rate|weight) = .*\n", "", SEARCH) + varied
    study = parse_command("", ["--study", str(write(tmp_path / "t.toml", text))]).study

    def error(label, sampler):  # alone, the baseline would choose opt_steps=1 or a batch of 8 under both samplers
        wanted = costs[sampler] if label.startswith("adversarial") else costs["innerloop"]
        return 1.0 if wanted in label else 2.0

    rows = [
        {"strategy": label, "seed": 7, "sampler": sampler, "val_mse": error(label, sampler)}
        for label in study.search_study().variants()
        for sampler in costs
    ]
    monkeypatch.setattr(searching, "read_runs", lambda _: (pd.DataFrame(rows), {}))
    chosen = study.chosen(searching.choose(study.search_study(), tmp_path, writes=False))
    variants = chosen.variants()
    for sampler, cost in costs.items():
        (pair,) = (pair for pair in chosen.pairs(sampler) if pair.account == "FLOPs")
        assert pair.treated == f"adversarial,{cost}"
        treated, other = (variants[label].config for label in pair[1:])
        assert other.mining.to_dict() == {**treated.mining.to_dict(), "mode": "none", "opt_steps": 2}
        assert abs(train_flops(other) / train_flops(treated) - 1) < 0.1
    again = parse_command("", ["--study", str(write(tmp_path / "chosen.toml", study_text(chosen)))]).study
    told = [(each.label, each.config, each.strategy.samplers) for each in again.variants().values()]
    assert told == [(each.label, each.config, each.strategy.samplers) for each in variants.values()]


def test_another_varied_setting_is_another_study(tmp_path):
    """Its runs would stand in one table with those that lack it, and be compared with none of them."""
    words = trained(tmp_path, "--seeds", "0", "--strategies", "baseline", "adversarial")
    assert main(words) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for further in (["--vary", "opt_steps=1"], ["--vary", "opt_steps=1,2", "--report-only"]):
        with pytest.raises(ConfigError, match="s varies nothing, this command opt_steps; --vary the same, or choose"):
            main([*words, *further])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_runs_that_all_failed_are_listed(tmp_path, capsys):
    assert main(trained(tmp_path, "--seeds", "0-1", "--strategies", "baseline", "--learning-rate", "1e18")) == 2
    _, runs = load_results(tmp_path / "s")
    assert set(runs["status"]) == {"failed"} and runs["value"].isna().all()
    assert set(zip(runs["seed"], runs["sampler"], strict=True)) >= {(0, "plain"), (1, "innerloop")}
    assert "failed: baseline seed 1" in capsys.readouterr().err


def trained(tmp_path, *words, name="s") -> list[str]:
    """The arguments of a small study of that name."""
    small = ["--rank=2", "--train-steps=3", "--batch-size=2", "--evaluation-size=4", "--diffusion-steps=3"]
    chosen = [each for each in small if not any(word.startswith(each[2:].partition("=")[0] + "=") for word in words)]
    return [*chosen, "--device=cpu", "--at-once=1", f"--results={tmp_path}", f"--name={name}", *words]


@pytest.mark.usefixtures("cheap_report")
def test_a_report_is_of_all_that_its_folder_declares(tmp_path):
    """Whatever the last command trained: the earlier values and seeds are compared too, and named as what they are."""
    both = ["--strategies", "baseline", "adversarial"]
    assert main(trained(tmp_path, *both, "--seeds", "0", "1", "2", "--vary", "opt_steps=1,2")) == 0
    assert main(trained(tmp_path, *both, "--seeds", "3", "--vary", "opt_steps=3")) == 0
    summary, runs = load_results(tmp_path / "s")
    assert dict(runs[["strategy", "opt_steps"]].value_counts().groupby("strategy").size()) == {
        "adversarial": 3,
        "baseline": 1,
    }
    assert set(summary.query("strategy == 'adversarial'")["opt_steps"]) == {1, 2, 3}
    assert 'seeds = "0,1,2,3"' in (tmp_path / "s" / "study.toml").read_text()
    before = (tmp_path / "s.csv").read_bytes()
    assert main(["--report-only", "--name", "s", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "s.csv").read_bytes() == before


@pytest.mark.usefixtures("cheap_report")
def test_problems_are_joined_whichever_command_trained_them(tmp_path):
    one = ["--strategies", "baseline", "--seeds", "0"]
    for ranks in ("2,3", "4"):
        assert main(trained(tmp_path, *one, "--vary", f"rank={ranks}")) == 0
    assert set(load_results(tmp_path / "s")[1]["rank"]) == {2, 3, 4}
    assert main(trained(tmp_path, *one[:2], "--seeds", "7", "--vary", "rank=2", "--fresh")) == 0
    found = load_results(tmp_path / "s")[1]
    assert set(map(tuple, found[["rank", "seed"]].to_numpy())) == {(2, 7), (3, 0), (4, 0)}
    with pytest.raises(
        ConfigError, match=r"was declared with another configuration: learning_rate \(there 0.0001, now 0.5\)"
    ):
        main(trained(tmp_path, *one, "--vary", "rank=5", "--learning-rate", "0.5"))
    assert not (tmp_path / "s" / "rank=5").exists()


OWN = """
[strategies]
baseline = { mode = "none" }
adversarial = { mode = "adversarial" }
gentle = { mode = "adversarial", weight = 0.05 }
longer = { mode = "none", compute_of = "adversarial" }
"""


@pytest.mark.usefixtures("cheap_report")
def test_settings_of_a_strategys_own_are_columns_and_what_contradicts_them_is_not_reported(tmp_path, monkeypatch):
    quick(monkeypatch)
    words = trained(tmp_path, "--study", str(write(tmp_path / "a.toml", OWN)), "--seeds", "0")
    assert main(words) == 0
    summary, runs = load_results(tmp_path / "s")
    for table in (summary, runs):
        weights = table.dropna(subset="weight").groupby("strategy")["weight"].unique().map(list)
        assert weights["gentle"] == [0.05] and weights["adversarial"] == [0.5]
    report = (tmp_path / "s" / "report.md").read_bytes()
    for edit in (("compute_of", "time_of"), ("0.05", "0.1")):
        write(tmp_path / "a.toml", OWN.replace(*edit))
        (tmp_path / "s" / "timing.json").write_text(
            json.dumps(json.loads((tmp_path / "s" / "timing.json").read_text()) | {"adversarial": 1.0, "longer": 1.0})
        )
        with pytest.raises(ConfigError, match=r"was made by another configuration: (train_steps|weight)"):
            main([*words, "--report-only"])
    assert (tmp_path / "s" / "report.md").read_bytes() == report


def test_a_strategy_is_not_searched_without_the_one_it_follows(tmp_path):
    path = write(tmp_path / "t.toml", SEARCH)
    words = ["--study", str(path), "--results", str(tmp_path), "--device", "cpu", "--strategies", "baseline-compute"]
    with pytest.raises(ConfigError, match="is trained as long as adversarial, whose settings the search chooses"):
        main(words)
    assert not list(tmp_path.glob("t*/"))
