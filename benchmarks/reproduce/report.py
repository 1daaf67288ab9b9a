"""docs/results.md: its text is results.md.jinja, and every table and number in it is computed from the result lines."""

import functools
import re
import textwrap
from pathlib import Path
from typing import Any

import jinja2

from align.config import load_config
from align.sections import TrainSection
from align.tiny.evaluate import ABILITIES
from benchmarks.records import ROOT
from benchmarks.reproduce import cause, tables
from benchmarks.reproduce.choose import SAFE_ENOUGH
from benchmarks.reproduce.claims import claims
from benchmarks.reproduce.cures import ADAPTED, WHOLE
from benchmarks.reproduce.experiment import CHOICE_WORLD, PAPER, STAGES, STEPS, Experiment
from benchmarks.reproduce.results import Results

TEXT = Path(__file__).with_name("results.md.jinja")


def report(lines: list[dict[str, Any]], experiment: Experiment, file: Path) -> str:
    """The text with the numbers of the lines. Raises LookupError where some that it needs are not there yet."""
    results = Results(lines, experiment)
    names = {stage: [one.name for one in experiment.recipes if one.stage == stage] for stage in STAGES}
    used = results.used()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    text = environment.from_string(TEXT.read_text(encoding="utf-8")).render(
        choice_world=CHOICE_WORLD,
        safe_enough=SAFE_ENOUGH,
        abilities=[tables.ABILITY[name] for name in ABILITIES],
        worlds=experiment.worlds,
        orders=experiment.orders,
        near=[name for name in (WHOLE, ADAPTED) if name in results.stages],
        runs=len(used),
        hours=sum(line["cpu_s"] for line in used) / 3600,
        machine=" and ".join(sorted({line["machine"] for line in used})),
        retrained=results.retrained(),
        names=names,
        ten=[name for name in PAPER if name in names["method"]],
        steps=STEPS,
        batch=TrainSection().batch_size,
        beta=load_config(["--model=tiny:base", "--data=tiny:pairs", "--loss=nca"]).loss.parameters["beta"],
        claims=claims(results) if set(PAPER) <= {*names["method"]} else [],
        cause_steps=cause.STEPS,
        compared=experiment.compared,
        causes=experiment.causes,
        whole=WHOLE,
        goal=tables.GOAL,
        point=tables.POINT,
        tables=tables,
        results=results,
        file=file.relative_to(ROOT) if file.is_relative_to(ROOT) else file,
    )
    return "\n\n".join(map(wrapped, text.rstrip().split("\n\n"))) + "\n"


def wrapped(block: str) -> str:
    """A paragraph or a list whose numbers made its lines longer or shorter; what is neither stays as it is."""
    if block.startswith(("|", "#", "!")):
        return block
    items = re.split(r"\n(?=- )", block)
    fill = functools.partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    return "\n".join(fill(" ".join(item.split()), subsequent_indent="  " * item.startswith("- ")) for item in items)
