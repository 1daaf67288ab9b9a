"""Whether the disk takes what a run will write, before the run begins."""

import math
import shutil
import tempfile
from pathlib import Path

import torch

from align.errors import UserError
from align.files import reachable
from align.models import Decoder
from align.sections import Config


def check_writable(flag: str, folder: Path) -> None:
    """Raise UserError where a folder neither is there to be written in nor could be made."""
    there = existing(reachable(folder))
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


def check_room(config: Config, model: Decoder, steps: int) -> None:
    """Raise UserError where --output cannot hold the checkpoints that are kept, one more while it is written, and the model.

    model: what is trained, sharded or not. What the run has there already counts as room.
    """
    train, output = config.train, Path(config.output)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # weights and AdamW's two moments, in float32; a reference that moves is one more, and so are averaged weights
    checkpoint = 4 * trained * (3 + (config.reference.mode == "moving") + (config.optim.ema > 0))
    number = min(train.keep_checkpoints + 1, math.ceil(steps / (train.checkpoint_every or steps)))
    named = config.model.save_dtype
    dtype = (model.config.stored_dtype or torch.float32) if named == "auto" else getattr(torch, named)
    exported = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    there = existing(output)
    written = [file for pattern in ("checkpoints/*/*", "model/*") for file in output.glob(pattern) if file.is_file()]
    needed = checkpoint * number + exported
    free = shutil.disk_usage(there).free + sum(file.stat().st_size for file in written)
    if needed > free:
        raise UserError(
            f"--output {output}: needs {gib(needed)}, for {number} checkpoints of {gib(checkpoint)} and the model "
            f"of {gib(exported)}, and {there} has {gib(free)}; free some, lower --train.keep_checkpoints, or give another "
            "folder"
        )


def gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
