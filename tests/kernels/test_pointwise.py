"""kernels.pointwise against float64: outputs and every gradient of the definitions and of the Triton kernels.

On a machine with a GPU the kernels run on it. Elsewhere Triton's interpreter runs the same kernel text on the CPU.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, ROOT

from align.models import build_model, init_weights, read_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are imported
pytest.importorskip("triton", reason="triton is not installed")

from triton_addresses import Addresses  # noqa: E402

from kernels import pointwise  # noqa: E402
from kernels.pointwise import add_rms_norm, rms_norm, rotate, swiglu  # noqa: E402
from kernels.tools import traffic  # noqa: E402
from kernels.triton import pointwise as triton_pointwise  # noqa: E402
from kernels.triton.pointwise import INTERPRET  # noqa: E402

interpreted = pytest.mark.skipif(not INTERPRET, reason="looks into Triton's interpreter")
EPS = 0.03  # large enough to matter
NORM_SHAPES = [(301, 48), (1, 7), (3, 1), (2, 5, 64), (2, 4100), (0, 48), (2, 0, 5)]  # (..., D)
CASES = [
    *((op, shape) for op in ("rms_norm", "add_rms_norm") for shape in NORM_SHAPES),
    *(("rotate", shape) for shape in [(2, 5, 37, 48), (1, 1, 1, 2), (2, 3, 70, 64), (2, 3, 0, 8), (0, 1, 4, 8)]),
    *(("swiglu", shape) for shape in [(301, 48), (1,), (4097,), (2, 3, 7), (0, 5)]),
]
ONE_EACH = [("rms_norm", (37, 48)), ("add_rms_norm", (37, 48)), ("rotate", (2, 5, 37, 48)), ("swiglu", (37, 48))]


def tables(shape, by_row=False):
    """cos and sin (T, d) float32, or (B, 1, T, d), each row of the batch further on than the one before."""
    batch, _, tokens, d = shape
    positions = torch.arange(tokens) + (7 * torch.arange(batch)[:, None, None] if by_row else 0)
    angle = positions[..., None].float() * 100 ** -torch.linspace(0, 1, d // 2)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().to(DEVICE), angle.sin().to(DEVICE)


def problem(op, shape, dtype=torch.float32, seed=0, by_row=False):
    """fn(*inputs, impl=...), its inputs, and upstream gradients of its outputs."""
    print(f"seed {seed}, {op} {shape}, {dtype}")
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64).to(DEVICE, dtype)

    x, y, w, dy, dz = draw(*shape), draw(*shape), draw(shape[-1]), draw(*shape), draw(*shape)
    if op == "rms_norm":
        return lambda *t, impl: rms_norm(*t, EPS, impl), (x, w), (dy,)
    if op == "add_rms_norm":
        return lambda *t, impl: add_rms_norm(*t, EPS, impl), (x, y, w), (dy, dz)
    if op == "rotate":
        cos_sin = tables(shape, by_row)
        return lambda *t, impl: rotate(*t, *cos_sin, impl), (x,), (dy,)
    return lambda *t, impl: swiglu(*t, impl), (x, y), (dy,)


def outputs_and_gradients(fn, inputs, upstream, impl="triton"):
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = fn(*inputs, impl=impl)
    outputs = out if isinstance(out, tuple) else (out,)
    gradients = torch.autograd.grad(outputs, inputs, [dy.to(t.dtype) for dy, t in zip(upstream, outputs, strict=True)])
    return [t.detach() for t in (*outputs, *gradients)]


def truth(fn, inputs, upstream):
    return outputs_and_gradients(fn, [t.double() for t in inputs], upstream, "reference")


def assert_close(got, expected, tolerance=1e-5):
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        text = f"output or gradient {i}: "
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance, msg=lambda m, text=text: text + m
        )


def test_the_kernels_can_run_here():
    assert (DEVICE == "cpu") == INTERPRET, "triton was imported before TRITON_INTERPRET was set"


def test_the_definitions_are_what_they_are_called():
    fn, (x, w), _ = problem("rms_norm", (5, 12), torch.float64)
    assert_close([fn(x, w, impl="reference")], [F.rms_norm(x, (12,), w, EPS)], 1e-12)
    fn, (x,), _ = problem("rotate", (2, 3, 5, 8), torch.float64)
    cos, sin = tables(x.shape)
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(cos.double(), sin.double())[:, :4]
    assert_close([fn(x, impl="reference")], [torch.cat((turned.real, turned.imag), dim=-1)], 1e-12)
    fn, (gate, up), _ = problem("swiglu", (5, 12), torch.float64)
    assert_close([fn(gate, up, impl="reference")], [gate * up / (1 + torch.exp(-gate))], 1e-12)


@pytest.mark.parametrize(("op", "shape"), CASES)
def test_outputs_and_gradients_match_float64(op, shape):
    inputs = problem(op, shape)
    got, expected = outputs_and_gradients(*inputs), truth(*inputs)
    assert [t.shape for t in got] == [t.shape for t in expected] and {t.dtype for t in got} == {torch.float32}
    assert_close(got, expected)


@pytest.mark.parametrize("by_row", [False, True])
def test_rotation_with_one_table_for_all_rows_or_one_each(by_row):
    inputs = problem("rotate", (3, 2, 11, 16), by_row=by_row, seed=1)
    assert tables((3, 2, 11, 16), by_row)[0].shape == ((3, 1, 11, 16) if by_row else (11, 16))
    assert_close(outputs_and_gradients(*inputs), truth(*inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_low_precision_error_stays_within_the_definitions_own(op, shape, dtype):
    """In the root mean square: a sum that both round alike can put either's largest error ahead."""
    inputs = problem(op, shape, dtype, seed=2)
    for a, b, t in zip(
        outputs_and_gradients(*inputs), outputs_and_gradients(*inputs, "reference"), truth(*inputs), strict=True
    ):
        error, naive = ((got.double() - t).square().mean().sqrt() for got in (a, b))
        assert a.dtype == dtype and error <= naive + 1e-6


