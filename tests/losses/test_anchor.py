"""The anchor in both directions: closed form, autograd, central differences, and down to the logits by hand."""

import math
from dataclasses import replace

import pytest
import torch
from loss_checks import FIELDS, inputs, needed

from align.losses import LossInputs, build_loss, loss_parameters

DIRECTIONS = {"forward": "kl", "reverse": "reverse_kl"}
EACH = pytest.mark.parametrize("direction, field", DIRECTIONS.items())


@EACH
def test_anchor_loss_is_a_token_mean_with_its_slopes(direction, field):
    loss = build_loss("anchor", direction=direction)
    x = inputs(k=1, **needed(loss, 6, k=1))
    assert loss(x).mean().item() == pytest.approx((getattr(x, field).sum() / x.n_tok.sum()).item(), rel=1e-14)
    gradient = getattr(loss, FIELDS[field])(x)
    leaf = getattr(x, field).clone().requires_grad_()
    loss(replace(x, **{field: leaf})).sum().backward()
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-14, atol=0)
    for n in range(6):
        bump = torch.zeros_like(leaf)
        bump[n] = 1e-4
        up, down = (loss(replace(x, **{field: leaf.detach() + s * bump})).sum() for s in (1, -1))
        assert gradient[n].item() == pytest.approx(((up - down) / 2e-4).item(), rel=1e-8)
    assert not loss.gradient(x).any() and loss.rewards(x) is None


@EACH
def test_anchor_loss_is_the_same_whatever_the_split(direction, field):
    loss = build_loss("anchor", direction=direction)
    x = inputs(k=1, **needed(loss, 6, k=1))
    m = x.mean_tokens
    parts = [
        LossInputs(x.logps[s], x.ref_logps[s], tokens_per_prompt=m, **{field: getattr(x, field)[s]})
        for s in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(torch.cat([loss(part) for part in parts]), loss(x), rtol=1e-14, atol=0)


def test_a_sum_with_an_anchor_in_it_has_the_slopes_of_both():
    both = build_loss("anchor+tdpo", weights=[2.0, 1.0], **{"anchor.direction": "reverse", "tdpo.beta": 0.3})
    assert set(both.token_inputs) == {"kl", "reverse_kl"} and both.responses == "pair" and both.needs_distributions
    x = inputs(**needed(both, 6))
    torch.testing.assert_close(both.reverse_kl_gradient(x)[:, 0], torch.full((6,), 2.0).double() / x.mean_tokens)
    torch.testing.assert_close(both.kl_gradient(x), build_loss("tdpo", beta=0.3).kl_gradient(x))


def test_bad_parameters_and_missing_inputs_are_named():
    assert loss_parameters("anchor") == {"direction": "forward"}
    with pytest.raises(ValueError, match=r"^loss\.direction must be forward or reverse, not 'both'$"):
        build_loss("anchor", direction="both")
    for direction, field in DIRECTIONS.items():
        with pytest.raises(ValueError, match=f"LossInputs.{field} is None"):
            build_loss("anchor", direction=direction)(inputs(k=1))
    x = LossInputs(torch.zeros(2, 1), kl=torch.full((2, 1), math.log(2)))
    with pytest.raises(ValueError, match="needs n_tok or tokens_per_prompt"):
        build_loss("anchor")(x)
