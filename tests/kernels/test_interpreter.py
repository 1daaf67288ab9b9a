"""kernels.triton.interpreter: a scalar counts a loop of an interpreted kernel, whatever Triton and NumPy are installed."""

import os
from types import SimpleNamespace

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are imported
pytest.importorskip("triton", reason="triton is not installed")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from kernels.triton import interpreter as module  # noqa: E402
from kernels.triton.interpreter import repair_interpreter  # noqa: E402


@triton.jit
def add_up(x, out, n):
    total = 0.0
    for i in range(n):  # n is a scalar of the kernel, which range asks for its __index__
        total += tl.load(x + i)
    tl.store(out, total)


def test_a_scalar_bounds_a_loop():
    repair_interpreter()
    x, out = torch.arange(1.0, 8.0, device=DEVICE), torch.zeros(1, device=DEVICE)
    add_up[(1,)](x, out, 5)
    assert out.item() == 15


@pytest.mark.parametrize(("interpret", "version"), [(False, "3.6.0"), (True, "3.7.0"), (True, "3.10.1+git")])
def test_compiled_kernels_and_newer_tritons_are_left_alone(interpret, version, monkeypatch):
    from triton.runtime import interpreter

    knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=interpret))
    monkeypatch.setattr(module, "triton", SimpleNamespace(__version__=version, knobs=knobs))
    before = interpreter._patch_lang_tensor
    repair_interpreter.__wrapped__()
    assert interpreter._patch_lang_tensor is before
