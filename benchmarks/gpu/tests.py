"""The kernels' tests on the card. Dry: a few of each file, in the interpreter, to see that the part works."""

import importlib.util
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from align import command
from benchmarks.gpu.part import DRY, Part, left
from benchmarks.records import ROOT

part = Part("tests")
FEW = {
    "test_triton_logp.py": "bijection",
    "test_pointwise.py": "can_run_here or bad_arguments",
    "test_logp.py": "bad_arguments",
}


def run(file: str) -> None:
    """One file of tests/kernels/: how many passed, which failed."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"tests/kernels/{file}"]
    if DRY:
        command += ["-k", FEW[file]]
    elif importlib.util.find_spec("xdist"):
        command += ["-n", "12"]  # most of the time goes into compiling, on the CPU
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        start = time.monotonic()
        done = subprocess.run(
            [*command, f"--junitxml={report}"],
            cwd=ROOT, capture_output=True, text=True, timeout=None if DRY else max(left() - 2, 1),
        )  # fmt: skip
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    print(done.stdout[-4000:], done.stderr[-2000:])
    part.row(
        file,
        ok=done.returncode == 0 and passed > 0 and not failed,
        passed=passed,
        skipped=skipped,
        failed_tests=failed[:20],
        seconds=round(time.monotonic() - start, 1),
        said=done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:],
    )


def main(argv: list[str]) -> None:
    for file in FEW:
        part.attempt(file, run, file, need=5)


if __name__ == "__main__":
    command.run(main)
