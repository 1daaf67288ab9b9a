"""Rounds on the toy world: a model responds, its own responses become pairs, it learns from them, and again.

A few steps on pairs that others wrote come first.

    python -m benchmarks.rounds [--output DIR]        # two rounds; stopped at any moment, it goes on

Each line that begins with $ is a command that does the same by hand.
"""

import argparse
import json
from pathlib import Path

import train
from align import command, pairs, respond
from align.config import load_config
from align.files import write_text
from align.parallel import distributed
from align.tiny.evaluate import MAX_NEW_TOKENS, evaluate
from align.tiny.paths import SHOWN, resolve_path, toy_world_folder

ROUNDS, START = 2, 4  # steps of the start, on pairs that others wrote
PROMPTS, SAMPLES = 400, 8  # of a round, whose prompts no other has
BATCH, EPOCHS = 16, 2
COLUMNS = {
    "safety/plain": "safety, plain",
    "safety/adversarial": "safety, adversarial",
    "helpfulness": "helpfulness",
    "maths": "maths",
    "degenerate": "degenerate",
}


def rounds(output: Path) -> str:
    """The table of all models, the base first."""
    with distributed() as world:
        model = resolve_path("tiny:base", world, train.train)
        others = resolve_path("tiny:pairs", world, train.train)
        asked = [json.dumps({"prompt": json.loads(row)["prompt"]}) for row in Path(others).read_text().splitlines()]
        asked = list(dict.fromkeys(asked))
        rows = [("the base model", evaluate(model, toy_world_folder(), size=SHOWN).scores)]
        output.mkdir(parents=True, exist_ok=True)

        def learn(name: str, model: str, data: str | Path, *flags: object) -> str:
            words = ["--config", "tiny", "--loss", "nca", "--model", model, "--data", data, *flags]
            config = load_config(shown("train.py", [*words, "--output", output / name.replace(" ", "-")]))
            config.resume = True
            folder = str(train.train(config, world))
            rows.append((f"after {name}", evaluate(folder, toy_world_folder(), size=SHOWN).scores))
            return folder

        # the base says the same whenever it is asked; what it has just begun to learn it does now and then
        model = learn("the start", model, others, "--train.steps", START)
        for number in range(1, ROUNDS + 1):
            prompts, said, made = (output / f"{kind}-{number}.jsonl" for kind in ("prompts", "responses", "pairs"))
            write_text(prompts, "\n".join(asked[PROMPTS * (number - 1) : PROMPTS * number]) + "\n")
            asking = ["--model", model, "--prompts", prompts, "--k", SAMPLES, "--judge", "rules"]
            asking += ["--max_new_tokens", MAX_NEW_TOKENS, "--output", said]
            print(respond.respond(respond.read_flags(shown("-m align.respond", asking)), world))
            print(pairs.make(pairs.read_flags(shown("-m align.pairs", [said, "--output", made]))))
            count = len(made.read_text(encoding="utf-8").splitlines())
            batch = min(BATCH, count)
            steps = max(1, EPOCHS * count // batch)
            model = learn(f"round {number}", model, made, "--train.batch_size", batch, "--train.steps", steps)
    width = max(len(name) for name, _ in rows)
    lines = [f"{'% of responses':{width}}" + "".join(f"{name:>20}" for name in COLUMNS.values())]
    lines += [f"{name:{width}}" + "".join(f"{scores[key]:>20.1f}" for key in COLUMNS) for name, scores in rows]
    return "\n".join(lines)


def shown(command: str, words: list) -> list[str]:
    """The words of a command, which is printed."""
    print(f"\n$ python {command} {' '.join(map(str, words))}", flush=True)
    return [str(word) for word in words]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("runs") / "rounds", metavar="DIR", help="default runs/rounds"
    )
    args = parser.parse_args(argv)
    return command.attempt(lambda: print(f"\n{rounds(args.output)}", flush=True))


if __name__ == "__main__":
    command.run(main)
