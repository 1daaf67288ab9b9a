"""Generation with a key/value cache: many prompts at once, and no response depends on the others in its batch.

Each forward of the model does one of two things: it reads some prompts into free rows of the cache, or it writes one
token of every row in use. A row whose response ends is free for the next prompt, so that a short response does not
wait for a long one. Shorter prompts come first: those that are read together need little padding, and rows that have
written much share the cache with rows that began with much.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from align.generate.cache import KVCache
from align.generate.packed import Packed
from align.generate.sampling import choose
from align.models import Decoder
from align.parallel import World, reshard

FINISHES = ("eos", "stop", "length", "context", "nan")
FAILURES = {"context": "the prompt fills the model's context", "nan": "the model's scores are non-finite"}
READ_TOKENS = 512  # that one forward reads, padding included: more hardly run faster per token, and need more padding
SHARED_TOKENS = 256  # saved by reading the prompts' common prefix once: fewer are not worth an extra forward
PACKED_PROMPTS = 8  # from which on packing the weights pays: it takes as long as a few forwards


@dataclass(frozen=True)
class Settings:
    """How responses are generated. Raises ValueError for a setting that makes no sense.

    temperature: 0 takes the likeliest token, above 0 samples from softmax(logits / temperature). top_k: only from this
    many of the likeliest tokens, 0 for all. top_p: then only from the likeliest that have this probability together.
    eos_ids: tokens that end a response. stop: texts that do, found by `decode`, which turns ids to text.
    batch_size: rows of the cache at most. cache_gib: its size at most, in GiB, so that long prompts get fewer rows, at
    least one. context: tokens of prompt and response together; 0 for the config's max_position_embeddings, if it has any.
    pack: on a CPU, in float32, keep a second, faster copy of the weights meanwhile (align/generate/packed.py).
    """

    max_new_tokens: int
    temperature: float = 0.0
    eos_ids: Sequence[int] = ()
    seed: int = 0
    batch_size: int = 128
    top_p: float = 1.0
    top_k: int = 0
    stop: Sequence[str] = ()
    decode: Callable[[list[int]], str] | None = None
    cache_gib: float = 4.0
    context: int = 0
    pack: bool = True

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "a number of at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "cache_gib": (self.cache_gib > 0, "above 0"),
            "context": (self.context >= 0, "at least 0"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a sequence of texts, none of them empty"),
            "decode": (self.decode is not None or not self.stop, "given where stop is"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Finished:
    """What became of a prompt.

    finish: "eos"; "stop", a stop text; "length", max_new_tokens are written or the context is full; or that it failed:
    "context", the prompt leaves no room for a response; "nan", non-finite scores, after these ids.
    ids: without the end token, and up to the last token that ends before the stop text. text: the same decoded, but up
    to the exact character; None if there is no `decode`.
    """

    index: int
    ids: list[int]
    finish: str
    text: str | None


class Row:
    """A prompt and what has been written after it."""

    def __init__(self, index: int, prompt: list[int], settings: Settings, key: int | str, context: float):
        self.index, self.prompt, self.settings = index, prompt, settings
        self.room = int(min(settings.max_new_tokens, context - len(prompt)))
        self.new: list[int] = []
        self.text = settings.decode([]) if settings.decode else None
        self.finish = None if self.room > 0 else "length" if settings.max_new_tokens < 1 else "context"
        # one uniform number per token decides the sample, and nothing else. A text seeds it, so that no two keys collide
        self.uniform = random.Random(f"{settings.seed} {key}").random
        # every token of a stop text holds at least a byte of it; 8 more, since decoding may skip tokens
        self.tail = max((len(text.encode()) for text in settings.stop), default=0) + 8

    @property
    def columns(self) -> int:
        """Columns of the cache, at most: the last token is written, but never read."""
        return len(self.prompt) + self.room - 1

    def take(self, token: int) -> None:
        """The next token; negative if there is none, because the scores are non-finite."""
        if token < 0:
            self.finish = "nan"
        elif token in self.settings.eos_ids:
            self.finish = "eos"
        else:
            self.new.append(token)
            self.finish = "length" if len(self.new) == self.room else None
        if self.finish or self.stop_in(self.new[-self.tail :]):
            self.end()

    def stop_in(self, ids: list[int]) -> bool:
        decode, stop = self.settings.decode, self.settings.stop
        return decode is not None and bool(stop) and find_stop(decode(ids), stop) >= 0

    def end(self) -> None:
        """Make the text, and end before a stop text in it."""
        decode = self.settings.decode
        if decode is None:
            return
        self.text = decode(self.new)
        at = find_stop(self.text, self.settings.stop)
        if at >= 0 and self.finish != "nan":
            self.finish, self.text = "stop", self.text[:at]
            while not self.text.startswith(decode(self.new)):
                self.new.pop()


def find_stop(text: str, stop: Sequence[str]) -> int:
    """Where the first stop text begins, -1 if there is none."""
    return min((at for at in map(text.find, stop) if at >= 0), default=-1)


def generate(
    model: Decoder,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 128,
    *,
    keys: Sequence[int | str] | None = None,
    world: World | None = None,
    **others: Any,
) -> list[list[int]]:
    """The new ids that follow each prompt, at most max_new_tokens, without what ended them.

    others: the remaining settings. keys, world: those of `stream`; with world, every rank gets all responses.
    Raises ValueError as `stream` does, and where a prompt fails, naming it.
    """
    settings = Settings(max_new_tokens, temperature, eos_ids, seed, batch_size, **others)
    done = list(stream(model, prompts, settings, keys, world))
    if world is not None and world.size > 1:
        done = exchange(done, len(prompts), max_new_tokens, world)
    done.sort(key=lambda one: one.index)
    if failed := [one for one in done if one.finish in FAILURES]:
        raise ValueError(f"prompt {failed[0].index}: {FAILURES[failed[0].finish]}")
    return [one.ids for one in done]


def exchange(done: list[Finished], prompts: int, max_new_tokens: int, world: World) -> list[Finished]:
    """What any rank has finished, on every rank, without the texts."""
    table = torch.zeros(prompts, max(max_new_tokens, 0) + 2, dtype=torch.long)
    for one in done:
        table[one.index, : len(one.ids) + 2] = torch.tensor([FINISHES.index(one.finish), len(one.ids), *one.ids])
    rows = world.sum(table).tolist()  # for each prompt, all ranks but one have zeros
    return [Finished(i, ids[:length], FINISHES[finish], None) for i, (finish, length, *ids) in enumerate(rows)]


def stream(
    model: Decoder,
    prompts: list[list[int]],
    settings: Settings,
    keys: Sequence[int | str] | None = None,
    world: World | None = None,
) -> Iterator[Finished]:
    """Each prompt as it finishes.

    The seed and a prompt's key decide its samples, in any batch and on any device; its index in `prompts` is its key
    unless keys are given, so that a part of an evaluation draws what the whole would. Only the rounding of the scores
    can differ with the shape of a batch, and so a token where two are equally likely up to rounding.

    With world every rank generates for its share of the prompts. The ranks of a sharded model must then
    exhaust their streams, for they wait for each other; without world they must give the same prompts. ValueError
    for an empty prompt and for an id that the model does not have.
    """
    rows = make_rows(model, prompts, settings, range(len(prompts)) if keys is None else keys)
    if world is not None:
        rows = rows[world.rank :: world.size]  # sorted by length, so that the ranks have equal work
    return (Finished(row.index, row.new, row.finish, row.text) for row in write(model, rows, world) if row.finish)


def stream_tokens(model: Decoder, prompt: list[int], settings: Settings) -> Iterator[int]:
    """One prompt's response, token by token; what a stop text takes back may have been yielded by then.

    Raises ValueError as `generate` does.
    """
    given = 0
    for row in write(model, make_rows(model, [prompt], settings, [0]), None):
        if row.finish in FAILURES:
            raise ValueError(f"the prompt: {FAILURES[row.finish]}")
        yield from row.new[given:]
        given = len(row.new)


def make_rows(model: Decoder, prompts: list[list[int]], settings: Settings, keys: Sequence[int | str]) -> list[Row]:
    """From the shortest prompt to the longest."""
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: there is nothing to continue")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            raise ValueError(f"prompt {i} has an id outside the model's vocabulary of {model.config.vocab_size}")
    context = settings.context or model.config.raw.get("max_position_embeddings") or math.inf
    rows = [Row(i, prompt, settings, key, context) for i, (prompt, key) in enumerate(zip(prompts, keys, strict=True))]
    return sorted(rows, key=lambda row: len(row.prompt))


@torch.no_grad()  # not inference_mode: a model that trains later must not have seen inference tensors
def write(model: Decoder, rows: list[Row], world: World | None) -> Iterator[Row]:
    """Each row whenever it has a new token, the last time when it has finished."""
    yield from (row for row in rows if row.finish)
    rows = [row for row in rows if not row.finish]
    if isinstance(model, FSDPModule) and "logits" not in vars(model):
        register_fsdp_forward_method(model, "logits")
    # a forward of a sharded model needs every rank, but some have less to do: before each, the ranks count those with
    # work left, and those without it join in until no rank has any
    together = world if isinstance(model, FSDPModule) else None
    device = model.embedding.weight.device
    packed = Packed(model) if rows and rows[0].settings.pack and len(rows) >= PACKED_PROMPTS else nullcontext()

    def forward(ids: list[list[int]], cache: KVCache, at: list[int] | None = None) -> Tensor:
        if together is not None:
            together.sum(torch.ones(1))
        with packed:
            logits = model.logits(
                torch.tensor(ids, device=device), cache, None if at is None else torch.tensor(at, device=device)
            )
        return logits if at else logits[:, 0]  # (B, V)

    try:
        for part, held in waves(rows, column_bytes(model)):
            yield from serve(forward, part, held)
        while together is not None and together.sum(torch.zeros(1)) > 0:
            model.logits(torch.zeros(1, 1, dtype=torch.long, device=device))
    finally:
        reshard(model)


def column_bytes(model: Decoder) -> int:
    """Bytes that one token takes in the cache."""
    config = model.config
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * model.embedding.weight.itemsize


def waves(rows: list[Row], column: int) -> Iterator[tuple[list[Row], int]]:
    """The rows in parts, each with how many are in the cache at a time: fewer where they are longer."""
    if not rows:
        return
    settings = rows[0].settings
    columns, held = settings.cache_gib * 2**30 / column, settings.batch_size
    while rows:
        held = min(held, len(rows))
        part = [row for row in rows if held == 1 or held * row.columns <= columns]
        if part:
            yield part, min(held, len(part))
        rows, held = rows[len(part) :], max(1, held // 2)


def serve(forward: Callable[..., Tensor], rows: list[Row], held: int) -> Iterator[Row]:
    """`write` with a cache of `held` rows."""
    cache = KVCache(torch.empty(0, dtype=torch.long), max(row.columns for row in rows), held)
    read_prefix(forward, rows, cache)
    waiting = deque(rows)
    active: list[Row] = []
    while waiting or active:
        if new := entering(waiting, held - len(active), held, cache.prefix):
            prompts = [row.prompt[cache.prefix :] for row in new]
            lengths = [len(prompt) for prompt in prompts]
            cache.enter(torch.tensor(lengths))
            # a row is padded with its own last token: the padding is masked, but a NaN of another row would spread
            ids = [prompt + prompt[-1:] * (max(lengths) - len(prompt)) for prompt in prompts]
            logits = forward(ids, cache, [length - 1 for length in lengths])
            active += new
        else:
            new = list(active)
            logits = forward([row.new[-1:] for row in active], cache)
        for row, token in zip(new, pick(logits, new), strict=True):
            row.take(token)
        for i in reversed(range(len(active))):
            if active[i].finish:
                cache.drop(i, non_finite=active[i].finish == "nan")
                active[i] = active[-1]
                active.pop()
        yield from new


def read_prefix(forward: Callable[..., Tensor], rows: list[Row], cache: KVCache) -> None:
    """Read once what all prompts begin with, such as a system message, if that saves much."""
    first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)  # as lists are ordered
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    common = min(common, min(len(row.prompt) for row in rows) - 1)  # every prompt has something left to read
    if common * (len(rows) - 1) >= SHARED_TOKENS:
        cache.enter(torch.tensor([common]))
        forward([first[:common]], cache, [common - 1])
        cache.share()


def entering(waiting: deque[Row], free: int, held: int, prefix: int) -> list[Row]:
    """The rows to read now, taken from those waiting; none while it is better to continue those in use."""
    # a forward for one prompt costs nearly that of a few, so an eighth of the cache must be free
    if not waiting or free < min(len(waiting), max(1, held // 8)):
        return []
    new = [waiting.popleft()]
    while waiting and len(new) < free and (len(new) + 1) * (len(waiting[0].prompt) - prefix) <= READ_TOKENS:
        new.append(waiting.popleft())
    return new


def pick(logits: Tensor, rows: list[Row]) -> list[int]:
    """logits (B, V) -> the next token of every row, -1 where the scores are non-finite."""
    settings = rows[0].settings
    drawn = [row.uniform() for row in rows] if settings.temperature else [0.0] * len(rows)
    uniform = torch.tensor(drawn, dtype=torch.float64, device=logits.device)  # (B,)
    token = choose(logits, settings.temperature, uniform, settings.top_k, settings.top_p)
    # one reduction suffices: a sum in float32 is finite if all its terms are, even over a large vocabulary
    finite = logits.sum(dim=-1, dtype=torch.float32).isfinite()
    return torch.where(finite, token, -1).tolist()
