"""Whether the disk takes what a run will write, before the run begins."""

import math
import shutil
import tempfile
from pathlib import Path

from align.errors import UserError


def check_writable(flag: str, folder: Path) -> None:
    """Raise UserError where a folder neither is there to be written in nor could be made."""
    there = existing(folder)
    if there.exists() and not there.is_dir():
        raise UserError(f"{flag} {folder}: {'it' if there == folder else there} is a file; give a folder")
    try:
        # by writing: what permissions say is not all, as of a read-only disk, a full one or a quota
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError(
            f"{flag} {folder}: {there} cannot be written in ({error.strerror}); give another folder"
        ) from None


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())


def check_room(output: Path, checkpoint: int, kept: int, model: int) -> None:
    """Raise UserError where the disk cannot hold `kept` checkpoints, one more while it is written, and the model, in bytes.

    What the run has there already counts as room.
    """
    needed = checkpoint * kept + model
    there = existing(output)
    written = sum(file.stat().st_size for file in output.glob("checkpoints/*/*") if file.is_file())
    written += sum(file.stat().st_size for file in output.glob("model/*") if file.is_file())
    free = shutil.disk_usage(there).free + written
    if needed > free:
        raise UserError(
            f"--output {output}: {kept} checkpoints of {gib(checkpoint)} and the model of {gib(model)} need {gib(needed)}, "
            f"and {there} has {gib(free)}; lower --train.keep_checkpoints, free some, or give another folder"
        )


def gib(size: int) -> str:
    return f"{math.ceil(size / 2**30 * 100) / 100:.2f} GiB"
