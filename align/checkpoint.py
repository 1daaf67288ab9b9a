"""Checkpoints that survive a kill at any moment, and are not believed where they have been damaged since.

A checkpoint is a folder checkpoints/step-000123, written by all ranks under a temporary name and renamed when complete,
so that a folder with the final name is whole. It holds the trained weights and the optimizer's state in safetensors files
(align/shards.py), and state.json, which has a digest of each file and one of itself. The data order and every random draw
are functions of (seed, step), so the step is all that a run has to remember besides.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from align.errors import UserError, one_line
from align.files import is_finite, writing
from align.nonfinite import LOWER, explain_step, non_finite
from align.parallel import World, reshard
from align.reference import LiveReference
from align.shards import read_shards, write_shards
from align.sources import Sources

# what a run is made of, and what else --resume refuses to go on with
MADE_OF = {"model": "the model's weights or config.json have", "data": "the data or its template has"}
# of what state.json has
KINDS: dict[str, type] = dict.fromkeys(("step", "bad_steps", "ranks", "threads"), int)
KINDS |= dict.fromkeys(MADE_OF, str) | dict.fromkeys(("loss", "files", "tensors"), dict)
MENDED = "that mended, the same command with --resume goes on from the newest checkpoint"


class Remembers(Protocol):
    """A loss, or all losses of a run."""

    def state(self) -> dict[str, float]: ...
    def load_state(self, state: dict[str, float]) -> None: ...


@dataclass
class Run:
    """Everything that changes during a run, and so is in its checkpoints."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Remembers  # running statistics of the losses that have some
    moving: LiveReference | None  # a reference that follows the policy
    made_of: dict[str, str]  # the digests of MADE_OF
    average: dict[str, Tensor] = field(default_factory=dict)  # of the trained weights, where there is one
    stop_when: str = ""  # the rule that may end it before its last step
    bad_steps: int = 0  # steps that were not taken, because their numbers were not finite
    ended: bool = False  # whether that has

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """What training changes, by name; what it leaves as it was is in the model's folder."""
        # a forward pass without a backward one leaves whole copies in place of the parameters
        reshard(self.model)
        trained = self.trained()
        found = {f"model.{name}": p.detach() for name, p in trained.items()}
        for name, p in trained.items():
            found |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state.get(p, {}).items()}
        if self.moving is not None:
            moved = self.moving.model.named_parameters()
            found |= {f"reference.{name}": p.detach() for name, p in moved if name in trained}
        return found | {f"average.{name}": mean for name, mean in self.average.items()}

    def make_optimizer_state(self, where: dict[str, Any]) -> None:
        """Room for the optimizer's state of a checkpoint, which an optimizer has none of before its first step."""
        numbers = {p: i for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"])}
        state: dict[int, dict[str, Tensor]] = {}
        for name, p in self.trained().items():
            prefix = f"optimizer.{name}."
            for key in (full.removeprefix(prefix) for full in where if full.startswith(prefix)):
                like = where[prefix + key]["shape"] == list(p.shape)
                state.setdefault(numbers[p], {})[key] = torch.zeros_like(p) if like else torch.zeros(())
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, step: int, run: Run, keep: int, world: World) -> None:
    """Write checkpoints/step-`step` (the number of optimizer steps done) and remove all but the newest `keep`.

    Raises UserError for a number that is not finite, and where the disk refuses; the checkpoints before are as they were.
    """
    tensors = run.tensors()
    if name := non_finite(tensors, world):
        raise UserError(
            f"step {step} has left {name} with numbers that are not finite, and is not saved: training diverged; {LOWER}"
        )
    final = folder / "checkpoints" / f"step-{step:06d}"
    part = final.with_name(final.name + ".part")
    with writing(final, MENDED):
        if world.main:
            shutil.rmtree(part, ignore_errors=True)  # what a kill left behind
            part.mkdir()
        world.barrier()
        where = write_shards(part, tensors, world)
        if world.main:
            state = {"step": step, **run.made_of, "loss": run.losses.state()}
            state |= {"bad_steps": run.bad_steps} | ({"ended": run.stop_when} if run.ended else {})
            (part / "state.json").write_text(sealed({**state, **arithmetic(world), **where}))
            if final.exists():
                shutil.rmtree(final)
            part.rename(final)
            # one with more steps was found damaged, and is written again when the run gets there
            for old in [path for path in checkpoints(folder) if steps_of(path) <= step][:-keep]:
                shutil.rmtree(old)
    world.barrier()


def leave_out(step: int, run: Run, sources: Sources, allowed: int, world: World) -> None:
    """Go on without a step whose numbers are not finite. Raises UserError beyond the allowed ones, or all."""
    run.bad_steps += 1
    reason = explain_step(sources, run.model, world)
    if run.bad_steps > allowed:
        raise UserError(f"step {step}: {reason}. To go on without such steps: --train.max_bad_steps {run.bad_steps}")
    if run.bad_steps == sources[0].data.steps:
        raise UserError(f"none of {run.bad_steps} steps could be taken, and the model as it was is no result: {reason}")
    for source in sources:
        source.loss.load_state(source.before)
    if world.main:
        print(f"step {step} is left out, {run.bad_steps} of at most {allowed}: {reason}", flush=True)


