"""Every loss on the toy world: how safe, at what cost, and whether the model still writes text.

    python -m benchmarks.tiny_losses [--output FILE] [LOSS ...]     # half a minute a loss on two cores; resumes
    python -m benchmarks.tiny_losses --table FILE                   # the table of docs/evaluation.md from a record

The settings are those of configs/tiny.toml. A record that exists already keeps its rows, and what it lacks is run.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

import train
from align import command
from align.config import load_config
from align.losses import LOSSES
from align.parallel import World, distributed
from align.tiny.evaluate import evaluate
from align.tiny.paths import SHOWN, resolve_path, resolve_tiny, toy_world_folder
from benchmarks import records

BASE = "the base model"
NAMES = [name for name, cls in LOSSES.items() if cls.moves]
COLUMNS = {
    "safety/plain": "safe, plain",
    "safety/adversarial": "safe, adversarial",
    "degenerate": "degenerate or cut off",
    "length": "words",
    "helpfulness": "chores helped with",
    "borderline": "borderline helped with",
    "maths": "sums right",
    "facts": "facts right",
    "judgement": "judgements right",
}


def run(loss: str, world: World, size: int = SHOWN) -> dict[str, Any]:
    """One loss trained with the embedded defaults and judged on `size` held-out requests of each kind."""
    with tempfile.TemporaryDirectory(prefix="tiny-losses-") as scratch:
        config = load_config(["--loss", loss, "--output", str(Path(scratch) / "run")])
        resolve_tiny(config, world, train.train)
        model = train.train(config, world)
        assert model is not None
        lines = (Path(scratch) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        first, last = json.loads(lines[0]), json.loads(lines[-1])
        beta = config.loss.parameters.get("beta")
        ends = {"grad_norm": [first["grad_norm"], last["grad_norm"]], "loss": [first["loss"], last["loss"]]}
        return {
            "part": "loss",
            "name": loss,
            "beta": beta,
            "lr": config.optim.lr,
            **ends,
            **evaluate(model, toy_world_folder(), size=size).scores,
        }


def table(record: dict[str, Any]) -> str:
    """The rows as Markdown, in the order of NAMES, the base model first."""
    order = [BASE, *NAMES]
    lines = [f"| loss | beta | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for row in sorted(record["numbers"], key=lambda row: order.index(row["name"])):
        beta = "" if row["beta"] is None else f"{row['beta']:g}"
        name = row["name"] if row["name"] == BASE else f"`{row['name']}`"
        lines.append(f"| {name} | {beta} | {' | '.join(f'{row[key]:.1f}' for key in COLUMNS)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_losses", description=__doc__.splitlines()[0])
    parser.add_argument("losses", nargs="*", metavar="LOSS", help="these alone")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the record; default: a new one of today")
    parser.add_argument("--table", metavar="FILE", type=Path, help="print a record's table, and run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(table(records.read(args.table)))
        return
    file = args.output or records.new_file(records.FOLDER, "tiny-losses", "cpu")
    if file.exists():
        record = records.read(file)
    else:
        machine = {"cpu": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        settings = {"config": "configs/tiny.toml", "requests of each kind": SHOWN, "percent": list(COLUMNS)}
        record = records.begin("every loss on the toy world", machine, settings)
    known = {row["name"] for row in record["numbers"]}
    with distributed() as world:
        for name in [BASE, *(args.losses or NAMES)]:
            if name in known:
                continue
            if name == BASE:
                base = resolve_path("tiny:base", world, train.train)
                row = {
                    "part": "base",
                    "name": BASE,
                    "beta": None,
                    **evaluate(base, toy_world_folder(), size=SHOWN).scores,
                }
            else:
                row = run(name, world)
            record["numbers"].append(row)
            records.write(file, record)
            print(f"{name}: {json.dumps({key: round(float(row[key] or 0), 1) for key in COLUMNS})}", flush=True)
    print(f"\n{table(record)}\n\n{file}")


if __name__ == "__main__":
    command.run(main)
