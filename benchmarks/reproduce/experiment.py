"""What is run: methods, the settings they are chosen from, worlds and orders. All of it follows from these lists.

Settings are chosen in a world of their own, on requests for development; what is reported comes from three other worlds and
from requests that no choice has seen.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from align.config import load_config
from benchmarks.reproduce.cause import OPTIMIZERS
from benchmarks.reproduce.choose import chosen
from benchmarks.reproduce.cures import CURES, FRONTIER, PARTS, WHOLE

CHOICE_WORLD = 3
WORLDS, ORDERS = (0, 1, 2), (0, 1, 2, 3, 4)

# the paper's ten, and six more
PAPER = ("nca", "dpo", "ipo", "slic", "exo", "robust", "sppo", "bco", "aot", "aot_unpaired")
OTHERS = ("sft", "kto", "apo_zero", "simpo", "orpo", "cpo")
BETAS = (0.25, 1.0, 4.0, 16.0)  # times the method's beta in configs/tiny.toml
RATES = (2.5e-4, 6e-4)
STEPS = 40  # enough for most pushes to end
SFT_RATES = (1e-4, 2.5e-4, 6e-4, 1.2e-3)  # it has no beta

# in the order in which they are run: what is chosen by the rule, and what has one setting
STAGES = ("method", "cure", "frontier", "part")

Flags = dict[str, Any]  # of train.py, beside the defaults of align/sections.py
Line = dict[str, Any]  # one run's result


@dataclass(frozen=True)
class Job:
    """One run."""

    stage: str  # what it is for
    name: str  # the method or the recipe
    world: int
    order: int  # the seed of the order of the data
    flags: Flags = field(default_factory=dict)

    @property
    def asked(self) -> tuple[str, ...]:
        """Which sets of requests: those for development choose, and what is chosen has the others."""
        if self.stage == "base":
            return ("dev", "final")
        return ("dev",) if self.stage.startswith("choose") else ("final",)

    @property
    def key(self) -> str:
        """Two runs of the same key are the same run."""
        return json.dumps(asdict(self), sort_keys=True)


def key_of(line: Line) -> str:
    """The key of the job that left a line."""
    return Job(**{each.name: line[each.name] for each in fields(Job)}).key


@dataclass(frozen=True)
class Recipe:
    """A method or a cure, and the settings that it is chosen from. A single one needs no choice."""

    name: str
    settings: tuple[Flags, ...]
    stage: str  # of STAGES


def method(name: str) -> Recipe:
    """The settings are a grid around configs/tiny.toml's beta."""
    if name == "sft":
        grid: list[Flags] = [{"optim.lr": lr} for lr in SFT_RATES]
    else:
        usual = load_config(["--loss", name]).loss.parameters["beta"]
        grid = [{"loss.beta": float(f"{usual * times:.3g}"), "optim.lr": lr} for times in BETAS for lr in RATES]
    return Recipe(name, tuple({"loss": name, "train.steps": STEPS, **flags} for flags in grid), "method")


def recipes(stage: str) -> list[Recipe]:
    if stage == "method":
        return [method(name) for name in (*PAPER, *OTHERS)]
    if stage == "cure":
        found = CURES
    else:
        found = {name: (flags,) for name, flags in (FRONTIER if stage == "frontier" else PARTS).items()}
    return [Recipe(name, settings, stage) for name, settings in found.items()]


@dataclass(frozen=True)
class Experiment:
    """Recipes, and the worlds and orders in which each is measured once its setting is chosen."""

    recipes: tuple[Recipe, ...]
    worlds: tuple[int, ...] = WORLDS
    orders: tuple[int, ...] = ORDERS
    causes: tuple[str, ...] = ()  # keys of cause.OPTIMIZERS, under which the first steps of
    compared: tuple[str, ...] = PAPER  # these are compared

    def jobs(self, lines: Iterable[Line]) -> list[Job]:
        """What can be run now, in order: of each stage the choices, then each order in all worlds."""
        known = {key_of(line): line for line in lines}
        found = [Job("base", "base", world, 0) for world in (CHOICE_WORLD, *self.worlds)]
        for name in self.causes:
            found.append(Job("cause", name, CHOICE_WORLD, 0, {"methods": list(self.compared), **OPTIMIZERS[name]}))
        for stage in STAGES:
            recipes = [recipe for recipe in self.recipes if recipe.stage == stage]
            found += [job for recipe in recipes for job in choices_of(recipe)]
            flags = {recipe.name: settled(recipe, known) for recipe in recipes}
            found += [
                Job(stage, recipe.name, world, order, own)
                for order in self.orders
                for recipe in recipes
                if (own := flags[recipe.name]) is not None
                for world in self.worlds
            ]
        return found


def choices_of(recipe: Recipe) -> list[Job]:
    settings = recipe.settings if len(recipe.settings) > 1 else ()
    return [Job(f"choose {recipe.stage}", recipe.name, CHOICE_WORLD, 0, flags) for flags in settings]


def settled(recipe: Recipe, known: dict[str, Line]) -> Flags | None:
    """The chosen flags, None until all settings are known."""
    if not (jobs := choices_of(recipe)):
        return recipe.settings[0]
    if not all(job.key in known for job in jobs):
        return None
    flags: Flags = chosen([known[job.key] for job in jobs])["flags"]
    return flags


def full() -> Experiment:
    return Experiment(tuple(recipe for stage in STAGES for recipe in recipes(stage)), causes=tuple(OPTIMIZERS))


def fast() -> Experiment:
    """Of every stage something, in a few minutes: it shows that all of it runs, not what comes out."""
    some = {"nca": 2, "dpo": 1, "nca + sft + anchor": 1, WHOLE: 1, "without averaging": 1}  # and of how many settings
    short = [
        Recipe(one.name, tuple({**flags, "train.steps": STEPS} for flags in one.settings[: some[one.name]]), one.stage)
        for one in full().recipes
        if one.name in some
    ]
    return Experiment(tuple(short), worlds=(0,), orders=(0,), causes=tuple(OPTIMIZERS)[:1], compared=PAPER[:2])
