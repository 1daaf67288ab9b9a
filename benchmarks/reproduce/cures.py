"""Recipes that should make a model safe at no price, each with the settings that it is chosen from.

All learn from the same pairs as the methods, or from the base model's own responses to their prompts. What they have
beside them comes from neutral prompts, in which no held-out kind of prank, lookalike or chore is.
"""

from itertools import product
from typing import Any

Flags = dict[str, Any]

SAFE = {"loss": "nca+sft", "loss.weights": "1,1"}
LONGER = {"train.steps": 120, "train.batch_size": 16}
# the base model's own response to each neutral prompt, whose distributions should stay as they were
ANCHOR = {"sources.stay.path": "own", "sources.stay.loss": "anchor", "sources.stay.batch_size": 32}
# the same responses, learnt
REPLAY = {**ANCHOR, "sources.stay.loss": "sft"}
# help preferred to a refusal
HARMLESS = {"sources.help.path": "tiny:harmless-pairs", "sources.help.loss": "nca", "sources.help.batch_size": 16}
WHOLE = {**SAFE, **LONGER, **ANCHOR}
WEIGHT, RATE = "sources.stay.weight", "optim.lr"


def over(flags: Flags, grid: dict[str, list[Any]]) -> tuple[Flags, ...]:
    """The flags with every combination of values."""
    return tuple(flags | dict(zip(grid, values, strict=True)) for values in product(*grid.values()))


GRID: dict[str, list[Any]] = {WEIGHT: [0.3, 1.0, 3.0], RATE: [3e-4, 6e-4]}
CURES: dict[str, tuple[Flags, ...]] = {
    "nca + anchor": over({"loss": "nca", **LONGER, **ANCHOR}, GRID),
    "sft + anchor": over({"loss": "sft", **LONGER, **ANCHOR}, GRID),
    "nca + sft + anchor": over(WHOLE, GRID),
    "nca + sft + replay": over({**SAFE, **LONGER, **REPLAY}, GRID),
    "nca + sft + replay, projected": over({**SAFE, **LONGER, **REPLAY, "optim.project": "stay"}, GRID),
    "nca + sft + anchor + harmless pairs": over({**WHOLE, **HARMLESS}, GRID),
    "nca + sft + anchor, averaged": over({**WHOLE, "optim.ema": 0.97}, GRID),
    "nca + sft + anchor, rank 16": over({**WHOLE, "lora.rank": 16}, {WEIGHT: GRID[WEIGHT], RATE: [1e-3, 3e-3]}),
    "nca + sft + anchor, rank 1 on mlp-up": over(
        {**WHOLE, "lora.rank": 1, "lora.targets": "mlp-up"}, {WEIGHT: GRID[WEIGHT], RATE: [3e-3, 1e-2]}
    ),
    "own refusals + anchor": over({**WHOLE, "data": "own refusals"}, GRID),
    "recoveries + anchor": over({**WHOLE, "data": "recoveries"}, GRID),
}
