"""The same numbers as reference.py, a tile of the vocabulary at a time: the (N, V) logits never exist.

Set the target's logit z_y apart from the others, lse' = log Σ_{v≠y} exp z_v. Then

    log p_y = log sigmoid(z_y - lse'),    1 - p_y = sigmoid(lse' - z_y)

and neither loses its digits when p_y is near 1, where most tokens of a tuned model are. Forward visits the others tile by
tile, under a running maximum m: s = Σ_{v≠y} exp(z_v - m), lse' = m + log s (the online softmax). With the upstream
gradient g of each token,

    dhidden_n = g_n ((1 - p_y) W_y - Σ_{v≠y} p_v W_v)            g leaves the sum, so forward can prepare the rest of it
    dW_v      = Σ_n g_n (1[v = y_n] - p_nv) hidden_n             g is inside the sum, so this must wait for backward

For dW, backward needs every p again. The matrix product that makes them is a quarter of all the work, so they are kept,
as exp(z - m), in memory that is needed anyway: that of dW, where backward writes only over what it has already read.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .online_softmax import EAGER, Steps, compiled_steps
from .reference import accumulation_dtype

# bytes of a tile. On a CPU larger ones fall out of the cache, and smaller ones make too many small products
CPU_BUDGET = 8 * 2**20
# elsewhere every tile reads and writes dH's float32 sum once, 8 N D bytes, and must be wide enough for its products:
# at N = 16,384 and Falcon 11B's head 8 MiB would make 508 passes over 0.5 GB, 256 MiB make 16
DEVICE_BUDGET = 256 * 2**20
GROUP = 256  # columns; with rows that are no multiple of that apart, a step took up to a fifth longer


def tile_columns(
    n: int, dtype: torch.dtype, budget: int | None = None, steps: Steps = EAGER, device: str = "cpu"
) -> int:
    """Columns C of an (n, C) tile that fills `budget` bytes in the dtype in which it is held in memory.

    Whole groups of 256 columns where there is room for one. budget: by default what suits the type of device; on a CPU
    twice that for a compiled tile of two-byte numbers, where dW is small too: fewer calls, which gave 1 to 2 %.
    """
    held_in = accumulation_dtype(dtype) if steps is EAGER else dtype
    if budget is None:
        on_cpu = 2 * CPU_BUDGET if held_in.itemsize == 2 else CPU_BUDGET
        budget = on_cpu if device == "cpu" else DEVICE_BUDGET
    columns = budget // (max(1, n) * held_in.itemsize)
    return max(1, columns if columns < GROUP else columns // GROUP * GROUP)


class ChunkedLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        columns: int,
        need_hidden: bool,
        keep: bool,
        steps: Steps,
    ) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        # in bfloat16 a product comes back rounded to 8 bits, so the one logit that matters most is taken in float32
        z_y = (hidden.to(dtype) * weight[targets].to(dtype)).sum(dim=1)  # (N,)
        m, s = z_y, torch.zeros_like(z_y)  # (N,) starting at z_y, m is finite even when there are no others
        others = torch.zeros_like(hidden, dtype=dtype) if need_hidden else None  # (N, D)
        d_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if keep else None
        slots, _ = lay_out(hidden, weight, d_weight, columns)
        scratch = steps.scratch(slots[0], dtype)
        by_tile = targets_by_tile(targets, columns, len(slots))
        maxima = []
        for w, z, target in zip(weight.split(columns), slots, by_tile, strict=True):
            torch.mm(hidden, w.T, out=z)  # (N, C)
            z[target] = -torch.inf
            m, s, rescale = steps.absorb(z, m, s, scratch, need_hidden or keep)
            if others is not None:
                others.mul_(rescale[:, None]).add_(z @ w)
            maxima.append(m)
        margin = z_y - (m + torch.log(s))  # (N,)
        logp = F.logsigmoid(margin)
        lse = z_y - logp
        if others is not None:
            others.mul_(torch.exp(m - lse)[:, None])  # Σ_{v≠y} p_v W_v
        ctx.save_for_backward(hidden, weight, targets, lse, torch.sigmoid(-margin), others, torch.stack(maxima))
        ctx.columns, ctx.targets_by_tile, ctx.d_weight, ctx.steps = columns, by_tile, d_weight, steps
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse, not_p, others, maxima = ctx.saved_tensors
        dtype, columns = lse.dtype, ctx.columns
        grad = grad.to(dtype)  # (N,)
        at_target = grad * not_p  # (N,) dL/dz_y
        d_hidden, d_weight = None, None
        if others is not None:
            d_hidden = at_target[:, None] * weight[targets].to(dtype)  # (N, D)
            d_hidden = d_hidden.addcmul_(others, grad[:, None], value=-1).to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            # the buffer is overwritten below, so a second backward through the same graph recomputes every tile
            d_weight, ctx.d_weight = ctx.d_weight, None
            slots, kept = lay_out(hidden, weight, d_weight, columns)
            if d_weight is None:
                d_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            # a tile's slot may overlap the rows of dW made from it, so dz gets memory elsewhere
            memory = torch.empty_like(slots[0])  # (N, C)
            scratch = ctx.steps.scratch(memory, dtype)
            tiles = zip(weight.split(columns), d_weight.split(columns), maxima, slots, ctx.targets_by_tile, strict=True)
            for i, (w, d_w, m, e, target) in enumerate(tiles):
                if i >= kept:
                    torch.mm(hidden, w.T, out=e)
                    e[target] = -torch.inf
                    # leaves m, and e to the bit, as forward did
                    ctx.steps.absorb(e, m.clone(), torch.zeros_like(m), scratch, True)
                dz = tile_in(memory, 0, (len(e), e.shape[1]))
                ctx.steps.weigh(e, -grad * torch.exp(m - lse), scratch, dz)  # -g p
                dz[target] = at_target[target[0]].to(dz.dtype)
                torch.mm(dz.T, hidden, out=d_w)
        return d_hidden, d_weight, None, None, None, None, None


def targets_by_tile(targets: Tensor, columns: int, tiles: int) -> list[tuple[Tensor, Tensor]]:
    """For every tile, the tokens whose target is in it, and the target's column there. targets: (N,)."""
    tile = targets // columns
    rows = torch.argsort(tile, stable=True)
    counts = torch.bincount(tile, minlength=tiles).tolist()
    return list(zip(rows.split(counts), (targets % columns)[rows].split(counts), strict=True))


