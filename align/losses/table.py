"""The methods as a table, from what each class declares: for --help, `python -m align.losses`, the docs and the tests."""

import inspect

from align.losses import LOSSES, Loss, loss_classes, loss_parameters
from align.losses.names import RDPO

IN_PAPER = "one of the ten of arXiv 2409.07772, as inferred"


def needs(cls: type[Loss]) -> list[str]:
    """What a method needs beside its responses and their log-probs."""
    has = {
        "reference": cls.needs_reference,
        "scores if given": cls.responses == "list",
        "labels": "unpaired" in cls.responses,
        f"tokens ({', '.join(cls.token_inputs)})": bool(cls.token_inputs),
        "whole batch": cls.needs_global_batch,
    }
    return [name for name, needed in has.items() if needed]


def parameters(name: str) -> list[str]:
    return [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in loss_parameters(name).items()
    ]


def method(cls: type[Loss]) -> str:
    """What a method is called: by us, in its paper, and in TRL."""
    trl = f"TRL: {cls.trl}" if cls.trl else ""
    return "; ".join(part for part in (", ".join(part for part in (cls.title, cls.paper) if part), trl) if part)


def overview() -> str:
    """Every method: its name, what it is, and below what it takes, needs and is set by."""
    width = max(map(len, LOSSES))
    lines = []
    for name, cls in LOSSES.items():
        lines.append(f"{'*' if cls.in_paper else ' '} {name:{width}}  {method(cls)}")
        parts = (cls.responses, ", ".join(needs(cls)), ", ".join(parameters(name)))
        lines.append(f"  {'':{width}}  {'; '.join(part for part in parts if part)}")
    notes = [
        f"* {IN_PAPER}",
        "TRL: the loss_type of its DPOTrainer, or what else it has for the method.",
        f"{RDPO}.",
        "Below each: the responses it takes (one, the preferred; pair, chosen and rejected; list, two or more, best first;",
        "unpaired, one with a label), what else it needs (whole batch: prompts influence each other), its parameters.",
        "my_losses:MyLoss is a loss of your own, module:Class; the module lies in the current directory or is installed.",
        "python -m align.losses NAME shows a method's objective, derivation, gradient and limits.",
    ]
    return "\n".join([*lines, "", *notes])


def describe(name: str) -> str:
    """A method in full, or each part of a sum. Raises ValueError for an unknown name."""
    parts = loss_classes(name)
    weights = ",".join("1" for _ in parts)
    about = [f"--loss {name}\n  a sum of its parts: --loss.weights {weights}, and --loss.PART.KEY for a key of one"]
    return "\n\n".join([*about[: len(parts) > 1], *(describe_one(part, cls) for part, cls in parts.items())])


def describe_one(name: str, cls: type[Loss]) -> str:
    flags = "  ".join(f"--loss.{parameter}" for parameter in parameters(name)) or "none"
    lines = [
        f"--loss {name}",
        f"  method      {method(cls)}" + (f"; {IN_PAPER}" if cls.in_paper else ""),
        f"  in short    {cls.summary}",
        f"  responses   {cls.responses}",
        f"  needs       {', '.join(needs(cls)) or 'nothing more'}",
        f"  parameters  {flags}",
        "",
        inspect.getdoc(cls) or "",
    ]
    return "\n".join(line for line in lines if line != "  in short    ")
