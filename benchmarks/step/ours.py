"""One run of train.py in this process: `python -m benchmarks.step.ours RESULT.json --FLAG VALUE ...`."""

import json
from pathlib import Path

import train
from align import command


def resident_mib() -> float:
    """What this process holds now."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmRSS:")[2].split()[0]) / 2**10


def main(argv: list[str]) -> int:
    result, *flags = argv
    baseline = resident_mib()
    status = train.main(flags)
    if status == 0:
        lines = (Path(flags[flags.index("--output") + 1]) / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        numbers = {key: [row[key] for row in metrics] for key in ("seconds", "loss", "logps/chosen")}
        Path(result).write_text(
            json.dumps({"baseline_mib": baseline, "peak_mib": metrics[-1]["peak_memory_mib"], **numbers})
        )
    return status


if __name__ == "__main__":
    command.run(main)
