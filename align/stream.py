"""The stream: a micro-batch as one sequence of tokens, each prompt once, and behind it its K responses.

    [prompt 1][response 1.1][response 1.2][prompt 2][response 2.1] ...

There is no padding and no shift. Everything but attention works on the stream as it is. A prompt sees itself, a response
its prompt and itself, both causally; a response's positions go on from its prompt's. The last token of a response
predicts nothing, and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Run(NamedTuple):
    """Consecutive tokens of the stream that see each other, and before them a prompt that stands elsewhere in it."""

    start: int
    length: int
    prefix: int = 0  # where that prompt starts
    before: int = 0  # its tokens; 0: there is none


class Rows(NamedTuple):
    """Runs laid side by side, padded on the right with their last token, for an attention that takes rows."""

    queries: Tensor  # (R, T) int64, where in the stream each token stands that asks
    keys: Tensor  # (R, C) int64, and those that it may see: the prompt before the run, then the run
    seen: (
        Tensor | None
    )  # (R, 1, T, C) bool, what of that it does see; None where it is causal: no prompt before any run


@dataclass(frozen=True)
class Stream:
    """S tokens, of which M predict a response's token.

    source: where the state lies that predicts response token m, the token before it; a prompt's last state predicts the
    first token of each of its responses. owner: whose token it is, n K + k for the k-th response to the n-th prompt.
    """

    ids: Tensor  # (S,) int64
    positions: Tensor  # (S,) int64
    source: Tensor  # (M,) int64
    target: Tensor  # (M,) int64
    owner: Tensor  # (M,) int64
    runs: tuple[Run, ...]

    def to(self, device: torch.device | str) -> "Stream":
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    @cached_property
    def rows(self) -> list[Rows]:
        """The runs as rows: those without a prompt before them, then those with one."""
        return [lay(runs, self.ids.device) for runs in self._kinds()]

    @cached_property
    def slots(self) -> Tensor:
        """Where each token stands among the queries of all `rows`, end to end. # (S,) int64"""
        slots, begin = np.empty(len(self.ids), dtype=np.int64), 0
        for runs in self._kinds():
            longest = max(run.length for run in runs)
            for run in runs:
                slots[run.start : run.start + run.length] = np.arange(begin, begin + run.length)
                begin += longest
        return torch.as_tensor(slots, device=self.ids.device)

    def _kinds(self) -> list[list[Run]]:
        kinds = [[run for run in self.runs if not run.before], [run for run in self.runs if run.before]]
        return [runs for runs in kinds if runs]


def lay(runs: Sequence[Run], device: torch.device) -> Rows:
    start, length, prefix, before = (np.array(column)[:, None] for column in zip(*runs, strict=True))  # (R, 1)
    i = np.minimum(np.arange(length.max()), length - 1)  # (R, T), in the run
    j = np.minimum(np.arange((before + length).max()), before + length - 1)  # (R, C), in the prompt and the run
    queries, keys = start + i, np.where(j < before, prefix + j, start + j - before)
    seen = np.arange(j.shape[1]) <= (before + i)[:, :, None] if before.any() else None  # (R, T, C)
    return Rows(
        torch.as_tensor(queries, device=device),
        torch.as_tensor(keys, device=device),
        None if seen is None else torch.as_tensor(seen[:, None], device=device),
    )


def stream_of(groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], share: bool = True) -> Stream:
    """The stream of groups, each the ids of a prompt and of its K responses.

    share: each prompt stands in it once; otherwise once for each response, as one run with it, which is the same to
    float32 rounding and does not look for a prompt's keys elsewhere.
    """
    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    runs: list[Run] = []

    def add(tokens: Sequence[int], first: int, prefix: int = 0, before: int = 0) -> int:
        start = len(ids)
        if tokens:
            ids.extend(tokens)
            positions.extend(range(first, first + len(tokens)))
            runs.append(Run(start, len(tokens), prefix, before))
        return start

    n = 0
    for prompt, responses in groups:
        P = len(prompt)
        shared = add(prompt, 0) if share else 0
        for response in responses:
            if share:
                start = add(response[:-1], P, shared, P)
                source += [shared + P - 1, *range(start, start + len(response) - 1)]
            else:
                start = add([*prompt, *response[:-1]], 0) + P - 1
                source += range(start, start + len(response))
            target += response
            owner += [n] * len(response)
            n += 1
    return Stream(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(source),
        torch.tensor(target),
        torch.tensor(owner),
        tuple(runs),
    )


def stream_of_rows(ids: Tensor, targets: Tensor, mask: Tensor) -> Stream:
    """The stream of right-padded rows, (B, T) each: every row up to the last token whose target is wanted.

    Its M targets are those where the mask is true, row by row.
    """
    columns = torch.arange(ids.shape[1], device=ids.device)
    ends = ((columns + 1) * mask).amax(dim=1)  # (B,)
    if not mask.any():
        ends[0] = 1  # a model that is sharded over ranks must run
    kept = columns < ends[:, None]  # (B, T)
    starts = ends.cumsum(0) - ends  # (B,)
    row, column = mask.nonzero(as_tuple=True)  # (M,) each
    return Stream(
        ids=ids[kept],
        positions=columns.expand_as(ids)[kept],
        source=starts[row] + column,
        target=targets[row, column],
        owner=row,
        runs=tuple(Run(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True) if end),
    )
