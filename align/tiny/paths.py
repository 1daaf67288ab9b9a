"""The paths that begin with `tiny:`: parts of the make-believe world, made under runs/ the first time they are asked for.

tiny:init        an untrained Falcon
tiny:dialogues   what it learns
tiny:base        that Falcon after train.py's own sft on those dialogues
tiny:pairs       safety preferences to align it with
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from align.config import ROOT, Config, load_config
from align.parallel import World
from align.tiny.build import world_id, write_world
from align.tiny.evaluate import answer_requests, samples, scores, table

Train = Callable[[Config, World], Path | None]
BASE_CONFIG = ROOT / "configs" / "tiny-base.toml"


def world_folder() -> Path:
    """Named after all that makes the world and its base model, so that a change of either is never met by an old cache."""
    name = hashlib.sha256(world_id().encode() + BASE_CONFIG.read_bytes()).hexdigest()[:12]
    return Path("runs") / f"tiny-{name}"


def resolve_tiny(config: Config, world: World, train: Train) -> bool:
    """Replace `tiny:` paths in a configuration by real ones, building what is missing. True if the model is tiny:base."""
    if not any(path.startswith("tiny:") for path in (config.model.path, config.data.path)):
        return False
    folder = world_folder()
    if world.main and not (folder / "eval.json").exists():
        write_world(folder)
    world.barrier()
    base = folder / "base"
    aligns_base = config.model.path == "tiny:base"
    base_is_missing = not (base / "model").exists()
    if aligns_base and base_is_missing and not config.plan:
        if world.main:
            print(f"the base model is trained once, into {base}", flush=True)
        base_config = load_config(["--config", str(BASE_CONFIG), "--output", str(base)])
        base_config.resume = True  # an interrupted training goes on
        resolve_tiny(base_config, world, train)
        train(base_config, world)
    paths = {
        "tiny:init": folder / "init",
        "tiny:dialogues": folder / "dialogues.jsonl",
        "tiny:base": folder / "init" if config.plan and base_is_missing else base / "model",  # a plan trains nothing
        "tiny:pairs": folder / "pairs.jsonl",
    }
    config.model.path = str(paths.get(config.model.path, config.model.path))
    config.data.path = str(paths.get(config.data.path, config.data.path))
    return aligns_base


def report_tiny(base: Path, aligned: Path, output: Path) -> str:
    """Both models' answers to the held-out requests, judged: a table and samples, also written to output/scores.json."""
    before, after = (answer_requests(model, world_folder()) for model in (base, aligned))
    result = {"before": scores(before), "after": scores(after)}
    (output / "scores.json").write_text(json.dumps(result, indent=2) + "\n")
    return f"\n{samples(before, after)}\n\n{table(result['before'], result['after'])}"
