"""The documents point at things that exist, and name commands that are there."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_weights

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = (ROOT / "docs" / "library.md").read_text()
RESULTS = [ROOT / "results" / "README.md", *sorted((ROOT / "results" / "published").glob("**/*.md"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *RESULTS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES[:1], ids=["README.md"])
def test_commands_name_files_and_targets_that_exist(page):
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    scripts = set(re.findall(r"python ((?:experiments/)?\w+\.py)", text))
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)
    targets = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))
    assert {"compare", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_blocks_of_the_library_page_run_one_after_the_other(tmp_path, monkeypatch):
    """With few steps, where the page has many. They save and load, so what a block leaves the next one finds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", LIBRARY, re.MULTILINE | re.DOTALL):
        exec(re.sub(r'(train_num_steps"?(=|: ))\d+', r"\g<1>4", block), names)
    assert names["curve"][-1]["step"] == 4 and names["curve"][-1]["val_mse"] > 0
    assert "val_mse" in (tmp_path / "mined" / "metrics.csv").read_text()
    assert names["again"].step == 4
    for model in (names["again"].ema.ema_model, names["alone"]):
        assert_same_weights(model.state_dict(), names["solver"].state_dict())
    assert not torch.equal(names["plain"], names["descended"])
    errors = names["a"] @ names["inverses"] - torch.eye(30)
    assert errors.norm(dim=(1, 2)).max() < 1e-2


def test_the_blocks_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    names, text = {}, PAGES[0].read_text()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(re.sub(r"(train_num_steps=)\d+", r"\g<1>4", block), names)
    r = names["r"]
    products = names["inverses"] @ (2 * r @ r.transpose(0, 2, 1) + 0.5 * np.eye(20))
    assert np.abs(products - np.eye(20)).max() < 1e-2
    assert (tmp_path / "sorting" / "last.pt").exists()


def test_the_library_alone_needs_no_torch():
    code = (
        "import sys, diffusion_lib; assert 'torch' not in sys.modules; from diffusion_lib import *; print(EBM, solve)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("<class 'diffusion_lib.energies.mlp.EBM'> <function solve"), done.stderr
