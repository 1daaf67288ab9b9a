"""The table of docs/scaling.md: each configuration of a published model on one, eight and sixty-four GPUs of 80 GB.

python -m align.plan
"""

import torch

from align import command
from align.config import CONFIGS, load_config
from align.parallel import World
from align.plan.outlook import GIB, Outlook, look

GPUS = (1, 8, 64)


def outlook(stem: str, gpus: int) -> Outlook:
    config = load_config(["--config", stem, "--plan.gpus", str(gpus)])
    return look(config, World(0, 1, torch.device("cpu")))


def cell(outlook: Outlook) -> str:
    """GiB of a rank; where it fits, the most tokens a micro-batch may have, and seconds a step."""
    gib = f"{outlook.held.total / GIB:.0f} GiB"
    if not outlook.fits:
        return f"{gib}: too much"
    assert outlook.seconds is not None
    return f"{gib}, {outlook.largest:,} tokens, {outlook.seconds:.2g} s"


def table() -> str:
    """Markdown, in the order of sizes."""
    columns = " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)
    lines = [f"| configuration | parameters | trained | {columns} |", "|---|---:|---:|" + "---|" * len(GPUS)]
    rows = {file.stem: [outlook(file.stem, gpus) for gpus in GPUS] for file in CONFIGS.glob("falcon*.toml")}
    for stem, looks in sorted(rows.items(), key=lambda row: (row[1][0].setup.frozen > 0, row[1][0].setup.base)):
        setup = looks[0].setup
        counts = f"{setup.base / 1e9:.1f} B | {setup.trained / 1e9:.{3 if setup.frozen else 1}f} B"
        lines.append(f"| `{stem}` | {counts} | {' | '.join(map(cell, looks))} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    print(table())
    return 0


if __name__ == "__main__":
    command.run(main)
