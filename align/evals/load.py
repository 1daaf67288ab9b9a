"""From suites to items: every prompt of an evaluation, read and checked before anything runs."""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from align.errors import UserError
from align.evals.files import locate, read_text
from align.evals.formats.items import check_options, read_items
from align.evals.likelihood import preference_items
from align.evals.suites import Benchmark, Suite, read_suite

# what the kinds without a format take as options, with their defaults
PERPLEXITY = {"window": 1024, "stride": 512}
PREFERENCE = {"bad_rows": "auto"}

Resolve = Callable[[str], str]  # a `tiny:` path to a real one


def load_suites(options: argparse.Namespace, resolve: Resolve) -> list[Suite]:
    """The suites of --suite with all their items. Raises UserError naming the suite, file or row, and the fix."""
    suites = [read_suite(name) for name in dict.fromkeys(options.suite)]
    benchmarks = [benchmark for suite in suites for benchmark in suite.benchmarks]
    if twice := [name for name, count in Counter(b.name for b in benchmarks).items() if count > 1]:
        raise UserError(f"--suite: two of the suites have a benchmark {twice[0]}; run them one after the other")
    if options.judge:
        judge_safety(benchmarks, options.judge)
    for benchmark in benchmarks:
        if options.max_new_tokens:
            benchmark.max_new_tokens = options.max_new_tokens
        benchmark.items = load_items(benchmark, options.data, resolve)
        if options.limit:
            benchmark.items = benchmark.items[: options.limit]
    return suites


def judge_safety(benchmarks: list[Benchmark], judge: str) -> None:
    """Make a judge the first, which gives the scores, wherever safety is judged; it replaces `guard`."""
    judged = [b for b in benchmarks if "guard" in b.judges or (b.kind == "generate" and b.axis == "safety")]
    if not judged:
        suites = ", ".join(dict.fromkeys(benchmark.suite for benchmark in benchmarks))
        raise UserError(
            f"--judge {judge} judges safety, which --suite {suites} does not measure; name it among a suite's judges"
        )
    for benchmark in judged:
        others = [name for name in benchmark.judges if name not in ("guard", judge)]
        benchmark.judges = [judge, *others]


def load_items(benchmark: Benchmark, data_dir: Path, resolve: Resolve) -> list[dict]:
    """The items of a benchmark, one per prompt (align/evals/formats/items.py); for perplexity, the text."""
    where, data = f"benchmarks.{benchmark.name}.options", benchmark.data
    if data.startswith("tiny:"):
        file = Path(resolve(data))
        data_dir, data = file.parent, file.name
    if benchmark.kind in ("generate", "choice"):
        return read_items(benchmark.format, data, data_dir, benchmark.options, benchmark.get, benchmark.where, where)
    known = PERPLEXITY if benchmark.kind == "perplexity" else PREFERENCE
    benchmark.options = check_options(benchmark.options, known, {}, where)
    file, *more = locate(data_dir, data, benchmark.get)
    if more:
        raise UserError(
            f"benchmarks.{benchmark.name}.data {data} names {1 + len(more)} files; {benchmark.kind} reads one"
        )
    if benchmark.kind == "perplexity":
        return [{"text": read_text(file)}]
    items, dropped = preference_items(file, benchmark.options["bad_rows"])
    if dropped:
        print(f"{file}: {sum(dropped.values())} rows dropped: {', '.join(f'{n} {why}' for why, n in dropped.items())}")
    return items
