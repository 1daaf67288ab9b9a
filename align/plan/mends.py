"""What would make a run fit that does not."""

from collections.abc import Iterator
from dataclasses import replace

from align.plan.memory import largest_tokens, memory
from align.plan.setup import Setup
from align.plan.shape import Work

RANK = 16  # of the adapters that are suggested
MOST = 4096  # GPUs


def mends(setup: Setup, work: Work, room: float, accumulates: bool) -> list[str]:
    """The single changes after which a rank needs at most `room` bytes; where there is none, what does it together."""
    alone = list(fitting(setup, work, room, accumulates))
    if alone or setup.checkpointing == "full":
        return alone
    full = replace(setup, checkpointing="full")
    return [f"--parallel.checkpointing full and {mend}" for mend in fitting(full, work, room, accumulates)]


def fitting(setup: Setup, work: Work, room: float, accumulates: bool) -> Iterator[str]:
    def fits(changed: Setup) -> bool:
        return memory(changed, work, accumulates).total <= room

    if tokens := largest_tokens(setup, work, room):
        yield f"--train.micro_batch_tokens {tokens}"
    for mode in ("selective", "full"):
        if setup.checkpointing == "none" and fits(replace(setup, checkpointing=mode)):
            yield f"--parallel.checkpointing {mode}"
            break
    if setup.dense and fits(replace(setup, lora_rank=RANK)):
        yield f"--lora.rank {RANK}"
    shards = 2 * setup.shards
    while shards <= MOST and not fits(replace(setup, shards=shards)):
        shards *= 2
    if shards <= MOST:
        yield f"{shards} GPUs"
