"""Losses whose prompts influence each other (a sort, a running mean, a KL baseline) over the whole global batch.

A micro-batch sees only its prompts, so the numbers of all of them are measured first, without gradient, and summed over
ranks into one table. Then each micro-batch runs again with gradients and puts its rows into that table: the loss of
the table is the loss of the global batch, and its gradient in those rows is exact. One more forward pass buys a result
that does not change with ranks or accumulation.
"""

from collections.abc import Iterable
from dataclasses import fields, replace

import torch
from torch import Tensor

from align.losses import LossInputs
from align.parallel import World


def global_inputs(parts: Iterable[tuple[LossInputs, Tensor]], n: int, world: World) -> LossInputs:
    """The LossInputs of a global batch of n prompts, from every rank's micro-batches and their positions (n_i,) in it."""
    tables: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    tokens_per_prompt = None
    for x, positions in parts:
        tokens_per_prompt = x.tokens_per_prompt
        for name, value in tensors(x).items():
            if name not in tables:
                tables[name] = torch.zeros(n, *value.shape[1:], dtype=torch.float64, device=value.device)
                dtypes[name] = value.dtype
            tables[name][positions] = value.detach().double()
    # each prompt is on one rank alone, so a sum over ranks fills every row; float64 holds float32 and counts exactly
    whole = {name: world.sum(table).to(dtypes[name]) for name, table in sorted(tables.items())}
    return LossInputs(**whole, tokens_per_prompt=tokens_per_prompt)


def with_rows(whole: LossInputs, x: LossInputs, positions: Tensor) -> LossInputs:
    """The global batch with the rows of a micro-batch, and their gradients, put in."""
    rows = tensors(x)
    return replace(
        whole,
        **{name: table.index_copy(0, positions, rows[name].to(table.dtype)) for name, table in tensors(whole).items()},
    )


def tensors(x: LossInputs) -> dict[str, Tensor]:
    """The entries of a LossInputs that have a row for each prompt."""
    values = {field.name: getattr(x, field.name) for field in fields(x) if field.name != "tokens_per_prompt"}
    return {name: value for name, value in values.items() if value is not None}
