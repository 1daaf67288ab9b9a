"""A run's metrics in TensorBoard, or in whatever has wandb's interface: --train.tracker NAME."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from align.errors import UserError
from align.files import write_text

TRACKERS = ("none", "tensorboard", "wandb", "trackio")


class Tracker(Protocol):
    """What a Log sends its metrics to."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Events below the run's folder: tensorboard --logdir runs."""

    def __init__(self, output: Path, done: int):
        from torch.utils.tensorboard import SummaryWriter

        # a resumed run writes the steps after its checkpoint again
        self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=done + 1)

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A module with wandb's interface. The run has the name of its folder; a resumed one goes on where it stopped."""

    def __init__(self, module: str, output: Path, config: dict[str, Any], done: int):
        self.module = import_module(module)
        same: dict[str, Any] = {"resume": "allow" if done else "never"}
        if module == "wandb":  # which knows a run again by its id, not by its name
            file = output / "wandb-id"
            if not (done and file.exists()):
                write_text(file, token_hex(4))
            same["id"] = file.read_text()
        self.module.init(project="align", name=output.name, config=config, **same)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.module.log(metrics, step=step)

    def close(self) -> None:
        self.module.finish()


def check_tracker(name: str) -> None:
    """Raise UserError, before anything runs, where the tracker's package is not installed."""
    if name != "none" and find_spec(name) is None:
        raise UserError(f"train.tracker {name}: the package is not installed; pip install {name}, or leave it out")


def open_tracker(name: str, output: Path, config: dict[str, Any], done: int) -> Tracker | None:
    """The tracker of a run that has done `done` steps, or None for none."""
    if name == "none":
        return None
    return TensorBoard(output, done) if name == "tensorboard" else Wandb(name, output, config, done)
