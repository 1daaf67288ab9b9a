"""The three GPU kernels behind logp.py. Derivation and pictures: docs/kernels.md.

    z = h Wᵀ (N, V)    lse_n = log Σ_v exp z_nv    logp_n = z_{n, y_n} - lse_n    p_nv = exp(z_nv - lse_n)
    g = dL/dlogp (N,)    dz_nv = g_n (1[v = y_n] - p_nv)    dh = dz W    dW = dzᵀ h

    forward_kernel   owns BN tokens x a run of vocabulary tiles:  z -> partial lse (and entropy), the target's z
    dlogits_kernel   owns one (BN, BV) tile of dz, a chunk of the vocabulary at a time; z is computed again
    product_kernel   owns one (BM, BD) tile of dh or of dW: a product with dz on its left

Letters: N tokens, V vocabulary, D hidden size; a B before a letter is a tile's extent. Every program writes addresses
that no other program writes, and adds in a fixed order: results are the same, bit for bit, from run to run.

TMA: operands come as tensor descriptors (sm_90 and newer), not as pointers, and the strides beside them go unused.
INTERPRET: the kernel runs in Triton's interpreter, whose bfloat16 needs help (see dot and rounded).
"""

import triton
import triton.language as tl

from .interpreter import repair_interpreter

repair_interpreter()


@triton.jit
def grid_tile(pid, rows, columns, GROUP: tl.constexpr):
    """Program `pid`'s (row, column) in a grid of rows x columns tiles: a bijection.

    GROUP rows advance together through the columns, so that the tiles in flight at one time share operands in L2: they
    are a near-square patch of the grid rather than one long row of it.
    """
    group = pid // (GROUP * columns)
    inside = pid % (GROUP * columns)
    height = min(rows - group * GROUP, GROUP)
    return group * GROUP + inside % height, inside // height


