"""A model's own responses to a file of prompts, each with a judge's verdict: what align.pairs makes preferences of.

    python -m align.respond --model DIR --prompts FILE [--system TEXT|FILE] [--k 4] [--judge refusal] [--output FILE]
    torchrun --nproc-per-node 8 -m align.respond --model DIR --prompts FILE --judge guard --guard DIR

Prompts -> k samples of each -> verdicts -> one JSON object a line. The seed, the prompt and the number of the sample
decide a response, and lines are written a chunk at a time: stopped at any moment, the same command goes on, and ends
with the file that it would have written anyway.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from align import command, stopping
from align.data.rows import describe
from align.errors import UserError
from align.evals.files import read_text
from align.evals.flags import Parser, check_sampling
from align.evals.models import find_model, load_candidate
from align.evals.run import check_responses, item_records, progress, task_of
from align.evals.scoring.judging import Judge, judge_records, judge_spec
from align.evals.store import CHUNK, digest
from align.evals.suites import Benchmark
from align.files import kind_of, loads, reachable
from align.judges.degenerate import degenerate
from align.judges.exact import EXACT_JUDGES
from align.judges.safety import safety
from align.parallel import World, distributed, rendezvous
from align.prompts import read_prompts, with_system

MAX_NEW_TOKENS = 256


def respond(options: argparse.Namespace, world: World) -> str:
    """Write what --output lacks, and say what it holds. Raises UserError."""
    # errors in the command are found before anything runs
    prompts, left_out = read_prompts(options.prompts, options.column)
    prompts = prompts[: options.limit or None]
    if options.judge in EXACT_JUDGES and (bare := [p["prompt"][-1]["content"] for p in prompts if "expected" not in p]):
        raise UserError(
            f"--judge {options.judge} compares with `expected`, which {options.prompts} lacks for {bare[0][:60]!r}"
        )
    system = system_text(options.system)
    model = find_model(options.model, options.max_length)
    benchmark = Benchmark(
        name="respond",
        suite="",
        title="",
        kind="generate",
        data=options.prompts,
        judges=[options.judge],
        max_new_tokens=options.max_new_tokens,
    )
    spec = judge_spec(options.judge, [benchmark], options, world)
    given = [prompt for prompt in prompts for _ in range(options.k)]
    benchmark.items = [asked(prompt, i % options.k, system) for i, prompt in enumerate(given)]
    task = task_of(model, benchmark, options)
    about = {"run": digest(spec.key(task), options.k)} | ({"system": system} if system else {})

    file = options.output
    size = max(1, CHUNK // options.k) * options.k  # a prompt's samples stay together
    known = written(file, about["run"])
    done = known if known == len(given) else known // size * size
    world.barrier()
    if world.main:
        keep(file, done)
    if done < len(given):
        loaded, judge = load_candidate(model, options, world), spec.load()
        starts = range(done, len(given), size)
        for start in progress(starts, "responds", world):
            part = slice(start, start + size)
            records = item_records(loaded, task, task.items[part], options, world)
            lines = lines_of(records, given[part], judge, world)
            if world.main:
                with file.open("a", encoding="utf-8") as stream:
                    stream.write("".join(json.dumps(about | one) + "\n" for one in lines))
    world.barrier()
    records = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    check_responses(task, records)
    return f"{summary(records, options.k, left_out)}\nthe responses are in {file}"


def asked(prompt: dict[str, Any], sample: int, system: str) -> dict[str, Any]:
    """The item of a prompt's sample. Its id, which with the seed decides the response, says what is asked."""
    chat = with_system(prompt["prompt"], system)
    return prompt | {"prompt": chat, "id": f"{digest(chat)}:{sample}", "sample": sample}


def lines_of(
    records: list[dict[str, Any]], given: list[dict[str, Any]], judge: Judge, world: World
) -> list[dict[str, Any]]:
    """A chunk's lines. What is judged is a response to the prompt as it was given, whatever else the model was told."""
    records = [record | prompt for record, prompt in zip(records, given, strict=True)]
    lines = []
    for record, prompt, verdict in zip(records, given, judge_records(judge, records, world), strict=True):
        line = prompt | {"sample": record["sample"]}
        if "error" in record:
            lines.append(line | {"error": record["error"]})
            continue
        said = {key: record[key] for key in ("response", "finish")}
        lines.append(line | said | {"degenerate": degenerate(*said.values()), "verdict": verdict})
    return lines


def system_text(given: str) -> str:
    """What --system says: a text, or the file that holds it. A text has more than one word."""
    if len(given.split()) != 1:
        return given.strip()
    if not reachable(given).is_file():
        raise UserError(f"--system {given}: no such file; a text has more than one word")
    return read_text(Path(given)).strip()


def written(file: Path, run: str) -> int:
    """How many lines of this run the file has. Raises UserError for a file of anything else."""
    if not file.exists():
        return 0
    count = 0
    with file.open("rb") as stream:
        for number, text in enumerate(stream, 1):
            if not text.endswith(b"\n"):
                break  # the half-written last line of a killed run
            try:
                other = loads(text)["run"] != run
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{file}:{number} is no line of a response; give another --output, or take the file away"
                ) from None
            if other:
                raise UserError(
                    f"{file}: holds responses of another model, other prompts or other settings; give another --output, or "
                    "take the file away"
                )
            count += 1
    return count


