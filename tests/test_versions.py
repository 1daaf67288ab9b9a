"""The versions that pyproject.toml admits, beside those that the tests install."""

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
