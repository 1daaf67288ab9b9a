"""kernels.online_softmax: in closed form, as it stands and compiled, and what happens where there is no compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.chunked import chunked_logp
from kernels.online_softmax import EAGER, compiled_steps

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("keep", [False, True])
def test_tiles_add_up_to_the_sum_over_all_columns(compiled, dtype, keep):
    seed, n, v, columns = 5, 6, 50, 17
    print(f"seed {seed}")
    logits = (4 * torch.randn(n, v, generator=torch.Generator().manual_seed(seed))).to(dtype)
    logits[0, :17] = -torch.inf  # a tile without any column to count
    accumulation = torch.promote_types(dtype, torch.float32)
    steps = compiled_steps(dtype, accumulation, CPU) if compiled else EAGER
    scratch = steps.scratch(logits[:, :columns], accumulation)
    m, s = torch.full((n,), -9.0, dtype=accumulation), torch.zeros(n, dtype=accumulation)
    for tile in logits.split(columns, dim=1):
        tile, before = tile.clone(), m
        raw = tile.clone()
        m, s, rescale = steps.absorb(tile, m, s, scratch, keep)
        torch.testing.assert_close(rescale, torch.exp(before - m))
        if keep:
            torch.testing.assert_close(tile, torch.exp(raw.to(accumulation) - m[:, None]).to(dtype))
            again, _, rescale = steps.absorb(raw, m, torch.zeros_like(m), scratch, keep)
            assert torch.equal(raw, tile) and torch.equal(again, m) and (rescale == 1).all()
    truth = torch.logsumexp(logits.double(), dim=1)
    torch.testing.assert_close((m + torch.log(s)).double(), truth, rtol=1e-6, atol=1e-6)


def test_the_first_compilation_serves_any_number_of_tokens_and_of_columns_up_to_4096():
    torch.compiler.reset()
    compiled_steps.cache_clear()

    def run(n, chunk, compiled):
        print(f"seed {n}")
        g = torch.Generator().manual_seed(n)
        hidden = torch.randn(n, 16, generator=g).requires_grad_()
        weight = torch.randn(300, 16, generator=g).requires_grad_()
        logp = chunked_logp(hidden, weight, torch.randint(300, (n,), generator=g), chunk, compiled=compiled)
        return logp, *torch.autograd.grad(logp, (hidden, weight), torch.randn(n, generator=g))

    compiled_steps(torch.float32, torch.float32, CPU)
    with torch.compiler.set_stance("fail_on_recompile"):
        for n, chunk in ((16, 64), (2, 300), (7, 20), (40, 37), (333, 128)):  # of n > 16, a part is computed again
            torch.testing.assert_close(run(n, chunk, compiled=True), run(n, chunk, compiled=False))


WITHOUT_COMPILER = """
import warnings
import torch
from kernels import linear_logp
hidden, weight, targets = torch.randn(6, 4), torch.randn(9, 4), torch.arange(6)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first, second = (linear_logp(hidden, weight, targets, "compiled") for _ in range(2))
assert torch.equal(first, second) and torch.equal(first, linear_logp(hidden, weight, targets, "chunked"))
for warning in caught:
    if "log-probs" in str(warning.message):
        print(warning.message)
"""


def test_without_a_compiler_the_same_steps_run_and_it_is_said_once(tmp_path):
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 1 and "without torch.compile" in said[0] and "No working C++ compiler" in said[0]
