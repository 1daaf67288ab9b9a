"""From a benchmark's items to records: what a model responds, or how likely it finds what is given."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from align import stopping
from align.data import encode_prompts
from align.data.messages import is_begun
from align.data.tokenizer import Tokenizer
from align.errors import UserError
from align.evals.likelihood import choice_records, perplexity_items, perplexity_records, preference_records
from align.evals.models import Candidate
from align.evals.store import chunks, digest
from align.evals.suites import Benchmark
from align.generate import FAILURES, Settings, stream
from align.models import Decoder
from align.parallel import World

Each = TypeVar("Each")


def progress(todo: Sequence[Each], what: str, world: World) -> Iterator[Each]:
    """Each with a bar. Raises Stopped on a rank whose torchrun is gone."""
    seldom = 0.5 if sys.stderr.isatty() else 30.0  # seconds between updates, each of which is a line in a log file
    for each in tqdm(todo, what, unit="chunk", disable=not world.main, mininterval=seldom):
        if stopping.asked():
            raise stopping.Stopped(stopping.advice)
        yield each


def spread(items: Sequence[dict], work: Callable[[list[dict]], list[dict]], world: World) -> list[dict]:
    """work(items), shared among the processes: one result per item, in order, on every process."""
    if world.size == 1:
        return work(list(items)) if items else []
    mine = range(world.rank, len(items), world.size)
    results = work([items[i] for i in mine]) if mine else []
    found = dict(from_all_ranks(list(zip(mine, results, strict=True)), world))
    return [found[i] for i in range(len(items))]


@dataclass(frozen=True)
class Task:
    """One benchmark for one model. key is a hash of all that the records depend on."""

    model: Candidate
    benchmark: Benchmark
    items: list[dict]
    key: str

    @property
    def chunks(self) -> list[slice]:
        return chunks(len(self.items))


def task_of(model: Candidate, benchmark: Benchmark, options: argparse.Namespace) -> Task:
    items = benchmark.items
    if benchmark.kind == "perplexity":
        # a text is cut into windows of tokens of the model
        window = min(benchmark.options["window"], model.max_length)
        stride = min(benchmark.options["stride"], window - 1)
        items = perplexity_items(items[0]["text"], model.tokenizer, window, stride)
    made = [benchmark.kind, benchmark.template, options.dtype, items]
    if benchmark.kind == "generate":
        sampling = [options.temperature, options.top_p, options.top_k, options.seed] if options.temperature else []
        made += [benchmark.max_new_tokens, benchmark.stop, sampling]
    return Task(model, benchmark, items, digest(model.id, model.max_length, made))


def check_responses(task: Task, records: list[dict]) -> None:
    """Raise UserError where no prompt of a benchmark has a response: the model or the benchmark is broken."""
    errors = {record.get("error") for record in records}
    if None not in errors:
        why = min(str(error) for error in errors)
        others = f" (and {len(errors) - 1} other reasons)" if len(errors) > 1 else ""
        raise UserError(f"{task.model.path}: all {len(records)} prompts of {task.benchmark.name} failed: {why}{others}")


def item_records(
    model: Decoder, task: Task, items: list[dict], options: argparse.Namespace, world: World
) -> list[dict]:
    """One record per item: the model's response, or how likely it finds what is given; "error" where it failed."""
    benchmark, tokenizer, length, size = task.benchmark, task.model.tokenizer, task.model.max_length, options.batch_size
    if benchmark.kind == "generate":
        return generated_records(model, task, items, options, world)

    def work(items: list[dict]) -> list[dict]:
        if benchmark.kind == "choice":
            return choice_records(model, tokenizer, items, size, length, benchmark.template)
        if benchmark.kind == "perplexity":
            return perplexity_records(model, tokenizer, items, size)
        return preference_records(model, tokenizer, items, size, length, benchmark.template)

    # the weights of a sharded model are gathered by all processes together, so all of them do the same
    return work(items) if options.shard else spread(items, work, world)


def generated_records(
    model: Decoder, task: Task, items: list[dict], options: argparse.Namespace, world: World
) -> list[dict]:
    """Records with "response", the text, and "finish", why it ended: "eos", "stop" or "length"."""
    benchmark, tokenizer = task.benchmark, task.model.tokenizer
    records = [dict(item) for item in items]
    prompts = {}  # index in records -> ids
    for i, record in enumerate(records):
        try:
            (prompts[i],) = encode_prompts([record["prompt"]], tokenizer, benchmark.template)
        except UserError as error:
            record["error"] = str(error)
        else:
            if not prompts[i]:
                record["error"] = "the tokenizer has no token for the prompt"
                del prompts[i]
    settings = Settings(
        max_new_tokens=benchmark.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        eos_ids=sorted(tokenizer.eos_ids),
        stop=benchmark.stop,
        decode=tokenizer.decode,
        batch_size=options.batch_size,
        context=task.model.max_length,
    )
    slots = list(prompts)
    keys = [f"{benchmark.name} {records[i]['id']}" for i in slots]  # samples must not depend on the index
    finished = [vars(done) for done in stream(model, list(prompts.values()), settings, keys, world)]
    for done in from_all_ranks(finished, world):
        record, ids = records[slots[done["index"]]], prompts[slots[done["index"]]]
        if done["finish"] in FAILURES:
            size = f": {len(ids)} tokens of {task.model.max_length}" if done["finish"] == "context" else ""
            record["error"] = FAILURES[done["finish"]] + size
        else:
            record |= {"response": said(record["prompt"], ids, done, tokenizer), "finish": done["finish"]}
    return records


def said(prompt: str | list[dict], ids: list[int], done: dict, tokenizer: Tokenizer) -> str:
    """The text of a response; behind its beginning, if the prompt ends with that, with the white space between them."""
    text = done["text"]
    if not is_begun(prompt):
        return text.strip()
    # some tokenizers leave out the space that a text begins with
    after = tokenizer.decode([*ids[-1:], *done["ids"]]).removeprefix(tokenizer.decode(ids[-1:]))
    return (" " * (after[:1] == " " != text[:1]) + text).rstrip()


def from_all_ranks(mine: list, world: World) -> list:
    """The lists of all processes, of what JSON can say, as one."""
    if world.size == 1:
        return mine
    return [one for share in world.gather_texts(json.dumps(mine)) for one in json.loads(share)]
