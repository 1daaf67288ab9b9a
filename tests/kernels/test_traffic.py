"""kernels.tools.traffic: the bytes that operations move, and which of them are worth a kernel."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

from kernels.pointwise import swiglu
from kernels.tools import traffic


def test_the_model_counts_what_operations_read_and_write():
    unit = 2 * 6 * 8  # bytes of (6, 8) in bfloat16
    assert traffic.eager_bytes(F.gelu, (6, 8)) == 5 * unit  # x, out; grad, x, dx
    assert traffic.eager_bytes(lambda x, y: x + y, (6, 8), (6, 8)) == 3 * unit  # gradients pass as they are
    assert traffic.eager_bytes(lambda x: x.transpose(0, 1).view(8, 2, 3), (6, 8)) == 0
    # silu 2, product 3; backward: two products 3 each, silu 3
    assert traffic.eager_bytes(swiglu, (6, 8), (6, 8)) == 14 * unit
    assert traffic.distinct_bytes(torch.zeros(5, 1).expand(5, 7)) == 4 * 5


def test_every_operation_with_a_kernel_is_worth_it_and_no_other(capsys):
    traffic.main()
    out = capsys.readouterr().out
    assert "Not a measurement" in out
    verdicts = dict(line.split(": ") for line in out.splitlines()[-3:])
    assert verdicts["worth a kernel"] == (
        "rotary of q and k, rms_norm and add_rms_norm, both against F.rms_norm, SwiGLU"
    )
    assert verdicts["worth one, but between two blocks"] == "the sum, then F.layer_norm"
    assert verdicts["not worth one"] == "F.layer_norm, x + (mlp + attention), F.gelu"
