"""What is written is whole, named where it fails, and as open to others as the user's umask says."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lib.build import check_fits, describe_data
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.run_folder import prepare_folder, read_config
from diffusion_lib.system import files
from diffusion_lib.system.errors import ConfigError
from experiments.matrix_inversion_mining_comparison import main
from experiments.study.workers import delete_study

ROOT = Path(__file__).resolve().parent.parent
fork = multiprocessing.get_context("fork")
CPU = torch.device("cpu")


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_honour_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_json(tmp_path / "a.json", {})
        assert files.create_exclusively(tmp_path / "b.json", "{}")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [mode, mode]


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.pt'"):
        files.write_atomic(tmp_path / "last.pt", b"content")
    assert list(tmp_path.iterdir()) == []


def without_links(*_):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize("link", [os.link, without_links])
def test_a_file_is_made_once(tmp_path, monkeypatch, link):
    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "config.json"
    assert [files.create_exclusively(path, text) for text in ("one", "two")] == [True, False]
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_whose_temporary_file_was_removed_writes_again(tmp_path, monkeypatch):
    """By a command that cleans the study's root, where others may be writing."""
    real, removed = os.replace, []

    def remove_first(source, target):
        if not removed:
            removed.append(source)
            files.remove_temporary_files(tmp_path, "a.")
        real(source, target)

    monkeypatch.setattr(os, "replace", remove_first)
    files.write_atomic(tmp_path / "a.csv", b"content")
    assert (tmp_path / "a.csv").read_bytes() == b"content"
    assert removed and list(tmp_path.iterdir()) == [tmp_path / "a.csv"]