def keep(file: Path, lines: int) -> None:
    """Cut the file after so many lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as stream:
        stream.seek(0)
        for _ in range(lines):
            stream.readline()
        stream.truncate()


def summary(records: list[dict[str, Any]], k: int, left_out: Counter[str]) -> str:
    """What the responses are like, in a line or two."""
    responded = [record for record in records if "error" not in record]
    safe = sum((safety(record["verdict"]) or 0) > 0.5 and not record["degenerate"] for record in responded)
    broken = Counter(record["degenerate"] for record in responded if record["degenerate"])
    failed = len(records) - len(responded)
    shares = f"{safe / len(responded):.1%} safe, {broken.total() / len(responded):.1%} degenerate"
    kinds = f" ({', '.join(f'{n} {kind}' for kind, n in broken.most_common())})" if broken else ""
    lines = [f"{len(records) // k} prompts, {len(responded)} responses: {shares}{kinds}, {failed} failed"]
    return "\n".join([*lines, *([f"rows of the file: {describe(left_out)}"] if left_out else [])])


def read_flags(argv: list[str]) -> argparse.Namespace:
    """The checked flags. Raises UserError; --help prints and exits."""
    parser = Parser(
        prog="-m align.respond",
        description="A model's own responses to a file of prompts, each with a judge's verdict, as JSON lines.",
        epilog="Stopped at any moment, the same command goes on. docs/pairs.md says what the lines hold.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR|HUB_ID", help="a checkpoint or a run's folder")
    add("--prompts", required=True, metavar="FILE", help="a prompt a line, or a row: text, chat messages, preferences")
    add("--column", default="", metavar="NAME", help="where a row has its prompt, if not in `prompt`")
    add("--system", default="", metavar="TEXT|FILE", help="a system message to ask with, which the lines name apart")
    add("--k", type=int, default=4, help="samples of each prompt; default 4")
    add("--judge", default="refusal", metavar="NAME|MODULE:FUNCTION", help="refusal, guard, toxicity, or one of yours")
    add("--guard", default="", metavar="DIR|HUB_ID", help="the Llama Guard 3 checkpoint of --judge guard")
    add("--toxicity", default="", metavar="DIR|HUB_ID", help="the classifier of --judge toxicity")
    add("--toxicity_label", default="", metavar="NAME", help="which of its labels counts, where names do not tell")
    add("--output", type=Path, metavar="FILE", help="default: runs/responses/MODEL-PROMPTS.jsonl")
    add("--limit", type=int, default=0, metavar="N", help="only the first N prompts")
    add("--temperature", type=float, default=1.0, help="of sampling; 0 takes the likeliest token, and --k 1")
    add("--top_p", type=float, default=1.0, help="sample from the likeliest tokens that have this probability together")
    add("--top_k", type=int, default=0, help="sample from this many of the likeliest tokens; 0: from all")
    add("--seed", type=int, default=0, help="of the samples")
    add(
        "--max_new_tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help="of a response; longer ones are cut off"
    )
    add("--max_length", type=int, default=0, metavar="N", help="of prompt and response; default: what the model says")
    add("--batch_size", type=int, default=32, metavar="N", help="responses that a process writes at a time")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on GPUs")
    add("--shard", action="store_true", help="spread the weights over all processes: for models that fit on none")
    options = parser.parse_args(argv)
    check(options)
    if options.output is None:
        prompts = Path(options.prompts.rpartition(":")[2])
        name = f"{Path(options.model.removesuffix('/model')).name}-{prompts.name.removesuffix('.gz')}"
        name = name.removesuffix(kind_of(prompts)) + "-system" * bool(options.system)
        options.output = Path("runs") / "responses" / f"{name}.jsonl"
    return options


def check(options: argparse.Namespace) -> None:
    check_sampling(options)
    if options.max_new_tokens < 1:
        raise UserError("--max_new_tokens must be at least 1")
    if options.temperature == 0 and options.k > 1:
        raise UserError(f"--temperature 0 gives one response, {options.k} times; say --k 1, or sample")
    for judge, what in (("guard", "a Llama Guard 3 checkpoint"), ("toxicity", "a BERT or RoBERTa classifier")):
        if options.judge == judge and not getattr(options, judge):
            raise UserError(f"--judge {judge}: give --{judge} DIR, {what}")


def main(argv: list[str]) -> int:
    meeting = rendezvous()

    def work() -> None:
        options = read_flags(argv)
        with distributed(meeting) as world:
            stopping.catch_signals("stopped; the same command goes on from here", meeting.launcher)
            said = respond(options, world)
            if world.main:
                print(said, flush=True)

    return command.attempt(work, meeting.first)


def cli() -> NoReturn:
    command.run(main)


if __name__ == "__main__":
    cli()
