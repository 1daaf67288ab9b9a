"""Every alignment method, by name.

    loss = build_loss("nca", beta=0.1)
    loss(x)            # (N,) one number a prompt
    loss.gradient(x)   # (N, K) d(sum of losses)/d x.logps, in closed form

    build_loss("dpo+sft", weights=[1.0, 0.5])    # a weighted sum of any of them
    build_loss("my_losses:MyLoss")               # one from outside this package

Each file holds one family: objective, derivation, gradient and limits beside the code. `base` has the notation. A new loss
is its file and its line in LOSSES (docs/extending.md).
"""

import dataclasses
from typing import Any

from align.losses.base import FITS, Loss, LossInputs
from align.losses.load import load_class, loss_table, outside
from align.losses.mixture import Mixture
from align.losses.names import advice

__all__ = ["FITS", "LOSSES", "Loss", "LossInputs", "build_loss", "loss_classes", "loss_parameters", "set_parameter"]

LOSSES: dict[str, type[Loss]] = loss_table(
    {
        # each response on its own, against the reference
        "nca": "nca:NCA",
        "bco": "absolute:BCO",
        "sppo": "absolute:SPPO",
        "apo_zero": "absolute:APOZero",
        "apo_down": "absolute:APODown",
        "kto": "unpaired:KTO",
        "kto_pair": "unpaired:KTOPair",
        # the margin of a pair, against the reference
        "dpo": "dpo:DPO",
        "fdpo": "divergences:FDPO",
        "cdpo": "relative:CDPO",
        "robust": "relative:Robust",
        "slic": "shapes:SLiC",
        "ipo": "shapes:IPO",
        "ipo_sum": "shapes:IPOSum",
        "exo": "shapes:EXO",
        "discopop": "shapes:DiscoPOP",
        "dpo_norm": "relative:DPONorm",
        "rdpo": "relative:RDPO",
        "dpop": "relative:DPOP",
        "aot": "transport:AOT",
        "aot_unpaired": "transport:AOTUnpaired",
        # lists with rewards
        "infonca": "infonca:InfoNCA",
        "exo_list": "infonca:EXORewards",
        # with a look inside the responses
        "tdpo": "token_level:TDPO",
        "tdpo1": "token_level:TDPO1",
        "wpo": "token_level:WPO",
        "ld_dpo": "token_level:LDDPO",
        "anchor": "anchor:Anchor",
        # without a reference
        "simpo": "reference_free:SimPO",
        "alphapo": "reference_free:AlphaPO",
        "cpo": "reference_free:CPO",
        "orpo": "reference_free:ORPO",
        "sft": "sft:SFT",
        # sums with a name of their own
        "rpo": "mixture:RPO",
        "mpo": "mixture:MPO",
    }
)


def loss_classes(name: str) -> dict[str, type[Loss]]:
    """The parts of a loss by name, {"dpo": DPO, "sft": SFT} for "dpo+sft".

    Raises ValueError for a loss that does not exist, with the right name, and for one that is named twice.
    """
    parts, classes = name.split("+"), {}
    for part in parts:
        if part not in LOSSES and not outside(part):
            raise ValueError(f"unknown loss {part!r}; {advice(part, LOSSES)}")
        if parts.count(part) > 1:
            raise ValueError(f"loss {name!r} names {part!r} twice; give it once, with the sum of the weights")
        classes[part] = LOSSES[part] if part in LOSSES else load_class(part)
    return classes


def loss_parameters(name: str) -> dict[str, Any]:
    """The parameters of a loss with their defaults. Those of a sum: `weights`, and its parts' as `dpo.beta`."""
    classes = loss_classes(name)
    defaults = {part: {f.name: f.default for f in dataclasses.fields(cls)} for part, cls in classes.items()}
    if len(classes) == 1:
        return defaults[name]
    own = {f"{part}.{key}": value for part, keys in defaults.items() for key, value in keys.items()}
    return {"weights": [1.0] * len(classes), **own}


def set_parameter(name: str, parameters: dict[str, Any], key: str, value: Any) -> None:
    """Set a parameter of the loss `name` among its `parameters`. In a sum a bare key means every part that has it.

    Raises ValueError for a key that the loss has not.
    """
    known = loss_parameters(name)
    key = key.removeprefix(f"{name}.")  # --loss.nca.beta is --loss.beta where nca runs
    targets = [key] if key in known else [full for full in known if key and full.rpartition(".")[2] == key]
    if not targets:
        raise ValueError(f"loss {name!r} has no parameter {key!r}; it takes {', '.join(known) or 'no parameters'}")
    parameters |= dict.fromkeys(targets, value)


def build_loss(name: str, **parameters: Any) -> Loss:
    """A loss by name. Raises ValueError for an unknown name or parameter, or a value out of range."""
    classes, values = loss_classes(name), loss_parameters(name)
    for key, value in parameters.items():
        set_parameter(name, values, key, value)
    if len(classes) == 1:
        return classes[name](**values)
    parts = []
    for part, cls in classes.items():
        own = {key.rpartition(".")[2]: value for key, value in values.items() if key.rpartition(".")[0] == part}
        parts.append(cls(**own))
    return Mixture(parts, values["weights"])
