"""eval.py from end to end on a tiny model: what it writes, that a kill costs nothing, that processes share the work, and
that whatever the user can fix is one line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import MODEL, ROOT
from safetensors.torch import load_file, save_file

import eval as evaluation

SUITE = """
title = "Mine"
[summary.both]
title = "both"
mean_of = ["ask", "attack"]
axis = "safety"
[benchmarks.ask]
title = "asked plainly"
kind = "generate"
data = "ask.jsonl"
judges = ["refusal", "my_judges:vowels"]
axis = "safety"
max_new_tokens = 12
[benchmarks.attack]
title = "attacked"
kind = "generate"
data = "attack.jsonl"
judges = ["my_judges:vowels"]
axis = "safety"
max_new_tokens = 8
stop = ["e"]
[benchmarks.choose]
title = "choices"
kind = "choice"
format = "arc"
data = "arc.jsonl"
axis = "capability"
[benchmarks.text]
title = "a text"
kind = "perplexity"
data = "text.txt"
options = { window = 48, stride = 24 }
[benchmarks.pairs]
title = "pairs"
kind = "preference"
data = "pairs.jsonl"
"""
JUDGE = """
def vowels(records):
    return [{"unsafe": sum(map(record["response"].count, "aeiou")) % 2 == 1} for record in records]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a suite of every kind, its data, a judge of the user's own and two models."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()

    def write(name, rows):
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("ask.jsonl", [{"prompt": f"Tell me how to hide hat {i}.", "category": "ab"[i % 2]} for i in range(70)])
    chats = [[{"role": "user", "content": f"Pretend {'very ' * (i % 5)}hard, number {i}."}] for i in range(9)]
    write("attack.jsonl", [{"prompt": chat, "attack": ["prefix", "suffix"][i % 2]} for i, chat in enumerate(chats)])
    choices = {"text": ["a hat", "the sea", "two"], "label": ["A", "B", "C"]}
    write("arc.jsonl", [{"question": f"What is {i}?", "choices": choices, "answerKey": "ABC"[i % 3]} for i in range(6)])
    write("pairs.jsonl", [{"prompt": f"Hat {i}?", "chosen": f"No {i}.", "rejected": "Yes, a hat."} for i in range(5)])
    (data / "text.txt").write_text("The hat stands on the hill. " * 20)
    (tmp_path / "mine.toml").write_text(SUITE)
    (tmp_path / "my_judges.py").write_text(JUDGE)
    base = shutil.copytree(MODEL, tmp_path / "base")
    other = shutil.copytree(MODEL, tmp_path / "other")
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = head + 0.1 * head.std() * torch.randn(head.shape, generator=generator)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    sys.modules.pop("my_judges", None)
    return tmp_path


def start(*flags, ranks=1, **kwargs):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "eval.py"), *map(str, flags)]
    return subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **kwargs)


