"""From the records to kernels/evidence.json, which `auto` follows: `python -m benchmarks.evidence`.

A record vouches for a kind of kernel on its card where the card ran, and passed, every test of that kind; for the
log-probs also where they were right at full size, the same from run to run, and the interpreter's.
"""

import json
from typing import Any

from align import command
from benchmarks import records
from kernels import evidence

TESTS = {"logp": ("test_triton_logp.py", "test_logp.py"), "pointwise": ("test_pointwise.py",)}  # of tests/kernels/


def entries(record: dict[str, Any], name: str) -> list[dict[str, str]]:
    """What one record, the file `name`, vouches for."""
    if record["what"] != "gpu" or record["settings"]["dry"]:
        return []
    tests = {row["name"]: row for row in record["numbers"] if row["part"] == "tests"}
    right = [row for row in record["numbers"] if row["part"] == "correctness" and row["name"].endswith("triton")]
    found = []
    for kind, files in TESTS.items():
        passed = all(tests.get(file, {}).get("ok") for file in files)
        if kind == "logp":
            passed = passed and len(right) > 0 and all(row.get("ok") for row in right)
        if passed:
            machine, source = record["machine"], record["settings"]["kernels"][kind]
            found.append(
                {"kind": kind, "card": machine["card"], "triton": machine["triton"], "source": source, "record": name}
            )
    return found


def collect() -> list[dict[str, str]]:
    """What all records together vouch for, the newest record for each kind, card and Triton."""
    newest = {}
    for file in sorted(records.FOLDER.glob("gpu-*.json"), key=lambda file: records.read(file)["date"]):
        for entry in entries(records.read(file), file.name):
            newest[entry["kind"], entry["card"], entry["triton"]] = entry
    return list(newest.values())


def main(argv: list[str]) -> int:
    found = collect()
    evidence.FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    now = [entry for entry in found if entry["source"] == evidence.source_hash(entry["kind"])]
    print(
        f"{evidence.FILE.relative_to(records.ROOT)}: {len(found)} entries, {len(now)} of them for the kernels of today"
    )
    return 0


if __name__ == "__main__":
    command.run(main)
