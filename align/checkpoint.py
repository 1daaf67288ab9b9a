"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder checkpoints/step-000123, written by all ranks under a temporary name and renamed when complete,
so that a folder with the final name is whole. It holds the sharded weights and optimizer state
(torch.distributed.checkpoint, so that another number of ranks can read it) and state.json. The data order and every
random draw are functions of (seed, step), so the step is all that a run has to remember besides.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from align.errors import UserError, one_line
from align.files import read_toml, to_toml, write_text
from align.log import trim_metrics
from align.losses import Loss
from align.parallel import World
from align.reference import LiveReference
from align.sections import FREE_KEYS, Config

# frozen weights are the model's folder's
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def check_output(config: Config) -> Path | None:
    """The checkpoint to resume from, None to start afresh. Writes nothing.

    Raises UserError for a folder that cannot be written, an output folder in use without --resume, one whose
    configuration differs, and a checkpoint with files missing.
    """
    output = Path(config.output)
    check_writable("--output", output)
    if config.reference.mode == "cached":
        check_writable("--reference.cache", Path(config.reference.cache))
    if not config.resume:
        if output.exists() and any(output.iterdir()):
            raise UserError(f"--output {output} is already in use; add --resume to continue it, or give another folder")
        return None
    if not (output / "config.toml").exists():
        return None  # killed before it began, or never begun
    ours, theirs = flatten(config.to_dict()), flatten(read_toml(output / "config.toml"))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in FREE_KEYS and ours.get(name) != theirs.get(name):
            raise UserError(
                f"--resume: {output} was begun with {name} = {theirs.get(name)!r}, not {ours.get(name)!r}; "
                "give the same value, or another --output"
            )
    found = complete_checkpoints(output)
    if not found:
        return None
    if missing := missing_file(found[-1]):
        raise damaged(found[-1], missing)
    return found[-1]


def check_writable(flag: str, folder: Path) -> None:
    """Raise UserError where a folder neither is there to be written in nor could be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if there.exists() and not there.is_dir():
        raise UserError(f"{flag} {folder}: {'it' if there == folder else there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: {there} cannot be written in; give another folder")


def claim_output(config: Config, done: int, world: World) -> Path:
    """Claim the output folder: write config.toml, trim metrics.jsonl to the `done` steps of the checkpoint."""
    output = Path(config.output)
    world.barrier()  # nothing is written before every rank has found the folder free
    if world.main:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "config.toml", to_toml(config.to_dict()))
        trim_metrics(output / "metrics.jsonl", done)
    world.barrier()
    return output


def flatten(tables: dict[str, Any]) -> dict[str, Any]:
    """{"loss": {"dpo": {"beta": 0.1}}} as {"loss.dpo.beta": 0.1}."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": v for key, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = folder.glob("checkpoints/step-*")
    return sorted(
        path for path in found if path.name.removeprefix("step-").isdigit() and (path / "state.json").exists()
    )


def missing_file(checkpoint: Path) -> str:
    """What is wrong with the files of a checkpoint, by their names and sizes; empty where nothing is."""
    try:
        sizes = json.loads((checkpoint / "state.json").read_text()).get("files", {".metadata": None})
    except (OSError, ValueError, AttributeError):
        return "state.json is not readable as JSON"
    for name, size in sizes.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if size is not None and (checkpoint / name).stat().st_size != size:
            return f"{name} has {(checkpoint / name).stat().st_size} bytes, not {size}"
    return ""


def damaged(checkpoint: Path, reason: str) -> UserError:
    return UserError(
        f"{checkpoint} cannot be resumed from ({reason}); remove that folder to resume from the one before"
    )


@dataclass
class Run:
    """Everything that changes during a run, and so is in its checkpoints."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss  # running statistics of the losses that have some
    moving: LiveReference | None  # a reference that follows the policy
    data_id: str  # Dataset.id of what it trains on, so that a run cannot be resumed on other data

    def tensors(self) -> dict[str, Any]:
        """For torch.distributed.checkpoint, which reads into the same structure in place."""
        weights, moments = get_state_dict(self.model, self.optimizer, options=TRAINED)
        moving = {} if self.moving is None else {"reference": get_model_state_dict(self.moving.model)}
        return {"model": weights, "optimizer": moments, **moving}

    def set_tensors(self, state: dict[str, Any]) -> None:
        weights, moments = state["model"], state["optimizer"]
        set_state_dict(self.model, self.optimizer, model_state_dict=weights, optim_state_dict=moments, options=TRAINED)
        if self.moving is not None:
            set_model_state_dict(self.moving.model, state["reference"])
            self.moving.refresh()


def save_checkpoint(folder: Path, step: int, run: Run, keep: int, world: World) -> None:
    """Write checkpoints/step-`step` (the number of optimizer steps done) and remove all but the newest `keep`."""
    final = folder / "checkpoints" / f"step-{step:06d}"
    part = final.with_name(final.name + ".part")
    if world.main:
        shutil.rmtree(part, ignore_errors=True)  # what a kill left behind
        part.mkdir(parents=True)
    world.barrier()
    dcp.save(run.tensors(), checkpoint_id=part)
    if world.main:
        state = {"step": step, "data": run.data_id, "loss": run.loss.state(), **arithmetic(world)}
        state["files"] = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
        (part / "state.json").write_text(json.dumps(state) + "\n")
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        for old in complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    world.barrier()


def load_checkpoint(path: Path, run: Run, world: World) -> int:
    """Restore a run in place; returns the number of steps done.

    Raises UserError if the folder is damaged, or was written by a run on other data.
    """
    state = run.tensors()
    try:
        saved = json.loads((path / "state.json").read_text())
        step, data = saved["step"], saved["data"]
        dcp.load(state, checkpoint_id=path)
        run.loss.load_state(saved["loss"])
    except dcp.api.CheckpointException as error:
        # its own text is a traceback, and that of its cause advises on torch.load after the first sentence
        cause = one_line(next(iter(error.failures.values()))[0], with_type=True)
        raise damaged(path, cause.partition(". ")[0]) from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, one_line(error)) from None
    if data != run.data_id:
        raise UserError(
            f"--resume: the data or its template has changed since {path} was written; restore it, or start again"
        )
    run.set_tensors(state)
    changed = [f"{name} {saved[name]} then, {now} now" for name, now in arithmetic(world).items() if saved[name] != now]
    if changed and world.main:
        print(f"resumed with {', '.join(changed)}: the same run up to rounding, not to the bit", flush=True)
    return step


def arithmetic(world: World) -> dict[str, int]:
    """What the last bits of a sum depend on."""
    return {"ranks": world.size, "threads": torch.get_num_threads()}
