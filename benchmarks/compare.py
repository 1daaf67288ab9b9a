"""Two records side by side, and what moved by more than 5 %: `python -m benchmarks.compare BEFORE.json AFTER.json`.

Exit status 1 where anything moved, failed, or is in one of the two alone; 2 for a file that is no record.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align import command
from benchmarks import records

# what is measured, and whether more of it is better. Other numbers of a row say what was measured, and do not move
MEASURED = {
    "ms": False,
    "forward_ms": False,
    "backward_ms": False,
    "update_ms": False,
    "peak_gib": False,
    "forward_gib": False,
    "backward_gib": False,
    "working_gib": False,
    "tflops": True,
    "tb_s": True,
    "tokens_s": True,
    "mfu": True,
}


def moved(before: records.Numbers, after: records.Numbers, share: float) -> Iterator[str]:
    """A line for each number that differs by more than `share` of what it was, and for each row without its like."""

    def named(rows: records.Numbers) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["part"], row["name"]): row for row in rows}

    a, b = named(before), named(after)
    for key in [*a, *(key for key in b if key not in a)]:
        name = ": ".join(key)
        if key not in a or key not in b:
            yield f"{name}: only {'before' if key in a else 'after'}"
        elif ("failed" in a[key]) != ("failed" in b[key]):
            yield f"{name}: {'fails now: ' + b[key]['failed'] if 'failed' in b[key] else 'failed before'}"
        else:
            for number, more_is_better in MEASURED.items():
                x, y = a[key].get(number), b[key].get(number)
                if x and y and abs(y - x) > share * abs(x):
                    better = (y > x) == more_is_better
                    yield f"{name}: {number} {x:.4g} -> {y:.4g}, {y / x - 1:+.1%}, {'better' if better else 'worse'}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--percent", type=float, default=5.0, help="what may differ without being named; default 5")
    args = parser.parse_args(argv)
    try:
        before, after = records.read(args.before), records.read(args.after)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    for key in ("machine", "commit", "settings"):
        if before[key] != after[key]:
            print(f"{key} differs: {before[key]} | {after[key]}")
    lines = list(moved(before["numbers"], after["numbers"], args.percent / 100))
    print("\n".join(lines) or f"nothing moved by more than {args.percent:g} %: {len(after['numbers'])} rows")
    return bool(lines)


if __name__ == "__main__":
    command.run(main)
