"""kernels.triton.logp against float64: outputs, every gradient, every address.

On a machine with a GPU the kernels run on it. Elsewhere Triton's interpreter runs the same kernel text on the CPU, one
program after the other: it proves the algebra and, here, which addresses each program touches; it cannot show a race.
"""

import os
from math import prod

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are imported
pytest.importorskip("triton", reason="triton is not installed")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton_addresses import Addresses  # noqa: E402

from kernels.reference import reference_logp  # noqa: E402
from kernels.triton import logp as module  # noqa: E402
from kernels.triton.logp import INTERPRET, kept_tiles, triton_logp  # noqa: E402
from kernels.triton.logp_kernels import grid_tile  # noqa: E402
from kernels.triton.tiles import INTERPRETER  # noqa: E402

interpreted = pytest.mark.skipif(not INTERPRET, reason="looks into Triton's interpreter")
SHAPES = [(37, 48, 301), (1, 16, 64), (5, 7, 3), (64, 64, 512)]  # (N, D, V)


def test_the_kernels_can_run_here():
    assert (DEVICE == "cpu") == INTERPRET, "triton was imported before TRITON_INTERPRET was set"


def problem(n, d, v, dtype=torch.float32, seed=0):
    print(f"seed {seed}, N {n}, D {d}, V {v}, {dtype}")
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64)
    targets = torch.randint(v, (n,), generator=g)
    upstream = torch.randn(n, generator=g, dtype=torch.float64)
    return hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), targets.to(DEVICE), upstream.to(DEVICE)


def outputs_and_gradients(fn, hidden, weight, targets, upstream, **options):
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logp = fn(hidden, weight, targets, **options)
    logp.backward(upstream.to(logp.dtype))
    return logp.detach(), hidden.grad, weight.grad


def truth(hidden, weight, targets, upstream):
    return outputs_and_gradients(reference_logp, hidden.double(), weight.double(), targets, upstream)


