"""Recipes that should make a model safe at no price, each with the settings that it is chosen from.

All learn from the same pairs as the methods, or from the base model's own responses to their prompts. What they have
beside them comes from neutral prompts, in which no held-out kind of prank, lookalike or chore is.
"""

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
AVERAGED = {"optim.ema": 0.97}
WEIGHT, RATE = "sources.stay.weight", "optim.lr"
ADAPTED = "nca + sft + anchor, rank 16"
MERGED = "merged"  # no flag of train.py: the weight of the trained model in the mean with its base


def grid(flags: Flags, rates: tuple[float, float] = (3e-4, 6e-4)) -> tuple[Flags, ...]:
    """The flags under anchors of three weights at the lower rate, and under the weakest at the higher one."""
    low, high = rates
    pulls = ((1.0, high), (1.0, low), (5.0, low), (20.0, low))
    return tuple({**flags, WEIGHT: weight, RATE: rate} for weight, rate in pulls)


ANCHORED = {**SAFE, **LONGER, **ANCHOR}
TOGETHER = {**ANCHORED, **AVERAGED, "data": "recoveries"}
ALONE = {"loss": "nca", "loss.beta": 0.1, "optim.lr": 2.5e-4, "train.steps": 40}  # as the methods' rule chose it
STOPPED = {**ALONE, "data.eval_path": "tiny:held-out-pairs", "train.eval_every": 2}
CURES: dict[str, tuple[Flags, ...]] = {
    "nca, stopped early": tuple(
        {**STOPPED, "train.stop_when": f"eval/log_ratios/margin >= {nats}"} for nats in (5, 10, 20, 30)
    ),
    "nca, merged with its base": tuple({**ALONE, MERGED: weight} for weight in (0.2, 0.4, 0.6, 0.8)),
    "nca + anchor": grid({"loss": "nca", **LONGER, **ANCHOR}),
    "nca + sft + replay": grid({**SAFE, **LONGER, **REPLAY}),
    "nca + sft + anchor": grid(ANCHORED),
    "nca + sft + anchor, projected": grid({**ANCHORED, "optim.project": "stay"}),
    "nca + sft + anchor, averaged": grid({**ANCHORED, **AVERAGED}),
    "nca + sft + anchor + harmless pairs": grid({**ANCHORED, **HARMLESS}),
    ADAPTED: grid({**ANCHORED, "lora.rank": 16}, (1e-3, 3e-3)),
    "nca + sft + anchor, rank 1 on mlp-up": grid({**ANCHORED, "lora.rank": 1, "lora.targets": "mlp-up"}, (3e-3, 1e-2)),
    "together": grid(TOGETHER),
}

# of one setting each: how strong the anchor is, and what each part is worth
FRONTIER = {f"together, anchor {weight:g}": {**TOGETHER, WEIGHT: weight, RATE: 3e-4} for weight in (1.0, 5.0, 20.0)}
WHOLE = "together, anchor 20"


def less(*dropped: str, **other: Any) -> Flags:
    """The flags of WHOLE without those that begin with a word of dropped, and with others."""
    return {key: value for key, value in FRONTIER[WHOLE].items() if not key.startswith(dropped)} | other


PARTS = {
    "without the anchor": less("sources.stay"),
    "without sft": less("loss", loss="nca"),
    "without nca": less("loss", loss="sft"),
    "without averaging": less("optim.ema"),
    "without recoveries": less(data="own refusals"),
    "without responses of its own": less(data="tiny:pairs"),
}
