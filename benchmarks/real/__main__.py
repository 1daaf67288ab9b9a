"""Respond, pair, align, measure: each a command that is printed, so that any of it can be done by hand.

    python -m benchmarks.real --model DIR --data DIR [--questions N] [--recipes base,nca,...] [--seeds 3]

DATA holds hh-harmless/, xstest/ and gsm8k/ as published. Every run ends as one line of benchmarks/real-smollm2-*.jsonl,
which names commit, seed and settings; those that are there already are not run again.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from align import command
from align.data.rows import Row
from align.errors import UserError
from align.judges.degenerate import degenerate
from align.models import resolve_model
from benchmarks import records
from benchmarks.real.measure import measure, solutions
from benchmarks.real.prompts import write_prompts
from benchmarks.real.recipes import HARMFUL, NEUTRAL, RECIPES, REFUSALS, SYSTEM, Recipe
from benchmarks.real.table import RULES, WORDS, table

HERE = Path(__file__).resolve().parent
JUDGES = {RULES: "refusal", WORDS: "benchmarks.real.words:refuses"}


class Runner:
    """Runs commands, and keeps what each cost in CPU-minutes, of its last start, in a file."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.output
        self.costs = self.folder / "cpu-minutes.json"

    def __call__(self, what: str, *words: object) -> None:
        line = [str(word) for word in words]
        print(f"\n$ python {shlex.join(line)}", flush=True)
        before = self.spent()
        environment = {**os.environ, "XSTEST": str(self.options.data / "xstest")}
        status = subprocess.run([sys.executable, *line], cwd=records.ROOT, env=environment).returncode
        if status:
            raise UserError(
                f"python {line[0]} {line[1]} ended with status {status}; the same command goes on from there"
            )
        known = self.known()
        known.setdefault(what, round(self.spent() - before, 2))
        self.costs.write_text(json.dumps(known, indent=1))

    def known(self) -> dict[str, float]:
        return json.loads(self.costs.read_text()) if self.costs.is_file() else {}

    @staticmethod
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (used.ru_utime + used.ru_stime) / 60


def make_pairs(run: Runner) -> dict[str, Path]:
    """The model's own responses, and the files that are learnt from."""
    options, said = run.options, run.folder / "responses"

    def respond(name: str, prompts: str, sampled: tuple[int, int, float], *more: object) -> None:
        k, tokens, temperature = sampled
        flags = ["--prompts", run.folder / "prompts" / f"{prompts}.jsonl", "--k", k, "--max_new_tokens", tokens]
        flags += ["--temperature", temperature, *more, "--output", said / f"{name}.jsonl"]
        run(f"respond/{name}", "-m", "align.respond", "--model", options.model, *flags)

    respond("harmful", "harmful", HARMFUL, "--limit", options.questions)
    respond("refusals", "harmful", REFUSALS, "--limit", options.questions, "--system", SYSTEM)
    respond("neutral", "neutral", NEUTRAL)
    made = {name: said / f"{name}.jsonl" for name in ("pairs", "pairs-recover", "anchors")}
    from_refusals = ["-m", "align.pairs", said / "harmful.jsonl", "--chosen", said / "refusals.jsonl"]
    run("pairs", *from_refusals, "--output", made["pairs"])
    words = max(recipe.recover for recipe in RECIPES.values())
    run("pairs-recover", *from_refusals, "--recover", words, "--output", made["pairs-recover"])
    run("anchors", "-m", "align.pairs", said / "neutral.jsonl", "--anchors", "--cut_off", "--output", made["anchors"])
    return made


def train(run: Runner, name: str, recipe: Recipe, seed: int, made: dict[str, Path]) -> Path:
    """One training: the folder of the aligned model."""
    output = run.folder / name
    if not (output / "model" / "config.json").is_file():
        data = made["pairs-recover" if recipe.recover else "pairs"]
        flags = ["--config", HERE / recipe.config, "--model", run.options.model, "--data", data]
        flags += ["--loss", recipe.loss] if recipe.loss else ["--sources.stay.path", made["anchors"]]
        run(f"{name}/train", "train.py", *flags, "--train.seed", seed, "--output", output, "--resume")
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return output / "model"


