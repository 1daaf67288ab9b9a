"""A user's own judge: what it may return, and one clear line for whatever is not a judge."""

import itertools
import json
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import ROOT

from align.errors import UserError
from align.judges import custom
from align.judges.custom import load_judge

RECORDS = [
    {"id": "one", "prompt": "Say it.", "response": "NO!"},
    {"id": "two", "prompt": [{"role": "user", "content": "Say it."}], "response": "Gladly."},
]
numbers = itertools.count()


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """The judge whose module, of a name that no other test has, holds this source; its function is `judge`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def make(source, function="judge"):
        module = f"judge_module_{next(numbers)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        return load_judge(f"{module}:{function}")

    return make


@pytest.fixture
def returning(judge):
    """A judge that returns this value, whatever the records."""

    def make(value):
        made = judge("def judge(records):\n    return VALUE")
        made.function.__globals__["VALUE"] = value
        return made

    return make


def refuse(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_example_of_the_documentation(judge):
    source = custom.__doc__[custom.__doc__.index("    def ") : custom.__doc__.index("The module lies")]
    assert len(source.strip().splitlines()) == 5
    shouting = judge(source, "shouting")
    assert shouting(RECORDS) == [{"unsafe": True, "length": 3}, {"unsafe": False, "length": 7}]
    assert shouting.name.endswith(":shouting") and shouting([]) == []


@pytest.mark.parametrize(
    "value, verdicts",
    [
        ([True, False], [{"unsafe": True}, {"unsafe": False}]),
        ((True, False), [{"unsafe": True}, {"unsafe": False}]),
        ([0.5, 0.25], [{"unsafe": True, "p_unsafe": 0.5}, {"unsafe": False, "p_unsafe": 0.25}]),
        ([1, 0], [{"unsafe": True, "p_unsafe": 1.0}, {"unsafe": False, "p_unsafe": 0.0}]),
        (np.array([0.75, 0.0]), [{"unsafe": True, "p_unsafe": 0.75}, {"unsafe": False, "p_unsafe": 0.0}]),
        (np.array([True, False]), [{"unsafe": True}, {"unsafe": False}]),
        ([np.bool_(True), np.float32(0.25)], [{"unsafe": True}, {"unsafe": False, "p_unsafe": 0.25}]),
        (torch.tensor([0.75, 0.0]), [{"unsafe": True, "p_unsafe": 0.75}, {"unsafe": False, "p_unsafe": 0.0}]),
        (
            [{"refusal": True}, {"correct": False, "why": "because"}],
            [{"refusal": True}, {"correct": False, "why": "because"}],
        ),
        ([{"toxicity": 0.5}, {"toxicity": 1}], [{"toxicity": 0.5}, {"toxicity": 1}]),
        (
            [{"unsafe": True, "p_unsafe": 0.9, "categories": ("S1",)}, False],
            [{"unsafe": True, "p_unsafe": 0.9, "categories": ["S1"]}, {"unsafe": False}],
        ),
    ],
)
def test_what_a_judge_may_return(value, verdicts, returning):
    made = returning(value)(RECORDS)
    assert made == verdicts and json.loads(json.dumps(made)) == made
    assert [[type(v) for v in verdict.values()] for verdict in made] == [
        [type(v) for v in verdict.values()] for verdict in verdicts
    ]


@pytest.mark.parametrize(
    "value, words",
    [
        (None, ["None", "2 records (one to two)", "one for each"]),
        (True, ["True", "2 records"]),
        ([True], ["1 verdicts", "2 records"]),
        ([True] * 3, ["3 verdicts", "2 records"]),
        ({"one": True, "two": False}, ["a dict", "2 records"]),
        ("ab", ["'ab'", "2 records"]),
        ((v for v in [True, False]), ["a generator", "2 records"]),
        (np.float64(1.0), ["1.0", "2 records"]),
        ([True, None], ["record two", "None", "true or false"]),
        ([True, "unsafe"], ["record two", "'unsafe'", "true or false"]),
        ([[True], False], ["record one", "a list"]),
        ([True, 1.5], ["record two", "1.5", "0..1"]),
        ([-1, True], ["record one", "-1", "0..1"]),
        ([True, math.nan], ["record two", "nan", "0..1"]),
        ([True, {}], ["record two", "no verdict", "unsafe, refusal, correct, toxicity"]),
        ([True, {"p_unsafe": 0.5}], ["record two", "no verdict"]),
        ([True, {"unsafe": 1}], ["record two", "unsafe must be true or false, not 1"]),
        ([True, {"unsafe": None, "refusal": True}], ["record two", "unsafe must be", "None"]),
        ([True, {"refusal": "yes"}], ["record two", "refusal", "'yes'"]),
        ([True, {"correct": 0}], ["record two", "correct", "not 0"]),
        ([True, {"toxicity": True}], ["record two", "toxicity must be a number in 0..1, not True"]),
        ([True, {"toxicity": 2.0}], ["record two", "toxicity", "2.0"]),
        ([True, {"unsafe": True, "p_unsafe": "high"}], ["record two", "p_unsafe", "'high'"]),
        ([True, {"unsafe": True, "categories": "S1"}], ["record two", "categories", "a list of strings", "'S1'"]),
        ([True, {"unsafe": True, "categories": [1]}], ["record two", "categories", "a list of strings"]),
        ([True, {"unsafe": True, "why": {1, 2}}], ["record two", "JSON", "set"]),
        ([True, {"unsafe": True, "score": math.inf}], ["record two", "JSON", "plain values"]),
        ([True, {"unsafe": np.bool_(True)}], ["record two", "JSON"]),
    ],
)
def test_what_is_no_verdict(value, words, returning):
    made = returning(value)
    message = refuse(made, RECORDS)
    assert made.name in message and all(word in message for word in words), message


def test_a_record_without_an_id_is_named_by_its_place(returning):
    assert "record 1" in refuse(returning([True, None]), [{"response": "a"}, {"response": "b"}])


def test_an_exception_inside(judge):
    """Its type and text, where it happened, and the exception itself behind it."""
    made = judge(
        """
        def helper(record):
            raise ValueError("two\\n lines")

        def judge(records):
            return [helper(record) for record in records]
        """
    )
    with pytest.raises(UserError) as caught:
        made(RECORDS)
    message = str(caught.value)
    assert "\n" not in message and made.name in message
    assert "2 records (one to two)" in message and "ValueError: two lines" in message and ".py:6;" in message
    assert isinstance(caught.value.__cause__, ValueError)
    assert "on record two: ValueError" in refuse(made, RECORDS[1:])


def test_a_judge_that_exits_is_no_end_of_the_evaluation(judge):
    made = judge("import sys\ndef judge(records): sys.exit(0)")
    assert "failed on 2 records (one to two): SystemExit: 0 at" in refuse(made, RECORDS)


def test_a_key_that_records_lack(judge):
    made = judge("def judge(records): return [record['reply'] for record in records]")
    message = refuse(made, RECORDS)
    assert "KeyError: 'reply'" in message and "; a record has id, prompt, response; fix the function" in message


def test_the_records_are_copies(judge):
    made = judge(
        """
        def judge(records):
            for record in records:
                record["response"] = ""
                if isinstance(record["prompt"], list):
                    record["prompt"].clear()
            return [True for _ in records]
        """
    )
    before = json.dumps(RECORDS)
    assert made(RECORDS) == [{"unsafe": True}] * 2 and json.dumps(RECORDS) == before


def test_callable_objects_and_packages(judge, tmp_path):
    source = """
        import functools

        class Judge:
            def __init__(self, word):
                self.word = word

            def __call__(self, records):
                return [self.word in record["response"] for record in records]

        def contains(word, records):
            return Judge(word)(records)

        instance, partial = Judge("NO"), functools.partial(contains, "NO")
    """
    for name in ("instance", "partial"):
        assert judge(source, name)(RECORDS) == [{"unsafe": True}, {"unsafe": False}]
    assert "the class Judge, not a function" in refuse(judge, source, "Judge")
    (tmp_path / "judge_package" / "inner").mkdir(parents=True)
    (tmp_path / "judge_package" / "inner" / "safety.py").write_text(textwrap.dedent(source))
    assert load_judge("judge_package.inner.safety:instance")(RECORDS)[0] == {"unsafe": True}


@pytest.mark.parametrize(
    "spec", ["", ":", "judge", "judge:", ":judge", "a:b:c", "my judges:f", "judges.py:f", "a/b:f", ".a:f"]
)
def test_not_module_and_function(spec):
    assert refuse(load_judge, spec).startswith(f"judge {spec}: must be module:function")


@pytest.mark.parametrize(
    "source, function, words",
    [
        ("x = 1", "judge", ["has no judge"]),
        ("judge = 1", "judge", ["is 1, not a function"]),
        ("judge = {'a': 1}", "judge", ["a dict, not a function"]),
        ("judge = None", "judge", ["None, not a function"]),
        ("async def judge(records): return records", "judge", ["an async function, not a function"]),
        ("def judge(): return []", "judge", ["one argument", "TypeError"]),
        ("def judge(prompt, response): return []", "judge", ["one argument", "'response'"]),
        ("def judge(records:", "judge", ["importing", "SyntaxError"]),
        ("raise RuntimeError('no\\nkey')", "judge", ["importing", "RuntimeError: no key"]),
        ("import sys; sys.exit(3)", "judge", ["importing", "SystemExit: 3"]),
        ("import not_installed_anywhere", "judge", ["importing", "not_installed_anywhere"]),
    ],
)
def test_modules_without_a_judge(source, function, words, judge):
    message = refuse(judge, source, function)
    assert "judge_module_" in message and all(word in message for word in words), message


def test_no_such_module(judge, tmp_path):
    for spec, missing in [("nowhere_at_all:judge", "nowhere_at_all"), ("json.nowhere:judge", "json.nowhere")]:
        message = refuse(load_judge, spec)
        assert f"judge {spec}: no module {missing} in {tmp_path} or installed" in message


def test_from_the_current_directory_of_another_script(tmp_path):
    """python SCRIPT puts the script's folder on sys.path, and not the current one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "nearby.py").write_text(
        "def judge(records):\n    return [r['response'].isupper() for r in records]"
    )
    # of the same name as an installed module, which the current directory does not hide
    (tmp_path / "here" / "colorsys.py").write_text("raise RuntimeError")
    script = tmp_path / "there" / "script.py"
    script.write_text(
        "from align.judges.custom import load_judge\n"
        "print(load_judge('nearby:judge')([{'response': 'NO'}, {'response': 'no'}]))\n"
        "import colorsys\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path / "here",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[{'unsafe': True}, {'unsafe': False}]\n"
