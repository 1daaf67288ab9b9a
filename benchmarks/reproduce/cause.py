"""Why methods look like one before their push ends: how alike their first steps are, by optimizer.

Each of the paper's ten trains for a few steps with its paper's beta. AdamW divides by the gradient's size, and so does
clipping; what is left of a loss then is its gradient's direction, and at policy = reference these are nearly parallel.
Plain SGD that is clipped keeps the direction alone, one that is not keeps the scale as well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import train
from align.errors import UserError
from align.evals.report.curves import read_metrics
from align.losses import loss_parameters
from align.models import load_model
from align.sections import OptimSection

STEPS = 20
UNCLIPPED = 1e9
# One rate for all methods. SGD is clipped so low that each step of each method is as long, and moves nca about as far as
# AdamW does.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW, clipped": {"optim.lr": 1e-4},
    "AdamW": {"optim.lr": 1e-4, "optim.max_grad_norm": UNCLIPPED},
    "SGD, clipped": {"optim.lr": 6.0, "optim.max_grad_norm": 0.01},
    "SGD": {"optim.lr": 0.01, "optim.max_grad_norm": UNCLIPPED},
}


@contextmanager
def optimizer(name: str) -> Iterator[None]:
    """train.py with plain SGD in AdamW's place, where the name says so."""
    usual = train.build_optimizer
    if name.startswith("SGD"):
        train.build_optimizer = sgd  # type: ignore[assignment]
    try:
        yield
    finally:
        train.build_optimizer = usual


def sgd(model: nn.Module, optim: OptimSection) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=optim.lr)


def flags_of(method: str, own: dict[str, Any]) -> dict[str, Any]:
    flags = {"loss": method, "train.steps": STEPS, **own}
    usual = loss_parameters(method)
    return flags | ({"loss.beta": usual["beta"]} if "beta" in usual else {})


def compare(
    name: str, methods: list[str], flags: dict[str, Any], base: str, trained: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """How far each method moved the weights, the cosines between the moves (of every method's with the first one's, and the
    least of all pairs'), and the gradient's norm at the first step. A method that diverged is in none of them.

    name, flags: of OPTIMIZERS. trained: from flags of train.py to the folder of a model.
    """
    before = weights(base)
    moves, slopes = {}, {}
    with optimizer(name):
        for method in methods:
            try:
                folder = Path(trained(flags_of(method, flags)))
            except UserError:
                continue
            moves[method] = weights(folder) - before
            slopes[method] = read_metrics(folder.parent / "metrics.jsonl")[0]["grad_norm"]
    units = torch.stack([move / move.norm() for move in moves.values()])
    cosines = units @ units.T
    return {
        "norms": {method: round(float(move.norm()), 4) for method, move in moves.items()},
        "cosines": {method: round(float(cosine), 4) for method, cosine in zip(moves, cosines[0], strict=True)},
        "least": round(float(cosines.min()), 4),
        "slopes": {method: round(slope, 4) for method, slope in slopes.items()},
    }


def weights(folder: str | Path) -> Tensor:
    """(parameters,) all weights of a model, one behind the other."""
    return torch.cat([p.detach().flatten() for p in load_model(folder).parameters()])
