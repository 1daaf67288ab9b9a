"""kernels.token_stats against distributions written out in float64, forward and every gradient."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.token_stats import linear_collision, linear_kl

SHAPES = [(1, 1, 1, 2), (7, 5, 3, 11), (37, 48, 64, 301), (16, 32, 32, 128)]  # (N, D, D', V)


def problem(n, d, ref_d, v, dtype=torch.float64, seed=0):
    """hidden, weight, ref_hidden, ref_weight, and a different upstream gradient for every position."""
    print(f"seed {seed}, N {n}, D {d}, D' {ref_d}, V {v}")
    g = torch.Generator().manual_seed(seed)
    shapes = [(n, d), (v, d), (n, ref_d), (v, ref_d)]
    tensors = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    return tensors, torch.randn(n, generator=g, dtype=torch.float64)


def materialised_kl(hidden, weight, ref_hidden, ref_weight):
    log_pi = torch.log_softmax(hidden @ weight.T, dim=1)
    log_rho = torch.log_softmax(ref_hidden @ ref_weight.T, dim=1)
    return (log_rho.exp() * (log_rho - log_pi)).sum(dim=1)


def materialised_reverse_kl(hidden, weight, ref_hidden, ref_weight):
    log_pi = torch.log_softmax(hidden @ weight.T, dim=1)
    log_rho = torch.log_softmax(ref_hidden @ ref_weight.T, dim=1)
    return (log_pi.exp() * (log_pi - log_rho)).sum(dim=1)


KLS = pytest.mark.parametrize("reverse, truth", [(False, materialised_kl), (True, materialised_reverse_kl)])


def materialised_collision(hidden, weight):
    return torch.softmax(hidden @ weight.T, dim=1).square().sum(dim=1).log()


def outputs_and_gradients(fn, tensors, upstream):
    """The KL, and its gradients in the policy's hidden states and head; the reference asks for none."""
    hidden, weight, *reference = tensors
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    out = fn(hidden, weight, *reference)
    out.backward(upstream.to(out.dtype))
    return out.detach(), hidden.grad, weight.grad


@KLS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 3, 64, 4096])
def test_kl_matches_the_written_out_one(shape, chunk, reverse, truth):
    tensors, upstream = problem(*shape)
    got = outputs_and_gradients(lambda *t: linear_kl(*t, reverse, chunk), tensors, upstream)
    for a, b in zip(got, outputs_and_gradients(truth, tensors, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_kl_by_hand():
    # ρ = (1/2, 1/2), π = (1/4, 3/4): KL = (log 2 + log(2/3)) / 2, and its gradient in the logits is π - ρ
    eye = torch.eye(2, dtype=torch.float64)
    log_pi = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log().requires_grad_()
    kl = linear_kl(log_pi, eye, torch.zeros(1, 2, dtype=torch.float64), eye)
    kl.sum().backward()
    expected = torch.tensor([4 / 3], dtype=torch.float64).log() / 2
    torch.testing.assert_close(kl.detach(), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(log_pi.grad, torch.tensor([[-0.25, 0.25]], dtype=torch.float64), rtol=1e-14, atol=0)
    # the other way round it is log(1/2)/4 + 3 log(3/2)/4, and its gradient π (log(π/ρ) - KL): ∓ 3 log(3)/16
    log_pi.grad = None
    kl = linear_kl(log_pi, eye, torch.zeros(1, 2, dtype=torch.float64), eye, reverse=True)
    kl.sum().backward()
    half, three_halves, three = (torch.tensor([x], dtype=torch.float64).log() for x in (0.5, 1.5, 3.0))
    torch.testing.assert_close(kl.detach(), half / 4 + 3 * three_halves / 4, rtol=1e-14, atol=0)
    torch.testing.assert_close(log_pi.grad[0], torch.cat([-three, three]) * 3 / 16, rtol=1e-14, atol=0)


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_passes_central_differences(reverse):
    (hidden, weight, *reference), _ = problem(4, 3, 5, 9)
    hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: linear_kl(h, w, *reference, reverse, chunk=4), (hidden, weight))


def test_kl_gives_the_reference_no_gradient():
    tensors, upstream = problem(4, 3, 5, 9)
    for tensor in tensors:
        tensor.requires_grad_()
    linear_kl(*tensors, chunk=4).backward(upstream)
    assert [tensor.grad is not None for tensor in tensors] == [True, True, False, False]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_of_a_model_with_itself_is_exactly_zero(dtype, reverse):
    """Step 0: the penalty of tdpo and its gradient vanish, whatever the rounding."""
    (hidden, weight, *_), upstream = problem(33, 16, 16, 500, dtype)
    kl, d_hidden, d_weight = outputs_and_gradients(
        lambda *t: linear_kl(*t, reverse, chunk=64), (hidden, weight, hidden, weight), upstream
    )
    assert kl.abs().max() == 0 and d_hidden.abs().max() == 0 and d_weight.abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 3, 64, 4096])
def test_collision_matches_the_written_out_one(shape, chunk):
    (hidden, weight, *_), _ = problem(*shape)
    hidden.requires_grad_()
    got = linear_collision(hidden, weight, chunk)
    assert not got.requires_grad
    torch.testing.assert_close(got, materialised_collision(hidden, weight).detach(), rtol=1e-12, atol=1e-12)


