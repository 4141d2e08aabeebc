"""What --status and a further command say of a study whose runs stand differently."""

import json
import math
import re
import shutil

import pytest
from conftest import DIVERGED, small_study

from experiments.matrix_inversion_mining_comparison import main
from experiments.study import landscape
from experiments.study.status import duration, status_table


@pytest.fixture
def mixed(tmp_path):
    """A study with a finished, a damaged, a held, two interrupted, a failed, a waiting and a misshapen run."""
    folders = [tmp_path / "shared" / "runs" / "baseline" / f"seed-{k}" for k in range(8)]
    assert main(small_study(tmp_path, "--strategies", "baseline", "--run", "0")) == 0
    for folder in folders[1:6]:
        folder.mkdir(parents=True)
        (folder / "last.pt").write_bytes(b"damaged")
    folders[7].mkdir()
    (folders[7] / "result.json").write_text('{"status": "finished"}')
    return tmp_path, folders


def tell(folder, **content):
    (folder / "progress.json").write_text(json.dumps(content))


@pytest.mark.usefixtures("cheap_report")
def test_status_and_what_other_runs_do_not_stop(mixed, holder, capsys):
    results, folders = mixed
    pid = holder(folders[2]).pid
    tell(folders[2], step=10, steps_per_second=4.0)
    tell(folders[3], step=12)
    (folders[4] / "progress.json").write_text("[1]")
    (folders[5] / "result.json").write_text(json.dumps(DIVERGED))
    tell(folders[1], error="last.pt cannot be read", step=3)
    table = status_table(results / "shared", {folder: 8 - place for place, folder in enumerate(folders)})
    lines = {line.split()[3]: line for line in table.splitlines() if "seed" in line}
    assert [line.split()[0] for line in lines.values()] == list("87654321")
    assert re.search(r"finished +30/30", lines["0"])
    assert re.search(r"error +3/30 +last.pt cannot be read", lines["1"])
    assert re.search(rf"running +10/30 +4 +5 s +process {pid} on .*, heard \d s ago", lines["2"])
    assert re.search(r"interrupted +12/30$", lines["3"].rstrip())
    assert re.search(r"interrupted +0/30$", lines["4"].rstrip())
    assert re.search(r"failed +the loss is not finite", lines["5"])
    assert lines["6"].split()[4:] == ["waiting"]
    assert re.search(r"error .*result.json is no result of a run: see its strategy, seed, samplers", lines["7"])

    capsys.readouterr()
    for folder in folders[3:6]:
        shutil.rmtree(folder)
    assert main(small_study(results, "--strategies", "baseline", "--seeds", "0-3,7")) == 2
    shown = capsys.readouterr()
    assert re.search(r"^failed: baseline seed 1: .*last.pt cannot be read as a checkpoint", shown.err, re.MULTILINE)
    assert re.search(r"^failed: baseline seed 7: .*is no result of a run", shown.err, re.MULTILINE)
    assert f"left to its holder: baseline seed 2: held by process {pid} on" in shown.err
    assert "this report is partial, without the 2 runs that have not ended" in shown.err
    assert (folders[3] / "result.json").exists()
    assert (folders[1] / "last.pt").read_bytes() == b"damaged"
    assert main(small_study(results, "--status", "--strategies", "baseline", "--seeds", "0-3,7")) == 0
    assert "5 runs: 2 finished, 2 error, 1 running" in capsys.readouterr().out


@pytest.mark.usefixtures("cheap_report")
def test_a_run_whose_samples_are_not_finite_has_failed_and_the_report_comes_out(tmp_path, monkeypatch, capsys):
    real = landscape.sampler_metrics

    def diverge(diffusion, *arguments, **options):
        metrics = real(diffusion, *arguments, **options)
        return dict.fromkeys(metrics, math.nan) if diffusion.mining.mode == "random" else metrics

    monkeypatch.setattr(landscape, "sampler_metrics", diverge)
    assert main(small_study(tmp_path, "--strategies", "baseline", "random", "--at-once", "1")) == 2
    said = capsys.readouterr()
    assert "failed: random seed 0: the samples of the plain sampler are not finite" in said.err
    assert re.search(r"^random +[\d,]+ +- \(0 of 1 finite\)", said.out, re.MULTILINE)
    text = (tmp_path / "shared" / "runs" / "random" / "seed-0" / "result.json").read_text()
    json.loads(text, parse_constant=pytest.fail)


def test_durations():
    assert [duration(s) for s in (0.2, 119, 121, 3600, 7500)] == ["1 s", "119 s", "3 min", "1 h 00 min", "2 h 05 min"]
