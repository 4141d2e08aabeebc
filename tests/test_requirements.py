"""What an installation asks for: the pins are among it, and it leaves a cluster's own torch alone."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
RANGES = {
    each.name: each.specifier
    for each in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
}


def test_the_pins_of_make_lie_in_the_ranges():
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())
    assert pins.keys() == RANGES.keys()
    assert all(RANGES[name].contains(version) for name, version in pins.items())


@pytest.mark.parametrize("version", ["2.6.0+cu124", "2.7.0a0+ecf3bae40a.nv25.02", "2.9.1+rocm6.4", "3.0.0"])
def test_a_torch_that_is_there_stays(version):
    """As pip asks: what satisfies the range is not replaced."""
    assert RANGES["torch"].contains(version, prereleases=True)
