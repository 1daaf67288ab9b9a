"""Paths that begin with `tiny:`: parts of the toy world, made under runs/ when first needed.

tiny:init            an untrained Falcon
tiny:dialogues       what it learns
tiny:base            that Falcon after sft by train.py on those dialogues; its run is also linked as runs/tiny-base
tiny:pairs           safety preferences to align it with
tiny:harmless-pairs  the same, but help with a harmless request is what is preferred
tiny:prompts         neutral prompts, on which alignment should change nothing
tiny:held-out-pairs  safety preferences on kinds of pranks that no alignment data have
tiny:dev             held-out requests to choose settings by
tiny:requests        held-out requests to report on
tiny:guard-init      an untrained Llama
tiny:judgements      which responses are safe, in Llama Guard's format
tiny:guard           that Llama after sft on those judgements

tiny:base@1, tiny:pairs@1, ... are of the toy world of seed 1: it holds out other parts, and its base model began with
other weights and learned in another order. The guard is of seed 0.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.config import CONFIGS, Config, load_config
from align.errors import UserError
from align.files import write_json, writing
from align.parallel import World
from align.tiny.build import toy_world_id, write_toy_world
from align.tiny.evaluate import evaluate, samples, table
from align.tiny.guard import guard_id, write_guard

Train = Callable[[Config, World], Path | None]
BASE_CONFIG = CONFIGS / "tiny-base.toml"
GUARD_CONFIG = CONFIGS / "tiny-guard.toml"
SHOWN = 120  # requests of each kind that a run on the toy world ends with
# where they are in toy_world_folder() and in guard_folder()
PARTS = {
    "tiny:init": "init",
    "tiny:dialogues": "dialogues.jsonl",
    "tiny:base": "base/model",
    "tiny:pairs": "pairs.jsonl",
    "tiny:harmless-pairs": "harmless-pairs.jsonl",
    "tiny:prompts": "prompts.jsonl",
    "tiny:held-out-pairs": "held-out-pairs.jsonl",
    "tiny:dev": "dev.json",
    "tiny:requests": "final.json",
}
GUARD_PARTS = {
    "tiny:guard-init": "init",
    "tiny:judgements": "judgements.jsonl",
    "tiny:guard": "guard/model",
}


def toy_world_folder(seed: int = 0) -> Path:
    """Named after all that makes the toy world and its base model, so that no cache outlives a change of either."""
    return _folder("tiny", toy_world_id(seed), BASE_CONFIG)


def guard_folder() -> Path:
    """Named after all that makes the guard."""
    return _folder("tiny-guard", guard_id(), GUARD_CONFIG)


def _folder(name: str, made_of: str, config: Path) -> Path:
    digest = hashlib.sha256(made_of.encode() + config.read_bytes()).hexdigest()
    return Path("runs") / f"{name}-{digest[:12]}"


def resolve_tiny(config: Config, world: World, train: Train) -> bool:
    """Replace `tiny:` paths in a configuration by real ones, building what is missing. True if the model is tiny:base.

    Raises UserError if they are of two toy worlds: what one holds out, the other may train on.
    """
    aligns_base = split_seed(config.model.path)[0] == "tiny:base"
    paths: dict[str, tuple[Any, str]] = {
        "model.path": (config.model, "path"),
        "data.path": (config.data, "path"),
        "data.eval_path": (config.data, "eval_path"),
        **{f"sources.{name}.path": (source, "path") for name, source in config.sources.items()},
    }
    first = None
    for key, (section, name) in paths.items():
        path = getattr(section, name)
        if path.startswith("tiny:"):
            part, seed = split_seed(path)
            first = first or (key, seed)
            if seed != first[1]:
                raise UserError(f"{key} {path} is of another toy world than {first[0]}; give {part}@{first[1]}")
    for section, name in paths.values():
        setattr(section, name, resolve_path(getattr(section, name), world, train, plan=config.plan is not None))
    return aligns_base


def split_seed(path: str) -> tuple[str, int]:
    """("tiny:base", 1) of "tiny:base@1"; the seed is 0 where none stands. Other paths as they are."""
    name, at, seed = path.partition("@")
    if not at or not path.startswith("tiny:"):
        return path, 0
    if name not in PARTS or not re.fullmatch(r"[0-9]{1,9}", seed):
        raise UserError(f"{path}: give one of {', '.join(PARTS)}, then @ and the seed of the toy world, a whole number")
    return name, int(seed)


def resolve_path(path: str, world: World, train: Train, plan: bool = False) -> str:
    """The real path of a `tiny:` one, after writing and training what is missing of it; others as they are.

    Every rank must call it. With plan nothing is trained: an untrained model stands for one that does not exist yet.
    """
    path, seed = split_seed(path)
    if path in PARTS:
        folder = toy_world_folder(seed)
    elif path in GUARD_PARTS:
        folder = guard_folder()
    else:
        return path
    if world.main and not folder.exists():
        with writing(folder):
            write_toy_world(folder, seed) if path in PARTS else write_guard(folder)
    world.barrier()
    part = folder / (PARTS | GUARD_PARTS)[path]
    if path == "tiny:base":
        of_seed = ["--model", f"tiny:init@{seed}", "--data", f"tiny:dialogues@{seed}", "--train.seed", str(seed)]
        _train_once(part.parent, BASE_CONFIG, of_seed, "the base model", world, train, plan)
        if world.main and part.exists():
            link = Path("runs") / (f"tiny-base-{seed}" if seed else "tiny-base")
            with writing(link):
                _link(link, part.parent)
    if path == "tiny:guard":
        _train_once(part.parent, GUARD_CONFIG, [], "the guard", world, train, plan)
    return str(part if part.exists() else folder / "init")


def _train_once(
    output: Path, config_file: Path, flags: list[str], what: str, world: World, train: Train, plan: bool
) -> None:
    if plan or (output / "model").exists():
        return
    if world.main:
        print(f"{what} is trained once, into {output}", flush=True)
    config = load_config(["--config", str(config_file), *flags, "--output", str(output)])
    config.resume = True  # resume an interrupted training
    resolve_tiny(config, world, train)
    train(config, world)


def _link(link: Path, target: Path) -> None:
    """Make link a symbolic link to target, unless something that is no link has that name."""
    if link.exists() and not link.is_symlink():
        return
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.relative_to(link.parent))
    new.replace(link)


def report_tiny(base: Path, aligned: Path, output: Path) -> str:
    """Both models' responses to some of the held-out requests, judged: a table and samples, also in output/scores.json."""
    toy_world = base.parents[1]
    before, after = (evaluate(model, toy_world, size=SHOWN) for model in (base, aligned))
    write_json(output / "scores.json", {"before": before.scores, "after": after.scores})
    return f"\n{samples(before.rows, after.rows)}\n\n{table(before.scores, after.scores)}"
