"""What papers, TRL and HALOs call the methods: for --help, docs/losses.md, and messages on names that are not ours."""

import difflib
import re
from collections.abc import Mapping

from align.losses.base import Loss

RDPO = "rDPO is robust DPO to most people (--loss robust), and length-regularised DPO (R-DPO) to some (--loss rdpo)"


def plain(name: str) -> str:
    """A name without case, hyphens and underscores, in which spellings differ."""
    return re.sub(r"[-_ ]", "", name).lower()


def in_brackets(title: str) -> str:
    """The short name that ends a title: NCA, of "Noise contrastive alignment (NCA)"."""
    return "".join(re.findall(r"\(([^()]*)\)$", title))


def advice(name: str, losses: Mapping[str, type[Loss]]) -> str:
    """What to say about a name that no loss has here: our name for it, or the nearest name."""
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
