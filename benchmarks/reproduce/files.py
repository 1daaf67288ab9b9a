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
from align.tiny.words import CAREFUL

FOLDER = Path("runs") / "reproduce"
# name: the prompts, and the flags of align.pairs
FILES = {
    # its own responses to neutral prompts, as they are
    "own": ("tiny:prompts", ["--anchors"]),
    # its own refusals, chosen over its own careless responses
    "own refusals": ("tiny:pairs", []),
    # the same, half of them once more behind the first words of the careless response
    "recoveries": ("tiny:pairs", ["--recover", "6"]),
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
    path, flags = FILES[name]
    with one_at_a_time(seed):
        base = resolve_path(f"tiny:base@{seed}", world, train.train)
        prompts = resolve_path(f"{path}@{seed}", world, train.train)
        stem = f"{Path(base).parent.parent.name}-{path.removeprefix('tiny:')}"
        made = FOLDER / f"{stem}-{name.replace(' ', '-')}.jsonl"
        if not made.exists():
            anchors = "--anchors" in flags
            said = [str(responses(base, prompts, FOLDER / f"{stem}.jsonl", world, "--k", "1" if anchors else "4"))]
            if not anchors:
                careful = responses(base, prompts, FOLDER / f"{stem}-careful.jsonl", world, "--system", CAREFUL.system)
                said += ["--chosen", str(careful)]
            print(pairs.make(pairs.read_flags([*said, *flags, "--output", str(made)])))
    return str(made)


def responses(base: str, prompts: str, output: Path, world: World, *flags: str) -> Path:
    words = ["--model", base, "--prompts", prompts, "--judge", "rules", *flags]
    words += ["--max_new_tokens", str(MAX_NEW_TOKENS), "--output", str(output)]
    print(respond.respond(respond.read_flags(words), world))
    return output
