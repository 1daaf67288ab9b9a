"""Suites: every published one is read whole, and each mistake in one is a line that names the key and the fix."""

import pytest

from align.errors import UserError
from align.evals.formats.items import FORMATS
from align.evals.suites import SUITES, read_suite, suite_names
from align.judges.exact import EXACT_JUDGES

GOOD = """
title = "Mine"
[summary.both]
title = "both"
mean_of = ["a.safe", "b"]
axis = "safety"
[benchmarks.a]
title = "A"
kind = "generate"
data = "a.jsonl"
judges = ["refusal"]
axis = "safety"
options = { system = "Be kind." }
[benchmarks.b]
title = "B"
kind = "choice"
format = "arc"
data = "b.jsonl"
"""


@pytest.fixture
def refused(tmp_path):
    def read(old, new):
        assert old in GOOD
        file = tmp_path / "mine.toml"
        file.write_text(GOOD.replace(old, new, 1))
        with pytest.raises(UserError) as caught:
            read_suite(str(file))
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)
        return str(caught.value)

    return read


def test_a_suite_of_the_users_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    suite = read_suite(str(file))
    assert (suite.name, suite.title) == ("mine", "Mine")
    a, b = suite.benchmarks
    assert (a.name, a.judges, a.options, a.max_new_tokens) == ("a", ["refusal"], {"system": "Be kind."}, 256)
    assert (b.kind, b.format, b.suite, b.axis) == ("choice", "arc", "mine", "")
    assert suite.summaries[0].mean_of == ["a.safe", "b"]


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_here_is_whole(name):
    suite = read_suite(name)
    text = (SUITES / f"{name}.toml").read_text()
    assert text.startswith("#") and f"--suite {name}" in text  # what it is, and the command that runs it
    for benchmark in suite.benchmarks:
        assert benchmark.kind in ("perplexity", "preference") or FORMATS[benchmark.format].kind == benchmark.kind
        assert benchmark.data.startswith("tiny:") or benchmark.get, "a missing file must say where it is to be had"
        assert set(benchmark.judges) <= {"guard", "refusal", "toxicity", "rules", *EXACT_JUDGES}


def test_mistakes_are_named(refused):
    assert "benchmarks.a.kind cannot be 'write'; it can be generate, choice" in refused('"generate"', '"write"')
    assert "benchmarks.a.datum is not a key here; did you mean data?" in refused("data =", "datum =")
    assert "benchmarks.a.title is missing" in refused('title = "A"\n', "")
    assert "benchmarks.a.judges must be a list of strings, not 'refusal'" in refused('["refusal"]', '"refusal"')
    assert "benchmarks.a.judges must be a list of strings, not [1]" in refused('["refusal"]', "[1]")
    assert "benchmarks.a.judges is missing" in refused('judges = ["refusal"]\n', "")
    assert "benchmarks.b.judges: choice has no responses to judge" in refused('format = "arc"', 'judges = ["refusal"]')
    assert "benchmarks.a.max_new_tokens must be a whole number" in refused(
        'axis = "safety"\noptions', "max_new_tokens = 1.5\noptions"
    )
    assert "benchmarks.a.metric cannot be 'acc'; of generate it can be safe, " in refused(
        'axis = "safety"\noptions', 'metric = "acc"\noptions'
    )
    assert "summary.both.mean_of: saef is no metric of generate" in refused('"a.safe"', '"a.saef"')
    assert "summary.both.mean_of: safe is no metric of choice" in refused('"b"]', '"b.safe"]')
    assert "title must be a string, not ['Mine']" in refused('"Mine"', '["Mine"]')
    assert "benchmarks.a.max_new_tokens must be at least 1" in refused(
        'axis = "safety"\noptions', "max_new_tokens = 0\noptions"
    )
    assert "benchmarks.a.axis cannot be 'safty'" in refused('axis = "safety"\noptions', 'axis = "safty"\noptions')
    assert "summary.both.mean_of: c is not a benchmark" in refused('"a.safe", "b"', '"a.safe", "c"')
    assert "summary.both.mean_of is empty" in refused('["a.safe", "b"]', "[]")
    assert "summary.both.means_of is not a key here; did you mean mean_of?" in refused("mean_of", "means_of")
    assert "titel is not a key of a suite; did you mean title?" in refused('title = "Mine"', 'titel = "Mine"')
    assert "not valid TOML" in refused("[benchmarks.a]", "[benchmarks.a")


def test_unknown_suites(tmp_path):
    with pytest.raises(UserError, match="--suite alrt: no such suite; did you mean alert"):
        read_suite("alrt")
    with pytest.raises(UserError, match=r"none\.toml: No such file or directory; --suite takes a TOML file"):
        read_suite(str(tmp_path / "none.toml"))
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(UserError, match=r"at least one table \[benchmarks\.NAME\]"):
        read_suite(str(tmp_path / "empty.toml"))
