"""Checks that every loss must pass, shared by the tests of the loss families. All in float64."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.losses import LossInputs

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())


def inputs(n=6, k=2, seed=0, spread=20.0, **more):
    """Random log-probs around a reference. spread: standard deviation of the log-ratios, in nats."""
    print(f"seed {seed}")
    g = torch.Generator().manual_seed(seed)
    ref = -100 * torch.rand(n, k, generator=g, dtype=torch.float64) - 5
    return LossInputs(
        logps=ref + spread * torch.randn(n, k, generator=g, dtype=torch.float64),
        ref_logps=ref,
        n_tok=torch.randint(1, 50, (n, k), generator=g),
        **more,
    )


def check_autograd(loss, x):
    """The closed-form gradient is what autograd finds."""
    logps = x.logps.clone().requires_grad_()
    loss(replace(x, logps=logps)).sum().backward()
    torch.testing.assert_close(loss.gradient(x), logps.grad, rtol=1e-10, atol=1e-15)


def check_central_differences(loss, x, step=1e-4, rtol=1e-6, atol=1e-8):
    """The closed-form gradient is the slope of the loss, wherever that is smooth on the scale of `step`."""
    numeric = torch.empty_like(x.logps)
    for i in range(x.logps.shape[0]):
        for j in range(x.logps.shape[1]):
            bump = torch.zeros_like(x.logps)
            bump[i, j] = step
            up, down = (loss(replace(x, logps=x.logps + sign * bump)).sum() for sign in (1, -1))
            numeric[i, j] = (up - down) / (2 * step)
    torch.testing.assert_close(loss.gradient(x), numeric, rtol=rtol, atol=atol)


def check_finite_in_float32(loss, ratio, **more):
    """Sums of -6000 and log-ratios of +-ratio are what long answers and long training give."""
    ref = torch.full((3, 2), -6000.0)
    logps = (ref + torch.tensor([[ratio, -ratio], [ratio, ratio], [-ratio, ratio]])).requires_grad_()
    x = LossInputs(logps, ref, torch.full((3, 2), 500), **more)
    values = loss(x)
    values.sum().backward()
    assert torch.isfinite(values).all() and torch.isfinite(logps.grad).all()
    torch.testing.assert_close(loss.gradient(x).detach(), logps.grad, rtol=1e-4, atol=1e-7)


def golden_pairs(*names):
    """The recorded cases of these losses (their names in losses.json) in float64."""
    return [case for case in GOLDEN["paired"] if case["loss"] in names and "dtype" not in case]


def golden_inputs(batch):
    b = {k: torch.tensor(v, dtype=torch.float64) for k, v in GOLDEN["batches"][batch].items() if k != "seed"}
    return LossInputs(
        logps=torch.stack([b["pi_w"], b["pi_l"]], 1),
        ref_logps=torch.stack([b["rho_w"], b["rho_l"]], 1),
        n_tok=torch.stack([b["len_w"], b["len_l"]], 1),
    )


def check_golden(loss, case):
    """Mean and gradient of a recorded pair batch. The recorded gradients are of the mean, ours of the sum."""
    x = golden_inputs(case["batch"])
    values = loss(x)
    assert values.mean().item() == pytest.approx(case["loss_mean"], rel=1e-12)
    expected = torch.tensor([case["grad_pi_w"], case["grad_pi_l"]], dtype=torch.float64).T
    torch.testing.assert_close(loss.gradient(x) / len(values), expected, rtol=1e-10, atol=1e-15)
