"""One gradient without what it has of another's direction: OGPSA, Sun et al. 2026, arXiv 2602.07892.

    g ← g - (g·b / b·b) b        per parameter; then both are added: b + g

b is the gradient of what is to be kept, such as replayed responses; g that of everything else. A small step along what is
left of g does not change b's loss to first order, whether the two agreed or not; b itself is a step of its own loss. (What
AdamW makes of the sum, coordinate by coordinate, is so only nearly.) The paper takes b from a fixed set of general samples
every 30 steps and adds none of it; here b is a source's, of every step.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from align.parallel import World, local_rows


def take_gradients(model: nn.Module) -> list[Tensor | None]:
    """The gradients so far, of every parameter, which are then as if they had never been computed."""
    taken = [p.grad for p in model.parameters()]
    model.zero_grad()
    return taken


@torch.no_grad()
def add_projected(model: nn.Module, others: Iterable[Tensor | None], world: World) -> None:
    """Add to every parameter's gradient b what is left of another, g, off its direction. Every rank must call it.

    The products are over the whole parameter, wherever its rows are.
    """
    pairs = [(p, g, p.grad) for p, g in zip(model.parameters(), others, strict=True) if g is not None]
    local = [(local_rows(g)[0], None if b is None else local_rows(b)[0]) for _, g, b in pairs]
    nothing = torch.zeros(2, dtype=torch.float64, device=world.device)
    products = [nothing if b is None else torch.stack([dot(g, b), dot(b, b)]) for g, b in local]
    # what replicas hold is counted by each, in both products alike
    for (p, g, b), (along, square) in zip(pairs, world.sum(torch.stack(products)).tolist(), strict=True):
        if b is not None and square > 0:
            g.sub_(b, alpha=along / square)
        p.grad = g if b is None else b.add_(g)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten().double(), b.flatten().double())
