"""Greedy generation, ours and transformers' where it is installed, on one folder and the same prompts.

Random weights put many scores close together, so responses part early; how many agree says little, and is not held to.
"""

import argparse
import importlib.util

from align import command
from align.data import encode_prompts, load_tokenizer
from align.generate.bench import ASKED, TOPICS, Contender, ours, theirs
from align.models import load_model
from benchmarks.gpu import models
from benchmarks.gpu.part import DEVICE, DRY, DTYPE, Part, milliseconds

part = Part("generation")
ROWS, NEW = ((4,), 4) if DRY else ((32, 128, 1), 64)


def run(name: str, contender: Contender, others: list[list[int]]) -> list[list[int]]:
    """Time one of the two; its responses, which are compared with the other's where those are there."""
    responses = contender(())
    tokens = sum(map(len, responses))
    ms = milliseconds(lambda: contender(()), rounds=2, warm=0)
    same = sum(a == b for a, b in zip(responses, others, strict=False))
    rates = {"ms": ms, "tokens_s": 1e3 * tokens / ms, "ms_a_token": ms / NEW}
    part.row(name, **rates, tokens=tokens, **({"same_responses": f"{same} of {len(others)}"} if others else {}))
    return responses


def main(argv: list[str]) -> None:
    folder = models.folder("1.3B")
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, DTYPE, DEVICE)
    texts = [asked.format(topic) for _ in range(4) for topic in TOPICS for asked in ASKED]
    for rows in ROWS:
        prompts = encode_prompts([[{"role": "user", "content": text}] for text in texts[:rows]], tokenizer)
        args = argparse.Namespace(new=NEW, batch=rows)
        name = f"{rows} rows, align"
        first = part.attempt(name, run, name, ours(model, prompts, args, False), [], need=5)
        name = f"{rows} rows, transformers"
        if importlib.util.find_spec("transformers"):
            part.attempt(name, run, name, theirs(folder, prompts, args, model), first or [], need=8)


if __name__ == "__main__":
    command.run(main)