@triton.jit
def load_tile(
    x, row, column, rows, columns, stride_row, stride_column,
    BR: tl.constexpr, BC: tl.constexpr, MASK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """x[row : row + BR, column : column + BC] -> (BR, BC). Past `columns`, if MASK, zero; past `rows`, any finite thing.

    What a caller does with a row past the end must not depend on it. That buys loads without a mask, which on AMD would
    be branches: the last row is read again (a descriptor gives zeros).
    """
    if TMA:
        tile = x.load([row, column])
    else:
        r = tl.minimum(row + tl.arange(0, BR), rows - 1)
        c = column + tl.arange(0, BC)
        # int64 before any product with a stride: V * D passes 2^31 at V = 131,072 and D = 16,384
        at = x + r.to(tl.int64)[:, None] * stride_row + c.to(tl.int64)[None, :] * stride_column
        tile = tl.load(at, mask=(c < columns)[None, :], other=0.0) if MASK else tl.load(at)
    return tile


@triton.jit
def dot(a, b, c, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """a @ b + c, accumulated in float32."""
    if INTERPRET:  # the interpreter would multiply the raw bits of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c, input_precision="ieee")
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit
def exp(x):
    """e^x with results below 2^-126 as 0: half the instructions of tl.exp, which rescues them."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRET: tl.constexpr):
    """float32 -> dtype, to nearest. The interpreter cuts bfloat16 off, so there the carry is added by hand."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def logit_tile(
    hidden, weight, n0, v0, N, V, D: tl.constexpr,
    stride_hn, stride_hd, stride_wv, stride_wd,
    BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """z[n0 : n0 + BN, v0 : v0 + BV] in float32, finite and meaningless outside (N, V)."""
    z = tl.zeros((BN, BV), tl.float32)
    for d in range(0, D, BD):
        h = load_tile(hidden, n0, d, N, D, stride_hn, stride_hd, BN, BD, D % BD != 0, TMA)  # (BN, BD)
        w = load_tile(weight, v0, d, V, D, stride_wv, stride_wd, BV, BD, D % BD != 0, TMA)  # (BV, BD)
        z = dot(h, w.T, z, PRECISION, INTERPRET)  # (BN, BV)
    return z


@triton.jit
def forward_kernel(
    hidden, weight, targets, lse, entropy, target_logit, N, V, D: tl.constexpr,
    stride_hn, stride_hd, stride_wv, stride_wd, tiles,
    BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, ENTROPY: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One split = `tiles` consecutive vocabulary tiles. lse, entropy: (splits, N); target_logit: (N,).

    Over the columns seen so far, m = max z, s = Σ exp(z - m) and u = Σ exp(z - m) (z - m). A new maximum m' shifts them:

        s' = exp(m - m') s        u' = exp(m - m') (u + (m - m') s)

    and at the end lse = m + log s, entropy = -Σ p log p = log s - u / s. Shifting u by m, not by 0, keeps the entropy
    a difference of small numbers when the logits are large.
    """
    columns = tl.cdiv(V, BV)
    block, split = grid_tile(tl.program_id(0), tl.cdiv(N, BN), tl.cdiv(columns, tiles), GROUP)
    n = block * BN + tl.arange(0, BN)  # (BN,)
    y = tl.load(targets + n, mask=n < N, other=-1).to(tl.int32)  # (BN,)
    m = tl.full((BN,), -float("inf"), tl.float32)
    s = tl.zeros((BN,), tl.float32)
    u = tl.zeros((BN,), tl.float32)
    for tile in range(split * tiles, min((split + 1) * tiles, columns)):
        z = logit_tile(
            hidden, weight, block * BN, tile * BV, N, V, D, stride_hn, stride_hd, stride_wv, stride_wd,
            BN, BV, BD, TMA, PRECISION, INTERPRET,
        )  # (BN, BV)  # fmt: skip
        v = tile * BV + tl.arange(0, BV)  # (BV,)
        hit = v[None, :] == y[:, None]  # (BN, BV), at most one in a row of the whole grid
        # the tile that holds the target is the only one to write its logit
        here = (y >= tile * BV) & (y < min(tile * BV + BV, V))  # (BN,)
        tl.store(target_logit + n, tl.sum(tl.where(hit, z, 0.0), axis=1), mask=here & (n < N))
        z = tl.where((v < V)[None, :], z, -float("inf"))
        new_m = tl.maximum(m, tl.max(z, axis=1))  # (BN,)
        x = z - new_m[:, None]  # (BN, BV)
        e = exp(x)
        shrink = exp(m - new_m)  # (BN,), 0 at the first tile
        if ENTROPY:
            # the guards stand for 0 · (-inf) = 0: nothing seen yet, and columns past V
            shift = tl.where(s > 0, m - new_m, 0.0)  # (BN,)
            u = shrink * (u + shift * s) + tl.sum(e * tl.where(e > 0, x, 0.0), axis=1)
        s = shrink * s + tl.sum(e, axis=1)
        m = new_m
    at = split.to(tl.int64) * N + n
    tl.store(lse + at, m + tl.log(s), mask=n < N)
    if ENTROPY:
        tl.store(entropy + at, tl.log(s) - u / s, mask=n < N)


@triton.jit
def dlogits_kernel(
    hidden, weight, targets, lse, grad, keep, dz, N, V, start, stop, blocks, columns, D: tl.constexpr,
    stride_hn, stride_hd, stride_wv, stride_wd, stride_dn,
    BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, SKIP: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """dz[n, v - start] = g_n (1[v = y_n] - exp(z_nv - lse_n)) for v in [start, stop), `start` a multiple of BV.

    dz: (blocks · BN, columns · BV), zero outside (N, stop - start), so that product_kernel reads it without a mask.
    SKIP: keep (V / BV, blocks) says which tiles product_kernel will read at all; the rest stay unwritten.
    """
    block, column = grid_tile(tl.program_id(0), blocks, columns, GROUP)
    v0 = start + column * BV
    if SKIP:
        wanted = tl.load(keep + v0 // BV * blocks + block)
        if wanted == 0:
            return
    z = logit_tile(
        hidden, weight, block * BN, v0, N, V, D, stride_hn, stride_hd, stride_wv, stride_wd,
        BN, BV, BD, TMA, PRECISION, INTERPRET,
    )  # (BN, BV)  # fmt: skip
    n = block * BN + tl.arange(0, BN)  # (BN,)
    v = v0 + tl.arange(0, BV)  # (BV,)
    y = tl.load(targets + n, mask=n < N, other=-1).to(tl.int32)  # (BN,)
    g = tl.load(grad + n, mask=n < N, other=0.0)  # (BN,), each token's own
    p = exp(z - tl.load(lse + n, mask=n < N, other=float("inf"))[:, None])  # (BN, BV)
    out = g[:, None] * (tl.where(v[None, :] == y[:, None], 1.0, 0.0) - p)  # (BN, BV)
    out = tl.where((n < N)[:, None] & (v < stop)[None, :], out, 0.0)
    at = dz + (block * BN).to(tl.int64) * stride_dn + column * BV  # int64 to the tile's corner, 32 bits inside it
    at = at + (tl.arange(0, BN) * stride_dn)[:, None] + tl.arange(0, BV)[None, :]
    tl.store(at, rounded(out, dz.dtype.element_ty, INTERPRET))


@triton.jit
def product_kernel(
    dz, b, out, steps, order, M, K, rows, D: tl.constexpr,
    stride_dn, stride_bk, stride_bd, stride_order,
    BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    TRANSPOSE: tl.constexpr, ACCUMULATE: tl.constexpr, SKIP: tl.constexpr, SKIP_M: tl.constexpr, SKIP_K: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """out (M, D) = a (M, K) @ b (K, D), where a is dz, or dzᵀ if TRANSPOSE; ACCUMULATE adds to what out holds.

    dz is padded with zeros up to whole tiles and K is its padded extent; b has `rows` rows of its own; out is contiguous.

        dh += dz W[chunk]       M = N tokens, K = the chunk's columns, float32 from chunk to chunk
        dW[chunk] = dzᵀ h       M = the chunk's columns, K = N tokens

    SKIP: of a's tiles of SKIP_M x SKIP_K, row m // SKIP_M has only those at order[row, : steps[row]], ascending. A list
    rather than a test in the loop: a branch there would keep the compiler from fetching ahead.
    """
    row, column = grid_tile(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(D, BD), GROUP)
    m0, d0 = row * BM, column * BD
    m = m0 + tl.arange(0, BM)  # (BM,)
    d = d0 + tl.arange(0, BD)  # (BD,)
    # int64 to the tile's corner, 32 bits inside it: a tile of int64 pointers would take half the registers
    at = out + m0.to(tl.int64) * D + d0 + (tl.arange(0, BM) * D)[:, None] + tl.arange(0, BD)[None, :]
    inside = (m < M)[:, None] & (d < D)[None, :]  # (BM, BD)
    total = tl.load(at, mask=inside, other=0.0) if ACCUMULATE else tl.zeros((BM, BD), tl.float32)  # (BM, BD)
    if SKIP:
        count = tl.load(steps + m0 // SKIP_M) * (SKIP_K // BK)
        order += (m0 // SKIP_M) * stride_order
    else:
        count = tl.cdiv(K, BK)
    for i in range(count):
        k = i * BK
        if SKIP:
            k = tl.load(order + k // SKIP_K) * SKIP_K + k % SKIP_K
        if TRANSPOSE:
            a = load_tile(dz, k, m0, K, M, stride_dn, 1, BK, BM, False, TMA).T  # (BM, BK)
        else:
            a = load_tile(dz, m0, k, M, K, stride_dn, 1, BM, BK, False, TMA)  # (BM, BK)
        x = load_tile(b, k, d0, rows, D, stride_bk, stride_bd, BK, BD, D % BD != 0, TMA)  # (BK, BD)
        total = dot(a, x, total, PRECISION, INTERPRET)  # (BM, BD)
    tl.store(at, rounded(total, out.dtype.element_ty, INTERPRET), mask=inside)