def sealed(state: dict[str, Any]) -> str:
    """The text of state.json, whose last key is the SHA-256 of the rest."""
    return json.dumps(state | {"sha256": hashlib.sha256(json.dumps(state).encode()).hexdigest()}) + "\n"


def arithmetic(world: World) -> dict[str, int]:
    """What the last bits of a sum depend on."""
    return {"ranks": world.size, "threads": torch.get_num_threads()}


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("checkpoints/step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=steps_of)


def steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def find_checkpoint(folder: Path, made_of: dict[str, str], world: World) -> Path | None:
    """The newest whole checkpoint of a run, None if it has none yet. Every rank must call it; says what is passed over.

    Raises UserError where none of several is whole, for one of an older version, and for one of another model or data.
    """
    found, damages = checkpoints(folder), []
    for path in reversed(found):
        if any(path.glob("*.distcp")):
            raise UserError(
                f"{path} was written by an older version, pickled, which could run code when it is read; finish that run "
                "with that version, or begin again in another --output"
            )
        damage = next(filter(None, world.gather_texts(damage_of(path, world))), "")
        if not damage:
            check_made_of(path, made_of)
            return path
        damages.append(f"{path.name}: {damage}")
        if world.main:
            print(f"{path} is damaged ({damage}): looking for the newest one that is whole", flush=True)
    if found:
        raise UserError(
            f"{folder / 'checkpoints'}: none of {len(found)} is whole ({damages[0]}); "
            "remove that folder to begin again from step 0"
        )
    return None


def damage_of(path: Path, world: World) -> str:
    """What is wrong with state.json, or with this rank's share of the other files; empty where nothing is."""
    try:
        files = read_state(path)["files"]
        for i, (name, written) in enumerate(files.items()):
            if i % world.size != world.rank:
                continue
            if not (path / name).is_file():
                return f"{name} is missing"
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                    return f"{name} has changed since it was written"
    except (OSError, ValueError) as error:
        return one_line(error)
    return ""


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises ValueError where it is not what was written, or no state of this step."""
    try:
        text = (path / "state.json").read_text(encoding="utf-8")
        state = json.loads(text)
        state.pop("sha256")
        whole = sealed(state) == text
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError("state.json is missing or not readable") from None
    if not whole:
        raise ValueError("state.json has changed since it was written")
    if not is_state(state) or state["step"] != steps_of(path):
        raise ValueError("state.json is not that of this folder")
    return state


def is_state(state: dict[str, Any]) -> bool:
    """Whether all that is read from state.json is of the right kind, and every file one of this folder, with a digest."""
    try:
        files, wheres = state["files"], state["tensors"].values()
        return (
            all(type(state[name]) is kind for name, kind in KINDS.items())
            and type(state.get("ended", "")) is str
            and all(Path(name).name == name and type(files[name]["sha256"]) is str for name in files)
            and all(map(is_finite, state["loss"].values()))
            and all(type(row) is int and name in files for where in wheres for name, row in where["rows"].items())
            and all(type(where["dtype"]) is str and type(where["shape"]) is list for where in wheres)
        )
    except (KeyError, TypeError, AttributeError):
        return False


def check_made_of(path: Path, made_of: dict[str, str]) -> None:
    """Raise UserError where a run of another model or other data wrote this checkpoint."""
    state = read_state(path)
    for name, words in MADE_OF.items():
        if state[name] != made_of[name]:
            raise UserError(f"--resume: {words} changed since {path} was written; restore that, or start again")


def load_checkpoint(path: Path, run: Run, world: World) -> int:
    """Restore a run in place, from a checkpoint that find_checkpoint gave; returns the number of steps done.

    Raises UserError for one whose content is none of this run's.
    """
    try:
        saved = read_state(path)
        run.make_optimizer_state(saved["tensors"])
        tensors = run.tensors()
        read_shards(path, saved["tensors"], tensors)
        run.losses.load_state(saved["loss"])
        run.bad_steps, run.ended = saved["bad_steps"], saved.get("ended", "") == run.stop_when != ""
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be resumed from ({one_line(error)}); remove that folder") from None
    if bad := non_finite(tensors, world):
        raise UserError(f"{path} cannot be resumed from ({bad} is not finite); remove that folder")
    if run.moving is not None:
        run.moving.refresh()
    changed = [f"{name} {saved[name]} then, {now} now" for name, now in arithmetic(world).items() if saved[name] != now]
    if changed and world.main:
        print(f"resumed with {', '.join(changed)}: the same run up to rounding, not to the bit", flush=True)
    return saved["step"]
