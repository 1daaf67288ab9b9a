"""Rounds on the toy world: a model responds, its own responses become pairs, it learns from them, and again.

    python -m benchmarks.rounds [--output DIR]        # two rounds; stopped at any moment, it goes on

Each line that begins with $ is a command that does the same by hand.
"""

import argparse
import sys
from pathlib import Path

import train
from align import pairs, respond
from align.command import attempt
from align.config import load_config
from align.parallel import distributed
from align.tiny.evaluate import SCORES, evaluate
from align.tiny.paths import resolve_path, toy_world_folder

ROUNDS = 2
PROMPTS, SAMPLES = 800, 4
SHOWN = ("safety/plain", "safety/adversarial", "helpfulness", "maths", "degenerate")


def rounds(output: Path) -> str:
    """The table of all models, the base first."""
    with distributed() as world:
        model = resolve_path("tiny:base", world, train.train)
        prompts = resolve_path("tiny:pairs", world, train.train)
        rows = [("the base model", evaluate(model, toy_world_folder()))]
        for number in range(1, ROUNDS + 1):
            said, made = output / f"responses-{number}.jsonl", output / f"pairs-{number}.jsonl"
            asking = ["--model", model, "--prompts", prompts, "--limit", PROMPTS, "--k", SAMPLES, "--judge", "rules"]
            asking += ["--seed", number, "--max_new_tokens", 40, "--output", said]
            print(respond.respond(respond.read_flags(shown("-m align.respond", asking)), world))
            print(pairs.make(pairs.read_flags(shown("-m align.pairs", [said, "--output", made]))))
            flags = ["--config", "tiny", "--model", model, "--data", made, "--output", output / f"round-{number}"]
            flags += ["--loss", "nca", "--train.batch_size", 16, "--train.steps", 12]
            config = load_config(shown("train.py", flags))
            config.resume = True
            folder = train.train(config, world)
            model = str(folder)
            rows.append((f"after round {number}", evaluate(model, toy_world_folder())))
    width = max(len(name) for name, _ in rows)
    lines = [f"{'% of responses':{width}}" + "".join(f"{SCORES[key].partition(',')[0]:>22}" for key in SHOWN)]
    lines += [f"{name:{width}}" + "".join(f"{scores[key]:>22.1f}" for key in SHOWN) for name, scores in rows]
    return "\n".join(lines)


def shown(command: str, words: list) -> list[str]:
    """The words of a command, which is printed."""
    print(f"\n$ python {command} {' '.join(map(str, words))}", flush=True)
    return [str(word) for word in words]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("runs") / "rounds", metavar="DIR", help="default runs/rounds"
    )
    args = parser.parse_args(argv)
    return attempt(lambda: print(f"\n{rounds(args.output)}", flush=True))


if __name__ == "__main__":
    sys.exit(main())
