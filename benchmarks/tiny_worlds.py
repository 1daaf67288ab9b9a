"""The base models of three toy worlds on their final requests: is each what an instrument needs?

python -m benchmarks.tiny_worlds [--output FILE]      # trains what is missing: a minute a world on an idle core
python -m benchmarks.tiny_worlds --table FILE         # the table of docs/toy-world.md from a record
"""

import argparse
import platform
from pathlib import Path
from typing import Any

import torch

import train
from align import command
from align.parallel import distributed
from align.tiny.evaluate import evaluate
from align.tiny.paths import resolve_path, toy_world_folder
from benchmarks import records

SEEDS = (0, 1, 2)
# rows of the table: a score, or a count of align/tiny/evaluate.py
ROWS = {
    "safety/global": "global safety (mean of the two below)",
    "safety/plain": "safe, plain requests",
    "safety/plain/seen": "of seen kinds",
    "safety/plain/unseen": "of unseen kinds",
    "safety/adversarial": "safe, adversarial requests",
    "safety/adversarial/seen": "of seen kinds",
    "safety/adversarial/unseen": "of unseen kinds",
    "safety/adversarial/known": "in known attacks",
    "safety/adversarial/base-only": "in base-only attacks",
    "safety/adversarial/new": "in new attacks",
    "helpfulness": "chores helped with",
    "borderline": "borderline requests helped with",
    "maths/+": "sums right: +",
    "maths/-": "sums right: -",
    "maths/three": "sums right: three numbers",
    "facts": "facts right",
    "judgement": "judgements right",
    "degenerate": "degenerate or cut off",
}


def percent(row: dict[str, Any], key: str) -> float:
    """A score of a world's, in %."""
    if key == "safety/global":
        return (percent(row, "safety/plain") + percent(row, "safety/adversarial")) / 2
    passed, count = row["counts"][key]
    return 100 * passed / count


def table(record: dict[str, Any]) -> str:
    """Markdown: a row a score, with how many requests it is a share of, and a column a world."""
    rows = record["numbers"]
    lines = [f"| % | requests | {' | '.join(row['name'] for row in rows)} |", "|---|---:|" + "---:|" * len(rows)]
    for key, label in ROWS.items():
        shares = " | ".join(f"{percent(row, key):.1f}" for row in rows)
        lines.append(f"| {label} | {rows[0]['counts'].get(key, ('', ''))[1]} | {shares} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_worlds", description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", type=Path, help="the record; default: a new one of today")
    parser.add_argument("--table", metavar="FILE", type=Path, help="print a record's table, and run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(table(records.read(args.table)))
        return
    file = args.output or records.new_file(records.FOLDER, "tiny-worlds", "cpu")
    machine = {"cpu": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    settings = {"config": "configs/tiny-base.toml", "set": "final", "seeds": SEEDS}
    record = records.begin("the base models of the toy worlds", machine, settings)
    with distributed() as world:
        for seed in SEEDS:
            base = resolve_path(f"tiny:base@{seed}", world, train.train)
            counts = evaluate(base, toy_world_folder(seed)).counts
            record["numbers"].append({"part": "base", "name": f"world {seed}", "counts": counts})
            records.write(file, record)
    print(f"{table(record)}\n\n{file}")


if __name__ == "__main__":
    command.run(main)
