"""Which prompts each step takes, how they are dealt to ranks and micro-batches, and the tensors they become."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.data.encode import Group, fingerprint
from align.errors import UserError
from align.stream import Stream, stream_of


@dataclass(frozen=True)
class Batch:
    """N prompts with K responses each, as one stream of tokens.

    Groups after the first n are fillers that keep ranks in step: they run through the model and count for nothing.
    """

    stream: Stream
    n_tok: Tensor  # (N, K) int64, tokens of every response, its EOS included
    n: int
    K: int
    index: Tensor  # (N,) int64
    scores: Tensor | None  # (N, K) float32
    labels: Tensor | None  # (N,) bool

    @property
    def place(self) -> Tensor:
        """The place of every response token in its response, from 0. # (M,) int64"""
        lengths = self.n_tok.flatten()
        first = lengths.cumsum(0) - lengths  # (N*K,)
        return torch.arange(len(self.stream.owner), device=first.device) - first[self.stream.owner]

    def to(self, device: torch.device | str) -> "Batch":
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor | Stream)
        }
        return replace(self, **moved)


def collate(groups: Sequence[Group], pad_id: int | None = None, n_real: int | None = None, share: bool = True) -> Batch:
    """A Batch of groups that share one K; the first n_real of them are real (default: all).

    share: a prompt is computed once for all its responses. pad_id is not used: nothing is padded.
    """
    unpacked = [(group.prompt_ids, group.response_ids) for group in groups]
    K = len(unpacked[0][1])
    return Batch(
        stream=stream_of(unpacked, share and K > 1),
        n_tok=torch.tensor([[len(response) for response in responses] for _, responses in unpacked]),
        n=len(groups) if n_real is None else n_real,
        K=K,
        index=torch.tensor([g.index for g in groups]),
        scores=None if groups[0].scores is None else torch.tensor([g.scores for g in groups], dtype=torch.float32),
        labels=None if groups[0].label is None else torch.tensor([g.label for g in groups]),
    )


