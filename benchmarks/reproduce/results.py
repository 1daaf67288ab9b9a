"""What the result lines say: shares and changes with their intervals, of a method or a cure."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from align.tiny.evaluate import ABILITIES
from benchmarks.reproduce import stats
from benchmarks.reproduce.experiment import Experiment, key_of
from benchmarks.reproduce.lines import unpacked
from benchmarks.reproduce.stats import Interval, Passed

GLOBAL = ("safety/plain", "safety/adversarial")  # whose mean is the global safety score
SETS = (*GLOBAL, "attack_success", *ABILITIES, "over_refusal", "degenerate")


class Results:
    """Of the lines that an experiment asks for; others in the file are of other settings, and left out."""

    def __init__(self, lines: Iterable[dict[str, Any]], experiment: Experiment):
        self.stages = {"base": "base"} | {recipe.name: recipe.stage for recipe in experiment.recipes}
        self.worlds = experiment.worlds
        self.lines = {key_of(line): line for line in lines}
        self.jobs = experiment.jobs(self.lines.values())
        self.missing = [job for job in self.jobs if job.key not in self.lines]

    def runs(self, name: str) -> list[list[dict[str, Any]]]:
        """Of each world, its orders' lines. Raises LookupError where some are not there yet, or one failed."""
        found: dict[int, list[dict[str, Any]]] = {}
        for job in self.jobs:
            if (job.stage, job.name) == (self.stages[name], name) and job.world in self.worlds:
                if "failed" in (line := self.lines.get(job.key, {"failed": "it was not run"})):
                    raise LookupError(f"{name}, world {job.world}, order {job.order}: {line['failed']}")
                found.setdefault(job.world, []).append(line)
        if not found:
            raise LookupError(f"{name}: its setting is not chosen yet")
        return [found[world] for world in sorted(found)]

    def cause(self, name: str) -> dict[str, Any]:
        """The line of a comparison of first steps. Raises LookupError where it is not there yet."""
        found = [
            self.lines[job.key]
            for job in self.jobs
            if (job.stage, job.name) == ("cause", name) and job.key in self.lines
        ]
        if not found:
            raise LookupError(f"the first steps under {name}: they were not run")
        return found[0]

    def used(self) -> list[dict[str, Any]]:
        """The lines that are asked for and there."""
        return [self.lines[job.key] for job in self.jobs if job.key in self.lines]

    def retrained(self) -> list[int]:
        """Worlds whose lines began with base models of different weights."""
        bases = {(line["world"], line["base"]) for line in self.used()}
        return sorted(world for world, times in Counter(world for world, _ in bases).items() if times > 1)

    def passed(self, name: str, key: str) -> Passed:
        """Of each world (orders, requests): for the base (1, requests)."""
        return [np.stack([unpacked(line["final"]["passed"][key]) for line in world]) for world in self.runs(name)]

    def share(self, name: str, key: str) -> Interval:
        """In per cent; of "global" and "ability" the mean over their sets."""
        sets = self.sets(key)
        return (
            stats.share(self.passed(name, key))
            if len(sets) == 1
            else stats.average([self.passed(name, k) for k in sets])
        )

    def change(self, name: str, key: str, before: str = "base") -> Interval:
        """In points, against the base or another recipe in the same orders."""
        sets = self.sets(key)
        return stats.change([self.passed(name, k) for k in sets], [self.passed(before, k) for k in sets])

    def kl(self, name: str) -> Interval:
        return stats.numbers([[line["kl"] for line in world] for world in self.runs(name)])

    def count(self, name: str, sort: str) -> tuple[int, int]:
        """(passed, all) of a sort of requests, over all worlds and orders."""
        counts = [line["final"]["counts"][sort] for world in self.runs(name) for line in world]
        return sum(passed for passed, _ in counts), sum(total for _, total in counts)

    def settings(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.runs(name)[0][0]["flags"]
        return found

    @staticmethod
    def sets(key: str) -> tuple[str, ...]:
        return {"global": GLOBAL, "ability": ABILITIES}.get(key, (key,))
