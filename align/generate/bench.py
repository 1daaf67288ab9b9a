"""Tokens per second of generation, compared with transformers' generate: `python -m align.generate.bench --model DIR`.

Greedy, the same folder and prompts, float32 on a CPU and bfloat16 on a GPU. Two cases: responses of one length, where
end tokens are treated as ordinary ones; and responses as they come, up to their end tokens, which do not count. Nothing
is timed before the tokens are the same. The contenders then take turns, and each keeps its best time.

transformers gets its prompts sorted by length, in batches of as many rows as the cache here has. This project
runs twice: without and with a second copy of the weights, laid out for the products (align/generate/packed.py), the
making of which is timed too.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from align import command
from align.data import encode_prompts, load_tokenizer
from align.errors import UserError
from align.generate.engine import column_bytes, generate
from align.kernels import hardware
from align.models import Decoder, load_model, resolve_model

Prompts = list[list[int]]
Contender = Callable[[Sequence[int]], list[list[int]]]  # the ids that end a response -> every prompt's new ids
BASELINE = "transformers"
TIE = 1e-3  # scores closer than this may swap ranks when sums are taken in another order

TOPICS = ("the sea", "bicycles", "bread", "old maps", "sleep", "chess", "rivers and how they find their way", "bees")
ASKED = (
    "Tell me one thing about {}.",
    "Write three sentences about {}, each of them about something else, and number them.",
    "My daughter is nine years old and has to give a short talk on {} next week. What should she say first, what "
    "after that, and how could she end it so that the class remembers it? Please keep it simple.",
    "Here are some notes: they have been with us for a long time; people disagree about them; some have made a living "
    "of them, others only a hobby; books were written on them, most of which nobody reads any more, and yet each year "
    "there are new ones; museums show them, schools teach them, songs praise them. The notes are about {}. Write a "
    "paragraph that uses at least two of them, and end with a question to the reader.",
)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The first --count texts of the file, or of the 32 above, which have four lengths. Raises UserError."""
    if args.prompts is None:
        return [asked.format(topic) for topic in TOPICS for asked in ASKED][: args.count]
    texts = []
    for number, line in enumerate(args.prompts.read_text(encoding="utf-8").splitlines()[: args.count], 1):
        text = json.loads(line).get(args.key)
        if not isinstance(text, str):
            raise UserError(f"{args.prompts}:{number}: no text under {args.key!r}; --key names where the prompts are")
        texts.append(text)
    return texts


def ours(model: Decoder, prompts: Prompts, args: argparse.Namespace, pack: bool) -> Contender:
    return lambda ends: generate(model, prompts, args.new, eos_ids=ends, batch_size=args.batch, pack=pack)


def theirs(folder: Path, prompts: Prompts, args: argparse.Namespace, like: Decoder) -> Contender:
    from transformers import AutoModelForCausalLM

    weight = like.embedding.weight
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype).to(weight.device)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))

    @torch.no_grad()
    def run(ends: Sequence[int]) -> list[list[int]]:
        model.generation_config.eos_token_id = list(ends) or None
        responses: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), args.batch):
            rows = order[start : start + args.batch]
            longest = max(len(prompts[i]) for i in rows)
            padding = [longest - len(prompts[i]) for i in rows]  # on the left
            ids = torch.tensor([[0] * n + prompts[i] for i, n in zip(rows, padding, strict=True)], device=model.device)
            mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding], device=model.device)
            new = model.generate(ids, attention_mask=mask, max_new_tokens=args.new, do_sample=False, pad_token_id=0)
            for i, row in zip(rows, new[:, longest:].tolist(), strict=True):
                end = next((t for t, token in enumerate(row) if token in ends), len(row))
                responses[i] = row[:end]
        return responses

    return run


def compare(model: Decoder, prompts: Prompts, a: list[list[int]], b: list[list[int]], end: int) -> tuple[int, int]:
    """How many responses differ, and how many of these at a tie: two tokens with scores within TIE of each other."""
    differ = ties = 0
    for prompt, one, other in zip(prompts, a, b, strict=True):
        if one != other:
            one, other = [*one, end], [*other, end]
            first = next(i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
            with torch.no_grad():
                scores = model.logits(torch.tensor([prompt + one[:first]], device=model.embedding.weight.device))[0, -1]
            differ += 1
            ties += bool((scores[one[first]] - scores[other[first]]).abs() < TIE)
    return differ, ties


def measure(contenders: dict[str, Contender], ends: Sequence[int], args: argparse.Namespace) -> dict[str, float]:
    """Best seconds of each."""
    clock = time.process_time if args.shared else time.perf_counter
    best: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, run in contenders.items():
            start = clock()
            run(ends)
            best[name] = min(best.get(name, float("inf")), clock() - start)
    return best


def bench(
    contenders: dict[str, Contender], model: Decoder, prompts: Prompts, ends: list[int], args: argparse.Namespace
) -> bool:
    """Print the table, as long as every contender writes the first one's tokens; return whether all did."""
    first = next(iter(contenders))
    for case, ending in ((f"{args.new} new tokens each", ()), (f"up to the end token, {args.new} at most", ends)):
        responses = {name: run(ending) for name, run in contenders.items()}
        for name in list(contenders)[1:]:
            differ, ties = compare(model, prompts, responses[first], responses[name], ends[0])
            print(f"{case}: {name} and {first} agree in {len(prompts) - differ} of {len(prompts)} responses", end="")
            print(f", and part at a tie in {ties}" if ties else "")
            if differ > ties:
                print(f"{differ - ties} responses differ by more than rounding: nothing is timed")
                return False
        tokens = {name: sum(map(len, new)) for name, new in responses.items()}
        for name, seconds in measure(contenders, ending, args).items():
            speed = tokens[name] / seconds
            if name == first:
                base = speed
            print(f"  {name:20}{tokens[name]:8} tokens{seconds:9.2f} s{speed:9.1f} tokens/s{speed / base:7.2f} x")
    return True


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="align.generate.bench", description="Tokens per second of generation.")
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder in Hugging Face layout")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help="one JSON object per line; default: built in"
    )
    parser.add_argument("--key", default="prompt", help="the key of the text in a line")
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--new", type=int, default=64, help="new tokens of a response, at most")
    parser.add_argument("--batch", type=int, default=32, help="rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="count CPU time: for a machine that is shared")
    args = parser.parse_args(argv)
    try:
        folder = resolve_model(args.model)
        tokenizer = load_tokenizer(folder)
        prompts = encode_prompts([[{"role": "user", "content": text}] for text in read_prompts(args)], tokenizer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(folder, torch.bfloat16 if device == "cuda" else torch.float32, device)
    except (UserError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 2
    contenders = {"align": ours(model, prompts, args, True), "align, pack=False": ours(model, prompts, args, False)}
    versions = f"torch {torch.__version__}"
    if importlib.util.find_spec(BASELINE):
        contenders = {BASELINE: theirs(folder, prompts, args, model), **contenders}
        versions += f", transformers {importlib.metadata.version(BASELINE)}"
    lengths = sorted(map(len, prompts))
    print(f"{hardware(device)}; {torch.get_num_threads()} threads; {versions}")
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {model.embedding.weight.dtype}; "
        f"{column_bytes(model) / 1024:.0f} KiB of cache a token; {args.batch} rows; {len(prompts)} prompts of "
        f"{lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}; "
        f"{'CPU' if args.shared else 'wall'} time, best of {args.rounds}"
    )
    return 0 if bench(contenders, model, prompts, sorted(tokenizer.eos_ids), args) else 1


if __name__ == "__main__":
    command.run(main)
