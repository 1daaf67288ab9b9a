"""Every alignment method, by name.

    loss = build_loss("nca", beta=0.1)
    loss(x)            # (N,) one number a prompt
    loss.gradient(x)   # (N, K) d(sum of losses)/d x.logps, in closed form

    build_loss("dpo+sft", weights=[1.0, 0.5])    # a weighted sum of any of them

Each file holds one family: objective, derivation, gradient and limits beside the code. `base` has the notation.
"""

import dataclasses
import difflib
from typing import Any

from align.losses.absolute import BCO, SPPO, APODown, APOZero
from align.losses.base import FITS, Loss, LossInputs
from align.losses.divergences import FDPO
from align.losses.dpo import DPO
from align.losses.infonca import EXORewards, InfoNCA
from align.losses.mixture import MPO, RPO, Mixture
from align.losses.nca import NCA
from align.losses.reference_free import CPO, ORPO, AlphaPO, SimPO
from align.losses.relative import CDPO, DPOP, RDPO, DPONorm, Robust
from align.losses.sft import SFT
from align.losses.shapes import EXO, IPO, DiscoPOP, IPOSum, SLiC
from align.losses.token_level import LDDPO, TDPO, TDPO1, WPO
from align.losses.transport import AOT, AOTUnpaired
from align.losses.unpaired import KTO, KTOPair

__all__ = ["FITS", "LOSSES", "Loss", "LossInputs", "build_loss", "loss_classes", "loss_parameters", "set_parameter"]

LOSSES: dict[str, type[Loss]] = {
    # each response on its own, against the reference
    "nca": NCA,
    "bco": BCO,
    "sppo": SPPO,
    "apo_zero": APOZero,
    "apo_down": APODown,
    "kto": KTO,
    "kto_pair": KTOPair,
    # the margin of a pair, against the reference
    "dpo": DPO,
    "fdpo": FDPO,
    "cdpo": CDPO,
    "robust": Robust,
    "slic": SLiC,
    "ipo": IPO,
    "ipo_sum": IPOSum,
    "exo": EXO,
    "discopop": DiscoPOP,
    "dpo_norm": DPONorm,
    "rdpo": RDPO,
    "dpop": DPOP,
    "aot": AOT,
    "aot_unpaired": AOTUnpaired,
    # lists with rewards
    "infonca": InfoNCA,
    "exo_list": EXORewards,
    # with a look inside the responses
    "tdpo": TDPO,
    "tdpo1": TDPO1,
    "wpo": WPO,
    "ld_dpo": LDDPO,
    # without a reference
    "simpo": SimPO,
    "alphapo": AlphaPO,
    "cpo": CPO,
    "orpo": ORPO,
    "sft": SFT,
    # sums with a name of their own
    "rpo": RPO,
    "mpo": MPO,
}


def loss_classes(name: str) -> dict[str, type[Loss]]:
    """The parts of a loss by name, {"dpo": DPO, "sft": SFT} for "dpo+sft".

    Raises ValueError for a loss that does not exist, with the nearest name, and for one that is named twice.
    """
    parts = name.split("+")
    for part in parts:
        if part not in LOSSES:
            nearest = difflib.get_close_matches(part, LOSSES, n=1, cutoff=0.0)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(f"unknown loss {part!r}; {hint}There are: {', '.join(LOSSES)}")
        if parts.count(part) > 1:
            raise ValueError(f"loss {name!r} names {part!r} twice; give it once, with the sum of the weights")
    return {part: LOSSES[part] for part in parts}


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
    targets = [key] if key in known else [full for full in known if key and full.partition(".")[2] == key]
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
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{part}.")}
        parts.append(cls(**own))
    return Mixture(parts, values["weights"])
