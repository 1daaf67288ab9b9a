"""`| head` ends a command without a word, and its exit status says why."""

import ast
import json
import os
import signal
import subprocess
import sys

from conftest import ROOT

from align.command import failure

# what prints without doing anything first
COMMANDS = [
    "train --help",
    "eval --help",
    "align.losses",
    "align.losses dpo+sft",
    "align.merge --help",
    "align.pairs --help",
    "align.respond --help",
    "align.generate.bench --help",
    "align.judges.refusal_report --help",
    "benchmarks.compare --help",
    "benchmarks.gpu --help",
    "benchmarks.tiny_losses --help",
    "benchmarks.tiny_worlds --help",
    "kernels.tools.bench --help",
    "kernels.tools.report --help",
]
# each in a process of its own, that need not import torch again; one that returns ends as a script does
RUN_ALL = """
import json, os, runpy, sys, tempfile
import torch, align.losses, align.models

ended = {}
for command in sys.argv[1:]:
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            read, write = os.pipe()
            os.close(read)  # so that the first write fails, as it does sooner or later under `| head`
            os.dup2(write, 1)
            os.dup2(said.fileno(), 2)
            module, *sys.argv[1:] = command.split()
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        ended[command] = [status, said.read().decode()]
print(json.dumps(ended))
"""


def test_a_reader_that_has_gone_is_no_error():
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *COMMANDS], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stderr == ""
    ended = json.loads(done.stdout)
    for command in COMMANDS:
        status, said = ended[command]
        assert said == "" and status in (0, -signal.SIGPIPE, 128 + signal.SIGPIPE), command


def test_every_command_ends_alike():
    """Those that a test cannot run too: they measure for minutes, or need a GPU or what may not be installed."""
    files = [ROOT / "train.py", ROOT / "eval.py"]
    files += [file for room in ("align", "kernels", "benchmarks") for file in sorted((ROOT / room).rglob("*.py"))]
    ends = {}
    for file in files:
        body = ast.parse(file.read_text(encoding="utf-8")).body
        commands = {node.name: ast.unparse(node.body[-1]) for node in body if isinstance(node, ast.FunctionDef)}
        for node in body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
                end = ast.unparse(node.body[0])
                ends[file.relative_to(ROOT).as_posix()] = commands.get("cli", end) if end == "cli()" else end
    assert len(ends) > 20
    # in an environment of its own, in which there is no align
    del ends["benchmarks/step/trl_dpo.py"]
    for name, end in ends.items():
        if name.startswith("kernels/"):  # which imports nothing of align
            assert end == "signal.signal(signal.SIGPIPE, signal.SIG_DFL)", name
        else:  # align.train and align.eval import theirs
            assert end == ("cli()" if name in ("align/train.py", "align/eval.py") else "command.run(main)"), name


def test_training_ends_too(tmp_path, pairs_file):
    from conftest import MODEL

    argv = ["train.py", "--loss", "dpo", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out"]
    argv += ["--reference.cache", tmp_path / "cache", "--train.batch_size", "4"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *map(str, argv)], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_sum_of_losses_is_described_part_by_part(capsys):
    from align.losses.__main__ import main

    assert main(["dpo+sft"]) == 0
    said = capsys.readouterr().out
    assert said.index("--loss dpo\n") < said.index("--loss sft\n") and "--loss.weights" in said


def test_what_the_disk_refuses_is_a_line_and_a_bug_is_not():
    text, status = failure(OSError(36, "File name too long", "x" * 300))
    assert status == 2 and text.startswith("error: xxx") and text.endswith(": File name too long") and len(text) < 260
    try:
        raise OSError("of nothing that has a name")
    except OSError as error:
        text, status = failure(error)
    assert status == 1 and text.startswith("Traceback")
