"""Suites: TOML files that name benchmarks, their data and their judges, read into checked prompts.

configs/eval/ has those of the paper and of the field; `--suite FILE.toml` takes any other. Of a benchmark:

    [benchmarks.NAME]
    title = "ALERT, plain prompts"
    kind = "generate"            # generate: responses, judged; choice, perplexity, preference: by log-probs alone
    format = "alert"             # which published form the rows have (align/evals/formats/items.py)
    data = "alert/alert.jsonl"   # below --data
    get = "where to get it, for the message that it is missing"
    judges = ["guard"]           # the first one's verdicts give the scores, the others are compared with it
    axis = "safety"              # which side of the trade-off: safety, capability, over-refusal; none: only listed
    metric = "acc_norm"          # the headline, if not the first (align/evals/scoring/metrics.py lists them)
    max_new_tokens = 256         # generate: of a response
    stop = ["\\n\\n"]              # generate: texts that end a response
    template = "auto"            # how prompts become text: auto, as in training; chat or none (docs/data.md)
    where = { kind = "plain" }   # only rows with these values
    options = { shots = 5 }      # what the format or the kind takes

and of a summary: [summary.NAME] with title, axis and mean_of = ["benchmark", "benchmark.metric", ...]. A suite may name the
`guard` that judges it where the command line names none.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from align.config import CONFIGS
from align.data.formatter import TEMPLATES
from align.errors import UserError, nearest
from align.evals.scoring.metrics import METRICS
from align.files import reachable, read_toml

SUITES = CONFIGS / "eval"
KINDS = ("generate", "choice", "perplexity", "preference")
AXES = ("safety", "capability", "over-refusal")


@dataclass(kw_only=True)
class Benchmark:
    """One benchmark of a suite. align/evals/load.py reads its items."""

    name: str
    suite: str
    title: str
    kind: str
    data: str
    format: str = "plain"
    get: str = ""
    judges: list[str] = field(default_factory=list)
    axis: str = ""
    max_new_tokens: int = 256
    stop: list[str] = field(default_factory=list)
    metric: str = ""
    template: str = "auto"
    where: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    items: list[dict] = field(default_factory=list)


@dataclass(kw_only=True)
class Summary:
    """The mean of several benchmarks' scores: the paper's global safety score is one."""

    name: str
    title: str
    mean_of: list[str]  # "benchmark.metric"
    axis: str = ""


@dataclass(kw_only=True)
class Suite:
    name: str
    title: str
    guard: str
    benchmarks: list[Benchmark]
    summaries: list[Summary]


def suite_names() -> list[str]:
    return sorted(file.stem for file in SUITES.glob("*.toml"))


def read_suite(name: str) -> Suite:
    """A suite by name or file, its keys checked and its data not yet read. Raises UserError naming the key and the fix."""
    file = reachable(name if name.endswith(".toml") else SUITES / f"{name}.toml")
    if not file.is_file() and not name.endswith(".toml"):
        near = nearest(name, suite_names())
        raise UserError(
            f"--suite {name}: no such suite{near}. There are: {', '.join(suite_names())}; a file's name ends in .toml"
        )
    tables = read_toml(file, "--suite")
    known = ("title", "source", "guard", "benchmarks", "summary")
    for key in tables:
        if key not in known:
            raise UserError(f"{file}: {key} is not a key of a suite{nearest(key, known)}; it has {', '.join(known)}")
    for key in ("title", "guard"):
        if not isinstance(tables.get(key, ""), str):
            raise UserError(f"{file}: {key} must be a string, not {tables[key]!r}")
    entries = tables.get("benchmarks")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{file}: a suite needs at least one table [benchmarks.NAME]")
    benchmarks = [
        read_table(Benchmark, entry, f"{file}: benchmarks.{key}", name=key, suite=file.stem)
        for key, entry in entries.items()
    ]
    for benchmark in benchmarks:
        check_benchmark(benchmark, f"{file}: benchmarks.{benchmark.name}")
    summaries = tables.get("summary", {})
    if not isinstance(summaries, dict):
        raise UserError(f"{file}: summary must be tables [summary.NAME]")
    summaries = [read_table(Summary, entry, f"{file}: summary.{key}", name=key) for key, entry in summaries.items()]
    for summary in summaries:
        check_summary(summary, {b.name: b for b in benchmarks}, f"{file}: summary.{summary.name}")
    return Suite(
        name=file.stem,
        title=tables.get("title", file.stem),
        benchmarks=benchmarks,
        guard=tables.get("guard", ""),
        summaries=summaries,
    )


def read_table(kind: type, table: Any, where: str, **given: Any) -> Any:
    """A dataclass from a TOML table: unknown keys, absent ones and wrong types are UserErrors."""
    if not isinstance(table, dict):
        raise UserError(f"{where} must be a table")
    known = {f.name: f for f in fields(kind) if f.name not in (*given, "items")}
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{where}.{key} is not a key here{nearest(key, known)}; there are: {', '.join(known)}")
        wanted = known[key].type
        container: Any = getattr(wanted, "__origin__", wanted)
        good = type(value) is container
        if good and container is list:
            good = all(isinstance(entry, str) for entry in value)
        if not good:
            named = {str: "a string", int: "a whole number", list: "a list of strings", dict: "a table"}[container]
            raise UserError(f"{where}.{key} must be {named}, not {value!r}")
    required = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in table]:
        raise UserError(f"{where}.{missing[0]} is missing")
    return kind(**given, **table)


def check_benchmark(benchmark: Benchmark, where: str) -> None:
    choices = {"kind": KINDS, "template": TEMPLATES, "axis": (*AXES, "")}
    for key, known in choices.items():
        value = getattr(benchmark, key)
        if value not in known:
            raise UserError(f"{where}.{key} cannot be {value!r}; it can be {', '.join(filter(None, known))}")
    if benchmark.kind == "generate" and not benchmark.judges:
        raise UserError(f"{where}.judges is missing: who judges the responses?")
    if benchmark.kind != "generate" and benchmark.judges:
        raise UserError(f"{where}.judges: {benchmark.kind} has no responses to judge; leave it out")
    named = [name for name, metric in METRICS.items() if metric.kind == benchmark.kind]
    if benchmark.metric and benchmark.metric not in named:
        raise UserError(
            f"{where}.metric cannot be {benchmark.metric!r}; of {benchmark.kind} it can be {', '.join(named)}"
        )
    for words, good in (
        ("at least 1", benchmark.max_new_tokens >= 1),
        ("below 2^31", benchmark.max_new_tokens < 2**31),
    ):
        if not good:
            raise UserError(f"{where}.max_new_tokens must be {words}, not {benchmark.max_new_tokens}")


def check_summary(summary: Summary, benchmarks: Mapping[str, Benchmark], where: str) -> None:
    if summary.axis not in (*AXES, ""):
        raise UserError(f"{where}.axis cannot be {summary.axis!r}; it can be {', '.join(AXES)}")
    if not summary.mean_of:
        raise UserError(f"{where}.mean_of is empty; name benchmarks")
    for entry in summary.mean_of:
        name, _, metric = entry.partition(".")
        if name not in benchmarks:
            raise UserError(f"{where}.mean_of: {name} is not a benchmark of this suite{nearest(name, benchmarks)}")
        kind = benchmarks[name].kind
        named = [known for known, about in METRICS.items() if about.kind == kind]
        if metric and metric.partition("/")[0] not in named and metric not in named:
            raise UserError(f"{where}.mean_of: {metric} is no metric of {kind}; there are {', '.join(named)}")
