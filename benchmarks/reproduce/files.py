"""Files that cures learn from beside the toy world's own: what each world's base model says by itself.

Made once a world by align.respond and align.pairs, as a user makes them.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import train
from align import pairs, respond
from align.parallel import World
from align.tiny.evaluate import MAX_NEW_TOKENS
from align.tiny.paths import resolve_path

FOLDER = Path("runs") / "reproduce"
# name: the prompts, the flags of align.respond, the flags of align.pairs
FILES: dict[str, tuple[str, list[str], list[str]]] = {
    # its own responses to neutral prompts
    "own": ("tiny:prompts", [], ["--anchors"]),
}


@contextmanager
def one_at_a_time(seed: int) -> Iterator[None]:
    """Workers that need what is not there yet of the world of a seed wait for the one that makes it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"lock-{seed}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def file_of(name: str, seed: int, world: World) -> str:
    """The path of a file of FILES for the toy world of a seed, made if it is not there yet."""
    prompts, respond_flags, pairs_flags = FILES[name]
    with one_at_a_time(seed):
        base = resolve_path(f"tiny:base@{seed}", world, train.train)
        made = FOLDER / f"{Path(base).parent.parent.name}-{name}.jsonl"
        if not made.exists():
            said, asked = made.with_suffix(".responses.jsonl"), resolve_path(f"{prompts}@{seed}", world, train.train)
            flags = [
                "--model",
                base,
                "--prompts",
                asked,
                "--max_new_tokens",
                str(MAX_NEW_TOKENS),
                "--output",
                str(said),
            ]
            print(respond.respond(respond.read_flags([*flags, *respond_flags]), world))
            print(pairs.make(pairs.read_flags([str(said), "--output", str(made), *pairs_flags])))
    return str(made)
