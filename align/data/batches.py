"""Which prompts each step takes, how they are dealt to ranks and micro-batches, and the tensors they become."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.data.encode import Group, fingerprint
from align.errors import UserError


@dataclass(frozen=True)
class Batch:
    """N prompts with K responses each. Rows are prompt-major, group 0's responses first, and padded on the right.

    Groups after the first n are fillers that keep ranks in step: they run through the model and count for nothing.
    """

    ids: Tensor  # (N*K, T) int64
    mask: Tensor  # (N*K, T) bool, true where the token is the response's, its EOS included
    n: int
    K: int
    index: Tensor  # (N,) int64
    scores: Tensor | None  # (N, K) float32
    labels: Tensor | None  # (N,) bool

    @property
    def n_tok(self) -> Tensor:
        """Tokens of every response. # (N, K) int64"""
        return self.mask.sum(dim=1).view(-1, self.K)

    def to(self, device: torch.device | str) -> "Batch":
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def collate(groups: Sequence[Group], pad_id: int, n_real: int | None = None) -> Batch:
    """A Batch of groups that share one K; the first n_real of them are real (default: all)."""
    K = len(groups[0].response_ids)
    unpacked = [(g.prompt_ids, g.response_ids) for g in groups]
    rows = [(len(prompt), prompt + response) for prompt, responses in unpacked for response in responses]
    T = max(len(ids) for _, ids in rows)
    ids = torch.full((len(rows), T), pad_id, dtype=torch.int64)  # (N*K, T)
    mask = torch.zeros((len(rows), T), dtype=torch.bool)  # (N*K, T)
    for row, (start, row_ids) in enumerate(rows):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        mask[row, start : len(row_ids)] = True
    return Batch(
        ids=ids,
        mask=mask,
        n=len(groups) if n_real is None else n_real,
        K=K,
        index=torch.tensor([g.index for g in groups]),
        scores=None if groups[0].scores is None else torch.tensor([g.scores for g in groups], dtype=torch.float32),
        labels=None if groups[0].label is None else torch.tensor([g.label for g in groups]),
    )


@lru_cache(maxsize=2)
def _permutation(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def batch_indices(n_rows: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Rows of the global batch of a step (counted from 0): a pure function, so there is nothing to save or to restore.

    Step s takes positions s*B .. s*B+B-1 of an endless stream whose epoch e is a permutation of all rows drawn from
    (seed, e). Raises UserError when the batch is larger than the data.
    """
    if batch_size > n_rows:
        raise UserError(f"--train.batch_size {batch_size} is more than the {n_rows} prompts there are; lower it")
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(n_rows, seed, p // n_rows)[p % n_rows]) for p in positions]


def split_batch(
    lengths: Sequence[int], rank: int, world_size: int, micro_batch_size: int
) -> list[tuple[list[int], int]]:
    """This rank's micro-batches of a global batch: (positions in the batch, how many of them are real), each in turn.

    lengths: of the batch's groups; world_size: how many ranks. Every rank gets equally many micro-batches, because
    collectives must match; one left without prompts holds a filler group and counts 0 real ones. Over all ranks each
    prompt comes once. Raises UserError when there are more ranks than prompts.
    """
    n = len(lengths)
    if n < world_size:
        raise UserError(f"--train.batch_size {n} is less than a prompt for each of the {world_size} ranks; raise it")
    n_chunks = world_size * math.ceil(n / (world_size * micro_batch_size))
    # longest first: similar lengths run side by side, and a batch that does not fit in memory fails at once
    ordered = sorted(range(n), key=lambda position: -lengths[position])
    sizes = [n // n_chunks + (c < n % n_chunks) for c in range(n_chunks)]
    starts = np.cumsum([0, *sizes])
    chunks = [(ordered[starts[c] : starts[c] + sizes[c]] or ordered[-1:], sizes[c]) for c in range(n_chunks)]
    return chunks[rank::world_size]


@dataclass(frozen=True)
class Dataset:
    """groups[:n_train] are trained on, the rest is held out. K, the responses to a prompt, is the same for all.

    template: the chat template that prompts went through, None if none did.
    rank and device are those of this process; world_size ranks share each batch.
    """

    groups: list[Group]
    n_train: int
    steps: int
    batch_size: int  # prompts per step, over all ranks
    micro_batch_size: int  # at most, per rank
    seed: int
    pad_id: int
    rank: int
    world_size: int
    device: torch.device
    template: str | None = None

    @property
    def held_out(self) -> range:
        return range(self.n_train, len(self.groups))

    def global_batch(self, step: int) -> list[int]:
        """The prompts of an optimizer step, over all ranks: a function of (seed, step) alone."""
        return batch_indices(self.n_train, step, self.batch_size, self.seed)

    def visited(self) -> set[int]:
        """Every prompt that the run will look at."""
        return {i for step in range(self.steps) for i in self.global_batch(step)} | set(self.held_out)

    @property
    def id(self) -> str:
        """A hash of all that a run learns from: ids, scores and labels, and how many of the prompts are trained on."""
        judged = [(group.scores, group.label) for group in self.groups]
        return hashlib.sha256(f"{fingerprint(self.groups)} {judged} {self.n_train}".encode()).hexdigest()

    def micro_batches(self, indices: Sequence[int]) -> Iterator[tuple[Batch, Tensor]]:
        """This rank's part of a global batch: batches, each with the positions (n,) of its real prompts among `indices`."""
        lengths = [self.groups[i].length for i in indices]
        for chunk, real in split_batch(lengths, self.rank, self.world_size, self.micro_batch_size):
            batch = collate([self.groups[indices[p]] for p in chunk], self.pad_id, real)
            positions = torch.tensor(chunk[:real], dtype=torch.int64)
            yield batch.to(self.device), positions.to(self.device)

    def tokens_per_prompt(self, indices: Sequence[int]) -> float:
        """Tokens of the preferred response, averaged over a global batch. Every rank knows it without asking the others."""
        return sum(self.groups[i].response_lengths[0] for i in indices) / len(indices)

    def n_tokens(self, indices: Sequence[int]) -> int:
        """All tokens of a global batch, prompts counted once for each response, padding not at all."""
        return sum(self.groups[i].n_tokens for i in indices)
