"""Numbers that are not finite: where they are, and what may have made them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from align.errors import UserError
from align.parallel import World, local_rows
from align.sources import Source

LOWER = "lower --optim.lr; a run that has begun takes it with --resume --override optim.lr"


def is_finite(tensor: Tensor) -> bool:
    """In one pass, without the temporary tensor of isfinite: the extremes of anything with a NaN are NaN."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())


def non_finite(tensors: Mapping[str, Tensor], world: World) -> str:
    """The name of a tensor that holds a number that is not finite, the same on every rank; empty where none does."""
    mine = (name for name, tensor in tensors.items() if not is_finite(local_rows(tensor)[0]))
    return next(filter(None, world.gather_texts(next(mine, ""))), "")


def explain_step(sources: Sequence[Source], model: nn.Module, world: World) -> str:
    """What is not finite in a step that is not, and what can be done, in one line that is the same on every rank.

    Raises UserError where it is the weights, since every step from there on is like this one.
    """
    spoilt = {source.name: bad_rows(source, world) for source in sources}
    if name := non_finite(dict(model.named_parameters()), world):
        raise UserError(f"{name} holds numbers that are not finite: training diverged in the step before; {LOWER}")
    for source in sources:
        rows, n = spoilt[source.name], len(source.indices)
        of = f"of sources.{source.name} " if source.name else ""
        if len(rows) == n:
            return f"the loss {of}of each of its {n} prompts is not finite: training diverged; {LOWER}"
        if rows:
            named = ", ".join(rows[:5]) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
            return f"the loss {of}of {len(rows)} of its {n} prompts is not finite; look at {named}"
    data, indices = sources[0].data, sources[0].indices
    named = ", ".join(data.groups[i].where for i in indices[:5])
    return f"each prompt's loss is finite, and the gradient is not; {LOWER}, or look at the rows: {named}, ..."


def bad_rows(source: Source, world: World) -> list[str]:
    """The rows of a source's global batch whose loss is not finite."""
    bad = torch.zeros(len(source.indices), device=world.device)
    for (_, positions), part in zip(source.data.micro_batches(source.indices), source.sums.losses, strict=True):
        bad[positions] = (~part.isfinite()).to(bad.dtype)
    return [
        source.data.groups[i].where for i, is_bad in zip(source.indices, world.sum(bad).tolist(), strict=True) if is_bad
    ]
