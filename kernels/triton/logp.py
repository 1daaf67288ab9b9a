"""Token log-probabilities on a GPU, forward and backward, with the (N, V) logits never in memory.

Launches the kernels of logp_kernels.py with the tiles of tiles.py. Peak memory over inputs and gradients: one
(N, C) chunk of dL/dlogits (DLOGITS_BYTES), float32 dL/dhidden, and (splits, N) partial sums (PARTIAL_BYTES).
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from .logp_kernels import dlogits_kernel, forward_kernel, product_kernel
from .tiles import Tile, skip_sizes, tiles_for

DLOGITS_BYTES = 2**28  # a chunk of dL/dlogits alive at once; more only lengthens the two products' inner loops
PARTIAL_BYTES = 2**25  # partial sums over vocabulary splits; as many splits as fit, so that few tokens fill the chip
INTERPRET = not isinstance(forward_kernel, JITFunction)  # decided by TRITON_INTERPRET when the kernels were imported


def architecture(device: torch.device) -> str:
    """The row of tiles.TILES that serves a device: "sm_80", "sm_90", "sm_100", "gfx942" or "interpreter"."""
    if INTERPRET:
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    # 8.x and 12.x have neither wgmma nor tcgen05: Ampere's tiles, whose shared memory is the smallest
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


def describable(x: Tensor) -> bool:
    """Whether TMA can read x (rows, columns): rows contiguous, apart and 16-byte aligned."""
    aligned = x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    return aligned and x.stride(1) == 1 and x.stride(0) >= x.shape[1]


def operand(x: Tensor, block: list[int], tma: bool) -> Tensor | TensorDescriptor:
    return TensorDescriptor.from_tensor(x, block) if tma else x


class _Launch:
    """What the three launches share: tiles, precision, and whether operands go through descriptors."""

    def __init__(self, hidden: Tensor, weight: Tensor, tma: bool | None, skip: bool = False):
        self.arch = architecture(hidden.device)
        self.tiles = tiles_for(self.arch, str(hidden.dtype).removeprefix("torch."), skip)
        capable = self.arch in ("sm_90", "sm_100", "interpreter") and describable(hidden) and describable(weight)
        if tma and not capable:
            raise ValueError(
                "tma=True takes sm_90 or newer and hidden and weight with contiguous, 16-byte aligned rows"
            )
        self.tma = None if tma is None and capable else bool(tma)
        tf32 = hidden.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        self.constants = {"PRECISION": "tf32" if tf32 else "ieee", "INTERPRET": INTERPRET}

    def options(self, tile: Tile) -> dict:
        tma = tile.tma if self.tma is None else self.tma
        return {**self.constants, "GROUP": tile.group, "TMA": tma, "num_warps": tile.warps, "num_stages": tile.stages}

    def forward(self, hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool, skip: bool) -> tuple[Tensor, ...]:
        """-> partial lse (S, N), partial entropy (S, N) or empty, target logit (N,), all float32.

        skip: one split for each vocabulary tile of dlogits_kernel, whose masses then decide what backward leaves out.
        """
        n, (v, d) = hidden.shape[0], weight.shape
        tile = self.tiles["dlogits" if skip else "forward"]
        columns = triton.cdiv(v, tile.columns)
        per_split = 1 if skip else triton.cdiv(4 * n * columns, PARTIAL_BYTES)
        splits = triton.cdiv(columns, per_split)
        lse = torch.empty(splits, n, dtype=torch.float32, device=hidden.device)
        h = torch.empty(splits if entropy else 0, n, dtype=torch.float32, device=hidden.device)
        # a target outside [0, V) is in no tile, and its log-probability stays NaN
        target_logit = torch.full((n,), torch.nan, dtype=torch.float32, device=hidden.device)
        options = self.options(tile)
        forward_kernel[(triton.cdiv(n, tile.rows) * splits,)](
            operand(hidden, [tile.rows, tile.inner], options["TMA"]),
            operand(weight, [tile.columns, tile.inner], options["TMA"]),
            targets, lse, h, target_logit, n, v, d, *hidden.stride(), *weight.stride(), per_split,
            BN=tile.rows, BV=tile.columns, BD=tile.inner, ENTROPY=entropy, **options,
        )  # fmt: skip
        return lse, h, target_logit

    @property
    def padding(self) -> tuple[int, int]:
        """dL/dlogits is stored in whole tiles of every kernel that writes or reads it: multiples of these (N, V)."""
        z, h, w = (self.tiles[name] for name in ("dlogits", "d_hidden", "d_weight"))
        return max(z.rows, h.rows, w.inner), max(z.columns, h.inner, w.rows)  # powers of two all

    def dlogits(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        lse: Tensor,
        grad: Tensor,
        keep: Tensor | None,
        dz: Tensor,
        start: int,
    ) -> None:
        """Fills dz (N padded, C padded): dL/dlogits of the columns from `start` on."""
        n, (v, d) = hidden.shape[0], weight.shape
        tile = self.tiles["dlogits"]
        blocks, columns = dz.shape[0] // tile.rows, dz.shape[1] // tile.columns
        options = self.options(tile)
        dlogits_kernel[(blocks * columns,)](
            operand(hidden, [tile.rows, tile.inner], options["TMA"]),
            operand(weight, [tile.columns, tile.inner], options["TMA"]),
            targets, lse, grad, lse if keep is None else keep, dz,
            n, v, start, min(start + dz.shape[1], v), blocks, columns, d,
            *hidden.stride(), *weight.stride(), dz.stride(0),
            BN=tile.rows, BV=tile.columns, BD=tile.inner, SKIP=keep is not None, **options,
        )  # fmt: skip

    def product(self, kernel: str, dz: Tensor, b: Tensor, out: Tensor, keep: Tensor | None, accumulate: bool) -> None:
        """d_hidden: out (N, D) (+)= dz @ b (C, D); d_weight: out (C, D) = dz.T @ b (N, D)."""
        transpose = kernel == "d_weight"
        (m, d), k, tile = out.shape, dz.shape[0 if transpose else 1], self.tiles[kernel]
        skip_m, skip_k, steps, order = 1, 1, out, out
        if keep is not None:
            skip_m, skip_k = skip_sizes(kernel, self.tiles["dlogits"])
            kept = keep if transpose else keep.T  # (M / skip_m, K / skip_k)
            steps = kept.sum(dim=1, dtype=torch.int32)
            order = kept.argsort(dim=1, descending=True, stable=True).to(torch.int32).contiguous()
        options = self.options(tile)
        product_kernel[(triton.cdiv(m, tile.rows) * triton.cdiv(d, tile.columns),)](
            operand(dz, [tile.inner, tile.rows] if transpose else [tile.rows, tile.inner], options["TMA"]),
            operand(b, [tile.inner, tile.columns], options["TMA"]),
            out, steps, order, m, k, b.shape[0], d, dz.stride(0), *b.stride(), order.stride(0),
            BM=tile.rows, BD=tile.columns, BK=tile.inner, TRANSPOSE=transpose, ACCUMULATE=accumulate,
            SKIP=keep is not None, SKIP_M=skip_m, SKIP_K=skip_k, **options,
        )  # fmt: skip


def kept_tiles(
    tile_lse: Tensor, lse: Tensor, targets: Tensor, grad: Tensor, tile: Tile, padding: tuple[int, int], skip_mass: float
) -> Tensor:
    """Which (BV, BN) tiles of dL/dlogits backward computes: uint8 (V padded / BV, N padded / BN).

    tile_lse: (V / BV, N), log Σ exp z over each vocabulary tile. A tile is left out where, for every one of its tokens,
    the upstream gradient is 0, or the target is elsewhere and the tile's probability is at most skip_mass / (V / BV).
    """
    tiles, n = tile_lse.shape
    keep = (tile_lse - lse).exp_() > skip_mass / tiles  # (V / BV, N)
    keep.scatter_(0, (targets[None] // tile.columns).clamp(0, tiles - 1), True)
    keep &= grad != 0
    below, right = -tiles * tile.columns % padding[1] // tile.columns, -n % padding[0]
    keep = torch.nn.functional.pad(keep, (0, right, 0, below))
    return keep.view(keep.shape[0], -1, tile.rows).any(dim=2).to(torch.uint8)


class TritonLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, entropy: bool, skip_mass: float, tma: bool | None
    ) -> tuple[Tensor, Tensor]:
        skip = skip_mass > 0
        launch = _Launch(hidden, weight, tma, skip)
        split_lse, split_entropy, target_logit = launch.forward(hidden, weight, targets, entropy, skip)
        lse = torch.logsumexp(split_lse, dim=0)  # (N,)
        ctx.save_for_backward(hidden, weight, targets, lse, split_lse if skip else None)
        ctx.launch, ctx.skip_mass = launch, skip_mass
        h = lse.new_empty(0)
        if entropy:
            # a split is chosen with probability q, then a token inside it: H = Σ q (H_split - log q)
            log_q = split_lse - lse  # (S, N)
            h = (log_q.exp() * (split_entropy - log_q)).sum(dim=0)  # (N,)
        ctx.mark_non_differentiable(h)
        return target_logit - lse, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse, tile_lse = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]  # a frozen head costs no (V, D) gradient
        (n, d), v, launch = hidden.shape, weight.shape[0], ctx.launch
        grad = grad.float().contiguous()
        tile, (pad_n, pad_v) = launch.tiles["dlogits"], launch.padding
        keep = None
        if tile_lse is not None:
            keep = kept_tiles(tile_lse, lse, targets, grad, tile, launch.padding, ctx.skip_mass)
        rows, columns = n + -n % pad_n, v + -v % pad_v
        chunk = min(max(DLOGITS_BYTES // (rows * hidden.element_size() * pad_v), 1) * pad_v, columns)
        buffer = torch.empty(rows * chunk, dtype=hidden.dtype, device=hidden.device)
        d_hidden = torch.empty(n, d, dtype=torch.float32, device=hidden.device) if need_hidden else None
        d_weight = torch.empty(v, d, dtype=weight.dtype, device=weight.device) if need_weight else None
        for start in range(0, v, chunk):
            w = weight[start : start + chunk]  # (C, D)
            width = min(chunk, columns - start)
            dz = buffer[: rows * width].view(rows, width)  # (N padded, C padded)
            kept = None if keep is None else keep[start // tile.columns :][: width // tile.columns]  # (C / BV, N / BN)
            launch.dlogits(hidden, weight, targets, lse, grad, keep, dz, start)
            if d_hidden is not None:
                launch.product("d_hidden", dz, w, d_hidden, kept, accumulate=start > 0)
            if d_weight is not None:
                launch.product("d_weight", dz, hidden, d_weight[start : start + chunk], kept, accumulate=False)
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, None, None, None, None


def triton_logp(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    return_entropy: bool = False,
    skip_mass: float = 0.0,
    tma: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """reference_logp without the logits, by Triton kernels; deterministic.

    hidden: (N, D) float32, bfloat16 or float16, any strides; weight: (V, D) in the same dtype; targets: (N,) int64 in
    [0, V). float32 is multiplied in full precision unless torch.backends.cuda.matmul.allow_tf32.
    return_entropy: also the entropy of each token's distribution, in nats, without a gradient.
    skip_mass: 0 computes every gradient tile. Otherwise tiles of improbable columns are left out of backward, together
        at most this probability of any token: |error of dL/dhidden[n]| <= |g_n| skip_mass max_v |weight[v]|, componentwise
        in D, and |error of dL/dweight[v]| <= Σ_n |g_n| |hidden[n]| skip_mass. At 2**-24 that is below the rounding of
        float32 sums whose terms are of size |g_n| |weight[v]|.
    tma: None takes tensor descriptors where the table and the device say so; True and False force the choice.

    Returns (N,) float32, or with return_entropy a pair of them.
    Raises ValueError for float64 or mixed dtypes, and for tensors that no Triton backend here can reach.
    """
    if hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16) or weight.dtype != hidden.dtype:
        raise ValueError(
            f"triton takes hidden and weight both float32, bfloat16 or float16, not {hidden.dtype} and {weight.dtype}; "
            'impl="chunked" or "reference" takes float64'
        )
    if not (hidden.is_cuda or INTERPRET):
        raise ValueError('triton needs a GPU (or TRITON_INTERPRET=1 before the import); on a CPU take impl="chunked"')
    if hidden.shape[1] == 0:
        raise ValueError(f"triton takes hidden with D >= 1, got {tuple(hidden.shape)}")
    if hidden.shape[0] == 0:
        # nothing to launch; an autograd graph all the same, so that a rank without tokens gives zeros, not None
        empty = (hidden.sum(dim=1) + weight[:0].sum()).float()
        return (empty, empty.detach()) if return_entropy else empty
    logp, entropy = TritonLogp.apply(hidden, weight, targets.contiguous(), return_entropy, skip_mass, tma)
    return (logp, entropy) if return_entropy else logp
