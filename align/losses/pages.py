"""Where each method is documented, and the tables of docs/losses.md, made from what the classes declare."""

import re
from pathlib import Path

from align.losses import LOSSES
from align.losses.table import needs, parameters

MAP = Path(__file__).resolve().parents[2] / "docs" / "losses.md"
MARKS = "<!-- {0}: written by python -m align.losses.figures -->", "<!-- end of {0} -->"

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
    "anchor": "token-level",
    "reference_free": "reference-free",
    "sft": "reference-free",
    "mixture": "mixtures",
}


def page(name: str) -> str | None:
    """The page of a method, and the name of its figure; None for a method that has none."""
    return PAGES.get(LOSSES[name].__module__.rpartition(".")[2])


def linked(paper: str) -> str:
    """A paper as Markdown, its arXiv numbers and addresses as links."""
    paper = re.sub(r"(arXiv )?(\d{4}\.\d{5})", r"[\2](https://arxiv.org/abs/\2)", paper)
    return re.sub(r"(\w+\.ai/\S+)", r"[\1](https://\1)", paper)


def row(*cells: str) -> str:
    return f"| {' | '.join(cell or '–' for cell in cells)} |"


def methods() -> str:
    """The table of all methods, in Markdown."""
    lines = ["| `--loss` | in one line | responses | needs | parameters | paper | page |", "| --- " * 7 + "|"]
    for name, cls in LOSSES.items():
        stem = page(name)
        lines.append(
            row(
                f"`{name}`" + (" †" if cls.in_paper else ""),
                ": ".join(part for part in (cls.title, cls.summary) if part),
                cls.responses,
                ", ".join(needs(cls)),
                ", ".join(f"`{parameter}`" for parameter in parameters(name)),
                linked(cls.paper),
                f"[{stem}](losses/{stem}.md)" if stem else "",
            )
        )
    return "\n".join(lines)


def names() -> str:
    """The table of what others call them, in Markdown."""
    lines = ["| here | in its paper | TRL | HALOs |", "| --- " * 4 + "|"]
    return "\n".join([*lines, *(row(f"`{name}`", c.title, c.trl, c.halos) for name, c in LOSSES.items())])


def with_tables(text: str) -> str:
    """The text of docs/losses.md with the present tables between their marks."""
    for name, table in {"methods": methods(), "names": names()}.items():
        begin, end = (mark.format(name) for mark in MARKS)
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return text
