"""Whether the settings of a run go together, before anything else is looked at."""

import math
import re
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch

from align.errors import UserError
from align.losses import build_loss, loss_parameters
from align.sections import Config, LoraSection, ReferenceSection, check_bounds
from align.stop_rule import read_rule
from align.tracker import check_tracker


def check_settings(config: Config) -> None:
    """Fill in what is left to be decided, and raise UserError where the keys of a configuration do not go together."""
    for name, flag in (("model", "--model DIR"), ("data", "--data FILE")):
        if not getattr(config, name).path and not (name == "data" and config.plan):
            raise UserError(f"{name}.path is missing; give {flag} or set it in --config")
    for name, source in config.sources.items():
        if not source.path and not config.plan:
            raise UserError(f"sources.{name}.path is missing; give --sources.{name}.path FILE or set it in --config")
        if clash := min({f.name for f in fields(source)} & loss_parameters(source.loss).keys(), default=""):
            raise UserError(
                f"sources.{name}.loss: {source.loss} has a parameter {clash}, a source's own key; rename it"
            )
        source.parameters = _whole(source.loss, source.parameters, f"sources.{name}.")
    config.loss.parameters = _whole(config.loss.name, config.loss.parameters, "loss.")
    check_tracker(config.train.tracker)
    read_rule(config.train, config.data)
    loss = config.loss.build()
    if config.reference.mode == "auto":
        live = loss.needs_distributions or loss.nonsmooth_at_reference
        config.reference.mode = "live" if live else "cached"
    if config.reference.mode == "cached" and loss.needs_distributions:
        raise UserError(
            f"reference.mode: {config.loss.name} compares whole distributions, which are not cached; use live"
        )
    if config.optim.project and config.optim.project not in config.sources:
        known = ", ".join(config.sources) or "none"
        raise UserError(f"optim.project {config.optim.project}: names no source; there are: {known}")
    for name in ("logp_impl", "pointwise_impl"):
        if getattr(config.model, name) == "triton" and not (find_spec("triton") and torch.cuda.is_available()):
            raise UserError(f"model.{name} triton takes a GPU and the package triton (pip install .[gpu]); use auto")
    losses = [each.loss.build() for each in config.each()]
    if not any(loss.moves for loss in losses):
        raise UserError(
            f"--loss {config.loss.name} has no gradient at the reference, where a run begins, and alone trains nothing; "
            "give it to a source, beside a loss that has one (docs/sources.md)"
        )
    moves, usual = config.reference, ReferenceSection()
    if moves.mode == "moving" and not any(loss.needs_reference for loss in losses):
        raise UserError(f"reference.mode moving: {config.loss.name} has no reference; leave it out")
    if moves.mode != "moving" and (moves.alpha, moves.every) != (usual.alpha, usual.every):
        raise UserError(f"reference.alpha and reference.every are for --reference.mode moving, not {moves.mode}")
    if not config.lora.rank and config.lora != LoraSection():
        raise UserError("lora.alpha and lora.targets are for adapters; set --lora.rank, 16 for example")
    if config.lora.rank and moves.mode == "moving":
        raise UserError(
            "reference.mode moving: with --lora.rank the reference is the model without its adapters, which stays; "
            "use live or cached"
        )
    check_bounds(config)


def _whole(loss: str, parameters: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The parameters of a loss with its defaults. Raises UserError for a value out of range, naming its key."""
    parameters = loss_parameters(loss) | parameters
    try:
        build_loss(loss, **parameters)
    except ValueError as error:
        raise UserError(re.sub(r"^loss\.", prefix, str(error))) from None
    for name, value in parameters.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{prefix}{name} must be a finite number, not {number}")
    return parameters
