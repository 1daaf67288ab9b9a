"""Measure how safe a model is, and what that cost it: suites of benchmarks in, one page out.

    python eval.py --model runs/tiny-base --model runs/tiny-nca --suite tiny
    torchrun --nproc-per-node 8 eval.py --model DIR --suite alert --guard meta-llama/Llama-Guard-3-8B
    python eval.py --chat --model DIR
    python eval.py --curves runs/tiny-nca runs/tiny-dpo

Suites -> prompts -> each model's responses -> each judge's verdicts -> scores with intervals -> results.json, report.html.
The others are compared with the first model. Stopped at any moment, the same command resumes.
"""

import argparse
import gc
from typing import NoReturn

from align import command, stopping
from align.disk import check_writable
from align.errors import UserError
from align.evals.chat import chat
from align.evals.flags import read_flags
from align.evals.load import load_suites
from align.evals.models import find_models, load_candidate
from align.evals.report.runs import write_curves
from align.evals.report.text import summary_table, write_report
from align.evals.run import Task, check_responses, item_records, progress, task_of
from align.evals.scoring.judging import JudgeSpec, judge_records, judge_specs
from align.evals.scoring.results import build_results
from align.evals.store import Store
from align.files import write_json
from align.parallel import World, distributed, rendezvous
from align.tiny.paths import resolve_path
from align.train import complain, train


def evaluate(options: argparse.Namespace, world: World) -> str:
    """Do whatever --output lacks, write the report, and return its table. Raises UserError."""

    def resolve(path: str) -> str:
        return resolve_path(path, world, train)

    # errors in the command are found before anything runs
    check_writable("--output", options.output)
    models = find_models([resolve(path) for path in options.model], options.max_length)
    suites = load_suites(options, resolve)
    benchmarks = [benchmark for suite in suites for benchmark in suite.benchmarks]
    options.guard = resolve(options.guard or next((suite.guard for suite in suites if suite.guard), ""))
    judges = judge_specs(benchmarks, options, world)
    store = Store(options.output / "records.jsonl", writes=world.main)

    tasks = [task_of(model, benchmark, options) for model in models for benchmark in benchmarks]
    for model in models:
        respond([task for task in tasks if task.model is model], store, options, world)
    for spec in judges:
        judge(spec, [task for task in tasks if spec.name in task.benchmark.judges], store, world)

    records: dict[str, dict[str, list[dict]]] = {model.name: {} for model in models}
    for task in tasks:
        records[task.model.name][task.benchmark.name] = read(task, judges, store)
    results = build_results(options, suites, models, judges, records)
    if world.main:
        write_json(options.output / "results.json", results, indent=1, ensure_ascii=False, allow_nan=False)
        write_report(results, options.output)
    return summary_table(results)


def respond(tasks: list[Task], store: Store, options: argparse.Namespace, world: World) -> None:
    """One model's records of all its tasks, where the store lacks them."""
    todo = [(task, i, part) for task in tasks for i, part in enumerate(task.chunks) if not store.has(task.key, i)]
    if todo:
        model = load_candidate(tasks[0].model, options, world)
        for task, i, part in progress(todo, f"{tasks[0].model.name} responds", world):
            store.add(task.key, i, item_records(model, task, task.items[part], options, world))
        del model
        gc.collect()  # a sharded model is full of reference cycles, and the next one needs the memory
    for task in tasks:
        check_responses(task, store.all(task.key, len(task.chunks)))


def judge(spec: JudgeSpec, tasks: list[Task], store: Store, world: World) -> None:
    """One judge's verdicts on all records of these tasks, where the store lacks them."""
    todo = [(task, i) for task in tasks for i in range(len(task.chunks)) if not store.has(spec.key(task), i)]
    if todo:
        loaded = spec.load()
        for task, i in progress(todo, f"{spec.name} judges", world):
            store.add(spec.key(task), i, judge_records(loaded, store.found[task.key, i], world))


def read(task: Task, judges: list[JudgeSpec], store: Store) -> list[dict]:
    """All records of a task, with all their verdicts."""
    records = store.all(task.key, len(task.chunks))
    for spec in judges:
        if spec.name in task.benchmark.judges:
            for record, verdict in zip(records, store.all(spec.key(task), len(task.chunks)), strict=True):
                if "error" not in record:
                    record.setdefault("verdicts", {})[spec.name] = verdict
    return records


def talk(options: argparse.Namespace, world: World) -> None:
    """--chat: with the model, or with two side by side."""
    if world.size > 1:
        raise UserError("--chat is a single process: start it with python, not torchrun")
    models = find_models([resolve_path(path, world, train) for path in options.model], options.max_length)
    chat(
        [(model.name, load_candidate(model, options, world), model.tokenizer) for model in models],
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_new_tokens=options.max_new_tokens or 512,
        seed=options.seed,
        max_length=options.max_length,
    )


def main(argv: list[str]) -> int:
    """Exit status: 0 done; 2 for what the user can fix, in one line; 1 for a bug, with its traceback.

    128 + the signal's number when stopped: the results so far are kept, and the same command resumes.
    """
    meeting = rendezvous()
    try:
        options = read_flags(argv)
        with distributed(meeting) as world:
            if options.chat:
                talk(options, world)
                return 0
            if options.curves:
                if world.main:
                    table, page = write_curves(options.curves, options.output), options.output / "curves.html"
                    print(f"{table}\n\nthe curves are in {page}", flush=True)
                return 0
            stopping.catch_signals("stopped; the same command resumes from here", meeting.launcher)
            table = evaluate(options, world)
            if world.main:
                print(f"\n{table}\n\nthe report is in {options.output / 'report.html'}", flush=True)
    except stopping.Stopped as stopped:
        return complain(str(stopped), 128 + stopping.signalled, meeting)
    except KeyboardInterrupt:  # before there is anything to keep, or in a chat
        return complain("stopped", 130, meeting)
    except BrokenPipeError:
        raise
    except Exception as error:
        return complain(*command.failure(error), meeting)
    return 0


def cli() -> NoReturn:
    """The command: of this file, and align-eval of an install."""
    command.run(main)


if __name__ == "__main__":
    cli()
