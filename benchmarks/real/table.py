"""The table of a result file: each model's numbers with 95 % intervals, computed from what each prompt gave.

    python -m benchmarks.real.table benchmarks/real-smollm2-cpu.jsonl

A recipe's interval is a bootstrap over its seeds and, within, over the prompts, which all seeds share (Field and Welsh
2007, JRSS B 69:369, the two-way case). With one seed it is of the prompts alone. A percentage's is no narrower than
Wilson's for that many prompts: what occurred in none of 200 is not for that reason impossible.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from align import command
from align.evals.scoring.stats import LEVELS, agreement, wilson
from benchmarks.real.prompts import KINDS

DRAWS = 4000
PERPLEXITY = "GSM8K solutions, perplexity"
RULES, WORDS = "refused", "refused by words"
ATTACKED = [f"attacks: {kind}" for kind in KINDS]
Values = tuple[np.ndarray, np.ndarray]  # what each prompt gave, and what it weighs: (n,) each


def rows() -> dict[str, Callable[[dict], Values]]:
    """What the table says, by its title: a line's values and weights."""
    found = {"unsafe, refused, %": marks(["unsafe"], RULES)}
    found |= {f"- {kind}, %": marks([part], RULES) for kind, part in zip(KINDS, ATTACKED, strict=True)}
    found |= {
        "unsafe under attack, refused, %": marks(ATTACKED, RULES),
        "- by the second judge, %": marks(ATTACKED, WORDS),
        "unsafe and attacks, degenerate, %": marks(["unsafe", *ATTACKED], "degenerate"),
        "safe, refused, %": marks(["safe"], RULES),
        "- by the second, %": marks(["safe"], WORDS),
        "neutral, refused, %": marks(["neutral"], RULES),
        "neutral, complete and text, %": marks(["neutral"], "whole"),
        "neutral, KL to the base, nats a token": weighted("neutral", "kl"),
        PERPLEXITY: weighted("gsm8k", "nll"),
    }
    return found


def entry(line: dict, part: str, name: str) -> dict[str, Any]:
    return next(one for one in line["numbers"] if (one["part"], one["name"]) == (part, name))


def marks(parts: list[str], name: str) -> Callable[[dict], Values]:
    def read(line: dict) -> Values:
        found = np.array([100 * int(mark) for part in parts for mark in entry(line, part, name)["marks"]], dtype=float)
        return found, np.ones(len(found))

    return read


def weighted(part: str, name: str) -> Callable[[dict], Values]:
    def read(line: dict) -> Values:
        found = entry(line, part, name)
        return np.array(found["values"]), np.array(found["tokens"], dtype=float)

    return read


def interval(seeds: list[Values]) -> tuple[float, float, float]:
    """The mean over seeds of each one's weighted mean, and its interval."""
    values, weights = (np.stack(column) for column in zip(*seeds, strict=True))  # (S, n) each
    rng = np.random.default_rng(0)
    S, n = values.shape
    seeds_drawn = rng.multinomial(S, np.full(S, 1 / S), size=DRAWS)  # (DRAWS, S), how often each is drawn
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)  # (DRAWS, n)
    means = ((drawn @ values.T) / (drawn @ weights.T) * seeds_drawn).sum(axis=1) / S
    low, high = np.quantile(means, LEVELS)
    return float(np.mean(values.sum(axis=1) / weights.sum(axis=1))), float(low), float(high)


def read_lines(file: Path) -> dict[str, list[dict]]:
    """Lines by their recipe, in the file's order."""
    found: dict[str, list[dict]] = {}
    for text in file.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        found.setdefault(line["settings"]["recipe"], []).append(line)
    return found


def agree(lines: list[dict]) -> str:
    """How often the two judges agree on all refusals of a recipe, with Cohen's kappa."""
    both: list[tuple[str, str]] = []
    for line in lines:
        for part in ("unsafe", *ATTACKED, "safe"):
            both += zip(entry(line, part, RULES)["marks"], entry(line, part, WORDS)["marks"], strict=True)
    found = agreement([a for a, _ in both], [b for _, b in both])
    kappa = "–" if found["kappa"] is None else f"{found['kappa']:.2f}"
    return f"{100 * cast(float, found['agree']):.1f} ({kappa})"


def table(file: Path) -> str:
    found = read_lines(file)
    heads = [
        f"{name}, {len(lines)} seed{'s' * (len(lines) > 1)}" if name != "base" else name
        for name, lines in found.items()
    ]
    out = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(found)]
    for title, read in rows().items():
        cells = []
        percent = title.endswith("%")
        for lines in found.values():
            seeds = [read(line) for line in lines]
            value, low, high = interval(seeds)
            if percent:
                least, most = wilson(value / 100 * len(seeds[0][0]), len(seeds[0][0]))
                low, high = min(low, 100 * least), max(high, 100 * most)
            if title == PERPLEXITY:
                value, low, high = np.exp((value, low, high))
            places = 1 if percent else 3
            cells.append(f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]")
        out.append(f"| {title} | {' | '.join(cells)} |")
    out.append(f"| judges agree, % (kappa) | {' | '.join(map(agree, found.values()))} |")
    minutes = [np.mean([sum(line["settings"]["cpu_minutes"].values()) for line in lines]) for lines in found.values()]
    out.append(f"| CPU-minutes a run | {' | '.join(f'{m:.0f}' for m in minutes)} |")
    return "\n".join(out)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real.table", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="what python -m benchmarks.real wrote")
    print(table(parser.parse_args(argv).file))


if __name__ == "__main__":
    command.run(main)
