"""What --plan says a run will hold, and what the run then held: peak resident memory above the interpreter's own.

    python -m benchmarks.plan_memory [--output FILE] [CASE ...]     # a minute a case on two cores

Each case is a random model of 60 to 130 million parameters with Falcon's vocabulary, in a folder of its own, that train.py
plans for and then trains for two steps. The interpreter's own memory is that of the same command with a tiny model.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from align import command
from align.kernels import hardware
from align.models import FalconConfig, LlamaConfig, build_model, init_weights, save_model
from benchmarks import records

TOKENIZER = records.ROOT / "tests" / "golden" / "falcon2_11b_text"  # a tiny model's folder
FALCON: dict[str, Any] = {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "vocab_size": 65024}
LLAMA: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 65024}
GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
STEPS = 2  # from the second on the optimizer's moments are there, and the peak stays
MODELS: dict[str, dict[str, Any]] = {
    "falcon 11B in small": {
        **FALCON, **GROUPED, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
        "tie_word_embeddings": False,
    },
    "falcon 7B in small": {
        **FALCON, "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "multi_query": True,
    },
    "falcon3 in small": {
        **LLAMA, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip
CASES: dict[str, tuple[str, list[str]]] = {
    "full": ("falcon 11B in small", ["--train.batch_size", "8"]),
    "accumulating, live reference": (
        "falcon 7B in small",
        ["--reference.mode", "live", "--train.batch_size", "8", "--train.micro_batch_tokens", "2048"],
    ),
    "checkpointing": ("falcon3 in small", ["--parallel.checkpointing", "full", "--train.batch_size", "6"]),
    "adapters": ("falcon 11B in small", ["--lora.rank", "16", "--train.batch_size", "8"]),
}


def write_model(folder: Path, raw: dict[str, Any]) -> None:
    kind = LlamaConfig if raw["model_type"] == "llama" else FalconConfig
    model = build_model(kind.from_dict(raw))
    init_weights(model, 0)
    save_model(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def write_pairs(file: Path, rows: int) -> None:
    """Prompts and responses of 60 to 130 tokens."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(
            draw.choice(["hide", "hat", "number", "stones", "under", "really", "large", "sorry", "help"])
            for _ in range(40)
        )

    pairs = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(rows)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def train(*flags: str) -> str:
    command = [sys.executable, "train.py", "--loss", "dpo", "--train.steps", str(STEPS), *flags]
    # glibc otherwise keeps freed tensors of up to 32 MiB in its heap, whose gaps are no part of what a run needs
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def peak_mib(scratch: Path, model: Path, flags: list[str]) -> float:
    """The most that a run held, after its last step."""
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        train("--model", str(model), *flags, "--output", output)
        return json.loads((Path(output) / "metrics.jsonl").read_text().splitlines()[-1])["peak_memory_mib"]


def measure(name: str, own: float, scratch: Path) -> dict[str, Any]:
    """One case planned for and run. own: MiB of the interpreter."""
    model, more = CASES[name]
    folder = scratch / name
    write_model(folder, MODELS[model])
    flags = ["--data", str(scratch / "pairs.jsonl"), "--reference.cache", str(scratch / "cache"), *more]
    said = train("--model", str(folder), *flags, "--output", str(scratch / "plan"), "--plan")
    found = re.search(r"^memory: ([\d.]+) GiB a rank at its fullest: (.*)$", said, re.MULTILINE)
    assert found, said
    held, planned = peak_mib(scratch, folder, flags) - own, float(found[1]) * 1024
    return {
        "part": "memory", "name": name, "model": model, "flags": " ".join(more), "planned_mib": round(planned),
        "held_mib": round(held), "error_percent": round(100 * (planned / held - 1), 1), "kinds_gib": found[2],
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| run | planned, MiB | held, MiB | off by |", "|---|---:|---:|---:|"]
    for row in record["numbers"]:
        name = f"{row['name']}: {row['model']}, `{row['flags']}`"
        lines.append(f"| {name} | {row['planned_mib']:,} | {row['held_mib']:,} | {row['error_percent']:+.1f} % |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_memory", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"these alone, of: {'; '.join(CASES)}")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the record; default: a new one of today")
    args = parser.parse_args(argv)
    file = args.output or records.new_file(records.FOLDER, "plan-memory", "cpu")
    machine = {"cpu": hardware("cpu"), "threads": torch.get_num_threads(), "torch": torch.__version__}
    record = records.begin("what --plan says and what the run held", machine, {"steps": STEPS})
    with tempfile.TemporaryDirectory(prefix="plan-memory-") as folder:
        scratch = Path(folder)
        write_pairs(scratch / "pairs.jsonl", 64)
        own = peak_mib(scratch, TOKENIZER, ["--data", str(scratch / "pairs.jsonl"), "--train.batch_size", "2"])
        record["settings"]["interpreter_mib"] = round(own)
        for name in args.cases or CASES:
            record["numbers"].append(measure(name, own, scratch))
            records.write(file, record)
            print(f"{name}: {record['numbers'][-1]}", flush=True)
    print(f"\n{table(record)}\n\n{file}")


if __name__ == "__main__":
    command.run(main)