@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_any_strides(op, shape):
    fn, inputs, upstream = problem(op, shape, seed=3)
    expected = truth(fn, inputs, upstream)
    transposed = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in inputs]
    spaced = [t.repeat_interleave(2, dim=-1)[..., ::2] for t in inputs]
    for strided in (transposed, spaced):
        assert not strided[0].is_contiguous()
        assert_close(outputs_and_gradients(fn, strided, upstream), expected)
    expanded = [torch.ones((), device=DEVICE).expand(t.shape) for t in upstream]  # what .sum() sends back
    assert_close(outputs_and_gradients(fn, inputs, expanded), truth(fn, inputs, expanded))


def test_rotation_of_queries_inside_a_fused_projection():
    """As attention makes them: (B, T, heads, d) out of a wider tensor, seen as (B, heads, T, d); the order stays."""
    fn, (x,), upstream = problem("rotate", (2, 4, 9, 16), seed=4)
    wide = torch.full((2, 9, 6, 16), torch.nan, device=DEVICE)
    wide[:, :, :4] = x.transpose(1, 2)
    inside = wide[:, :, :4].transpose(1, 2)
    assert_close(outputs_and_gradients(fn, (inside,), upstream), truth(fn, (x,), upstream))
    assert fn(inside, impl="triton").transpose(1, 2).is_contiguous()


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp"
)  # of the interpreter's numpy; 1 / inf is what is meant
def test_extreme_gates():
    fn, (gate, up), upstream = problem("swiglu", (6,), seed=5)
    gate[:] = torch.tensor([1e4, -1e4, 200.0, -200.0, 0.0, -0.0])
    assert_close(outputs_and_gradients(fn, (gate, up), upstream), truth(fn, (gate, up), upstream))


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_a_row_of_zeros_and_a_row_of_large_numbers(op):
    fn, inputs, upstream = problem(op, (4, 16), seed=6)
    for t in inputs[:-1]:
        t[0], t[1] = 0, t[1] * 1e6
    assert_close(outputs_and_gradients(fn, inputs, upstream), truth(fn, inputs, upstream))


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
@pytest.mark.parametrize("programs", [1, 3, 4])
def test_the_weights_gradient_over_several_tiles_a_program(op, programs, monkeypatch):
    monkeypatch.setattr(triton_pointwise, "NORM_PROGRAMS", programs)
    inputs = problem(op, (301, 48), seed=7)  # ten tiles of 32 rows, the last one in part
    first, second = outputs_and_gradients(*inputs), outputs_and_gradients(*inputs)
    assert_close(first, truth(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_the_norm_or_only_the_sum_may_be_used():
    _, (x, y, w), (dy, _) = problem("add_rms_norm", (5, 12), seed=8)

    def norm_alone(x, y, w, impl):
        return add_rms_norm(x, y, w, EPS, impl)[0]

    def sum_alone(x, y, impl):
        return add_rms_norm(x, y, w.to(x.dtype), EPS, impl)[1]

    for fn, inputs in ((norm_alone, (x, y, w)), (sum_alone, (x, y))):
        assert_close(outputs_and_gradients(fn, inputs, (dy,)), truth(fn, inputs, (dy,)))


@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_nothing_is_read_before_it_is_written(op, shape, monkeypatch):
    inputs = problem(op, shape, seed=9)
    expected = outputs_and_gradients(*inputs)

    def poisoned(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    for a, b in zip(outputs_and_gradients(*inputs), expected, strict=True):
        assert torch.equal(a, b)


@interpreted
@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_no_address_has_two_writers_and_none_is_out_of_bounds(op, shape, monkeypatch):
    monkeypatch.setattr(triton_pointwise, "NORM_PROGRAMS", 1)
    inputs = problem(op, shape, seed=10)
    watch = Addresses(monkeypatch)
    outputs_and_gradients(*inputs)
    assert len(watch.launches) == 2 and not any(stray for _, _, stray in watch.launches)


@pytest.mark.skipif(DEVICE != "cpu", reason="speaks of CPU tensors")
@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_auto_on_a_cpu_is_the_definition_to_the_bit(op, shape):
    inputs = problem(op, shape, torch.bfloat16, seed=11)
    results = [outputs_and_gradients(*inputs, impl) for impl in ("auto", "reference")]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_triton_takes_the_kernels_and_auto_where_they_passed_their_tests(monkeypatch):
    x = torch.ones(1, device=DEVICE)
    assert pointwise.use_triton("triton", x) and not pointwise.use_triton("reference", x)
    for reason in ("", "no record"):
        monkeypatch.setattr(pointwise.evidence, "why_not", lambda kind, device, reason=reason: reason)
        assert pointwise.use_triton("auto", x) == (not reason)
        assert not pointwise.use_triton("auto", x.double()) and not pointwise.use_triton("auto", x, x.bfloat16())


@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_bad_arguments_are_named(op, shape, monkeypatch):
    fn, inputs, _ = problem(op, shape)
    with pytest.raises(ValueError, match="choose from auto, reference, triton"):
        fn(*inputs, impl="tritn")
    with pytest.raises(ValueError, match=f"^{op} takes"):
        fn(inputs[0][..., :-1], *inputs[1:], impl="reference")
    with pytest.raises(ValueError, match="float64"):
        fn(*(t.double() for t in inputs), impl="triton")
    if INTERPRET:
        monkeypatch.setattr(triton_pointwise, "INTERPRET", False)
        with pytest.raises(ValueError, match="needs a GPU"):
            fn(*inputs, impl="triton")


@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_second_derivatives_are_refused(op, shape):
    fn, inputs, _ = problem(op, shape)
    inputs = [t.requires_grad_() for t in inputs]
    out = fn(*inputs, impl="triton")
    out = out[0] if isinstance(out, tuple) else out
    gradient = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Bytes:
    """bytes: of distinct addresses that each launch in the interpreter read, and wrote, together."""

    def __init__(self, monkeypatch):
        from triton.runtime import interpreter

        self.bytes = 0
        builder, call = interpreter.interpreter_builder, interpreter.GridExecutor.__call__
        load, store = builder.create_masked_load, builder.create_masked_store
        seen = {}, {}  # address: size

        def launch(executor, *args, **kwargs):
            call(executor, *args, **kwargs)
            self.bytes += sum(sum(sizes.values()) for sizes in seen)
            for sizes in seen:
                sizes.clear()

        def note(sizes, ptrs, mask):
            size = ptrs.get_element_ty().primitive_bitwidth // 8
            sizes.update(dict.fromkeys(ptrs.data[mask.data].tolist(), size))

        def watched_load(ptrs, mask, *rest):
            note(seen[0], ptrs, mask)
            return load(ptrs, mask, *rest)

        def watched_store(ptrs, value, mask, *rest):
            note(seen[1], ptrs, mask)
            return store(ptrs, value, mask, *rest)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
        monkeypatch.setattr(builder, "create_masked_load", watched_load)
        monkeypatch.setattr(builder, "create_masked_store", watched_store)


@interpreted
@pytest.mark.parametrize(("op", "shape"), ONE_EACH)
def test_the_kernels_move_the_bytes_that_the_model_says(op, shape, monkeypatch):
    monkeypatch.setattr(triton_pointwise, "NORM_PROGRAMS", 2)
    inputs = problem(op, shape, torch.bfloat16, seed=12)
    watch = Bytes(monkeypatch)
    outputs_and_gradients(*inputs)
    if op == "rotate":
        assert watch.bytes == traffic.rotate_bytes(*shape)
    elif op == "swiglu":
        assert watch.bytes == traffic.swiglu_bytes(shape[0] * shape[1])
    else:
        n, d = shape
        summing = 4 * 2 * d + 2 * d  # PyTorch's sum over the partial gradients, which is no launch of ours
        assert watch.bytes == traffic.norm_bytes(n, d, op == "add_rms_norm", partials=2) - summing


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target_without_spilling(tmp_path):
    """In a process of its own: the interpreter's variable must not be set where kernels are compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "kernels.tools.pointwise_report"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "bytes spilled, all together: 0"
    assert {line.split()[0] for line in lines[1:-1]} == {"sm_80", "sm_90", "gfx942"}
    for kernel in ("rms_norm", "rms_norm_backward", "rotate", "swiglu", "swiglu_backward"):
        assert sum(line.split()[1] == f"{kernel}_kernel" for line in lines[1:-1]) % 3 == 0


@pytest.mark.parametrize("name", ["falcon3", "llama31", "falcon2_11b", "falcon_7b"])
def test_models_are_the_same_model_through_the_kernels(name, monkeypatch):
    """Log-probabilities and every gradient of a tiny model, with each operation forced to its kernel."""
    model = build_model(read_config(GOLDEN / name), DEVICE, torch.float32)
    init_weights(model, 0)
    g = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(model.config.vocab_size, (2, 17), generator=g).to(DEVICE) for _ in range(2))
    weight = torch.randn(2, 17, generator=g).to(DEVICE)

    use_triton, asked = pointwise.use_triton, []
    monkeypatch.setattr(pointwise, "use_triton", lambda impl, *x: asked.append(impl) or use_triton(impl, *x))

    def run(impl):
        model.set_kernels(pointwise=impl)
        logp = model(ids, targets, torch.ones_like(ids, dtype=torch.bool))
        return [logp.detach(), *torch.autograd.grad((logp * weight).sum(), list(model.parameters()))]

    assert_close(run("triton"), run("reference"), 1e-4)  # roundings of a few layers
    assert set(asked) == {"triton", "reference"}
