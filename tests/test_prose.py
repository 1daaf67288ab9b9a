"""The files at the top of the repository: lines that read in a diff, and one version."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_lines_read_in_a_diff(name):
    """A row of a table is one line, whatever it takes; so is what cannot be broken."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    long = [line for line in lines if len(line) > WIDTH and not line.startswith("|") and " " in line.strip()]
    assert len(lines) > 10 and long == [], f"wrap at {WIDTH}"


def test_all_name_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
