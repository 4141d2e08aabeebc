import csv
import json

import numpy as np
import pytest
from scipy import stats

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import write_csv
from experiments.paired_studies import main

FLOAT32 = {0: 0.010, 1: 0.012, 2: 0.014}
BF16 = {0: 0.011, 2: 0.0145, 3: 0.2}  # another set of seeds: 0 and 2 are in both


def write_study(results, name, values, **config):
    rows = [
        {"strategy": "baseline", "seed": seed, "sampler": sampler, "val_mse": value + offset}
        for seed, value in values.items()
        for sampler, offset in (("plain", 0), ("innerloop", 1))
    ]
    write_csv(results / f"{name}.runs.csv", rows)
    (results / name).mkdir()
    (results / name / "config.json").write_text(json.dumps({"config": {"rank": 20, **config}}))


def test_shared_seeds_are_compared(tmp_path, capsys):
    write_study(tmp_path, "one", FLOAT32, precision="float32")
    write_study(tmp_path, "two", BF16, precision="bf16")
    main(["one", "two", "--results", str(tmp_path)])
    with open(tmp_path / "two" / "against-one.csv", newline="") as file:
        rows = {row["sampler"]: row for row in csv.DictReader(file)}
    row, first, second = rows["plain"], [0.010, 0.014], [0.011, 0.0145]
    assert int(row["pairs"]) == 2
    assert float(row["first_mean"]) == pytest.approx(stats.gmean(first))
    assert float(row["second_mean"]) == pytest.approx(stats.gmean(second))
    assert float(row["ratio"]) == pytest.approx(stats.gmean(second) / stats.gmean(first))
    assert float(row["p"]) == pytest.approx(stats.ttest_rel(np.log(second), np.log(first)).pvalue)
    assert row["inside_spread"] == "True"
    assert float(rows["innerloop"]["first_mean"]) == pytest.approx(stats.gmean([1.010, 1.014]))
    assert "val_mse; precision: float32, bf16" in capsys.readouterr().out


def test_a_difference_beyond_the_spread_is_said(tmp_path):
    write_study(tmp_path, "one", FLOAT32)
    write_study(tmp_path, "two", {seed: value + 0.01 for seed, value in FLOAT32.items()})
    main(["one", "two", "--results", str(tmp_path)])
    with open(tmp_path / "two" / "against-one.csv", newline="") as file:
        assert {row["inside_spread"] for row in csv.DictReader(file)} == {"False"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "absent"], "there is no .*absent.runs.csv"),
        (["absent", "one"], "there is no study .*absent"),
        (["one", "../one"], "name is '../one'"),
        (["one", "strange"], "no strategy and seed in common"),
        (["one", "zero"], "a val_mse of baseline under plain is exactly 0"),
    ],
)
def test_bad_input(tmp_path, arguments, message):
    write_study(tmp_path, "one", FLOAT32)
    write_study(tmp_path, "strange", {7: 0.1})
    write_study(tmp_path, "zero", {0: 0.0, 1: 0.1})
    with pytest.raises(ConfigError, match=message):
        main([*arguments, "--results", str(tmp_path)])


@pytest.mark.parametrize("name", ["mse", "sampler"])
def test_what_is_no_metric_is_refused(tmp_path, name):
    write_study(tmp_path, "one", FLOAT32)
    with pytest.raises(ConfigError, match=f"metric is '{name}'; allowed: val_mse, ood_mse"):
        main(["one", "one", "--metric", name, "--results", str(tmp_path)])


def test_a_task_is_compared_by_its_own_first_metric(tmp_path, capsys):
    for name, rates in (("one", (0.5, 0.6)), ("two", (0.7, 0.9))):
        write_study(tmp_path, name, dict(enumerate(rates)), dataset="parity-20")
        path = tmp_path / f"{name}.runs.csv"
        path.write_text(path.read_text().replace("val_mse", "val_balanced_accuracy").replace("1.", "0."))
    main(["one", "two", "--results", str(tmp_path)])
    assert "val_balanced_accuracy; no setting differs" in capsys.readouterr().out
    with open(tmp_path / "two" / "against-one.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["difference"]) == pytest.approx(25)
