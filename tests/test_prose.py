"""The prose of the repository: lines that read in a diff, and one version."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
HELD = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
HELD += sorted((ROOT / "docs").rglob("*.md"))


def lines_of_prose(text: str) -> list[str]:
    """A page's lines without code, display formulas and tables, of which a row is one line, however long."""
    text = re.sub(r"^```.*?^```$|^\$\$\n.*?^\$\$$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.startswith(("|", "    "))]


@pytest.mark.parametrize("path", HELD, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_read_in_a_diff(path):
    lines = lines_of_prose(path.read_text(encoding="utf-8"))
    long = [line for line in lines if len(line) > WIDTH and " " in line.strip()]
    assert len(lines) > 10 and long == [], f"wrap at {WIDTH}"


def test_all_name_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
