"""A running mean of the weights (Polyak and Juditsky 1992; with a decay, as Mean teacher, arXiv 1703.01780).

    m ← d m + (1 - d) θ    after each step, from the weights that the run began with

in float32, of what is trained. Its noise is that of the last 1 / (1 - d) steps' mean, not of the last step; and it lags,
which after few steps leaves it near the model that the run began with.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align.parallel import reshard


class Average:
    """The mean of a model's trained weights. With a decay of 0 there is none, and the weights stand for it."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad and decay}
        self.means: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def follow(self) -> None:
        for name, p in self.trained.items():
            self.means[name].lerp_(p.detach(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the mean as its weights: what is measured on held-out rows, and exported."""
        self._exchange()
        yield
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        if self.trained:
            reshard(self.model)  # or the copies that FSDP has gathered would stay in use
        for name, p in self.trained.items():
            kept = p.detach().clone()
            p.copy_(self.means[name])
            self.means[name].copy_(kept)
