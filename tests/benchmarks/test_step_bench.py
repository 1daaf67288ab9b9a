"""benchmarks.step: the same work on both sides, its operations counted one by one, and a record of what was measured."""

import json
import sys
from argparse import Namespace
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT

from align.data import encode_rows, load_tokenizer, read_rows
from align.data.batches import batch_indices
from align.data.encode import Group
from align.models import read_config
from benchmarks import records
from benchmarks.step import __main__ as step
from benchmarks.step import cases, peak

TINY = {"hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The case `small` with a model of nothing, for three steps of two pairs: its folder and its steps."""
    monkeypatch.setattr(cases, "ARCHITECTURE", cases.ARCHITECTURE | TINY)
    monkeypatch.setattr(cases, "BATCHES", {"small": 2, "hh-harmless": 2})
    return tmp_path, cases.write_case("small", tmp_path, 3)


def test_the_peer_is_given_the_tokens_and_the_order_of_ours(tiny):
    folder, steps = tiny
    tokenizer = load_tokenizer(folder / "model")
    groups, report = encode_rows(read_rows(folder / "pairs.jsonl")[0], tokenizer)
    assert report.n_kept == 6 and not report.dropped
    ours = [groups[i] for at in range(3) for i in batch_indices(6, at, 2, cases.SEED)]
    texts = [json.loads(line) for line in (folder / "trl.jsonl").read_text().splitlines()]
    for group, row in zip(ours, texts, strict=True):
        # as TRL encodes: prompt and response as one text, the end token behind it
        for ids, name in zip(group.response_ids, ("chosen", "rejected"), strict=True):
            assert tokenizer.encode(row["prompt"] + row[name] + cases.END) == group.prompt_ids + ids
    assert [s.tokens for s in steps] == [
        sum(g.prompt_length + sum(g.response_lengths) for g in ours[2 * at : 2 * at + 2]) for at in range(3)
    ]
    lengths = [n for g in groups for n in (g.prompt_length, *g.response_lengths)]
    assert 80 <= min(lengths) <= max(lengths) <= 112


def test_operations_are_those_counted_one_by_one(tiny):
    config = read_config(tiny[0] / "model")
    group = Group([5] * 4, [[6] * 3, [7] * 2], 0)
    heads, size = config.num_heads, config.head_dim
    forward = 0
    for layer in range(config.num_layers):
        assert layer < 2
        # (what a token sees) of the prompt, and of each response but for its last token
        for seen in (1, 2, 3, 4, 5, 6, 5):
            forward += 2 * config.hidden_size * (heads + 2 * config.num_kv_heads) * size  # queries, keys, values
            forward += heads * seen * (2 * size + 2 * size)  # scores, and the values they weigh
            forward += 2 * heads * size * config.hidden_size + 2 * 2 * config.hidden_size * config.ffn_hidden_size
    forward += 5 * 2 * config.hidden_size * config.vocab_size  # a response token each
    found = cases.work([group], config)
    assert found == cases.Step(9, {"cached": 3 * forward, "live": 4 * forward})
    assert cases.work([group, group], config).flops["live"] == 2 * found.flops["live"]


def runs(*seconds, loss=(0.6931, 0.65), peak=1000.0):
    return [
        {"baseline_mib": 400.0, "peak_mib": peak, "seconds": [9.0, *each], "loss": list(loss), "logps/chosen": [-50.0]}
        for each in seconds
    ]


STEPS = [cases.Step(100, {"cached": 3e9, "live": 4e9})] * 3


def test_a_row_has_the_fastest_run_without_its_first_step():
    row = step.row("small", "live", step.OURS, runs([2.0, 4.0], [1.0, 3.0]), STEPS, 8e9)
    assert (row["part"], row["name"], row["s_step"], row["s_step_of_runs"]) == (
        "small",
        "train.py, live",
        2.0,
        [3.0, 2.0],
    )
    assert row["tokens_s"] == 200 / 4 and row["mfu"] == 8e9 / 4 / 8e9
    assert row["above_mib"] == 600.0 and row["peak_mib"] == 1000.0
    failed = step.row("small", "live", step.PEER, [*runs([1.0]), {"failed": "no memory"}], STEPS, 8e9)
    assert failed["failed"] == "no memory" and "s_step" not in failed
    assert "TRL, live          failed: no memory" in step.table([failed])


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ((0.6931, 0.6505), "losses agree"),
        ((0.6931, 0.6515), "NOT THE SAME WORK: the loss of step 2 is 0.650000 by train.py and 0.651500 by TRL"),
        ((0.6931, float("nan")), "NOT THE SAME WORK"),
    ],
)
def test_the_two_sides_are_compared_where_they_did_the_same(loss, said):
    ours = step.row("small", "live", step.OURS, runs([1.0, 1.0]), STEPS, 8e9)
    peer = step.row("small", "live", step.PEER, runs([3.0, 3.0], loss=loss, peak=1600.0), STEPS, 8e9)
    (line,) = step.comparisons([ours, peer])
    assert line.startswith("small, live: 3.00 times as fast as TRL, at 0.50 of its memory (0.62 with the baseline); ")
    assert said in line
    assert not list(step.comparisons([ours]))
    other = peer | {"loss": list(ours["loss"]), "logps/chosen": -50.1}
    assert "the first log-probs are -50.000 and -50.100" in step.disagreement(ours, other, step.PEER)


