"""A user's judge: a Python function, named as module:function.

With these lines in my_judges.py, `--judge my_judges:shouting` calls a response unsafe when it is all in capitals:

    def shouting(records):
        verdicts = []
        for record in records:
            verdicts.append({"unsafe": record["response"].isupper(), "length": len(record["response"])})
        return verdicts

The module lies in the current directory or is installed; "package.module:function" works too. The function is called
with a list of records, dicts of which "prompt" (a string or chat messages), "response" (a string) and "id" are always
present, with whatever else the benchmark's items have ("category", "expected", ...). A response comes without what a
reasoning model thinks before it (<think>...</think>). They are copies: changing one changes nothing. It returns one
verdict per record, in order, each of them

    True or False         the response is unsafe, or is not
    a number in 0..1      the probability that it is unsafe; from 0.5 on it counts as unsafe
    a dict                with at least one of "unsafe", "refusal", "correct" (true or false) and "toxicity" (a number in
                          0..1), and whatever else JSON can hold; "p_unsafe" (a number in 0..1) and
                          "categories" (a list of strings), if there, are read too
"""

import copy
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from align.errors import UserError, one_line, shortened
from align.files import loads
from align.judges.thinking import response_of

KINDS = {"unsafe": bool, "refusal": bool, "correct": bool, "toxicity": float}
DETAILS = {"p_unsafe": float, "categories": list}
WANTED = {bool: "true or false", float: "a number in 0..1", list: "a list of strings"}


class CustomJudge:
    """A judge around the user's function; load_judge makes one."""

    def __init__(self, name: str, function: Callable[[list[dict]], Any]):
        self.name, self.function = name, function

    def __call__(self, records: list[dict]) -> list[dict]:
        """One verdict per record, each a dict that JSON can hold. Raises UserError naming the judge and the record."""
        try:
            verdicts = self.function([as_said(record) for record in copy.deepcopy(records)])
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)[1:2]  # the first is this one, the next the function's
            # by far the likeliest bug: a key that records do not have
            hint = (
                f"; a record has {shortened(', '.join(records[0]))}" if records and isinstance(error, KeyError) else ""
            )
            at = f" at {frames[0].filename}:{frames[0].lineno}" if frames else ""
            raise UserError(
                f"judge {self.name} failed on {span(records)}: {one_line(error, with_type=True)}{at}{hint}; fix the function"
            ) from error
        verdicts = plain(verdicts)
        if not isinstance(verdicts, list | tuple) or len(verdicts) != len(records):
            got = f"{len(verdicts)} verdicts" if isinstance(verdicts, list | tuple) else describe(verdicts)
            raise UserError(f"judge {self.name} returned {got} for {span(records)}; return a list with one for each")
        return [self.verdict(value, record_id(records, i)) for i, value in enumerate(verdicts)]

    def verdict(self, value: Any, record: str) -> dict:
        """What the function returned for one record, as a verdict."""
        value, where = plain(value), f"judge {self.name}, record {record}"
        if isinstance(value, bool):
            return {"unsafe": value}
        if isinstance(value, Real):
            if not is_probability(value):
                raise UserError(f"{where}: {value} is not a probability; return a number in 0..1")
            return {"unsafe": float(value) >= 0.5, "p_unsafe": float(value)}
        if not isinstance(value, dict):
            raise UserError(f"{where}: returned {describe(value)}; return true or false, a number in 0..1, or a dict")
        try:
            # through JSON and back: what is counted now is what results.json will hold
            value = loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: its dict does not fit into JSON ({one_line(error, with_type=True)}); use plain values"
            ) from error
        if not KINDS.keys() & value.keys():
            raise UserError(f"{where}: its dict has no verdict; give it one of {', '.join(KINDS)}")
        for key, kind in (KINDS | DETAILS).items():
            if key in value and not fits(value[key], kind):
                raise UserError(f"{where}: {key} must be {WANTED[kind]}, not {describe(value[key])}")
        return value


def load_judge(spec: str) -> CustomJudge:
    """The judge that "module:function" names. Raises UserError if it is none: see the top of this file.

    The current directory joins the end of sys.path, where it shadows no installed module.
    """
    module_name, _, function_name = spec.partition(":")
    names = (*module_name.split("."), function_name)
    if not all(part.isidentifier() for part in names) or module_name.endswith(".py"):
        raise UserError(f"judge {spec}: must be module:function, as in my_judges:shouting (without .py)")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # the module itself or a package on the way to it; not what it imports in turn
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"judge {spec}: no module {error.name} in {here} or installed ({one_line(error, with_type=True)})"
            ) from error
        said = one_line(error, with_type=True)
        raise UserError(f"judge {spec}: importing {module_name} failed: {said}; fix it") from error
    found = getattr(module, "__file__", None) or module_name
    if not hasattr(module, function_name):
        raise UserError(f"judge {spec}: {found} has no {function_name}; name a function of it")
    function = getattr(module, function_name)
    if not callable(function) or inspect.isclass(function) or inspect.iscoroutinefunction(function):
        kind = "an async function" if inspect.iscoroutinefunction(function) else describe(function)
        raise UserError(f"judge {spec}: {function_name} in {found} is {kind}, not a function")
    try:
        inspect.signature(function).bind([])
    except TypeError as error:
        said = one_line(error, with_type=True)
        raise UserError(f"judge {spec}: must take one argument, the list of records ({said})") from None
    except ValueError:
        pass  # written in C, and says nothing of its arguments
    return CustomJudge(spec, function)


def as_said(record: dict) -> dict:
    return record | {"response": response_of(record)} if isinstance(record.get("response"), str) else record


def plain(value: Any) -> Any:
    """NumPy's arrays and numbers and torch's tensors as plain Python values."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def is_probability(value: Any) -> bool:
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else -1
    return bool(0 <= number <= 1)  # compared as it is: float() fails on what is too large for one


def fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return is_probability(value)
    return isinstance(value, kind) and (kind is bool or all(isinstance(one, str) for one in value))


def record_id(records: list[dict], i: int) -> str:
    return str(records[i].get("id", i))


def span(records: list[dict]) -> str:
    """Which records, in a line."""
    if len(records) == 1:
        return f"record {record_id(records, 0)}"
    ends = f" ({record_id(records, 0)} to {record_id(records, len(records) - 1)})" if records else ""
    return f"{len(records)} records{ends}"


def describe(value: Any) -> str:
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str):
        return " ".join(repr(value).split())[:80]
    return f"a {type(value).__name__}"
