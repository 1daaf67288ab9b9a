"""kernels.linear_logp against float64, forward and every gradient, with a different upstream gradient for every token."""

import pytest
import torch

from kernels import IMPLEMENTATIONS, linear_logp
from kernels.chunked import chunked_logp
from kernels.reference import reference_logp

SHAPES = [(1, 1, 2), (7, 5, 11), (37, 48, 301), (16, 32, 128)]  # (N, D, V)


def problem(n, d, v, dtype=torch.float64, seed=0):
    print(f"seed {seed}, N {n}, D {d}, V {v}")
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64)
    targets = torch.randint(v, (n,), generator=g)
    upstream = torch.randn(n, generator=g, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), targets, upstream


def outputs_and_gradients(fn, hidden, weight, targets, upstream):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logp = fn(hidden, weight, targets)
    logp.backward(upstream.to(logp.dtype))
    return logp.detach(), hidden.grad, weight.grad


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
    targets = torch.tensor([9, 9, 9, 0, 0, 9])
    got = outputs_and_gradients(lambda h, w, t: linear_logp(h, w, t, impl), hidden * 300, weight, targets, upstream)
    truth = outputs_and_gradients(reference_logp, hidden.double() * 300, weight.double(), targets, upstream)
    for a, t in zip(got, truth, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), t, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("impl", list(IMPLEMENTATIONS))
def test_no_tokens_still_gives_gradients(impl):
    """A rank without response tokens must run the head all the same; its gradients are zeros, not None."""
    hidden, weight, targets, upstream = problem(0, 4, 10)
    logp, d_hidden, d_weight = outputs_and_gradients(
        lambda h, w, t: linear_logp(h, w, t, impl), hidden, weight, targets, upstream
    )
    assert logp.shape == (0,) and d_hidden.shape == (0, 4) and d_weight.abs().max() == 0


@pytest.mark.parametrize("impl", list(IMPLEMENTATIONS))
def test_non_contiguous_hidden(impl):
    hidden, weight, targets, upstream = problem(12, 6, 20)
    strided = hidden.T.contiguous().T
    assert not strided.is_contiguous()
    got = outputs_and_gradients(lambda h, w, t: linear_logp(h, w, t, impl), strided, weight, targets, upstream)
    for a, b in zip(got, outputs_and_gradients(reference_logp, hidden, weight, targets, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_no_work(monkeypatch):
    hidden, weight, targets, upstream = problem(8, 4, 10)

    def forbidden(*args, **kwargs):
        raise AssertionError("a frozen head must not cost a (V, D) gradient")

    monkeypatch.setattr(torch, "mm", forbidden)  # the dW product
    hidden.requires_grad_()
    chunked_logp(hidden, weight, targets, 4).backward(upstream)
    assert hidden.grad is not None and weight.grad is None


def test_chunked_never_holds_the_logits():
    """The largest tensor made, forward and backward, is one chunk of logits or a gradient, never (N, V)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    n, d, v, chunk = 64, 8, 4096, 256
    hidden, weight, targets, upstream = problem(n, d, v, torch.float32)
    with Largest() as largest:
        outputs_and_gradients(lambda h, w, t: chunked_logp(h, w, t, chunk), hidden, weight, targets, upstream)
    assert largest.numel <= max(n * chunk, v * d) < n * v


def test_bad_arguments_are_named():
    hidden, weight, targets, _ = problem(3, 4, 10)
    with pytest.raises(ValueError, match=r"hidden \(N, D\)"):
        linear_logp(hidden, weight[:, :2], targets)
    with pytest.raises(ValueError, match="chunked"):
        linear_logp(hidden, weight, targets, impl="chunky")