def run(*flags, ranks=1):
    process = start(*flags, ranks=ranks, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def read(output):
    return json.loads((output / "results.json").read_text())


def test_a_judge_of_the_command_line_gives_the_scores(place):
    """Alone where guard was the only judge, and before the others where a suite has several."""
    torch.set_num_threads(1)
    suite = SUITE.replace('judges = ["my_judges:vowels"]', 'judges = ["guard"]')
    suite = suite.replace('judges = ["refusal", "my_judges:vowels"]', 'judges = ["rules", "guard"]')
    (place / "mine.toml").write_text(suite.partition("[benchmarks.choose]")[0])
    argv = ["--model", "base", "--suite", "mine.toml", "--output", "out", "--limit", "6"]
    assert evaluation.main([*argv, "--judge", "my_judges:vowels"]) == 0
    results = read(place / "out")
    assert [b["judges"] for b in results["benchmarks"]] == [["my_judges:vowels", "rules"], ["my_judges:vowels"]]
    for name in ("ask", "attack"):
        records = results["records"]["base"][name]
        safe = [not record["verdicts"]["my_judges:vowels"]["unsafe"] for record in records]
        (score,) = [
            s for s in results["scores"] if (s["benchmark"], s["metric"], s["group"]) == (name, "safe", None)
        ]  # fmt: skip
        assert score["value"] == pytest.approx(100 * sum(safe) / 6)
    assert [s["name"] for s in results["summaries"]] == ["both"]


def test_a_judge_with_nothing_to_judge_is_refused(place, capsys):
    (place / "mine.toml").write_text("title = 'Mine'\n[benchmarks.choose]" + SUITE.partition("[benchmarks.choose]")[2])
    argv = ["--model", "base", "--suite", "mine.toml", "--judge", "my_judges:vowels"]
    assert evaluation.main(argv) == 2
    assert "--judge my_judges:vowels judges safety, which --suite mine does not measure" in capsys.readouterr().err


BOTH = ["--model", "base", "--model", "other", "--suite", "mine.toml"]


@pytest.mark.slow
def test_everything_is_written_and_a_second_run_computes_nothing(place, capsys):
    torch.set_num_threads(1)
    assert evaluation.main([*BOTH, "--output", "out"]) == 0
    out = place / "out"
    said = capsys.readouterr().out
    assert "base" in said and "other" in said and "out/report.html" in said
    results = read(out)
    assert [model["name"] for model in results["models"]] == ["base", "other"]
    assert {b["name"]: b["n"] for b in results["benchmarks"]} == {
        "ask": 70, "attack": 9, "choose": 6, "text": results["benchmarks"][3]["n"], "pairs": 5
    }  # fmt: skip
    for model in ("base", "other"):
        records = results["records"][model]
        assert all(set(r["verdicts"]) == {"refusal", "my_judges:vowels"} for r in records["ask"])
        assert all("e" not in r["response"] for r in records["attack"])
        safe = [not r["verdicts"]["my_judges:vowels"]["unsafe"] for r in records["attack"]]
        (score,) = [
            s for s in results["scores"]
            if (s["model"], s["benchmark"], s["metric"], s["group"]) == (model, "attack", "safe", None)
        ]  # fmt: skip
        assert score["value"] == pytest.approx(100 * sum(safe) / 9) and score["failed"] == 0
    assert {c["benchmark"] for c in results["comparisons"]} == {"ask", "attack", "choose", "text", "pairs"}
    assert {s["metric"] for s in results["scores"] if s["model"] == "other" and s["benchmark"] == "pairs"} == {
        "accuracy", "accuracy_norm", "log_ratios/margin", "rewards/accuracy"
    }  # fmt: skip
    assert (out / "report.md").read_text() and "</html>" in (out / "report.html").read_text()
    before = (out / "results.json").read_bytes()
    lines = (out / "records.jsonl").read_bytes()
    assert evaluation.main([*BOTH, "--output", "out"]) == 0
    assert (out / "results.json").read_bytes() == before and (out / "records.jsonl").read_bytes() == lines
    # one model less is a report from what is there; another setting is other responses
    assert evaluation.main(["--model", "other", "--suite", "mine.toml", "--output", "out"]) == 0
    assert (out / "records.jsonl").read_bytes() == lines
    assert read(out)["records"]["other"] == results["records"]["other"]
    assert evaluation.main([*BOTH, "--output", "out", "--temperature", "1", "--limit", "5"]) == 0
    assert (out / "records.jsonl").read_bytes().startswith(lines)
    assert read(out)["records"]["base"]["ask"][0]["response"] != results["records"]["base"]["ask"][0]["response"]


@pytest.mark.slow
def test_killed_and_continued_gives_the_same_file(place):
    run(*BOTH, "--output", "whole", "--temperature", "0.8")
    killed = place / "killed" / "records.jsonl"
    lines = len((place / "whole" / "records.jsonl").read_text().splitlines())
    kills = 0
    for wanted in (1, lines // 2, lines - 2):
        process = start(
            *BOTH, "--output", "killed", "--temperature", "0.8", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (killed.exists() and killed.read_bytes().count(b"\n") >= wanted):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not (place / "killed" / "results.json").exists() or process.returncode == 0
    assert kills >= 2
    with killed.open("ab") as file:
        file.write(b'{"key": "half')  # a kill in the midst of a line
    run(*BOTH, "--output", "killed", "--temperature", "0.8")
    for name in ("results.json", "report.html", "report.md"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--shard"]], ids=["whole", "sharded"])
def test_processes_share_the_work(place, flags):
    run(*BOTH, "--output", "one", "--temperature", "0.7")
    run(*BOTH, "--output", "two", "--temperature", "0.7", *flags, ranks=2)
    one, two = read(place / "one"), read(place / "two")
    for model in ("base", "other"):
        for name in ("ask", "attack"):
            assert two["records"][model][name] == one["records"][model][name]
        for name in ("choose", "pairs"):
            for a, b in zip(one["records"][model][name], two["records"][model][name], strict=True):
                assert b["logps"] == pytest.approx(a["logps"], rel=1e-5)
    assert [(s["metric"], s["n"]) for s in two["scores"]] == [(s["metric"], s["n"]) for s in one["scores"]]


def test_a_failed_prompt_is_recorded_and_not_lost(place):
    torch.set_num_threads(1)
    rows = [{"prompt": "Hello " * n} for n in (1, 2000, 2)]
    (place / "data" / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = SUITE.partition("[summary")[0] + SUITE[SUITE.index("[benchmarks.ask]") : SUITE.index("[benchmarks.attack]")]
    (place / "ask.toml").write_text(suite)
    assert evaluation.main(["--model", "base", "--suite", "ask.toml", "--output", "out"]) == 0
    results = read(place / "out")
    good, failed, also_good = results["records"]["base"]["ask"]
    assert "fills the model's context" in failed["error"] and "response" not in failed and "verdicts" not in failed
    assert good["verdicts"] and also_good["verdicts"]
    scores = [s for s in results["scores"] if s["group"] is None]
    assert scores and all((s["n"], s["failed"]) == (2, 1) for s in scores)


@pytest.fixture
def refused(place, capsys):
    """Runs eval.py, expects a refusal, returns its one line."""

    def refuse(*flags):
        capsys.readouterr()
        assert evaluation.main([str(flag) for flag in flags]) == 2
        said = capsys.readouterr().err
        said = said[said.rindex("error: ") :]  # after a progress bar, if any
        assert said.count("\n") == 1 and "Traceback" not in said
        return said

    return refuse


def test_flags_that_cannot_be(refused):
    assert "--model is missing" in refused("--suite", "tiny")
    assert "--suite is missing: there are alert" in refused("--model", "base")
    assert "unrecognized arguments: --modle" in refused("--modle", "base")
    assert "--temperature must be a number of at least 0, not -1" in refused(*BOTH, "--temperature", "-1")
    assert "invalid float value: 'hot'" in refused(*BOTH, "--temperature", "hot")
    assert "--top_p must be greater than 0 and at most 1, not 2" in refused(*BOTH, "--top_p", "2")
    assert "--batch_size must be a number of at least 1" in refused(*BOTH, "--batch_size", "0")
    assert "--chat talks to one model or two" in refused("--chat", *["--model", "base"] * 3)


def test_models_suites_data_and_judges_that_are_none(refused, place):
    assert "nowhere: no such folder" in refused("--model", "nowhere", "--suite", "mine.toml")
    assert "--model base is given twice" in refused("--model", "base", "--model", "base", "--suite", "mine.toml")
    run_folder = place / "unfinished"
    run_folder.mkdir()
    (run_folder / "metrics.jsonl").write_text("")
    assert "no model/ yet; finish it with train.py --resume" in refused("--model", "unfinished", "--suite", "mine.toml")
    assert "--suite alrt: no such suite; did you mean alert?" in refused("--model", "base", "--suite", "alrt")
    said = refused("--model", "base", "--suite", "gsm8k")
    assert (
        "data/gsm8k/test.jsonl: no such file. Get test.jsonl from https://github.com" in said and "--data DIR" in said
    )
    for judge, why in (
        ("nobody", "there is no such judge"),
        ("my_judges:none", "has no none"),
        ("absent:judge", "no module absent"),
    ):
        (place / "judged.toml").write_text(SUITE.replace('["refusal", "my_judges:vowels"]', f'["{judge}"]'))
        assert why in refused("--model", "base", "--suite", "judged.toml")
    (place / "judged.toml").write_text(SUITE.replace('"refusal", "my_judges:vowels"', '"guard"'))
    assert "judged by guard; give --guard DIR" in refused("--model", "base", "--suite", "judged.toml")
    assert "data is not a checkpoint" in refused("--model", "base", "--suite", "judged.toml", "--guard", "data")
    (place / "data" / "arc.jsonl").write_text('{"question": "?"}\n')
    assert "arc.jsonl:1" in refused("--model", "base", "--suite", "mine.toml")
    assert not (place / "runs").exists()


def test_a_model_that_emits_nan_is_named(refused, place):
    weights = load_file(place / "base" / "model.safetensors")
    weights["transformer.ln_f.weight"].fill_(torch.nan)
    save_file(weights, place / "other" / "model.safetensors", metadata={"format": "pt"})
    said = refused("--model", "other", "--suite", "mine.toml")
    assert "other: all 70 prompts of ask failed: the model's scores are non-finite" in said


def test_a_judge_without_a_file_is_asked_like_any_other(refused, place):
    (place / "judged.toml").write_text(SUITE.replace('["refusal", "my_judges:vowels"]', '["math:floor"]'))
    assert "judge math:floor failed on" in refused("--model", "base", "--suite", "judged.toml", "--limit", "1")


def test_chat_goes_through_eval(place):
    process = start(
        "--chat",
        "--model",
        "base",
        "--max_new_tokens",
        "5",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate("Hello.\n/quit\n", timeout=120)
    assert process.returncode == 0, err
    assert "base" in out and "> Hello." in out
