"""The documents point at things that exist, and name commands that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
