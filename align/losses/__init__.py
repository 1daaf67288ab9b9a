"""Every alignment method, by name.

    loss = build_loss("nca", beta=0.1)
    loss(x)            # (N,) one number a prompt
    loss.gradient(x)   # (N, K) d(sum of losses)/d x.logps, in closed form

Each file holds one family: objective, derivation, gradient and limits beside the code. `base` has the notation.
"""

import dataclasses
import difflib

from align.losses.base import Loss, LossInputs
from align.losses.dpo import DPO
from align.losses.nca import NCA
from align.losses.sft import SFT

__all__ = ["LOSSES", "Loss", "LossInputs", "build_loss", "loss_parameters"]

LOSSES: dict[str, type[Loss]] = {
    "nca": NCA,
    "dpo": DPO,
    "sft": SFT,
}


def loss_class(name: str) -> type[Loss]:
    """Raises ValueError, with the nearest name, for a loss that does not exist."""
    if name in LOSSES:
        return LOSSES[name]
    nearest = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0.0)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"unknown loss {name!r}; {hint}There are: {', '.join(LOSSES)}")


def loss_parameters(name: str) -> dict[str, float]:
    """The parameters of a loss with their defaults, as `--loss.KEY` flags take them."""
    return {field.name: field.default for field in dataclasses.fields(loss_class(name))}


def build_loss(name: str, **parameters: float) -> Loss:
    """A loss by name. Raises ValueError for an unknown name or parameter, or a value out of range."""
    known = loss_parameters(name)
    for key in parameters:
        if key not in known:
            takes = ", ".join(known) or "no parameters"
            raise ValueError(f"loss {name!r} has no parameter {key!r}; it takes {takes}")
    return LOSSES[name](**parameters)
