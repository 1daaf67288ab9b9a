"""Where each method is documented, and the table of all of them in docs/losses.md, made from what the classes declare."""

import re
from pathlib import Path

from align.losses import LOSSES
from align.losses.table import needs, parameters

MAP = Path(__file__).resolve().parents[2] / "docs" / "losses.md"
BEGIN, END = "<!-- methods: written by python -m align.losses.figures -->", "<!-- end of methods -->"

PAGES = {  # the file of a loss: its page in docs/losses/, and the figure of that name
    "nca": "lists",
    "infonca": "lists",
    "absolute": "absolute",
    "unpaired": "unpaired",
    "dpo": "relative",
    "relative": "relative",
    "shapes": "shapes",
    "divergences": "divergences",
    "transport": "transport",
    "token_level": "token-level",
    "reference_free": "reference-free",
    "sft": "reference-free",
    "mixture": "mixtures",
}

IN_ONE_LINE = {
    "nca": "tells samples of the reward-tilted reference from samples of the reference, one response at a time",
    "bco": "a classifier of good and bad responses whose logit is the implicit reward; its loss bounds DPO's from above",
    "sppo": "regresses each log-ratio on the target that multiplicative weights give for a win or a loss",
    "apo_zero": "raises the chosen and lowers the rejected response, each by a bounded amount around the reference",
    "apo_down": "lowers both responses, the rejected one first, for data whose chosen responses are below the policy",
    "kto": "value of a labelled response from a reference point, the KL, with diminishing returns on both sides",
    "kto_pair": "KTO's first form on pairs, with gradients through its KL; kept for comparison",
    "dpo": "logistic regression of the preference on the difference of implicit rewards",
    "fdpo": "DPO where another f-divergence than the reverse KL holds the policy near the reference",
    "cdpo": "DPO with labels that are right with probability 1 - ε, which gives the margin a finite goal",
    "robust": "an unbiased estimate of DPO's clean loss from labels flipped with probability ε",
    "slic": "a hinge: full force until the margin is won, then none",
    "ipo": "regresses the margin of log-ratios per token on a finite goal, 1/(2β)",
    "ipo_sum": "the same on whole responses, as its derivation gives it",
    "exo": "reverse KL of the pair's probabilities to softened labels, where cDPO has the forward KL",
    "discopop": "a gate from the logistic to the exponential loss, found by a language model",
    "dpo_norm": "DPO on log-ratios per token",
    "rdpo": "DPO with a charge for each token of length",
    "dpop": "DPO with a wall against a falling chosen response",
    "aot": "the sorted margins of the policy are to beat the sorted margins of the reference, rank by rank",
    "aot_unpaired": "the sorted log-ratios of chosen responses are to beat those of rejected ones, rank by rank",
    "infonca": "cross-entropy of a list's target probabilities to softmax of its implicit rewards",
    "exo_list": "reverse KL between the same two distributions",
    "tdpo": "DPO that charges for moving whole next-token distributions along the rejected response",
    "tdpo1": "the form that its derivation gives, which also pays for moving them along the chosen one",
    "wpo": "DPO where a pair counts by how likely the policy itself is to write it",
    "ld_dpo": "DPO that discounts what the longer response has beyond the length of the shorter",
    "simpo": "logistic loss of log-probabilities per token, with a margin to be won",
    "alphapo": "SimPO with a power transform of the probabilities, which chooses where the update is spent",
    "cpo": "DPO under a uniform reference, plus the likelihood of the chosen response",
    "orpo": "likelihood of the chosen response, plus a logistic loss of the two responses' odds",
    "sft": "maximum likelihood of the chosen response; the rejected one is not read",
    "rpo": "DPO plus the likelihood of the chosen response",
    "mpo": "DPO plus BCO plus the likelihood of the chosen response",
}


def page(name: str) -> str:
    """The page of a method, and the name of its figure."""
    return PAGES[LOSSES[name].__module__.rpartition(".")[2]]


def linked(paper: str) -> str:
    """A paper as Markdown, its arXiv numbers and addresses as links."""
    paper = re.sub(r"(arXiv )?(\d{4}\.\d{5})", r"[\2](https://arxiv.org/abs/\2)", paper)
    return re.sub(r"(\w+\.ai/\S+)", r"[\1](https://\1)", paper)


def methods() -> str:
    """The table of all methods, in Markdown."""
    lines = ["| `--loss` | in one line | responses | needs | parameters | paper | page |", "| --- " * 7 + "|"]
    for name, cls in LOSSES.items():
        cells = [
            f"`{name}`" + (" †" if cls.in_paper else ""),
            f"{cls.title}: {IN_ONE_LINE[name]}",
            cls.responses,
            ", ".join(needs(cls)) or "–",
            ", ".join(f"`{parameter}`" for parameter in parameters(name)) or "–",
            linked(cls.paper),
            f"[{page(name)}](losses/{page(name)}.md)",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_methods(text: str) -> str:
    """The text of docs/losses.md with the present table between its two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{methods()}\n\n{END}{after}"