def assert_close(got, expected, rtol=1e-5, atol=1e-5):
    for name, a, b in zip(("logp", "dhidden", "dweight"), got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def small_buffers(monkeypatch):
    """Backward in several chunks of the vocabulary, forward with several vocabulary tiles a split."""
    monkeypatch.setattr(module, "DLOGITS_BYTES", 1)
    monkeypatch.setattr(module, "PARTIAL_BYTES", 400)


@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_match_float64(shape, tma):
    inputs = problem(*shape)
    if tma and module._Launch(*inputs[:2], None).tma is not None:
        pytest.skip("rows are not 16-byte aligned, or this GPU has no tensor descriptors")
    got = outputs_and_gradients(triton_logp, *inputs, tma=tma)
    assert got[0].dtype == torch.float32 and got[1].dtype == got[2].dtype == torch.float32
    assert_close(got, truth(*inputs))


def test_chunks_and_splits_change_nothing_but_rounding(small_buffers):
    inputs = problem(37, 48, 301, seed=1)
    assert_close(outputs_and_gradients(triton_logp, *inputs), truth(*inputs))


def test_two_runs_agree_bit_by_bit(small_buffers):
    inputs = problem(37, 48, 301, torch.bfloat16, seed=2)
    for a, b in zip(*(outputs_and_gradients(triton_logp, *inputs) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


def test_no_tokens_still_gives_gradients():
    inputs = problem(0, 16, 64)
    logp, d_hidden, d_weight = outputs_and_gradients(triton_logp, *inputs)
    assert logp.shape == (0,) and d_hidden.shape == (0, 16) and d_weight.shape == (64, 16) and not d_weight.any()
    logp, entropy = triton_logp(*inputs[:3], return_entropy=True)
    assert logp.shape == entropy.shape == (0,)


def test_repeated_and_extreme_targets():
    hidden, weight, targets, upstream = problem(12, 16, 301, seed=3)
    for at, y in enumerate([0, 0, 0, 300, 300, 127, 128, 255, 256]):  # either side of every tile's edge
        targets[at] = y
    inputs = hidden, weight, targets, upstream
    assert_close(outputs_and_gradients(triton_logp, *inputs), truth(*inputs))


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_large_logits(offset):
    """Logits about ±1e4 with the same gaps: the probabilities, hence the gradients, are those of small logits."""
    hidden, weight, targets, upstream = problem(9, 16, 301, seed=4)
    hidden[:, 0], weight[:, 0] = 100, offset / 100
    inputs = hidden, weight, targets, upstream
    got, expected = outputs_and_gradients(triton_logp, *inputs), truth(*inputs)
    assert all(torch.isfinite(x).all() for x in got)
    # float32 numbers near 1e4 are 1e-3 apart, and a few roundings meet in one logit
    torch.testing.assert_close(got[0].double(), expected[0], rtol=0, atol=1e-2)
    for a, b in zip(got[1:], expected[1:], strict=True):
        assert (a.double() - b).abs().max() <= 1e-2 * b.abs().max()


def test_masked_rows_give_nothing():
    hidden, weight, targets, upstream = problem(37, 48, 301, seed=5)
    upstream[::2] = 0
    got = outputs_and_gradients(triton_logp, hidden, weight, targets, upstream)
    assert not got[1][::2].any()
    assert_close(got, truth(hidden, weight, targets, upstream))
    silent = outputs_and_gradients(triton_logp, hidden, weight, targets, 0 * upstream)
    assert not silent[1].any() and not silent[2].any()


def test_a_target_outside_the_vocabulary_is_nan():
    hidden, weight, targets, _ = problem(3, 16, 64)
    targets[1] = 64
    assert torch.isnan(triton_logp(hidden, weight, targets)).tolist() == [False, True, False]


@pytest.mark.parametrize("layout", ["transposed", "every other row and column", "one row repeated"])
def test_any_strides(layout):
    hidden, weight, targets, upstream = problem(37, 48, 301, seed=6)
    if layout == "transposed":
        hidden, weight = hidden.T.contiguous().T, weight.T.contiguous().T
    elif layout == "every other row and column":
        hidden, weight = problem(74, 96, 602, seed=6)[:2]
        hidden, weight = hidden[::2, ::2], weight[1::2, 1::2]
    else:
        hidden = hidden[:1].expand(37, 48)
    assert not hidden.is_contiguous()
    inputs = hidden, weight, targets[:1].expand(37), upstream
    assert_close(outputs_and_gradients(triton_logp, *inputs), truth(*inputs))


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_what_is_frozen_costs_no_launch(frozen, monkeypatch):
    hidden, weight, targets, upstream = problem(9, 16, 64)
    expected = truth(hidden, weight, targets, upstream)
    launched = []
    product = module._Launch.product

    def recorded(self, name, *args, **kwargs):
        launched.append(name)
        return product(self, name, *args, **kwargs)

    monkeypatch.setattr(module._Launch, "product", recorded)
    learned = hidden if frozen == "weight" else weight
    learned.requires_grad_()
    triton_logp(hidden, weight, targets).backward(upstream.float())
    assert launched == ["d_hidden" if frozen == "weight" else "d_weight"]
    assert (weight if frozen == "weight" else hidden).grad is None
    torch.testing.assert_close(learned.grad.double(), expected[1 if frozen == "weight" else 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_error_stays_within_the_naive_one(dtype, small_buffers):
    """No further from the truth than materialised logits in the same precision."""
    inputs = problem(64, 48, 301, dtype, seed=7)

    def naive(h, w, t):
        return torch.log_softmax(h @ w.T, dim=1)[torch.arange(len(t)), t]

    for a, b, t in zip(
        *(outputs_and_gradients(fn, *inputs) for fn in (triton_logp, naive)), truth(*inputs), strict=True
    ):
        assert (a.double() - t).abs().max() <= (b.double() - t).abs().max() + 1e-6


def entropy_of(hidden, weight):
    logp = torch.log_softmax(hidden.double() @ weight.double().T, dim=1)
    return -(logp.exp() * logp).sum(dim=1)


@pytest.mark.parametrize("splits", ["one tile each", "several tiles each"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_entropy(offset, splits, monkeypatch):
    if splits == "several tiles each":
        monkeypatch.setattr(module, "PARTIAL_BYTES", 400)
    hidden, weight, targets, upstream = problem(37, 48, 301, seed=8)
    hidden, weight = hidden / 4, weight / 2
    hidden[:, 0], weight[:, 0] = 100, offset / 100
    hidden.requires_grad_()
    logp, entropy = triton_logp(hidden, weight, targets, return_entropy=True)
    assert torch.equal(logp, triton_logp(hidden, weight, targets)) and not entropy.requires_grad
    torch.testing.assert_close(entropy.double(), entropy_of(hidden, weight), rtol=0, atol=1e-2 if offset else 1e-5)
    logp.backward(upstream.float())
    assert hidden.grad is not None


def peaked(seed=9):
    """Targets and nearly all probability in the first two of six tiles; the rest fades by tile."""
    hidden, weight, targets, upstream = problem(40, 32, 6 * 128 - 5, seed=seed)
    hidden, weight = hidden / 2, weight / 2
    weight[:, 0] = torch.arange(len(weight), device=DEVICE) // 128 * -6.0
    hidden[:, 0] = 1.0
    return hidden, weight, targets % 200, upstream


@pytest.mark.parametrize("skip_mass", [2**-24, 1e-3])
def test_skipped_tiles_stay_within_the_stated_bound(skip_mass, monkeypatch, small_buffers):
    hidden, weight, targets, upstream = peaked()
    targets[-1] = 700  # an improbable target: its tile must stay
    kept = []

    def recorded(*args):
        kept.append(kept_tiles(*args))
        return kept[-1]

    monkeypatch.setattr(module, "kept_tiles", recorded)
    exact = outputs_and_gradients(triton_logp, hidden, weight, targets, upstream)
    got = outputs_and_gradients(triton_logp, hidden, weight, targets, upstream, skip_mass=skip_mass)
    share = kept[0].float().mean()
    print(f"{share:.0%} of the tiles kept")
    if INTERPRET:
        assert 0.05 < share < 0.9
    torch.testing.assert_close(got[0], exact[0], rtol=1e-6, atol=1e-6)
    rounding = 1e-5
    g = upstream.float().abs()
    assert ((got[1] - exact[1]).abs() <= g[:, None] * skip_mass * weight.abs().amax(dim=0) + rounding).all()
    assert ((got[2] - exact[2]).abs() <= skip_mass * (g[:, None] * hidden.abs()).sum(dim=0) + rounding).all()


@interpreted
def test_skipping_runs_with_tiles_of_its_own(monkeypatch, small_buffers):
    """A product's tiles of fewer rows than those left out, as some targets have."""
    inputs, asked = peaked(seed=12), []

    def tiles_for(architecture, element, skip=False):
        asked.append(skip)
        return INTERPRETER | {"d_hidden": INTERPRETER["d_hidden"]._replace(rows=16)} if skip else INTERPRETER

    expected = outputs_and_gradients(triton_logp, *inputs, skip_mass=1e-3)
    monkeypatch.setattr(module, "tiles_for", tiles_for)
    got = outputs_and_gradients(triton_logp, *inputs, skip_mass=1e-3)
    triton_logp(*inputs[:3])
    assert asked == [True, False]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_skipping_leaves_out_tokens_without_an_upstream_gradient():
    hidden, _, targets, upstream = peaked(seed=10)
    upstream[32:] = 0
    lse = torch.zeros(len(hidden), device=DEVICE)
    tile = INTERPRETER["dlogits"]
    keep = kept_tiles(torch.zeros(6, 40, device=DEVICE), lse, targets, upstream, tile, (64, 256), 1e-9)
    assert keep.shape == (6, 2) and keep[:, 0].all() and not keep[:, 1:].any()


@pytest.mark.parametrize("skip_mass", [0.0, 1e-3])
def test_nothing_is_read_before_it_is_written(skip_mass, monkeypatch, small_buffers):
    """Fresh memory is NaN, or the largest integer."""
    inputs = peaked(seed=11)
    expected = outputs_and_gradients(triton_logp, *inputs, skip_mass=skip_mass)

    def poisoned(make):
        def filled(*args, **kwargs):
            x = make(*args, **kwargs)
            return x.fill_(torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).max)

        return filled

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    got = outputs_and_gradients(triton_logp, *inputs, skip_mass=skip_mass)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_surroundings_of_every_tensor_are_neither_used_nor_changed(monkeypatch, small_buffers):
    """Inputs are windows of NaN-filled memory and buffers have sentinels on both sides."""
    hidden, weight, targets, upstream = problem(37, 44, 301, seed=12)
    expected = truth(hidden, weight, targets, upstream)

    def window(x):
        around = torch.full([size + 32 for size in x.shape], torch.nan, device=DEVICE)
        inside = around[tuple(slice(16, 16 + size) for size in x.shape)]
        return inside.copy_(x)

    empty, guarded = torch.empty, []

    def guard(*shape, dtype=None, device=None, **kwargs):
        size = prod(shape)
        around = empty(size + 128, dtype=dtype, device=device).fill_(77)
        guarded.append((around, size))
        return around[64 : 64 + size].view(shape)

    hidden, weight = window(hidden).requires_grad_(), window(weight).requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", guard)
        logp, entropy = triton_logp(hidden, weight, targets, return_entropy=True)
        logp.backward(upstream.float())
    assert_close((logp.detach(), hidden.grad, weight.grad), expected)
    assert torch.isfinite(entropy).all() and len(guarded) >= 5
    assert all((around[:64] == 77).all() and (around[64 + size :] == 77).all() for around, size in guarded)


@triton.jit
def every_program_stores(x, STEP: tl.constexpr):
    tl.store(x + tl.program_id(0) * STEP, 1.0)


@interpreted
def test_the_watch_sees_two_writers_and_strays(monkeypatch):
    watch = Addresses(monkeypatch)
    x = torch.zeros(8)[:2]
    every_program_stores[(2,)](x, 1)
    every_program_stores[(3,)](x, 1)
    assert [len(stray) for _, _, stray in watch.launches] == [0, 1]
    with pytest.raises(Exception, match="both store to one address"):
        every_program_stores[(2,)](x, 0)


@interpreted
@pytest.mark.parametrize("skip_mass", [0.0, 1e-3])
def test_no_address_has_two_writers_and_none_is_out_of_bounds(skip_mass, monkeypatch, small_buffers):
    """Each launch's loads and stores fall on its tensors' own elements, each stored to by one program."""
    hidden, weight, targets, upstream = peaked(seed=13)
    wide = torch.zeros(40, 64)  # a window whose surroundings are allocated, so that only the address can tell
    hidden = wide[:, 5:37].copy_(hidden)
    watch = Addresses(monkeypatch)
    outputs_and_gradients(triton_logp, hidden, weight, targets, upstream, skip_mass=skip_mass)
    assert len(watch.launches) > 6
    assert not any(stray for _, _, stray in watch.launches)
    assert all(written for written, _, _ in watch.launches) or skip_mass


@interpreted
def test_every_output_element_is_written(monkeypatch):
    """The stores of one launch cover dz with its padding, then dhidden, then dweight, exactly."""
    hidden, weight, targets, upstream = problem(37, 48, 301, seed=14)
    watch = Addresses(monkeypatch)
    outputs_and_gradients(triton_logp, hidden, weight, targets, upstream)
    forward, dlogits, d_hidden, d_weight = (len(written) for written, _, _ in watch.launches)
    assert forward == 3 * 37 + 37  # three splits' lse and the target's logit
    assert (dlogits, d_hidden, d_weight) == (64 * 384, 37 * 48, 301 * 48)


@pytest.mark.parametrize("grid", [(1, 1, 8), (5, 3, 8), (16, 7, 4), (9, 254, 8), (64, 13, 16)])
def test_grid_tile_is_a_bijection(grid):
    rows, columns, group = grid
    seen = [grid_tile.fn(pid, rows, columns, group) for pid in range(rows * columns)]
    assert sorted(seen) == [(r, c) for r in range(rows) for c in range(columns)]


def test_bad_inputs_are_named():
    hidden, weight, targets, _ = problem(3, 5, 10)
    with pytest.raises(ValueError, match="chunked"):
        triton_logp(hidden.double(), weight.double(), targets)
    with pytest.raises(ValueError, match="both"):
        triton_logp(hidden, weight.bfloat16(), targets)
    with pytest.raises(ValueError, match="16-byte"):
        triton_logp(hidden, weight, targets, tma=True)