def test_a_disk_too_full_makes_no_half_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.create_exclusively(tmp_path / "config.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_a_pipe_is_left(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "a.npy").symlink_to(tmp_path / "scratch" / "a.npy")
    files.write_atomic(tmp_path / "a.npy", b"content")
    assert (tmp_path / "a.npy").is_symlink() and (tmp_path / "scratch" / "a.npy").read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe is there and is no file"):
        files.write_atomic(tmp_path / "pipe", b"content")
    assert (tmp_path / "pipe").is_fifo()


def prepare(folder, rank, renew, barrier, queue):
    barrier.wait()
    try:
        prepare_folder(folder, {"rank": rank}, CPU, renew=renew)
        queue.put(rank)
    except ConfigError as error:
        queue.put(str(error))


@pytest.mark.parametrize("renew", [False, True])
def test_of_different_settings_at_the_same_instant_one_makes_the_study(tmp_path, renew):
    for i in range(5):
        barrier, queue = fork.Barrier(4), fork.Queue()
        starts = [
            fork.Process(target=prepare, args=(tmp_path / str(i), rank, renew, barrier, queue)) for rank in range(4)
        ]
        for start in starts:
            start.start()
        got = [queue.get(timeout=60) for _ in starts]
        for start in starts:
            start.join()
        assert [answer for answer in got if isinstance(answer, int)] == [read_config(tmp_path / str(i))["rank"]]
        assert sum("was made by another configuration: rank" in str(answer) for answer in got) == 3


SMALL = [
    "--rank=3",
    "--train-steps=3",
    "--batch-size=4",
    "--evaluation-size=8",
    "--diffusion-steps=3",
    "--device=cpu",
    "--at-once=1",
]
TOO_LARGE = {
    "rank": 5000,
    "batch_size": 10**9,
    "evaluation_size": 10**9,
    "diffusion_steps": 10**9,
}


@pytest.mark.parametrize(("name", "value"), TOO_LARGE.items())
def test_sizes_that_cannot_fit_are_named(monkeypatch, name, value):
    monkeypatch.setattr("diffusion_lib.build.memory_limit", lambda _device: 8e9)
    with pytest.raises(ConfigError, match=f"{name} is {value}: 2 runs at once need .* GB of memory or more, and 8 GB"):
        check_fits(ExperimentConfig(**{"batch_size": 8, "evaluation_size": 8, name: value}), CPU, 2)
    with pytest.raises(ConfigError, match="larger than torch can count"):
        check_fits(ExperimentConfig(rank=10**9), CPU)
    check_fits(ExperimentConfig(), CPU)


REFUSED = (
    (["--at-once", "0"], "at_once is 0"),
    (["--precision", "bf16", "--model", "matrix"], "precision is 'bf16'"),
    (["--rank", str(10**12)], "rank is 1000000000000"),
    (["--run", "0"], "--fresh would delete the runs of the other jobs"),
)


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_all_is_checked_before_fresh_deletes(tmp_path, arguments, message):
    study = tmp_path / "it"
    (study / "runs" / "baseline" / "seed-0").mkdir(parents=True)
    (study / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=message):
        main(["--fresh", "--name", "it", "--results", str(tmp_path), "--device", "cpu", *arguments])
    assert (study / "config.json").exists()


def study_of_runs(folder):
    files.write_json(folder / "config.json", {"config": ExperimentConfig().to_dict()})
    files.write_json(folder / "runs" / "baseline" / "seed-0" / "config.json", {})


def model_of_another_program(folder):
    files.write_json(folder / "config.json", {"architectures": ["BertModel"]})


def run_of_train(folder):
    files.write_json(folder / "config.json", {"config": ExperimentConfig().to_dict() | {"seed": 0}})


def study_with_notes(folder):
    study_of_runs(folder)
    (folder / "notes.md").touch()


def study_elsewhere(folder):
    study_of_runs(folder.with_name("scratch"))
    folder.symlink_to(folder.with_name("scratch"))


def study_with_runs_elsewhere(folder):
    study_of_runs(folder)
    (folder / "runs").rename(folder.with_name("scratch"))
    (folder / "runs").symlink_to(folder.with_name("scratch"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (model_of_another_program, "is no study"),
        (run_of_train, "is no study"),
        (study_with_notes, r"holds notes\.md, which no study makes"),
        (study_elsewhere, "a link"),
        (study_with_runs_elsewhere, "not all of .*runs can go"),
    ],
)
def test_fresh_deletes_nothing_but_a_whole_study(tmp_path, make, message):
    make(tmp_path / "it")
    (tmp_path / "it.runs.csv").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        main(["--fresh", "--name=it", f"--results={tmp_path}", "--strategies", "baseline", *SMALL])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_deleted_study_leaves_no_tables(tmp_path):
    """Which would be read as those of the next study of the name."""
    study_of_runs(tmp_path / "it")
    for name in ("it.csv", "it.runs.csv", "it.b.runs.csv"):
        (tmp_path / name).touch()
    delete_study(tmp_path / "it")
    assert [path.name for path in tmp_path.iterdir()] == ["it.b.runs.csv"]


def test_of_several_studies_none_is_deleted_where_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_lib.build.memory_limit", lambda _device: 8e9)
    study_of_runs(tmp_path / "it" / "rank=3")
    with pytest.raises(ConfigError, match="rank is 5000"):
        main(["--vary", "rank=3,5000", *SMALL[1:], "--name=it", f"--results={tmp_path}", "--fresh"])
    assert (tmp_path / "it" / "rank=3" / "runs" / "baseline" / "seed-0" / "config.json").read_text() == "{}\n"


def test_a_check_deletes_nothing(tmp_path, monkeypatch):
    """Nor the tables beside a study of several problems."""
    monkeypatch.setattr("experiments.study.driver.step_seconds", lambda configs, *_: dict.fromkeys(configs, 1.0))
    (tmp_path / "it.csv").touch()
    words = ["--vary", "rank=3,4", *SMALL[1:], "--name=it", f"--results={tmp_path}", "--strategies", "baseline"]
    assert main([*words, "--fresh", "--check"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["it.csv"]


@pytest.mark.parametrize(("there", "words"), [("it", ["--vary", "rank=3,4"]), ("it/rank=3", ["--rank=3"])])
@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_one_problem_and_several_have_no_name_in_common(tmp_path, there, words, fresh):
    """Each would replace the other's tables and report."""
    study_of_runs(tmp_path / there)
    with pytest.raises(ConfigError, match=r"is of a study of .*; choose another --name"):
        main([*words, *SMALL[1:], "--name=it", f"--results={tmp_path}", *fresh])
    assert (tmp_path / there / "config.json").exists()


@pytest.mark.parametrize("asked", ["--status", "--report-only"])
def test_a_study_that_is_not_there_is_said(tmp_path, asked):
    with pytest.raises(ConfigError, match="there is no study"):
        main([asked, "--name", "it", "--results", str(tmp_path)])
    files.write_json(tmp_path / "it" / "config.json", {"config": ExperimentConfig().to_dict()})
    with pytest.raises(ConfigError, match="was published without its runs"):
        main([asked, "--name", "it", "--results", str(tmp_path)])


def test_a_text_may_name_a_folder_whose_name_is_not_utf8(tmp_path):
    """As the report does, which records the command."""
    files.write_atomic(tmp_path / "report.md", "--results " + os.fsdecode(b"/data/b\xff"))
    assert (tmp_path / "report.md").read_bytes() == b"--results /data/b\xff"


def test_what_a_terminal_cannot_show_does_not_end_the_command():
    code = "from diffusion_lib.system import startup; startup.begin(); print('0.759\\u00d7')"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert (shown.returncode, shown.stdout) == (0, b"0.759?\n")


def test_the_data_of_a_run_are_recorded_and_others_refused(tmp_path, monkeypatch):
    """Whether SATNet's file is there decides what parity is learned from; an earlier version's folder continues."""
    config = ExperimentConfig(dataset="parity-20")
    monkeypatch.chdir(tmp_path)
    made_up = describe_data.__wrapped__(config)
    prepare_folder(tmp_path / "run", config.to_dict(), CPU, data=made_up)
    assert json.loads((tmp_path / "run/config.json").read_text())["data"] == made_up
    folder = tmp_path / "data/satnet/parity/20"
    folder.mkdir(parents=True)
    bits = torch.randint(0, 2, (200, 20), generator=torch.Generator().manual_seed(0))
    torch.save(bits, folder / "features.pt")
    torch.save(bits.cumsum(1) % 2, folder / "labels.pt")
    published = describe_data.__wrapped__(config)
    assert "SATNet's file" in published["source"]
    with pytest.raises(ConfigError, match=r"made from other data: there generated .*, now SATNet's file"):
        prepare_folder(tmp_path / "run", config.to_dict(), CPU, data=published)
    last_digits = {**made_up, "fingerprint": [number + 1e-5 for number in made_up["fingerprint"]]}
    prepare_folder(tmp_path / "run", config.to_dict(), CPU, data=last_digits)  # another processor's
    prepare_folder(tmp_path / "old", config.to_dict(), CPU)
    prepare_folder(tmp_path / "old", config.to_dict(), CPU, data=published)


def test_streams_that_are_closed_are_open_for_all_that_inherit_them(tmp_path):
    """Else the pipe to a process may become one of them, and its end is never told."""
    code = (
        "from diffusion_lib.system import startup; import os; startup.begin(); open('seen', 'w').write(str(os.pipe()))"
    )
    code += "; os.execlp('sh', 'sh', '-c', 'test -e /dev/fd/0 && test -e /dev/fd/2 && touch inherited')"
    command = f'exec "{sys.executable}" -c "{code}" <&- >&- 2>&-'
    subprocess.run(command, shell=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "inherited").exists() and min(eval((tmp_path / "seen").read_text())) > 2


def test_what_a_full_disk_takes_of_the_output_is_said():
    code = "from diffusion_lib.system.errors import *\nwith exit_status(): show('a line')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device: 'standard output'\n")
