"""The versions that pyproject.toml admits, beside those that the tests install."""

import re
import tomllib

from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_lower_bound_is_a_version_that_is_tested():
    oldest, newest = pins("constraints-oldest.txt"), pins("constraints.txt")
    requirements = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gpu"])]
    assert {"torch", "triton", "tokenizers"} <= {r.name for r in requirements}
    for r in requirements:
        (bound,) = (s for s in r.specifier if s.operator == ">=")
        assert f"{oldest[r.name]}.".startswith(f"{bound.version}.")
        assert r.specifier.contains(newest[r.name])


def test_the_lock_has_the_tested_versions_with_hashes_and_no_address():
    """CONTRIBUTING.md says how it is made."""
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    locked = {}
    for entry in entries:
        name, version = re.match(r"([a-z0-9-]+)==([\w.]+)", entry).groups()
        locked[name] = version
        assert re.search(r"--hash=sha256:[0-9a-f]{64}$", entry), name
    assert "://" not in text and "index" not in text
    tested = {name.replace("_", "-"): version for name, version in pins("constraints.txt").items()}
    extras = {"matplotlib", "lm-eval"}
    assert {name: locked[name] for name in tested.keys() - extras} == {
        name: version for name, version in tested.items() if name not in extras
    }
