"""Paths that begin with `tiny:`: parts of the toy world, made under runs/ when first needed.

tiny:init            an untrained Falcon
tiny:dialogues       what it learns
tiny:base            that Falcon after sft by train.py on those dialogues; its run is also linked as runs/tiny-base
tiny:pairs           safety preferences to align it with
tiny:held-out-pairs  the same on held-out requests
tiny:requests        held-out requests to evaluate it on
tiny:guard-init      an untrained Llama
tiny:judgements      which responses are safe, in Llama Guard's format
tiny:guard           that Llama after sft on those judgements
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from align.config import CONFIGS, Config, load_config
from align.files import write_json, writing
from align.parallel import World
from align.sections import DataSection, ModelSection, SourceSection
from align.tiny.build import toy_world_id, write_toy_world
from align.tiny.evaluate import respond_to_requests, samples, scores, table
from align.tiny.guard import guard_id, write_guard

Train = Callable[[Config, World], Path | None]
BASE_CONFIG = CONFIGS / "tiny-base.toml"
GUARD_CONFIG = CONFIGS / "tiny-guard.toml"
# where they are in toy_world_folder() and in guard_folder()
PARTS = {
    "tiny:init": "init",
    "tiny:dialogues": "dialogues.jsonl",
    "tiny:base": "base/model",
    "tiny:pairs": "pairs.jsonl",
    "tiny:held-out-pairs": "held-out-pairs.jsonl",
    "tiny:requests": "eval.json",
}
GUARD_PARTS = {
    "tiny:guard-init": "init",
    "tiny:judgements": "judgements.jsonl",
    "tiny:guard": "guard/model",
}


def toy_world_folder() -> Path:
    """Named after all that makes the toy world and its base model, so that no cache outlives a change of either."""
    return _folder("tiny", toy_world_id(), BASE_CONFIG)


def guard_folder() -> Path:
    """Named after all that makes the guard."""
    return _folder("tiny-guard", guard_id(), GUARD_CONFIG)


def _folder(name: str, made_of: str, config: Path) -> Path:
    digest = hashlib.sha256(made_of.encode() + config.read_bytes()).hexdigest()
    return Path("runs") / f"{name}-{digest[:12]}"


def resolve_tiny(config: Config, world: World, train: Train) -> bool:
    """Replace `tiny:` paths in a configuration by real ones, building what is missing. True if the model is tiny:base."""
    aligns_base = config.model.path == "tiny:base"
    sections: list[ModelSection | DataSection | SourceSection] = [config.model, config.data, *config.sources.values()]
    for section in sections:
        section.path = resolve_path(section.path, world, train, plan=config.plan is not None)
    config.data.eval_path = resolve_path(config.data.eval_path, world, train, plan=config.plan is not None)
    return aligns_base


def resolve_path(path: str, world: World, train: Train, plan: bool = False) -> str:
    """The real path of a `tiny:` one, after writing and training what is missing of it; others as they are.

    Every rank must call it. With plan nothing is trained: an untrained model stands for one that does not exist yet.
    """
    if path in PARTS:
        folder, write = toy_world_folder(), write_toy_world
    elif path in GUARD_PARTS:
        folder, write = guard_folder(), write_guard
    else:
        return path
    if world.main and not folder.exists():
        with writing(folder):
            write(folder)
    world.barrier()
    part = folder / (PARTS | GUARD_PARTS)[path]
    if path == "tiny:base":
        _train_once(part.parent, BASE_CONFIG, "the base model", world, train, plan)
        if world.main and part.exists():
            with writing(Path("runs") / "tiny-base"):
                _link(Path("runs") / "tiny-base", part.parent)
    if path == "tiny:guard":
        _train_once(part.parent, GUARD_CONFIG, "the guard", world, train, plan)
    return str(part if part.exists() else folder / "init")


def _train_once(output: Path, config_file: Path, what: str, world: World, train: Train, plan: bool) -> None:
    if plan or (output / "model").exists():
        return
    if world.main:
        print(f"{what} is trained once, into {output}", flush=True)
    config = load_config(["--config", str(config_file), "--output", str(output)])
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
    """Both models' responses to the held-out requests, judged: a table and samples, also written to output/scores.json."""
    before, after = (respond_to_requests(model, toy_world_folder()) for model in (base, aligned))
    result = {"before": scores(before), "after": scores(after)}
    write_json(output / "scores.json", result)
    return f"\n{samples(before, after)}\n\n{table(result['before'], result['after'])}"
