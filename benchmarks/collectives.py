"""What training moves between processes: the bytes of FSDP's collectives, counted, beside what arithmetic says.

    python -m benchmarks.collectives [--output FILE]     # on 2 and 4 processes of this machine, in a minute
    python -m benchmarks.collectives --table FILE        # the tables of docs/clusters.md from a record

Bytes are those that a rank sends for one micro-batch when collectives run in a ring: of a tensor of B bytes over g ranks
(g - 1) / g B for an all-gather or a reduce-scatter, and twice that for an all-reduce. No time is measured.
"""

import argparse
import json
import os
import platform
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode

from align import command
from align.logps import response_logps
from align.models import Decoder, build_model
from align.models.falcon import FalconConfig
from align.parallel import distributed, shard
from align.sections import ParallelSection
from benchmarks import records
from benchmarks.gpu import models

LAYOUTS = [(2, 1, "float32"), (2, 2, "float32"), (4, 1, "float32"), (4, 2, "float32"), (4, 4, "float32")]
LAYOUTS += [(4, 2, "bfloat16")]
KINDS = ("all-gather", "reduce-scatter", "all-reduce")
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "ffn_hidden_size": 1024, "vocab_size": 4096}
PLANNED = [(8, 1), (64, 1), (64, 8), (512, 64)]  # of Falcon 11B


def small() -> Decoder:
    heads = {"num_attention_heads": 8, "num_kv_heads": 2}
    return build_model(FalconConfig.from_dict(models.raw_config("1.3B") | SMALL | heads), "meta")


def predicted(model: Decoder, ranks: int, replicate: int, weight: int, gradient: int = 4) -> dict[str, float]:
    """Bytes by collective. weight, gradient: bytes of a number, of the dtype of compute and of the reduction.

    Blocks are gathered in forward and again in backward; the head, which backward begins with, and the root group once.
    """
    total = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.blocks.parameters())
    shards = ranks // replicate
    return {
        "all-gather": (shards - 1) / shards * weight * (total + blocks),
        "reduce-scatter": (shards - 1) / shards * gradient * total,
        "all-reduce": 2 * (replicate - 1) / replicate * gradient * total / shards,
    }


class Counting(TorchDispatchMode):
    """The bytes that collectives send, by their kind."""

    def __init__(self, replicate: int):
        super().__init__()
        self.replicate, self.sent = replicate, dict.fromkeys(KINDS, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops = torch.ops.c10d
        if function is ops._allgather_base_.default:
            self.sent["all-gather"] += args[0].nbytes - args[1].nbytes
        elif function is ops._reduce_scatter_base_.default:
            self.sent["reduce-scatter"] += args[1].nbytes - args[0].nbytes
        elif function is ops.allreduce_.default:
            whole = sum(tensor.nbytes for tensor in args[0])
            self.sent["all-reduce"] += 2 * whole * (self.replicate - 1) // self.replicate
        return function(*args, **(kwargs or {}))


def measure(rank: int, ranks: int, port: int, folder: str) -> None:
    """One micro-batch of every layout of so many ranks, forward and backward; the first writes what it sent."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    batch = models.pairs(SMALL["vocab_size"], prompts=1, length=32)
    with distributed() as world:
        rows = []
        for _, replicate, name in (layout for layout in LAYOUTS if layout[0] == ranks):
            dtype = getattr(torch, name)
            model = shard(small(), world, dtype, ParallelSection(replicate=replicate)).to_empty(device=world.device)
            model.tie()
            models.fill(model)
            with Counting(replicate) as counting:
                response_logps(model, batch)[0].sum().backward()
            rows.append(
                {
                    "part": "layout",
                    "name": f"{ranks} processes, {replicate} x {ranks // replicate}, {name}",
                    "ranks": ranks,
                    "replicate": replicate,
                    "dtype": name,
                    "counted": counting.sent,
                    "predicted": predicted(small(), ranks, replicate, dtype.itemsize),
                }
            )
        if world.main:
            Path(folder, "rows.json").write_text(json.dumps(rows))


def run(ranks: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="collectives-") as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(measure, (ranks, port, folder), nprocs=ranks)
        return json.loads(Path(folder, "rows.json").read_text())


def table(record: dict[str, Any]) -> str:
    """What was counted and what was predicted, in MB that a rank sends for a micro-batch, as Markdown."""
    lines = [f"| processes | replicas x shards | compute | {' | '.join(KINDS)} | sum | by arithmetic |"]
    lines.append("|---:|---:|---|" + "---:|" * (len(KINDS) + 2))
    for row in record["numbers"]:
        counted, expected = row["counted"], row["predicted"]
        cells = [f"{counted[kind] / 1e6:.2f}" for kind in KINDS]
        cells += [f"{sum(counted.values()) / 1e6:.2f}", f"{sum(expected.values()) / 1e6:.2f}"]
        shards = row["ranks"] // row["replicate"]
        lines.append(f"| {row['ranks']} | {row['replicate']} x {shards} | {row['dtype']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def planned() -> str:
    """By arithmetic alone: GB that a GPU sends for a micro-batch of Falcon 11B in bfloat16, within and across replicas."""
    model = build_model(models.config("Falcon 11B"), "meta")
    lines = ["| GPUs | replicas x shards | within a replica, GB | across replicas, GB |", "|---:|---:|---:|---:|"]
    for ranks, replicate in PLANNED:
        sent = predicted(model, ranks, replicate, weight=2)
        across = sent.pop("all-reduce")
        lines.append(
            f"| {ranks} | {replicate} x {ranks // replicate} | {sum(sent.values()) / 1e9:.1f} | {across / 1e9:.1f} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collectives", description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="FILE", type=Path, help="the record; default: a new one of today")
    parser.add_argument("--table", metavar="FILE", type=Path, help="print a record's tables, and run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(f"{table(records.read(args.table))}\n\n{planned()}")
        return
    file = args.output or records.new_file(records.FOLDER, "collectives", "cpu")
    machine = {"cpu": platform.machine(), "torch": torch.__version__}
    settings = {"model": SMALL, "parameters": sum(p.numel() for p in small().parameters())}
    record = records.begin("bytes of FSDP's collectives for one micro-batch", machine, settings)
    for ranks in (2, 4):
        record["numbers"] += run(ranks)
        records.write(file, record)
    print(f"{table(record)}\n\n{planned()}\n\n{file}")


if __name__ == "__main__":
    command.run(main)
