"""The job files in slurm/: what they say, and what slurm/submit does with stand-ins for Slurm's programs.

Those marked `slurm` submit them to a real Slurm: tests/start-local-slurm makes one node with gpu_test. They are run by
`make test-slurm`, which skips them where no Slurm runs, but in CI, which installs one (as root, by apt).
"""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights

from experiments.matrix_inversion_mining_comparison import main

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "experiments/matrix_inversion_mining_comparison.py"
SMALL = ["--rank=3", "--batch-size=16", "--evaluation-size=64", "--diffusion-steps=3", "--device=cpu"]
STEPS = 200  # of a run that is long enough to be stopped
LONG = [*SMALL, "--train-steps", str(STEPS), "--strategies", "adversarial", "--seeds", "0", "--name", "long"]
ENVIRONMENT = {**os.environ, "IRED_PYTHON": sys.executable}


def call(*arguments, **environment):
    return subprocess.run(
        [str(a) for a in arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(*arguments, **environment) -> str:
    done = call(*arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def slurm():
    """A running Slurm whose logs and jobs of these tests are gone afterwards; stopped if it was started here."""
    was_up = call("sinfo").returncode == 0 if shutil.which("sinfo") else False
    if not was_up and os.environ.get("CI") != "true":
        pytest.skip("no Slurm is running; CI=true installs and starts one (Debian packages, as root)")
    started = call("tests/start-local-slurm")
    if started.returncode:
        reason = (started.stderr.strip() or "no reason given").splitlines()[-1]
        pytest.fail(f"no Slurm: {reason}")
    logs_before = set((ROOT / "slurm" / "logs").iterdir())
    yield
    call("scancel", "--user", "root", "--partition", "gpu_test")
    for log in set((ROOT / "slurm" / "logs").iterdir()) - logs_before:
        log.unlink()
    if not was_up:
        call("tests/start-local-slurm", "stop")


def submit(name, results, *arguments, **environment) -> tuple[str, str]:
    """Submit as `make submit-<name>` does: the job's id, and what was printed."""
    shown = output("slurm/submit", name, "--results", results, *arguments, **environment)
    return re.search(r"^submitted job (\d+)", shown).group(1), shown


def job(identity) -> dict[str, str]:
    """What Slurm knows of a job, or of the task ID_INDEX of an array."""
    return dict(re.findall(r"(\w+)=(\S*)", output("scontrol", "show", "job", identity)))


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, output("squeue")
        time.sleep(0.1)
    return value


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def ended(identity) -> tuple[str, str]:
    """State and exit code of a job, once it has ended."""
    wait_until(lambda: job(identity)["JobState"] in ENDED)
    return job(identity)["JobState"], job(identity)["ExitCode"]


def log(name):
    return (ROOT / "slurm" / "logs" / f"ired-{name}.out").read_text()


@pytest.fixture(scope="module")
def small_jobs(slurm, tmp_path_factory):  # noqa: ARG001
    """Jobs that run beside the first tests: an array, and a pilot one of whose checkpoints is damaged.

    For each the folder of its results, its id, and what submitting it printed.
    """
    runs = [*SMALL, "--train-steps", "20", "--seeds", "0", "--strategies", "baseline", "random", "--name", "small"]
    array, failing = tmp_path_factory.mktemp("array"), tmp_path_factory.mktemp("failing")
    damaged = failing / "small" / "runs" / "baseline" / "seed-0" / "last.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    return {
        "array": (array, *submit("array", array, *runs, SBATCH_ARRAY_INX="0-1%1")),
        "failing": (failing, *submit("pilot", failing, *runs)),
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights of LONG, trained without Slurm and in one go."""
    results = tmp_path_factory.mktemp("whole")
    assert main([*LONG, "--results", str(results), "--run", "0"]) == 0
    return checkpoint(results)


def checkpoint(results):
    return torch.load(results / "long/runs/adversarial/seed-0/last.pt", weights_only=True)


def submit_long(results) -> str:
    """The first and only task of an array that trains LONG."""
    return output("sbatch", "--parsable", "--array=0", "slurm/array.sbatch", "--results", results, *LONG) + "_0"


@pytest.mark.slurm
@pytest.mark.usefixtures("small_jobs")
def test_usr1_requeues_and_the_job_continues_to_the_same_weights(tmp_path, uninterrupted):
    task = submit_long(tmp_path)
    wait_until(lambda: list(tmp_path.rglob("last.pt")))
    output("scancel", "--signal=USR1", "--batch", task)  # what Slurm does 120 s before the time limit
    wait_until(lambda: job(task).get("Restarts") == "1")
    stopped_at = checkpoint(tmp_path)["step"]
    assert 0 < stopped_at < STEPS
    # Slurm would wait two minutes; not within the second of the requeue, for which slurmd refuses the job's credential
    output("scontrol", "update", f"JobId={task}", "StartTime=now+3")
    assert ended(task) == ("COMPLETED", "0:0"), log(f"array-{task}")
    text = log(f"array-{task}")
    assert f"stopped: SIGUSR1 at step {stopped_at}" in text
    assert text.count("back into the queue, to continue") == 1
    assert text.count(f"adversarial seed 0: step {STEPS}/{STEPS}") == 1
    assert_same_weights(uninterrupted["model"], checkpoint(tmp_path)["model"])
    assert_same_weights(uninterrupted["ema"], checkpoint(tmp_path)["ema"])


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_scancel_ends_a_job_and_submitting_again_continues(tmp_path, uninterrupted, capsys):
    task = submit_long(tmp_path)
    wait_until(lambda: list(tmp_path.rglob("last.pt")))
    output("scancel", task)
    assert ended(task)[0] == "CANCELLED"
    assert job(task)["Restarts"] == "0"
    stopped_at = checkpoint(tmp_path)["step"]
    assert 0 < stopped_at < STEPS
    assert main([*LONG, "--results", str(tmp_path), "--status"]) == 0
    assert re.search(rf"adversarial seed 0 +interrupted +{stopped_at}/{STEPS}", capsys.readouterr().out)
    assert ended(submit_long(tmp_path)) == ("COMPLETED", "0:0")
    assert_same_weights(uninterrupted["model"], checkpoint(tmp_path)["model"])


@pytest.mark.slurm
def test_an_array_finishes_and_is_collected(small_jobs):
    results, array, shown = small_jobs["array"]
    collect = re.search(r"reported: by job (\d+)", shown).group(1)
    assert f"tail -F slurm/logs/ired-array-{array}_*.out" in shown
    assert [ended(f"{array}_{i}") for i in (0, 1)] == [("COMPLETED", "0:0")] * 2
    assert ended(collect) == ("COMPLETED", "0:0")
    assert "baseline seed 0: step 20/20" in log(f"array-{array}_0")
    assert "random seed 0: step 20/20" in log(f"array-{array}_1")
    assert "val_mse" not in log(f"array-{array}_1")
    assert "val_mse" in log(f"collect-{collect}")
    with open(results / "small.runs.csv", newline="") as file:
        assert {(row["strategy"], row["seed"]) for row in csv.DictReader(file)} == {("baseline", "0"), ("random", "0")}


@pytest.mark.slurm
def test_a_failing_run_fails_the_job_and_leaves_the_others(small_jobs, capsys):
    results, identity, shown = small_jobs["failing"]
    assert ended(identity) == ("FAILED", "2:0")
    assert "failed: baseline seed 0:" in log(f"pilot-{identity}")
    runs = results / "small" / "runs"
    assert (runs / "baseline" / "seed-0" / "last.pt").read_bytes() == b"damaged"
    assert (runs / "random" / "seed-0" / "result.json").exists()
    command = re.search(r"its runs: (.*)", shown).group(1).split()
    assert command[:2] == [sys.executable, SCRIPT]
    assert main(command[2:]) == 0
    assert "2 runs: 1 error, 1 finished" in capsys.readouterr().out


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_two_jobs_on_one_study_share_its_runs(tmp_path):
    runs = [*SMALL, "--train-steps", "40", "--seeds", "0-1", "--strategies", "baseline", "random", "--name", "shared"]
    with ThreadPoolExecutor() as both:  # at once: a submission takes as long as the runs
        jobs = list(both.map(lambda _: submit("compare", tmp_path, *runs)[0], "ab"))
    # who ends first leaves a run to the other, and must not look done
    last, first = sorted(ended(identity) for identity in jobs)
    assert last == ("COMPLETED", "0:0") and first in (last, ("FAILED", "75:0"))
    trained = [re.findall(r"^(\w+ seed \d): step 40/40", log(f"compare-{identity}"), re.MULTILINE) for identity in jobs]
    assert all(trained)
    assert sorted(trained[0] + trained[1]) == ["baseline seed 0", "baseline seed 1", "random seed 0", "random seed 1"]
    assert len((tmp_path / "shared.runs.csv").read_text().splitlines()) == 1 + 4 * (2 * 4 + 2)


@pytest.fixture
def tools(tmp_path):
    """A PATH with the usual programs, but none of Slurm's."""
    for name in ("bash", "dirname", "sed", "sort", "paste", "grep", "mkdir"):
        (tmp_path / name).symlink_to(shutil.which(name))
    return tmp_path


def refusal(*arguments, **environment) -> str:
    done = call("slurm/submit", *arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def make_program(folder, name, text):
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_submit_says_what_is_missing(tools):
    path = {"PATH": str(tools)}
    assert "unknown job 'train'; allowed: pilot, compare, array, sweep" in refusal("train", **path)
    assert "no sbatch here" in refusal("pilot", **path)
    make_program(tools, "sbatch", "exit 1")
    assert "no Python at /nowhere/python: run 'make setup'" in refusal("pilot", IRED_PYTHON="/nowhere/python", **path)
    make_program(tools, "bare-python", "exit 1")
    assert "bare-python lacks packages" in refusal("pilot", IRED_PYTHON="bare-python", **path)
    assert "sinfo gets no answer" in refusal("pilot", **path)
    make_program(tools, "sinfo", "echo long; echo gpu_test; echo short")
    assert "no partition 'gpu' here, but: gpu_test long short" in refusal("pilot", SBATCH_PARTITION="gpu", **path)
    several = {"SBATCH_PARTITION": "long,gpu", **path}
    assert "no partition 'gpu' here" in refusal("pilot", **several)
    assert "/proc/none" in refusal("pilot", "--results=/proc/none", **path)
    assert "run is 39; allowed: 0 to 7" in refusal("array", "--seeds", "0-1", **path)
    assert "more runs than the array's 40 tasks" in refusal("array", "--seeds", "0-10", "--rank", "3", **path)
    assert "opt_steps is 0" in refusal("sweep", "--vary", "opt_steps=0", **path)
    assert "sbatch refused the job" in refusal("pilot", "--results", tools / "results", **path)


def test_an_array_without_its_report_is_submitted(tools):
    make_program(tools, "sinfo", "echo gpu_test")
    make_program(tools, "sbatch", 'case "$*" in *collect*) exit 1;; esac\necho 4711')
    several = {"PATH": str(tools), "SBATCH_PARTITION": "gpu_test,gpu_test"}
    shown = output("slurm/submit", "array", "--results", tools / "results", **several)
    assert shown.startswith("submitted job 4711 (ired-array) to partition gpu_test,gpu_test")
    assert "reported: by nobody" in shown and shown.endswith(f"--results {tools / 'results'} --report-only")


@pytest.fixture
def site(tools):
    """A PATH with an sbatch that puts its environment and arguments into a file, and a Python that passes checks."""
    for name in ("env", "touch", "mktemp"):
        (tools / name).symlink_to(shutil.which(name))
    make_program(tools, "sinfo", "echo gpu_test; echo other")
    make_program(tools, "sbatch", f'{{ env; echo "arguments: $*"; }} >> {tools}/submitted\necho Welcome\necho "4711;a"')
    make_program(
        tools,
        "python",
        'case "$*" in -c*) ;; *"--run 40 "*) exit 2;; *--check) echo the plan;; *) echo "answered: $*";; esac',
    )
    return tools


@pytest.fixture
def project(tmp_path):
    """A copy of slurm/, for a site.env of its own."""
    shutil.copytree(ROOT / "slurm", tmp_path / "project" / "slurm", ignore=shutil.ignore_patterns("logs", "site.env"))
    return tmp_path / "project"


def at_site(site, command, **environment):
    own = {"PATH": str(site), "IRED_PYTHON": f"{site}/python", **environment}
    return subprocess.run([str(word) for word in command], env=own, capture_output=True, text=True, timeout=60)


def test_what_submit_prints_can_be_copied(site, project):
    """In a shell it gives the arguments that were submitted; the log is the one that Slurm writes."""
    arguments = ["--name", "a b", "--results", "$(touch executed)"]
    done = at_site(site, [project / "slurm" / "submit", "array", *arguments], SBATCH_JOB_NAME="night")
    assert done.stdout.startswith("submitted job 4711 (ired-array)") and done.stderr == "the plan\n"
    assert "tail -F slurm/logs/night-4711_*.out\n" in done.stdout
    runs = re.search(r"its runs: (.*)", done.stdout).group(1)
    assert shlex.split(runs)[1:] == [SCRIPT, "--preset", "full", *arguments, "--status"]


@pytest.mark.parametrize(
    ("word", "status"),
    [("--help", 0), ("--status", 0), ("--check", 0), ("--run=0", 2), ("--task=0", 2), ("--report-only", 2)],
)
def test_what_trains_nothing_submits_nothing(word, status, site, project):
    done = at_site(site, [project / "slurm" / "submit", "pilot", "--seeds", "0", word])
    assert done.returncode == status and len((done.stdout + done.stderr).splitlines()) == 1
    assert not (site / "submitted").exists()


def test_the_commands_own_environment_wins_over_the_sites(site, project):
    (project / "slurm" / "site.env").write_text(
        "export SBATCH_PARTITION=nowhere SBATCH_EXPORT=NONE SBATCH_QOS=low\nIRED_PYTHON=/nowhere/python\n"
    )
    done = at_site(site, [project / "slurm" / "submit", "pilot"], SBATCH_PARTITION="other")
    assert done.returncode == 0, done.stderr
    submitted = (site / "submitted").read_text().splitlines()
    assert {"SBATCH_PARTITION=other", "SBATCH_QOS=low", f"IRED_PYTHON={site}/python"} <= set(submitted)
    assert "SBATCH_EXPORT=IRED_PYTHON,IRED_MPS" in submitted  # else the job would look for another Python


@pytest.mark.parametrize("name", ["USR1", "USR2"])
@pytest.mark.parametrize(("task", "asked"), [({}, "700"), ({"SLURM_ARRAY_TASK_ID": "2"}, "700_2")], ids=["job", "task"])
def test_a_job_that_is_to_stop_requeues_itself_alone(name, task, asked, site, project):
    make_program(site, "scontrol", f'echo "$*" > {site}/asked')
    make_program(site, "python", f"trap 'exit 75' {name}; kill -{name} $PPID; while :; do :; done")
    script = ["bash", "-c", 'cd "$0"; source slurm/common.sh; run_python train', project]
    done = at_site(site, script, SLURM_JOB_ID="700", SLURM_ARRAY_JOB_ID="700", **task)
    assert done.returncode == 75, done.stderr
    assert (site / "asked").read_text() == f"requeue {asked}\n"


def test_the_job_files_say_what_slurm_needs():
    for path in (ROOT / "slurm").glob("*.sbatch"):
        name, text = path.stem, path.read_text()
        lines = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
        assert lines["job-name"] == f"ired-{name}"  # Slurm expands nothing in a job's name
        assert lines["output"] == ("slurm/logs/%x-%A_%a.out" if name == "array" else "slurm/logs/%x-%j.out")
        assert (lines["signal"], lines["open-mode"], lines["requeue"]) == ("B:USR1@120", "append", "")
        assert {"partition", "time", "mem", "cpus-per-task"} <= lines.keys()
        assert ("gres" in lines) == (name != "collect")
        assert "set -euo pipefail\nsource slurm/common.sh\nrun_python experiments/" in text
    assert (ROOT / "slurm" / "logs").is_dir()  # Slurm does not make it, and a job without its log just vanishes
