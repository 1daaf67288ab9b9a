"""A run's folder: whether it is free, what may change in it on --resume, and that one run alone writes into it."""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from align import stopping
from align.disk import check_room, check_writable
from align.errors import UserError, nearest
from align.files import flatten, read_toml, to_toml, write_text, writing
from align.log import trim_metrics
from align.losses import loss_parameters
from align.models import Decoder
from align.nonfinite import non_finite
from align.parallel import World
from align.sections import FREE_KEYS, Config, SourceSection

HOLDER = "run.json"  # says who writes into the folder; locked while that process lives
NOTE = re.compile(r"# from step .*")  # what --override has changed, in config.toml

held: list[IO[str]] = []  # the lock of this process, while it has one


def check_output(config: Config) -> None:
    """Whether a run may write into --output, and settle config.resume. Writes nothing.

    Raises UserError for a folder that cannot be written in, that is in use, or whose run had another configuration.
    """
    output = Path(config.output)
    check_writable("--output", output)
    if config.reference.mode == "cached":
        check_writable("--reference.cache", Path(config.reference.cache))
    for inside in ("checkpoints", "model"):
        if (output / inside).exists() and not (output / inside).is_dir():
            raise UserError(f"--output {output}: {inside} in it is a file; remove it, or give another folder")
    release()
    if (output / HOLDER).exists():
        with writing(output / HOLDER), (output / HOLDER).open() as file:
            lock(file, fcntl.LOCK_SH, output)
    used = output.exists() and any(output.iterdir())
    if config.restarted and not config.resume:  # by torchrun: it goes on with what it began, and with nothing else
        config.resume = used and holder(output).get("job") == config.job
        if used and not config.resume:
            raise UserError(
                f"--output {output} is another run's, so torchrun, which has started this one again, cannot go on there; "
                "add --resume to continue that run, or give another folder"
            )
    if used and not config.resume:
        raise UserError(f"--output {output} is already in use; add --resume to continue it, or give another folder")
    ours = flatten(config.to_dict())
    if unknown := [name for name in config.override if name not in ours]:
        raise UserError(f"--override {unknown[0]}: not a configuration key{nearest(unknown[0], ours)}")
    if config.override and not config.resume:
        raise UserError("--override names what differs from the run that --resume continues; add --resume")
    for name, before in changes(config).items():
        if name not in (*FREE_KEYS, *config.override):
            raise UserError(
                f"--resume: {output} was begun with {name} = {before!r}, not {ours.get(name)!r}; give the same value, "
                f"another --output, or --override {name} to go on with the new value"
            )


def check_start(config: Config, model: Decoder, source: Path, steps: int, world: World) -> None:
    """What can be known of a run's end once its model is there: that it starts finite, and that its output has room.

    Every rank must call it. Raises UserError.
    """
    if name := non_finite(dict(model.named_parameters()), world):
        raise UserError(f"{source}: tensor {name} holds numbers that are not finite; download the model again")
    check_room(config, model, steps)


def changes(config: Config) -> dict[str, Any]:
    """The keys that config.toml of the output has otherwise, with what it has: none where there is no such file."""
    file = Path(config.output) / "config.toml"
    if not file.exists():
        return {}  # killed before it began, or never begun
    # a run that was begun before there was a key had that key's default
    losses = {name: own.loss for name, own in config.sources.items()}
    sources = {name: SourceSection(loss=loss, parameters=loss_parameters(loss)) for name, loss in losses.items()}
    usual = flatten(Config(sources=sources).to_dict()) | flatten({"loss": loss_parameters(config.loss.name)})
    ours, theirs = flatten(config.to_dict()), usual | flatten(read_toml(file))
    return {name: theirs.get(name) for name in sorted(ours.keys() | theirs) if ours.get(name) != theirs.get(name)}


def claim_output(config: Config, done: int, world: World) -> Path:
    """Make the output this run's alone: lock it, write config.toml, trim metrics.jsonl to the `done` steps of a checkpoint.

    From here on a signal waits for the step that runs. Raises UserError where another run has the folder by now.
    """
    output = Path(config.output)
    stopping.finish_first()
    world.barrier()  # nothing is written before every rank has found the folder free
    if world.main:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
            if not config.resume and any(output.iterdir()):
                raise UserError(f"--output {output}: another run has begun there since; give another folder")
            hold(output, config.job)
            notes, ours = [], flatten(config.to_dict())
            if (output / "config.toml").exists():
                notes = [line for line in (output / "config.toml").read_text().splitlines() if NOTE.fullmatch(line)]
            for name, before in changes(config).items():
                if name in config.override:
                    notes.append(f"# from step {done + 1}: {name} = {ours.get(name)!r}, before {before!r}")
                    print(f"resumed after step {done} with {name} = {ours.get(name)!r}, before {before!r}", flush=True)
            write_text(output / "config.toml", "".join(f"{line}\n" for line in notes) + to_toml(config.to_dict()))
            trim_metrics(output / "metrics.jsonl", done)
            (output / "checkpoints").mkdir(exist_ok=True)
            for part in (output / "checkpoints").glob("step-*.part"):
                shutil.rmtree(part)  # what a kill left behind
    world.barrier()
    return output


def hold(output: Path, job: str) -> None:
    """Lock the folder until release(), or until this process is gone, however it ends."""
    release()
    file = (output / HOLDER).open("a+")
    lock(file, fcntl.LOCK_EX, output)
    held.append(file)
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since, "job": job}) + "\n")
    file.flush()


def release() -> None:
    while held:
        held.pop().close()


@contextmanager
def held_output() -> Iterator[None]:
    """What is claimed inside is released at its end."""
    try:
        yield
    finally:
        release()


def lock(file: IO[str], kind: int, output: Path) -> None:
    """Lock an open file, or raise UserError, which says who has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        now = holder(output)
        raise UserError(
            f"--output {output} is being written by process {now.get('pid')} on {now.get('host')} since "
            f"{now.get('since')}; wait for its end, stop it, or give another folder"
        ) from None


def holder(output: Path) -> dict[str, Any]:
    """Who wrote into the folder last: pid, host, since, job. Empty where it does not say."""
    try:
        found = json.loads((output / HOLDER).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
