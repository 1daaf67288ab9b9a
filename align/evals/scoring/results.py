"""results.json: every prompt, response and verdict of an evaluation, and all scores. The report is made from it alone.

It has no times and no dates: the same models on the same suites give the same file, even if stopped in between.
"""

import argparse
from typing import Any

from align.errors import UserError
from align.evals.models import Candidate
from align.evals.scoring.judging import JudgeSpec
from align.evals.scoring.scores import (
    agreements,
    comparisons,
    metric_owners,
    metrics_of,
    record_values,
    scores_of,
    summary_scores,
)
from align.evals.suites import Benchmark, Suite

# the flags that a response or a verdict depends on
SETTINGS = (
    *("limit", "temperature", "top_p", "top_k", "seed", "max_new_tokens", "max_length", "dtype"),
    *("guard", "toxicity", "toxicity_label", "judge"),
)


def build_results(
    options: argparse.Namespace,
    suites: list[Suite],
    models: list[Candidate],
    judges: list[JudgeSpec],
    records: dict[str, dict[str, list[dict]]],
) -> dict[str, Any]:
    """records: model -> benchmark -> records with their verdicts."""
    benchmarks = [benchmark for suite in suites for benchmark in suite.benchmarks]
    names = [model.name for model in models]
    rows = {benchmark.name: rows_of(benchmark, names, records) for benchmark in benchmarks}
    metrics = {
        benchmark.name: metrics_of(benchmark, (row for name in names for row in rows[benchmark.name][name]))
        for benchmark in benchmarks
    }
    for benchmark in benchmarks:
        check_metric(f"benchmarks.{benchmark.name}.metric", benchmark.metric, metrics[benchmark.name])
    for summary in (summary for suite in suites for summary in suite.summaries):
        for entry in summary.mean_of:
            name, _, metric = entry.partition(".")
            check_metric(f"summary.{summary.name}.mean_of", metric, metrics[name])
    scores = [
        {"model": name, "benchmark": benchmark.name, **found}
        for name in names
        for benchmark in benchmarks
        for found in scores_of(benchmark, records[name][benchmark.name], rows[benchmark.name][name])
    ]
    return {
        "version": 2,
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "suites": {suite.name: suite.title for suite in suites},
        "models": [describe_model(model) for model in models],
        "judges": [{"name": judge.name, "id": judge.id} for judge in judges],
        "benchmarks": [
            describe_benchmark(benchmark, metrics[benchmark.name], records[names[0]]) for benchmark in benchmarks
        ],
        "scores": scores,
        "summaries": [
            found
            for suite in suites
            for summary in suite.summaries
            for name in names
            if (found := summary_scores(summary, name, [s for s in scores if s["model"] == name], metrics))
        ],
        "comparisons": [found for b in benchmarks for found in comparisons(names, b, rows[b.name])],
        "agreements": [
            found for b in benchmarks for name in names for found in agreements(name, b, records[name][b.name])
        ],
        "records": records,
    }


def check_metric(where: str, metric: str, found: dict[str, dict]) -> None:
    """Raise UserError for a metric that a suite names and no record has: another would stand in its place unsaid."""
    if metric and found and metric not in found:
        raise UserError(f"{where}: no response has {metric}; name another judge, or one of {', '.join(found)}")


def rows_of(
    benchmark: Benchmark, names: list[str], records: dict[str, dict[str, list[dict]]]
) -> dict[str, list[dict[str, float]]]:
    """The values of every record of a benchmark, by model; the first model is the base of the others."""
    found = {name: records[name][benchmark.name] for name in names}
    owners = metric_owners(benchmark, (record for name in names for record in found[name]))
    rows = {}
    for name in names:
        same = name != names[0] and len(found[name]) == len(found[names[0]])  # windows of another tokenizer are not
        bases = found[names[0]] if same else [None] * len(found[name])
        rows[name] = [
            record_values(record, benchmark, owners, base) for record, base in zip(found[name], bases, strict=True)
        ]
    return rows


def describe_model(model: Candidate) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": model.path,
        "id": model.id,
        "parameters": model.parameters,
        "metrics": None if model.metrics is None else str(model.metrics),
    }


def describe_benchmark(
    benchmark: Benchmark, metrics: dict[str, dict], records: dict[str, list[dict]]
) -> dict[str, Any]:
    keys = ("name", "suite", "title", "kind", "data", "judges", "template", "options")
    generation = ("max_new_tokens", "stop") if benchmark.kind == "generate" else ()
    described = {key: getattr(benchmark, key) for key in (*keys, *generation)}
    return described | {"n": len(records[benchmark.name]), "metrics": metrics}
