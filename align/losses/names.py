"""What others call the methods, as the classes say: for --help, docs/losses.md, and for whoever types another's name."""

import difflib
import re
from collections.abc import Mapping

from align.losses.base import Loss

RDPO = (
    "two methods go by rDPO: robust DPO (arXiv 2403.00409) is --loss robust, "
    "length-regularised DPO (R-DPO, arXiv 2403.19159) is --loss rdpo"
)


def plain(name: str) -> str:
    """A name without what spellings differ in: case, hyphens, underscores."""
    return re.sub(r"[-_ ]", "", name).lower()


def in_brackets(title: str) -> str:
    """The short name that ends a title: NCA, of "Noise contrastive alignment (NCA)"."""
    return "".join(re.findall(r"\(([^()]*)\)$", title))


def advice(name: str, losses: Mapping[str, type[Loss]]) -> str:
    """What to say of a name that no loss has here: what it is called, or the nearest name."""
    if plain(name) == "rdpo":
        return RDPO
    for here in losses:
        if plain(here) == plain(name):
            return f"it is written {here} here: --loss {here}"
    for here, cls in losses.items():
        for who, names in {"TRL": cls.trl, "HALOs": cls.halos, "its paper": in_brackets(cls.title)}.items():
            for other in names.split(", "):
                if other and plain(other) == plain(name):
                    return f"what {who} calls {other} is {here} here: --loss {here}"
    nearest = difflib.get_close_matches(name, losses, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}There are: {', '.join(losses)}, and module:Class for one of your own"
