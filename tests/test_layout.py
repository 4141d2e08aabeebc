"""Imports go one way: system, tasks and energies <- diffusion <- training <- study <- analysis <- commands."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Layers from the ground up; a module may import those of its own layer and of lower ones.
LAYERS = (
    (
        "diffusion_lib.system",
        "diffusion_lib.seeds",
        "diffusion_lib.schedule",
        "diffusion_lib.masks",
        "diffusion_lib.names",
    ),
    ("diffusion_lib.tasks", "diffusion_lib.energies", "diffusion_lib.precision", "dataset", "models"),
    (
        "diffusion_lib.negatives",
        "diffusion_lib.evaluation",
        "diffusion_lib.released_api",
        "diffusion_lib.denoising_diffusion_pytorch_1d",
    ),
    ("diffusion_lib.config",),
    ("diffusion_lib.compiling",),
    ("diffusion_lib.build", "diffusion_lib.checkpoint", "diffusion_lib.run_folder"),
    ("diffusion_lib.flops",),
    ("diffusion_lib.training",),
    ("diffusion_lib.inference", "train"),
    ("experiments.speed",),
    ("experiments.study",),
    ("experiments.analysis",),
    ("experiments.study.problems",),
    ("experiments.study.driver",),
    ("experiments", "results"),
)
# The release's scripts find the trainer beside the diffusion.
ALLOWED = {("diffusion_lib.denoising_diffusion_pytorch_1d", "diffusion_lib.training.trainer")}


def layer(module: str) -> int | None:
    found = [(len(n), i) for i, names in enumerate(LAYERS) for n in names if module == n or module.startswith(f"{n}.")]
    return max(found)[1] if found else None  # the longest name is a module's own, which may be above its folder's


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FOLDERS = ("diffusion_lib/**", "experiments/**", "results")
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_higher_layer(path):
    module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    own = layer(module)
    if module == "diffusion_lib":
        return
    assert own is not None, f"{module} has no layer: name it in LAYERS"
    above = {
        name
        for name in imports(path)
        if (layer(name) or 0) > own
        and (module, name) not in ALLOWED
        and not any(name.startswith(f"{allowed}.") for who, allowed in ALLOWED if who == module)
    }
    assert not above
    text = path.read_text()
    assert text.count("sys.path") == text.count("startup.run(")  # a command finds its own checkout, once


COMMANDS = [path for path in SOURCES if "startup.run(" in path.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_uses_its_own_checkout_where_another_one_is_installed(path, tmp_path):
    """The import of torch stands for the rest of the command: it ends there, and says whose code it was."""
    (tmp_path / "diffusion_lib").mkdir()
    (tmp_path / "diffusion_lib" / "__init__.py").touch()
    for name in ("torch", "numpy"):
        (tmp_path / f"{name}.py").write_text("import diffusion_lib; raise SystemExit(diffusion_lib.__file__)")
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == str(ROOT / "diffusion_lib" / "__init__.py")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_without_the_environment_says_in_one_line_how_to_get_it(path):
    done = subprocess.run([sys.executable, "-S", path, "--device", "cpu"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert "is not installed for" in done.stderr and "make setup" in done.stderr


def test_tasks_and_energies_know_nothing_of_each_other():
    for name, other in (("tasks", "energies"), ("energies", "tasks")):
        for path in (ROOT / "diffusion_lib" / name).glob("*.py"):
            assert not [i for i in imports(path) if i.startswith(f"diffusion_lib.{other}")], path
