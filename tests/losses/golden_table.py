"""Every loss against the recorded values: its largest deviation in value and in gradient, in float64.

python tests/losses/golden_table.py

Deviation is that of losses.json's conventions: of a case, max |ours - recorded| over an array, relative to the array's
largest entry, but to no less than 1e-12. So a gradient's entries are held to the scale of the gradient: of entries that
have all but vanished in a saturated tail nobody, autograd included, has all digits.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loss_checks import (
    GOLDEN,
    GOLDEN_LOSSES,
    bco_steps,
    golden_cases,
    golden_inputs,
    golden_loss,
    kto_inputs,
    list_inputs,
    logits_gradient,
    token_inputs,
)

from align.losses import LOSSES

Pair = tuple[float | Tensor, float | Tensor]  # ours, recorded
# what holds a loss that no public implementation was run for
GENERIC = "its closed form against autograd and central differences"
HELD_BY = {"dpop": f"values by hand, dpo at penalty 0 and above the reference, {GENERIC}"}


def tensor(*columns: list) -> Tensor:
    """Recorded columns as (N, K), float64."""
    return torch.tensor(columns, dtype=torch.float64).T


def comparisons(name: str) -> Iterator[tuple[Pair, Pair]]:
    """Of each recorded case of a loss, the mean over prompts and its gradient: ours and the recorded ones."""
    for _, case in golden_cases(name):
        loss, x = golden_loss(name, case), golden_inputs(case["batch"])
        yield (
            (loss(x).mean(), case["loss_mean"]),
            (
                loss.gradient(x) / len(x.logps),
                tensor(case["grad_pi_w"], case["grad_pi_l"]),
            ),
        )
    for _, sample, case in golden_cases(name, section="kto"):
        loss, x = golden_loss(name, case), kto_inputs(sample, case)
        recorded = tensor(case["grad_pi"], case["grad_pi_kl"])[:, : x.logps.shape[1]]
        yield (loss(x).mean(), case["loss_mean"]), (loss.gradient(x) / len(x.logps), recorded)
    for _, sample, case in golden_cases(name, section="k_responses"):
        loss, x = golden_loss(name, case), list_inputs(sample, case)
        recorded = torch.tensor(case["grad_pi"], dtype=torch.float64)
        yield (loss(x).mean(), case["loss_mean"]), (loss.gradient(x) / len(x.logps), recorded)
    for _, fixture, case in golden_cases(name, section="token_level"):
        loss, (policy, x) = golden_loss(name, case), token_inputs(fixture)
        recorded = torch.tensor(case["grad_policy_logits"], dtype=torch.float64)
        yield (loss(x).mean().detach(), case["loss_mean"]), (logits_gradient(loss, policy, x), recorded)
    for sequence in GOLDEN["sequences"] if name == "bco" else []:
        for loss, x, step in bco_steps(sequence):
            if step["batch"] in GOLDEN["batches"]:
                yield (
                    (loss(x).mean(), step["loss_mean"]),
                    (
                        loss.gradient(x) / len(x.logps),
                        tensor(step["grad_pi_w"], step["grad_pi_l"]),
                    ),
                )


def deviation(ours: float | Tensor, recorded: float | Tensor) -> float:
    """max |ours - recorded|, relative to the largest entry of either."""
    ours, recorded = (torch.as_tensor(values, dtype=torch.float64) for values in (ours, recorded))
    largest = max(ours.abs().max().item(), recorded.abs().max().item(), 1e-12)
    return (ours - recorded).abs().max().item() / largest


def table() -> dict[str, tuple[int, float, float]]:
    """{loss: (recorded cases, largest deviation of the value, of the gradient)}, sums that were recorded included."""
    rows = {}
    for name in dict.fromkeys([*LOSSES, *GOLDEN_LOSSES]):
        found = [(deviation(*value), deviation(*gradient)) for value, gradient in comparisons(name)]
        rows[name] = (len(found), *(max(column) for column in zip(*found, strict=True))) if found else (0, 0.0, 0.0)
    return rows


def main() -> None:
    print(f"{'loss':14}{'cases':>6}{'value':>10}{'gradient':>10}")
    rows = table()
    for name, (cases, value, gradient) in rows.items():
        held = f"{value:10.1e}{gradient:10.1e}" if cases else f"  not recorded; held by {HELD_BY.get(name, GENERIC)}"
        print(f"{name:14}{cases:6}{held}")
    used = {recorded for ours in GOLDEN_LOSSES.values() for recorded in ours}
    cases = [case for s in ("kto", "k_responses", "token_level") for sample in GOLDEN[s] for case in sample["cases"]]
    others = {case["loss"] for case in [*GOLDEN["paired"], *cases]} - used
    total = sum(cases for cases, _, _ in rows.values())
    print(f"{'all':14}{total:6}{max(v for _, v, _ in rows.values()):10.1e}{max(g for _, _, g in rows.values()):10.1e}")
    print(f"recorded, but other methods or variants: {', '.join(sorted(others))}")


if __name__ == "__main__":
    main()