def lay_out(hidden: Tensor, weight: Tensor, d_weight: Tensor | None, columns: int) -> tuple[list[Tensor], int]:
    """A slot (N, C) of memory for every tile, in the dtype of hidden, and how many tiles are kept.

    Kept tiles have their slots in the memory of d_weight (V, D), the last one at its end; all others share one slot.
    While backward works on the columns [a, b), it may fill the rows of d_weight before b, b D numbers, and the tiles from
    b on must be intact. When K columns are kept they begin at V D - (K - b) N, so b D <= V D - (K - b) N has to hold up
    to b = K: with N <= D it does for all K <= V, and with N > D for K N <= V D.
    """
    n, (v, d) = len(hidden), weight.shape
    kept = 0 if d_weight is None else kept_columns(n, v, d, columns)
    shared = hidden.new_empty(n * columns if kept < v else 0)
    slots = []
    for start in range(0, v, columns):
        width = min(columns, v - start)
        memory, offset = shared, 0
        if d_weight is not None and start < kept:
            memory, offset = d_weight, v * d - (kept - start) * n
        slots.append(tile_in(memory, offset, (n, width)))
    return slots, -(-kept // columns)


def kept_columns(n: int, v: int, d: int, columns: int) -> int:
    """How many of the V columns, whole tiles or all, keep their exponentials for backward in the memory of dW."""
    return v if n <= d else v * d // n // columns * columns


def tile_in(memory: Tensor, offset: int, shape: tuple[int, int]) -> Tensor:
    """A contiguous tile in the memory of a tensor, from its number `offset` on; not a view of it, as Steps asks."""
    return memory.new_empty(0).set_(memory.untyped_storage(), offset, shape, (shape[1], 1))


def chunked_logp(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int | None = None,
    budget: int | None = None,
    keep: bool = True,
    compiled: bool = False,
) -> Tensor:
    """reference_logp without the logits.

    hidden: (N, D); weight: (V, D); targets: (N,). Returns (N,) float32 (float64 for float64 inputs).
    chunk: columns of a tile; by default tile_columns(N, dtype, budget). Tiles take at most twice the budget.
    compiled: what lies between two matrix products runs under torch.compile, for any N; where that fails, eagerly,
        with a warning. It needs no float32 copy of a tile, so a bfloat16 tile has more columns.

    keep: where weight needs a gradient, allocate that gradient in forward already, and keep the exponentials of the
    first V min(1, D / N) columns in it for backward, which recomputes the rest. A step's peak stays the same, but
    several forwards before one backward hold (V, D) each: False avoids that, for a third more work.

    A frozen weight needs no (V, D) memory, and no product over the vocabulary in backward. Without grad mode nothing
    is kept. The result is the same to the bit in all these cases; compiled, it is rounded differently.
    """
    steps = compiled_steps(hidden.dtype, accumulation_dtype(hidden.dtype), hidden.device) if compiled else EAGER
    columns = min(chunk or tile_columns(len(hidden), hidden.dtype, budget, steps, hidden.device.type), len(weight))
    # needs_input_grad does not know about no_grad, and inside a Function grad mode is off
    need_hidden, need_weight = (torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight))
    return ChunkedLogp.apply(hidden, weight, targets, columns, need_hidden, need_weight and keep, steps)
