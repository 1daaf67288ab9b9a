"""kernels.linear_logp against float64, forward and every gradient, with a different upstream gradient for every token."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from kernels import IMPLEMENTATIONS, linear_logp
from kernels.chunked import chunked_logp, tile_columns
from kernels.online_softmax import EAGER, Steps
from kernels.reference import reference_logp

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 2), (7, 5, 11), (37, 48, 301), (16, 32, 128)]  # (N, D, V)


def problem(n, d, v, dtype=torch.float64, seed=0):
    print(f"seed {seed}, N {n}, D {d}, V {v}")
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64)
    targets = torch.randint(v, (n,), generator=g)
    upstream = torch.randn(n, generator=g, dtype=torch.float64)
    return hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), targets.to(DEVICE), upstream.to(DEVICE)


def outputs_and_gradients(fn, hidden, weight, targets, upstream):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logp = fn(hidden, weight, targets)
    logp.backward(upstream.to(logp.dtype))
    return logp.detach(), hidden.grad, weight.grad


class Largest(TorchDispatchMode):
    """numel: of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.fixture
def poisoned_memory():
    """torch.empty gives NaN, so that reading what was never written shows."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which determinism asks for on a GPU
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.empty(4).new_empty(3, dtype=torch.bfloat16).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_matches_log_softmax(shape):
    hidden, weight, targets, upstream = problem(*shape)
    got = outputs_and_gradients(reference_logp, hidden, weight, targets, upstream)

    def by_log_softmax(hidden, weight, targets):
        return torch.log_softmax(hidden @ weight.T, dim=1)[torch.arange(len(targets)), targets]

    for a, b in zip(got, outputs_and_gradients(by_log_softmax, hidden, weight, targets, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 3, 64, 4096])
def test_chunked_matches_reference(shape, chunk):
    inputs = problem(*shape)
    got = outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, chunk), *inputs)
    for a, b in zip(got, outputs_and_gradients(reference_logp, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_chunked_passes_central_differences():
    hidden, weight, targets, _ = problem(5, 4, 9)
    hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: chunked_logp(h, w, targets, 4), (hidden, weight))


@pytest.mark.parametrize("impl", list(IMPLEMENTATIONS))
def test_low_precision_error_stays_within_the_naive_one(impl):
    """bfloat16 in, float32 out, and no further from the truth than materialised bfloat16 logits would be."""
    hidden, weight, targets, upstream = problem(64, 48, 301, torch.bfloat16, seed=3)
    truth = outputs_and_gradients(reference_logp, hidden.double(), weight.double(), targets, upstream)

    def naive(h, w, t):
        return torch.log_softmax(h @ w.T, dim=1)[torch.arange(len(t)), t]

    expected = outputs_and_gradients(naive, hidden, weight, targets, upstream)
    got = outputs_and_gradients(lambda h, w, t: linear_logp(h, w, t, impl), hidden, weight, targets, upstream)
    assert got[0].dtype == torch.float32
    for a, b, t in zip(got, expected, truth, strict=True):
        assert (a.double() - t).abs().max() <= (b.double() - t).abs().max() + 1e-6


@pytest.mark.parametrize("impl", list(IMPLEMENTATIONS))
def test_extreme_logits_repeated_and_last_targets(impl):
    hidden, weight, _, upstream = problem(6, 4, 10, torch.float32)
    targets = torch.tensor([9, 9, 9, 0, 0, 9], device=DEVICE)
    got = outputs_and_gradients(lambda h, w, t: linear_logp(h, w, t, impl), hidden * 300, weight, targets, upstream)
    truth = outputs_and_gradients(reference_logp, hidden.double() * 300, weight.double(), targets, upstream)
    for a, t in zip(got, truth, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), t, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("impl", list(IMPLEMENTATIONS))
def test_no_tokens_still_gives_gradients(impl):
    """A rank without response tokens must run the head all the same; its gradients are zeros, not None."""
    hidden, weight, targets, upstream = problem(0, 4, 10, torch.float32)
    logp, d_hidden, d_weight = outputs_and_gradients(
        lambda h, w, t: linear_logp(h, w, t, impl), hidden, weight, targets, upstream
    )
    assert logp.shape == (0,) and d_hidden.shape == (0, 4) and d_weight.abs().max() == 0


@pytest.mark.parametrize("impl", list(IMPLEMENTATIONS))
def test_non_contiguous_hidden(impl):
    hidden, weight, targets, upstream = problem(12, 6, 20, torch.float32 if impl == "triton" else torch.float64)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if hidden.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    strided = hidden.T.contiguous().T
    assert not strided.is_contiguous()
    got = outputs_and_gradients(lambda h, w, t: linear_logp(h, w, t, impl), strided, weight, targets, upstream)
    for a, b in zip(got, outputs_and_gradients(reference_logp, hidden, weight, targets, upstream), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_a_frozen_head_gets_no_gradient_and_no_work(monkeypatch):
    hidden, weight, targets, upstream = problem(8, 4, 10)

    def forbidden(*args, **kwargs):
        raise AssertionError("a frozen head must not cost a (V, D) gradient")

    hidden.requires_grad_()
    logp = chunked_logp(hidden, weight, targets, 4)
    monkeypatch.setattr(torch, "mm", forbidden)  # the dW product
    logp.backward(upstream)
    assert hidden.grad is not None and weight.grad is None


def test_a_frozen_head_takes_no_memory_of_its_size():
    n, d, v, chunk = 8, 4, 1000, 100
    hidden, weight, targets, upstream = problem(n, d, v)
    _, expected, _ = outputs_and_gradients(reference_logp, hidden, weight, targets, upstream)
    hidden.requires_grad_()
    with Largest() as largest:
        chunked_logp(hidden, weight, targets, chunk).backward(upstream)
    assert largest.numel <= n * chunk
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-12, atol=1e-12)


def test_a_frozen_trunk_gets_the_heads_gradient_alone():
    hidden, weight, targets, upstream = problem(8, 4, 10)
    _, _, expected = outputs_and_gradients(reference_logp, hidden, weight, targets, upstream)
    weight.requires_grad_()
    chunked_logp(hidden, weight, targets, 4).backward(upstream)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)
    assert hidden.grad is None


def test_chunked_never_holds_the_logits():
    """The largest tensor made, forward and backward, is one chunk of logits or a gradient, never (N, V)."""
    n, d, v, chunk = 64, 8, 4096, 256
    hidden, weight, targets, upstream = problem(n, d, v, torch.float32)
    with Largest() as largest:
        outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, chunk), hidden, weight, targets, upstream)
    assert largest.numel <= max(n * chunk, v * d) < n * v


def test_chunked_keeps_nothing_without_grad_mode():
    n, d, v, chunk = 8, 4, 1000, 100
    hidden, weight, targets, _ = problem(n, d, v, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.no_grad(), Largest() as largest:
        logp = chunked_logp(hidden, weight, targets, chunk)
    assert largest.numel <= n * chunk
    assert torch.equal(logp, chunked_logp(hidden, weight, targets, chunk))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("n", [1, 15, 16, 17, 40, 128, 300])
@pytest.mark.parametrize("chunk", [1, 7, 64, 128])
def test_exponentials_that_wait_in_the_gradient_are_read_before_it_is_written(n, chunk):
    """D = 16: fewer tokens than that are kept whole, more in part, and one tile may overlap the rows of the next."""
    inputs = problem(n, 16, 127, seed=1)
    got = outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, chunk), *inputs)
    for a, b in zip(got, outputs_and_gradients(reference_logp, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [5, 16, 40])
def test_kept_or_recomputed_is_the_same_to_the_bit(n, dtype, compiled):
    """The first backward reads what forward kept, and gives its memory away; the second has to recompute."""
    hidden, weight, targets, upstream = problem(n, 16, 300, dtype)
    hidden.requires_grad_(), weight.requires_grad_()
    logp = chunked_logp(hidden, weight, targets, 37, compiled=compiled)
    first = torch.autograd.grad(logp, (hidden, weight), upstream.float(), retain_graph=True)
    copies = [t.clone() for t in first]
    second = torch.autograd.grad(logp, (hidden, weight), upstream.float())
    for a, b, copy in zip(first, second, copies, strict=True):
        assert torch.equal(a, copy), "the second backward wrote into the first one's result"
        assert torch.equal(a, b)


@pytest.mark.parametrize("n", [5, 40])
def test_on_request_a_forward_keeps_nothing(n):
    hidden, weight, targets, upstream = problem(n, 16, 1000, torch.float32)
    kept = outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, 50), hidden, weight, targets, upstream)
    hidden.requires_grad_(), weight.requires_grad_()
    with Largest() as largest:
        logp = chunked_logp(hidden, weight, targets, 50, keep=False)
    assert largest.numel <= 50 * max(n, 16)
    for a, b in zip((logp, *torch.autograd.grad(logp, (hidden, weight), upstream.float())), kept, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [True, False])
def test_chunked_under_activation_checkpointing(reentrant):
    inputs = problem(20, 16, 100)

    def checkpointed(h, w, t):
        return checkpoint(chunked_logp, h, w, t, 9, use_reentrant=reentrant)

    expected = outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, 9), *inputs)
    for a, b in zip(outputs_and_gradients(checkpointed, *inputs), expected, strict=True):
        assert torch.equal(a, b)


def test_a_confident_token_keeps_its_digits():
    """At p = 1 - 1e-9, log_softmax in float32 gives 0 or a rounding error; its gradients likewise."""
    hidden, weight, targets, upstream = problem(6, 64, 50, torch.float32, seed=2)
    hidden = hidden / 10 + weight[targets] * (30 / weight[targets].square().sum(dim=1, keepdim=True))  # z_y about 30
    truth = outputs_and_gradients(reference_logp, hidden.double(), weight.double(), targets, upstream)
    print(truth[0], outputs_and_gradients(reference_logp, hidden, weight, targets, upstream)[0])
    assert (truth[0] > -1e-7).any()
    got = outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, 16), hidden, weight, targets, upstream)
    torch.testing.assert_close(got[0].double(), truth[0], rtol=2e-5, atol=0)
    torch.testing.assert_close(got[1].double(), truth[1], rtol=2e-5, atol=1e-12)


def test_a_target_of_many_tokens_is_summed_before_it_is_rounded():
    """512 tokens with one target: in bfloat16, a sum rounded at every token would stand still after some hundred."""
    hidden, weight, targets, _ = problem(512, 8, 20, torch.bfloat16, seed=4)
    hidden, targets, upstream = hidden.abs(), torch.full_like(targets, 7), torch.ones(512, device=DEVICE)
    _, _, truth = outputs_and_gradients(reference_logp, hidden.double(), weight.double(), targets, upstream)
    _, _, got = outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, 6), hidden, weight, targets, upstream)
    print(truth[7], got[7])
    assert truth[7].min() > 100
    torch.testing.assert_close(got[7].double(), truth[7], rtol=2**-7, atol=0)


def test_tiles_follow_the_budget():
    assert tile_columns(256, torch.float32, 2**20) == 1024
    assert tile_columns(256, torch.bfloat16, 2**20) == 1024, "a bfloat16 tile is computed in float32"
    assert tile_columns(256, torch.bfloat16, 2**20, Steps(*EAGER)) == 2048, "unless it is compiled"
    assert tile_columns(256, torch.float64, 2**20) == 512
    assert tile_columns(237, torch.float32, 2**20) == 1024, "whole groups of columns, 1,106 fill the budget"
    assert tile_columns(5000, torch.float32, 2**20) == 52, "unless there is no room for one"
    assert tile_columns(256, torch.bfloat16, steps=Steps(*EAGER)) == 4 * tile_columns(256, torch.bfloat16)
    assert tile_columns(256, torch.float32, steps=Steps(*EAGER)) == tile_columns(256, torch.float32) == 8192
    assert tile_columns(16384, torch.bfloat16, device="cuda") == 4096, "16 tiles of 65,024 columns, not 508"
    assert tile_columns(16384, torch.bfloat16) == 128
    assert tile_columns(10**9, torch.float32, 2**20) == tile_columns(0, torch.float32, 1) == 1
    n, v = 32, 4096
    hidden, weight, targets, upstream = problem(n, 2, v, torch.float32)
    with Largest() as largest:
        outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, budget=2**16), hidden, weight, targets, upstream)
    assert largest.numel == max(2**16 // 4, weight.numel()) < n * v


def test_bad_arguments_are_named():
    hidden, weight, targets, _ = problem(3, 4, 10)
    with pytest.raises(ValueError, match=r"hidden \(N, D\)"):
        linear_logp(hidden, weight[:, :2], targets)
    with pytest.raises(ValueError, match="chunked"):
        linear_logp(hidden, weight, targets, impl="chunky")
