"""Recipes that should make a model safe at no price, each with the settings that it is chosen from.

All learn from the same pairs as the methods. What they have beside them comes from neutral prompts and the base model's
own responses to these (files.py), in which no held-out kind of prank, lookalike or chore is.
"""

from typing import Any

Flags = dict[str, Any]

# a response of the base model's own to each neutral prompt, whose distributions should stay as they were
ANCHOR = {"sources.stay.path": "own", "sources.stay.loss": "anchor", "sources.stay.batch_size": 16}
# the same responses, learnt
REPLAY = {**ANCHOR, "sources.stay.loss": "sft"}
# help preferred to a refusal
HARMLESS = {"sources.help.path": "harmless", "sources.help.loss": "nca", "sources.help.batch_size": 8}
SAFE = {
    "loss": "nca+sft",
    "loss.weights": "0.1,1",
}  # on the pairs: what the refusals are, and a little of what they are not
LONGER = {"train.steps": 120, "train.batch_size": 8}
WHOLE = {**SAFE, **LONGER, **ANCHOR}


def over(flags: Flags, **grids: list[Any]) -> tuple[Flags, ...]:
    """The flags with every combination of values; a __ in a name is a dot."""
    found = [flags]
    for name, values in grids.items():
        found = [{**one, name.replace("__", "."): value} for one in found for value in values]
    return tuple(found)


WEIGHTS, RATES = [2.0, 5.0, 10.0], [3e-4, 6e-4]
CURES: dict[str, tuple[Flags, ...]] = {
    "nca + anchor": over({"loss": "nca", **LONGER, **ANCHOR}, sources__stay__weight=WEIGHTS, optim__lr=RATES),
    "sft + anchor": over({"loss": "sft", **LONGER, **ANCHOR}, sources__stay__weight=WEIGHTS, optim__lr=RATES),
    "nca + sft + anchor": over(WHOLE, sources__stay__weight=WEIGHTS, optim__lr=RATES),
    "nca + sft + replay": over({**SAFE, **LONGER, **REPLAY}, sources__stay__weight=[1.0, 5.0], optim__lr=RATES),
}