def test_collision_of_a_uniform_and_of_a_certain_distribution():
    weight = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    uniform = linear_collision(torch.zeros(2, 4), weight, 7)
    torch.testing.assert_close(uniform, torch.full((2,), 50.0).log().neg(), rtol=1e-6, atol=0)
    certain = linear_collision(1e3 * torch.ones(1, 4), torch.eye(50, 4) * torch.tensor([1.0, 0.5, 0.5, 0.5]), 7)
    assert certain.abs().max() == 0


def test_low_precision_error_stays_within_the_naive_one():
    """bfloat16 in, float32 out, and no further from the truth than written-out bfloat16 distributions would be.

    Both sides start from logits rounded to bfloat16, which moves single positions alike, so the measure is the root mean
    square over all of them, with 2 % for the rounding that differs.
    """
    tensors, upstream = problem(64, 48, 48, 301, torch.bfloat16, seed=3)
    doubles = [tensor.double() for tensor in tensors]

    def rms(a, b):
        return (a.double() - b).square().mean().sqrt()

    truth = outputs_and_gradients(materialised_kl, doubles, upstream)
    naive = outputs_and_gradients(materialised_kl, tensors, upstream)
    got = outputs_and_gradients(lambda *t: linear_kl(*t, chunk=64), tensors, upstream)
    truth += (materialised_collision(*doubles[:2]),)
    naive += (materialised_collision(*tensors[:2]),)
    got += (linear_collision(*tensors[:2], 64),)
    assert got[0].dtype == got[3].dtype == torch.float32
    for a, b, t in zip(got, naive, truth, strict=True):
        print(f"root mean square error {rms(a, t):.3e}, naive {rms(b, t):.3e}")
        assert rms(a, t) <= 1.02 * rms(b, t)


@KLS
def test_extreme_logits_stay_finite_in_float32(reverse, truth):
    (hidden, weight, ref_hidden, ref_weight), upstream = problem(6, 4, 4, 10, torch.float32)
    tensors = (hidden * 300, weight, ref_hidden * 300, ref_weight)
    got = outputs_and_gradients(lambda *t: linear_kl(*t, reverse, chunk=3), tensors, upstream)
    written_out = outputs_and_gradients(truth, [tensor.double() for tensor in tensors], upstream)
    for a, t in zip(got, written_out, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), t, rtol=1e-4, atol=1e-3)
    collision = linear_collision(hidden * 300, weight, 3)
    torch.testing.assert_close(
        collision.double(), materialised_collision(hidden.double() * 300, weight.double()), rtol=1e-4, atol=1e-3
    )


def test_no_tokens_still_gives_gradients():
    """A rank without response tokens must run the head all the same; its gradients are zeros, not None."""
    tensors, upstream = problem(0, 4, 3, 10)
    kl, d_hidden, d_weight = outputs_and_gradients(lambda *t: linear_kl(*t, chunk=4), tensors, upstream)
    assert kl.shape == (0,) and d_hidden.shape == (0, 4) and d_weight.abs().max() == 0
    assert linear_collision(*tensors[:2], 4).shape == (0,)


def test_non_contiguous_hidden():
    (hidden, weight, ref_hidden, ref_weight), upstream = problem(12, 6, 5, 20)
    strided = [hidden.T.contiguous().T, weight, ref_hidden.T.contiguous().T, ref_weight]
    assert not strided[0].is_contiguous()
    got = outputs_and_gradients(lambda *t: linear_kl(*t, chunk=7), strided, upstream)
    expected = outputs_and_gradients(materialised_kl, (hidden, weight, ref_hidden, ref_weight), upstream)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(linear_collision(strided[0], weight, 7), materialised_collision(hidden, weight))


def test_a_frozen_head_gets_no_gradient_and_no_work(monkeypatch):
    (hidden, *rest), upstream = problem(8, 4, 4, 10)

    def forbidden(*args, **kwargs):
        raise AssertionError("a frozen head must not cost a (V, D) gradient")

    monkeypatch.setattr(torch, "mm", forbidden)  # the dW product
    hidden.requires_grad_()
    linear_kl(hidden, *rest, chunk=4).backward(upstream)
    assert hidden.grad is not None and rest[0].grad is None


def test_the_logits_are_never_held():
    """The largest tensor made, forward and backward, is one chunk of logits or a gradient, never (N, V)."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    n, d, v, chunk = 64, 8, 4096, 256
    tensors, upstream = problem(n, d, d, v, torch.float32)
    with Largest() as largest:
        outputs_and_gradients(lambda *t: linear_kl(*t, chunk=chunk), tensors, upstream)
    assert largest.numel <= max(n * chunk, v * d) < n * v
    with Largest() as largest:
        linear_collision(*tensors[:2], chunk)
    assert 0 < largest.numel <= n * chunk


def test_bad_arguments_are_named():
    (hidden, weight, ref_hidden, ref_weight), _ = problem(3, 4, 5, 10)
    with pytest.raises(ValueError, match=r"ref_hidden \(N, D'\).*\(10, 5\)"):
        linear_kl(hidden, weight, ref_hidden[:2], ref_weight)
    with pytest.raises(ValueError, match=r"got .*\(9, 5\)"):
        linear_kl(hidden, weight, ref_hidden, ref_weight[:9])
    with pytest.raises(ValueError, match=r"weight \(V, D\); got \(3, 4\), \(10, 2\)"):
        linear_collision(hidden, weight[:, :2])
