"""The methods as a table, from what each class declares: for --help, `python -m align.losses`, the docs and the tests."""

import inspect

from align.losses import LOSSES, Loss, loss_classes, loss_parameters

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


def overview() -> str:
    """Every method: its name, what it is, and below what it takes, needs and is set by."""
    width = max(map(len, LOSSES))
    lines = []
    for name, cls in LOSSES.items():
        lines.append(f"{'*' if cls.in_paper else ' '} {name:{width}}  {cls.title}, {cls.paper}")
        parts = (cls.responses, ", ".join(needs(cls)), ", ".join(parameters(name)))
        lines.append(f"  {'':{width}}  {'; '.join(part for part in parts if part)}")
    notes = [
        f"* {IN_PAPER}",
        "Below each: the responses it takes (one, the preferred; pair, chosen and rejected; list, two or more, best first;",
        "unpaired, one with a label), what else it needs (whole batch: prompts influence each other), its parameters.",
        "python -m align.losses NAME shows a method's objective, derivation, gradient and limits.",
    ]
    return "\n".join([*lines, "", *notes])


def describe(name: str) -> str:
    """A method in full. Raises ValueError for an unknown name."""
    cls = loss_classes(name)[name]
    flags = "  ".join(f"--loss.{parameter}" for parameter in parameters(name)) or "none"
    lines = [
        f"--loss {name}",
        f"  method      {cls.title}, {cls.paper}" + (f"; {IN_PAPER}" if cls.in_paper else ""),
        f"  responses     {cls.responses}",
        f"  needs       {', '.join(needs(cls)) or 'nothing more'}",
        f"  parameters  {flags}",
        "",
        inspect.getdoc(cls) or "",
    ]
    return "\n".join(lines)