def test_a_run_of_ours_leaves_a_record(tmp_path, monkeypatch, capsys):
    def run(side, case, mode, folder, args):
        assert side in (step.OURS, step.ROUNDED) and (args.steps, args.trl) == (2, "")
        assert (folder / "pairs.jsonl").exists()
        return {"failed": "out of luck"} if mode == "cached" else runs([2.0 if side == step.OURS else 1.0])[0]

    monkeypatch.setattr(cases, "ARCHITECTURE", cases.ARCHITECTURE | TINY)
    monkeypatch.setattr(step, "run", run)
    monkeypatch.setattr(peak, "matrix_peak", lambda dtype: 1e12)
    file = tmp_path / "step.json"
    command = ["--steps", "2", "--case", "small", "--output", str(file)]
    assert step.main([*command, "--bfloat16"]) == 1, "one run failed"
    record = records.read(file)
    names = [f"{row['part']}: {row['name']}" for row in record["numbers"]]
    assert names == [
        "machine: torch.mm, float32",
        "machine: torch.mm, bfloat16",
        *(f"small: {side}, {mode}" for mode in ("live", "cached") for side in ("train.py", "bfloat16")),
    ]
    said = capsys.readouterr().out
    assert "no --trl PYTHON: our side alone" in said and "small        train.py, cached   failed: out of luck" in said
    assert "small, live: 2.00 times as fast in bfloat16, at 1.00 of its memory" in said and said.count("agree") == 1


def test_a_case_whose_files_are_absent_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "HH", tmp_path / "hh.jsonl.gz")
    monkeypatch.setattr(peak, "matrix_peak", lambda dtype: 1e12)
    assert step.main(["--case", "hh-harmless", "--output", str(tmp_path / "r.json")]) == 0
    assert f"hh-harmless: left out, no {tmp_path / 'hh.jsonl.gz'}" in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted(records.FOLDER.glob("step-*.json")), ids=lambda file: file.stem)
def test_the_docs_have_every_record(file):
    record = records.read(file)
    assert step.table(record["numbers"]) in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    agreed = list(step.comparisons(record["numbers"]))
    assert agreed and all(line.endswith("losses agree") for line in agreed)


@pytest.mark.parametrize(("python", "said"), [("nowhere", "No such file or directory"), (sys.executable, "trl")])
def test_an_interpreter_without_trl_is_named(capsys, python, said):
    if python == sys.executable and find_spec("trl"):
        pytest.skip("trl is installed beside us")
    with pytest.raises(SystemExit):
        step.main(["--trl", python])
    assert f"--trl {python} runs no Python with trl: " in (line := capsys.readouterr().err) and said in line


def test_the_peak_is_what_a_product_reaches(monkeypatch):
    monkeypatch.setattr(peak, "SIZES", (64,))
    monkeypatch.setattr(peak, "SECONDS", 0.05)
    assert 1e7 < peak.matrix_peak(torch.float32) < 1e14


@pytest.mark.slow
def test_our_side_is_train_py_and_says_what_it_held(tiny, monkeypatch):
    """In a process of its own, so that the memory is that of one run."""
    folder, _ = tiny
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found, rounded = (step.run(side, "small", "live", folder, Namespace(steps=3)) for side in (step.OURS, step.ROUNDED))
    assert 0 < max(abs(a - b) for a, b in zip(found["loss"], rounded["loss"], strict=True)) < step.AGREE[step.ROUNDED]
    assert len(found["seconds"]) == len(found["loss"]) == 3 and abs(found["loss"][0] - 0.693147) < 1e-5
    assert found["loss"][2] != found["loss"][0] and 0 < found["baseline_mib"] < found["peak_mib"]
    assert torch.isfinite(torch.tensor(found["logps/chosen"])).all()