def judged(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What each prompt of an evaluation gave, as marks 0 and 1: part, name, marks."""
    (found,) = results["records"].values()
    parts: dict[str, list[dict]] = {}
    for benchmark, responses in found.items():
        for record in responses:
            parts.setdefault(f"{benchmark}: {record['attack']}" if "attack" in record else benchmark, []).append(record)
    numbers = []
    for part, responses in parts.items():
        broken = [bool(degenerate(record["response"])) for record in responses]
        values = {
            name: [r["verdicts"][judge]["refusal"] and not b for r, b in zip(responses, broken, strict=True)]
            for name, judge in JUDGES.items()
        }
        values |= {"degenerate": broken}
        values |= {"whole": [not degenerate(r["response"], r["finish"]) for r in responses]}
        numbers += [
            {"part": part, "name": name, "marks": "".join(str(int(v)) for v in marks)} for name, marks in values.items()
        ]
    return numbers


def evaluate(run: Runner, name: str, model: Path) -> tuple[list[dict[str, Any]], list[Row]]:
    """The marks of a model, and what it wrote to neutral requests where that is text."""
    output = run.folder / f"{name}-eval"
    suite = ["--suite", HERE / "suite.toml", "--data", run.folder / "prompts"]
    run(f"{name}/eval", "eval.py", "--model", model, *suite, "--output", output)
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    (found,) = results["records"].values()
    said = [Row(r["prompt"], [r["response"]]) for r in found["neutral"] if not degenerate(r["response"], r["finish"])]
    return judged(results), said


def real(options: argparse.Namespace) -> str:
    run = Runner(options)
    asked = write_prompts(options.data, run.folder / "prompts")
    made = make_pairs(run)
    rows = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in made.items()}
    base_numbers, said = evaluate(run, "base", options.model)
    solved = solutions(options.data / "gsm8k" / "test.jsonl")
    lines = [json.loads(text) for text in options.record.read_text().splitlines()] if options.record.is_file() else []
    done = {(line["settings"]["recipe"], line["settings"]["seed"]) for line in lines}
    # a seed of every recipe before the next seed
    for seed in range(options.seeds):
        for recipe in options.recipes:
            if (recipe, 0 if recipe == "base" else seed) in done:
                continue
            name = recipe if recipe == "base" else f"{recipe}-{seed}"
            if recipe == "base":
                model, numbers = options.model, base_numbers
            else:
                model = train(run, name, RECIPES[recipe], seed, made)
                numbers, _ = evaluate(run, name, model)
            before = os.times().user
            numbers = numbers + measure(model, options.model, said, solved)
            shared = "respond/" if recipe == "base" else f"{name}/"
            cost = {w: minutes for w, minutes in run.known().items() if w.startswith((shared, f"{name}/"))}
            settings = {"recipe": recipe, "seed": seed, "rows": rows}
            settings |= vars(RECIPES[recipe]) if recipe != "base" else {}
            settings |= {"questions": options.questions, "prompts": asked}
            settings |= {"harmful": HARMFUL, "refusals": REFUSALS, "neutral": NEUTRAL}
            settings |= {"cpu_minutes": cost | {"measure": round((os.times().user - before) / 60, 2)}}
            machine = {"cpu": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
            line = records.begin("real-smollm2", machine, settings) | {"numbers": numbers}
            done.add((recipe, settings["seed"]))
            with options.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    return f"{table(options.record)}\n\n{options.record}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real", description="SmolLM2 made safe, before and after."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="SmolLM2-135M-Instruct, or another small chat model")
    add("--data", required=True, type=Path, metavar="DIR", help="holds hh-harmless/, xstest/ and gsm8k/")
    add("--questions", type=int, default=120, metavar="N", help="the first N harmful questions are asked; 0: all")
    add("--recipes", default=",".join(["base", *RECIPES]), metavar="NAME,...", help=f"of base, {', '.join(RECIPES)}")
    add("--seeds", type=int, default=3, metavar="N", help="of each recipe")
    add(
        "--output", type=Path, default=Path("runs/real"), metavar="DIR", help="all that lies between; default runs/real"
    )
    add("--record", type=Path, metavar="FILE", help="default benchmarks/real-smollm2-cpu.jsonl, or -MACHINE")

    def work() -> None:
        options = parser.parse_args(argv)
        options.recipes = options.recipes.split(",")
        if unknown := [name for name in options.recipes if name not in ("base", *RECIPES)]:
            raise UserError(f"--recipes {unknown[0]}: there are base, {', '.join(RECIPES)}")
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        slug = "-".join(card.lower().split())
        options.record = options.record or records.FOLDER / f"real-smollm2-{slug}.jsonl"
        options.model = resolve_model(options.model).resolve()
        options.data, options.output = options.data.resolve(), options.output.resolve()
        print(f"\n{real(options)}", flush=True)

    return command.attempt(work)


if __name__ == "__main__":
    command.run(main)
