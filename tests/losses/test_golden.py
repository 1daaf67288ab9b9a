"""The table of deviations from the recorded values, and the sums with names of their own, which no family's tests hold."""

import golden_table
import pytest
import torch
from loss_checks import (
    GOLDEN_LOSSES,
    check_autograd,
    check_central_differences,
    check_golden,
    golden_cases,
    golden_id,
    golden_loss,
    inputs,
)

from align.losses import LOSSES, build_loss

ROWS = golden_table.table()


@pytest.mark.parametrize("name", ROWS)
def test_loss_deviates_from_the_recorded_values_by_1e_9_at_most(name):
    cases, value, gradient = ROWS[name]
    assert value <= 1e-9 and gradient <= 1e-9
    assert cases > 0 or name not in GOLDEN_LOSSES  # none is left out without a word


def test_the_golden_table_has_every_loss_and_deviations_are_relative():
    assert set(LOSSES) <= set(ROWS) and set(golden_table.HELD_BY) <= set(LOSSES) - set(GOLDEN_LOSSES)
    assert sum(cases for cases, _, _ in ROWS.values()) > 250
    ours, recorded = torch.tensor([3.0, 1e-20]), torch.tensor([3.0 + 3e-6, 0.0])
    assert golden_table.deviation(ours, recorded) == pytest.approx(1e-6, rel=0.1)
    assert golden_table.deviation(1e-14, 0.0) == pytest.approx(1e-2)


@pytest.mark.parametrize("name, case", golden_cases("rpo", "mpo"), ids=golden_id)
def test_named_sums_match_golden_losses(name, case):
    check_golden(golden_loss(name, case), case)


@pytest.mark.parametrize(
    "named, parts",
    [
        (build_loss("rpo", beta=0.3, alpha=0.7), build_loss("dpo+sft", beta=0.3, weights=[1.0, 0.7])),
        (build_loss("mpo", beta=0.3), build_loss("dpo+bco+sft", beta=0.3, weights=[0.8, 0.2, 1.0])),
    ],
    ids=["rpo", "mpo"],
)
def test_named_sums_are_sums_of_losses(named, parts):
    x = inputs()
    for loss in (named, parts):
        loss.observe(x)
        check_autograd(loss, x)
        check_central_differences(loss, x)
    torch.testing.assert_close(named(x), parts(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(named.gradient(x), parts.gradient(x), rtol=1e-14, atol=1e-16)


def test_rpo_without_likelihood_is_dpo_loss():
    x = inputs()
    torch.testing.assert_close(build_loss("rpo", alpha=0.0)(x), build_loss("dpo")(x), rtol=0, atol=0)