@lru_cache(maxsize=2)
def _permutation(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def batch_indices(n_rows: int, step: int, batch_size: int, seed: int, flag: str = "--train.batch_size") -> list[int]:
    """Rows of the global batch of a step (counted from 0): a pure function, so there is nothing to save or to restore.

    Step s takes positions s*B .. s*B+B-1 of an endless stream whose epoch e is a permutation of all rows drawn from
    (seed, e). Raises UserError, which names the flag, when the batch is larger than the data.
    """
    if batch_size > n_rows:
        raise UserError(f"{flag} {batch_size} is more than the {n_rows} prompts there are; lower it")
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(n_rows, seed, p // n_rows)[p % n_rows]) for p in positions]


def split_batch(
    sizes: Sequence[int],
    rank: int,
    world_size: int,
    max_prompts: int = 0,
    max_tokens: int = 0,
    flag: str = "--train.batch_size",
) -> list[tuple[list[int], int]]:
    """This rank's micro-batches of a global batch: (positions in the batch, how many of them are real), each in turn.

    Those of cut_batch, of which a rank takes every world_size-th.
    """
    return cut_batch(sizes, world_size, max_prompts, max_tokens, flag)[rank::world_size]


def cut_batch(
    sizes: Sequence[int],
    world_size: int,
    max_prompts: int = 0,
    max_tokens: int = 0,
    flag: str = "--train.batch_size",
) -> list[tuple[list[int], int]]:
    """All ranks' micro-batches of a global batch: (positions in the batch, how many of them are real).

    sizes: tokens of the batch's groups. world_size: how many ranks. A micro-batch has at most max_prompts groups and
    max_tokens tokens, but always one group; 0: any number. Every rank gets equally many micro-batches, because collectives
    must match, and they hold nearly equally many tokens; one left without prompts holds a filler group and counts 0 real
    ones. Over all ranks each prompt comes once. Raises UserError, which names the flag, when there are more ranks than
    prompts.
    """
    n = len(sizes)
    if n < world_size:
        raise UserError(f"{flag} {n} is less than a prompt for each of the {world_size} ranks; raise it")
    # largest first: similar sizes run side by side, and a batch that does not fit in memory fails at once
    ordered = sorted(range(n), key=lambda position: -sizes[position])

    def cut(most: int) -> list[list[int]]:
        """As few chunks as chunks of at most this many tokens can be."""
        chunks: list[list[int]] = []
        room = 0
        for position in ordered:
            if not chunks or sizes[position] > room or len(chunks[-1]) == max_prompts:
                chunks.append([])
                room = most
            chunks[-1].append(position)
            room -= sizes[position]
        return chunks

    n_chunks = len(cut(max_tokens or sum(sizes)))
    n_chunks += -n_chunks % world_size
    # the least that cuts into no more chunks than that, between what one group takes and what all do
    low, high = max(max(sizes), -(-sum(sizes) // n_chunks)), max_tokens or sum(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= n_chunks else (middle + 1, high)
    chunks = cut(low)
    while len(chunks) < n_chunks and max(map(len, chunks)) > 1:  # one more, rather than one that counts for nothing
        largest = max((chunk for chunk in chunks if len(chunk) > 1), key=lambda chunk: sum(sizes[p] for p in chunk))
        at, half = chunks.index(largest), len(largest) // 2
        chunks[at : at + 1] = [largest[:half], largest[half:]]
    return [(chunk, len(chunk)) for chunk in chunks] + [(ordered[-1:], 0)] * (n_chunks - len(chunks))


def stream_tokens(group: Group, share: bool) -> int:
    """Tokens that a group takes in a stream."""
    lengths = group.response_lengths
    return group.prompt_length * (1 if share and len(lengths) > 1 else len(lengths)) + sum(lengths) - len(lengths)


def sharing_saves(groups: Sequence[Group]) -> float:
    """The share of the tokens that computing each prompt once, not once for each of its responses, leaves out."""
    apart = shared = 0
    for group in groups:  # once: each is made of its data set's ids when it is asked for
        apart += stream_tokens(group, False)
        shared += stream_tokens(group, True)
    return 1 - shared / apart


@dataclass(frozen=True)
class Dataset:
    """groups[:n_train] are trained on, the rest is held out. K, the responses to a prompt, is the same for all.

    template: the chat template that prompts went through, None if none did.
    rank and device are those of this process; world_size ranks share each batch.
    """

    groups: Sequence[Group]
    n_train: int
    steps: int
    batch_size: int  # prompts per step, over all ranks
    micro_batch_size: int  # prompts per rank in one forward pass, at most; 0: any number
    micro_batch_tokens: int  # tokens, likewise
    seed: int
    rank: int
    world_size: int
    device: torch.device
    template: str | None = None
    batch_flag: str = "--train.batch_size"  # what sets batch_size
    share: bool = True  # each prompt is computed once for all its responses

    @property
    def held_out(self) -> range:
        return range(self.n_train, len(self.groups))

    def global_batch(self, step: int) -> list[int]:
        """The prompts of an optimizer step, over all ranks: a function of (seed, step) alone."""
        return batch_indices(self.n_train, step, self.batch_size, self.seed, self.batch_flag)

    def visited(self) -> set[int]:
        """Every prompt that the run will look at."""
        if self.steps * self.batch_size >= self.n_train:  # an epoch has them all
            return set(range(len(self.groups)))
        return {i for step in range(self.steps) for i in self.global_batch(step)} | set(self.held_out)

    @property
    def id(self) -> str:
        """A hash of all that a run learns from: ids, scores and labels, and how many of the prompts are trained on."""
        judged = [(group.scores, group.label) for group in self.groups]
        return hashlib.sha256(f"{fingerprint(self.groups)} {judged} {self.n_train}".encode()).hexdigest()

    def micro_batches(self, indices: Sequence[int]) -> Iterator[tuple[Batch, Tensor]]:
        """This rank's part of a global batch: batches, each with the positions (n,) of its real prompts among `indices`."""
        sizes = [stream_tokens(self.groups[i], self.share) for i in indices]
        limits = self.micro_batch_size, self.micro_batch_tokens
        for chunk, real in split_batch(sizes, self.rank, self.world_size, *limits, self.batch_flag):
            batch = collate([self.groups[indices[p]] for p in chunk], n_real=real, share=self.share)
            positions = torch.tensor(chunk[:real], dtype=torch.int64)
            yield batch.to(self.device), positions.to(self.device)

    def tokens_per_prompt(self, indices: Sequence[int]) -> float:
        """Tokens of the preferred response, averaged over a global batch. Every rank knows it without asking the others."""
        return sum(self.groups[i].response_lengths[0] for i in indices) / len(indices)

    def n_tokens(self, indices: Sequence[int]) -> int:
        """All tokens of a global batch, prompts counted once for each response, padding not at all."""
        return sum(self.groups[i].n_tokens for i in indices)
