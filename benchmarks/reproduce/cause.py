"""Why methods look like one before their push ends: how alike their first steps are, by optimizer.

Each of the paper's ten trains for a few steps with its paper's beta. AdamW divides by the gradient's size, and so does
clipping; what is left of a loss then is its gradient's direction, and at policy = reference these are nearly parallel.
Plain SGD with clipping keeps the direction alone, without clipping the scale as well.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import train
from align.losses import loss_parameters
from align.models import load_model
from align.sections import OptimSection

STEPS = 20
# the rates of SGD move nca as far as AdamW's does
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW, clipped": {"optim.lr": 1e-4},
    "AdamW": {"optim.lr": 1e-4, "optim.max_grad_norm": math.inf},
    "SGD, clipped": {"optim.lr": 0.1},
    "SGD": {"optim.lr": 0.1, "optim.max_grad_norm": math.inf},
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


def flags_of(method: str, optimizer_name: str) -> dict[str, Any]:
    flags = {"loss": method, "train.steps": STEPS, **OPTIMIZERS[optimizer_name]}
    usual = loss_parameters(method)
    return flags | ({"loss.beta": usual["beta"]} if "beta" in usual else {})


def compare(name: str, methods: list[str], base: str, trained: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """How far each method moved the weights, and the cosines between the moves: of every method's with the first one's,
    and the least of all pairs'. trained: from flags of train.py to the folder of a model.
    """
    before = weights(base)
    moves = {}
    with optimizer(name):
        for method in methods:
            moves[method] = weights(trained(flags_of(method, name))) - before
    units = torch.stack([move / move.norm() for move in moves.values()])
    cosines = units @ units.T
    return {
        "norms": {method: round(float(move.norm()), 4) for method, move in moves.items()},
        "cosines": {method: round(float(cosine), 4) for method, cosine in zip(methods, cosines[0], strict=True)},
        "least": round(float(cosines.min()), 4),
    }


def weights(folder: str) -> Tensor:
    """(parameters,) all weights of a model, one behind the other."""
    return torch.cat([p.detach().flatten() for p in load_model(folder).parameters()])
