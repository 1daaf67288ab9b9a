"""train.py end to end: one curve however it is computed, a resumed run that repeats an unbroken one, bad input refused."""

import json
import math
import shutil
import signal
import subprocess
import time

import huggingface_hub
import pytest
import torch
from conftest import GOLDEN, MODEL, read_metrics, run_train, start_train
from safetensors.torch import load_file

import train
from align import reference
from align.config import Config, load_config
from align.models import load_model

NOT_A_RESULT = ("seconds", "tokens_per_second", "mfu", "peak_memory_mib")


def flags(pairs_file, output, *more):
    base = ["--model", MODEL, "--data", pairs_file, "--output", output, "--reference.cache", output.parent / "cache"]
    base += ["--train.steps", "6", "--train.batch_size", "7", "--optim.lr", "1e-3", "--data.max_length", "128"]
    return [str(flag) for flag in [*base, *more]]


def results(output):
    return [{k: v for k, v in line.items() if k not in NOT_A_RESULT} for line in read_metrics(output)]


def assert_same_curve(a, b, rel=1e-5):
    a, b = results(a), results(b)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=rel)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=rel)
        assert x["tokens"] == y["tokens"]


def assert_same_folder_weights(a, b):
    a, b = load_file(a / "model" / "model.safetensors"), load_file(b / "model" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name, first", [("nca", 2 * math.log(2)), ("dpo", math.log(2))])
def test_a_run_starts_at_the_reference_and_leaves_what_the_contract_says(name, first, pairs_file, tmp_path):
    out = tmp_path / "out"
    assert train.main(["--loss", name, "--loss.beta", "0.1", *flags(pairs_file, out)]) == 0
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == list(range(1, 7))
    # cached reference and policy meet in other batches, so up to rounding
    assert lines[0]["loss"] == pytest.approx(first, rel=1e-6)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert lines[0]["rewards/accuracy"] == 0.5  # all tied: what differs is rounding
    assert lines[-1]["loss"] < first and lines[-1]["rewards/margin"] > 0
    # the same margin in two units: beta times it is the reward
    assert lines[-1]["rewards/margin"] == pytest.approx(0.1 * lines[-1]["log_ratios/margin"], rel=1e-6)
    contract = "step loss lr grad_norm rewards/chosen rewards/rejected rewards/margin rewards/accuracy logps/chosen"
    contract += " logps/rejected log_ratios/margin kl tokens tokens_per_second mfu seconds peak_memory_mib"
    assert set(lines[0]) == set(contract.split())
    resolved = load_config(["--config", str(out / "config.toml")])
    assert resolved.loss.parameters["beta"] == 0.1 and resolved.train.batch_size == 7
    model = load_model(out / "model")
    assert not torch.equal(model.lm_head.weight, load_model(MODEL).lm_head.weight)
    assert (out / "model" / "tokenizer.json").read_bytes() == (MODEL / "tokenizer.json").read_bytes()
    assert (out / "checkpoints" / "step-000006" / "state.json").exists()


def test_sft_needs_no_reference_and_reads_only_the_preferred_response(pairs_file, tmp_path):
    out = tmp_path / "out"
    assert train.main(["--loss", "sft", *flags(pairs_file, out)]) == 0
    assert not (tmp_path / "cache").exists()
    lines = read_metrics(out)
    assert "kl" not in lines[0] and "logps/rejected" not in lines[0] and lines[-1]["loss"] < lines[0]["loss"]
    # the same on demonstrations
    demos = tmp_path / "demos.jsonl"
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    demos.write_text("".join(json.dumps({"prompt": r["prompt"], "completion": r["chosen"]}) + "\n" for r in rows))
    assert train.main(["--loss", "sft", *flags(demos, tmp_path / "demo")]) == 0
    assert results(tmp_path / "demo") == results(out)


def test_scored_responses_train_with_nca(tmp_path):
    file, out = tmp_path / "scored.jsonl", tmp_path / "out"
    rows = [
        {"prompt": f"Question {i}?", "responses": [f"bad {i}", "good one", "so so"], "scores": [0.1, 0.9, 0.5]}
        for i in range(9)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train.main(["--loss", "nca", "--loss.temperature", "0.3", *flags(file, out)]) == 0
    p = torch.softmax(torch.tensor([0.9, 0.5, 0.1]) / 0.3, 0)
    assert read_metrics(out)[0]["loss"] == pytest.approx(2 * math.log(2) * p.sum().item(), rel=1e-6)
    assert read_metrics(out)[-1]["loss"] < read_metrics(out)[0]["loss"]


@pytest.mark.slow
def test_one_curve_for_every_split(pairs_file, tmp_path):
    """Ranks, accumulation, reference mode, kernel and recomputation change the arithmetic's order and nothing else."""
    runs = {
        "one": (1, []),
        "one-accumulating": (1, ["--train.micro_batch_size", "1"]),
        "one-of-120-tokens": (1, ["--train.micro_batch_tokens", "120"]),
        "one-live": (1, ["--reference.mode", "live", "--model.logp_impl", "reference"]),
        "two": (2, ["--parallel.checkpointing", "full", "--train.micro_batch_tokens", "90"]),
        "three": (3, ["--train.micro_batch_size", "1", "--reference.mode", "live"]),  # 7 prompts in 9 slots: fillers
    }
    for name, (ranks, more) in runs.items():
        done = run_train("--loss", "nca", "--loss.beta", "0.1", *flags(pairs_file, tmp_path / name, *more), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert_same_curve(tmp_path / "one", tmp_path / name)


@pytest.mark.slow
def test_sft_token_mean_is_global(pairs_file, tmp_path):
    runs = {"one": (1, "7"), "accumulating": (1, "1"), "two": (2, "2")}
    for name, (ranks, micro) in runs.items():
        more = ["--train.micro_batch_size", micro]
        done = run_train("--loss", "sft", *flags(pairs_file, tmp_path / name, *more), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert_same_curve(tmp_path / "one", tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed_is_the_same_run(ranks, pairs_file, tmp_path):
    """SIGKILL of the whole process group somewhere in training, then --resume: bit-identical metrics and weights."""
    more = ["--train.checkpoint_every", "3", "--train.steps", "40", "--train.micro_batch_size", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_train("--loss", "nca", *flags(pairs_file, whole, *more), ranks=ranks).returncode == 0
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = start_train(
        "--loss", "nca", *flags(pairs_file, broken, *more), ranks=ranks, start_new_session=True, **silent
    )
    deadline = time.monotonic() + 120
    while not (broken / "metrics.jsonl").exists() or len((broken / "metrics.jsonl").read_bytes().splitlines()) < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    kill_group(process)
    assert len(read_metrics(broken)) < 40
    resumed = run_train("--loss", "nca", *flags(pairs_file, broken, *more), "--resume", ranks=ranks)
    assert resumed.returncode == 0, resumed.stderr
    assert results(broken) == results(whole)
    assert_same_folder_weights(broken, whole)
    assert sorted(p.name for p in (broken / "checkpoints").iterdir()) == ["step-000039", "step-000040"]


def kill_group(process):
    """SIGKILL every process of a run: torchrun puts each worker in a session of its own."""
    children = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout.split()[2:]
    parent = dict(zip(map(int, children[::2]), map(int, children[1::2]), strict=True))
    for pid in [pid for pid, ppid in parent.items() if ppid == process.pid] + [process.pid]:
        subprocess.run(["kill", "-9", str(pid)])
    process.wait()


def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(pairs_file, tmp_path, monkeypatch, capfd):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main(["--loss", "nca", *flags(pairs_file, whole)]) == 0
    step = train.Log.step

    def step_and_signal(self, metrics):
        step(self, metrics)
        if metrics["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train.Log, "step", step_and_signal)
    assert train.main(["--loss", "nca", *flags(pairs_file, broken)]) == 128 + signal.SIGTERM
    said = capfd.readouterr().err.splitlines()
    assert any("stopping, once what is being done is kept" in line for line in said)
    assert said[-1] == f"stopped: step 3 of 6 is in {broken}; the same command with --resume goes on"
    # the signal came after step 2 had been counted, so step 3 is the one that is finished
    assert [p.name for p in (broken / "checkpoints").iterdir()] == ["step-000003"]
    assert not (broken / "model").exists()
    monkeypatch.undo()
    assert train.main(["--loss", "nca", *flags(pairs_file, broken), "--resume"]) == 0
    assert results(broken) == results(whole)
    assert_same_folder_weights(broken, whole)


def test_a_half_written_checkpoint_is_not_one(pairs_file, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--train.checkpoint_every", "2", "--train.keep_checkpoints", "9"]
    assert train.main(["--loss", "nca", *flags(pairs_file, whole, *more)]) == 0
    shutil.copytree(whole, broken)
    # as a kill in the middle of the third save leaves it
    (broken / "checkpoints" / "step-000006").rename(broken / "checkpoints" / "step-000006.part")
    (broken / "checkpoints" / "step-000006.part" / "state.json").unlink()
    (broken / "metrics.jsonl").open("a").write('{"step": 7, "lo')
    shutil.rmtree(broken / "model")
    assert train.main(["--loss", "nca", *flags(pairs_file, broken, *more), "--resume"]) == 0
    assert results(broken) == results(whole)
    assert_same_folder_weights(broken, whole)


def test_the_reference_cache_is_used_and_keyed_by_what_it_depends_on(pairs_file, tmp_path):
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "a")]) == 0
    (cache,) = (tmp_path / "cache").iterdir()
    stamp = cache.stat().st_mtime_ns
    assert train.main(["--loss", "dpo", *flags(pairs_file, tmp_path / "b")]) == 0
    assert [f.name for f in (tmp_path / "cache").iterdir()] == [cache.name] and cache.stat().st_mtime_ns == stamp
    cache.write_bytes(cache.read_bytes()[:50])  # damaged: computed again
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "c")]) == 0
    assert results(tmp_path / "c") == results(tmp_path / "a")
    # other token ids, other key
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "d", "--data.max_length", "40")]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_an_interrupted_reference_pass_goes_on(pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SAVED_TOGETHER", 5)
    measure, measured = reference.LiveReference.__call__, []

    def failing_at(limit):
        def call(self, batch):
            if sum(measured) == limit:
                raise RuntimeError("interrupted")
            measured.append(batch.n)
            return measure(self, batch)

        return call

    monkeypatch.setattr(reference.LiveReference, "__call__", failing_at(10))
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "a")]) == 1
    measured.clear()
    monkeypatch.setattr(reference.LiveReference, "__call__", failing_at(None))
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "a")]) == 0
    assert sum(measured) == 23 - 10  # the first two parts were kept
    assert read_metrics(tmp_path / "a")[0]["loss"] == pytest.approx(2 * math.log(2), rel=1e-6)


def test_plan_writes_nothing(pairs_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert train.main(["--loss", "nca", *flags(pairs_file, out), "--plan"]) == 0
    said = capsys.readouterr().out
    count = sum(p.numel() for p in load_model(MODEL).parameters())
    assert f"{count:,} parameters" in said and "steps: 6" in said and "beta = 0.01" in said
    assert torch.cuda.is_available() or "kernels: chunked log-probs (auto: the Triton kernels need a GPU)" in said
    assert not out.exists()


def test_the_plan_of_a_hub_model_fetches_no_weights(pairs_file, tmp_path, monkeypatch, capsys):
    """With a stand-in for huggingface_hub that, like it, lets only the files through that are asked for."""
    arrived = []

    def snapshot_download(repo, allow_patterns, revision):
        folder = tmp_path / "cache" / repo
        folder.mkdir(parents=True, exist_ok=True)
        for file in MODEL.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copyfile(file, folder / file.name)
                arrived.append(file.name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    command = ["--loss", "nca", *flags(pairs_file, tmp_path / "out"), "--model", "org/name"]
    assert train.main([*command, "--plan"]) == 0
    said = capsys.readouterr().out
    count = sum(p.numel() for p in load_model(MODEL).parameters())
    assert f"{count:,} parameters" in said
    assert {"config.json", "tokenizer.json"} <= set(arrived) and "model.safetensors" not in arrived
    assert train.main([*command, "--train.steps", "1"]) == 0
    assert "model.safetensors" in arrived


def test_the_length_is_said_and_bounded_by_the_context(pairs_file, tmp_path, capsys):
    command = ["--loss", "nca", *flags(pairs_file, tmp_path / "out"), "--data.max_length"]
    line = "length: at most {} tokens of prompt + response; the model's context is 512"
    for more in (["--plan"], ["--train.steps", "1"]):
        assert train.main([*command, "0", *more]) == 0
        said = capsys.readouterr().out
        assert line.format(512) in said.splitlines() and ("max_length = 512" in said) == ("--plan" in more)
    shutil.rmtree(tmp_path / "out")
    assert train.main([*command, "600", "--plan"]) == 2
    assert "made for a context of 512 tokens" in capsys.readouterr().err
    assert train.main([*command, "600", "--data.beyond_context", "true", "--plan"]) == 0
    assert line.format(600) in capsys.readouterr().out.splitlines()


def test_weights_are_checked_before_the_data_is_read(pairs_file, tmp_path, monkeypatch, capsys):
    broken = shutil.copytree(GOLDEN / "falcon2_11b_sharded", tmp_path / "m", copy_function=shutil.copyfile)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL / name, broken / name)
    (broken / "model-00002-of-00004.safetensors").unlink()
    monkeypatch.setattr(train, "load_sources", None)
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "out"), "--model", str(broken)]) == 2
    assert "model-00002-of-00004.safetensors, which is not in the folder" in capsys.readouterr().err


def test_a_run_is_a_model_to_start_from(pairs_file, tmp_path):
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "a")]) == 0
    command = ["--loss", "nca", *flags(pairs_file, tmp_path / "b")]
    assert train.main([*command, "--model", str(tmp_path / "a")]) == 0
    again = ["--loss", "nca", *flags(pairs_file, tmp_path / "c"), "--model", str(tmp_path / "a" / "model")]
    assert train.main(again) == 0
    assert results(tmp_path / "b") == results(tmp_path / "c") != results(tmp_path / "a")


def test_help_names_every_loss_and_key(capsys):
    assert train.main(["--help"]) == 0
    said = capsys.readouterr().out
    for word in ("nca", "dpo", "sft", "--optim.lr", "--reference.mode", "--data.template"):
        assert word in said
    assert Config().loss.name == "nca"


def test_held_out_pairs_are_measured_and_never_trained_on(pairs_file, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    lines = pairs_file.read_text().splitlines(keepends=True)
    held_out.write_text("".join(lines[16:]))
    pairs_file.write_text("".join(lines[:16]))
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "without")]) == 0
    more = ["--data.eval_path", held_out, "--train.eval_every", "4"]
    assert train.main(["--loss", "nca", *flags(pairs_file, tmp_path / "with", *more)]) == 0
    with_eval = results(tmp_path / "with")
    assert [line["step"] for line in with_eval if "eval/loss" in line] == [4, 6]
    assert with_eval[-1]["eval/rewards/accuracy"] >= 0.5 and with_eval[-1]["eval/loss"] < 2 * math.log(2)
    stripped = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in with_eval]
    for a, b in zip(stripped, results(tmp_path / "without"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6) and a["tokens"] == b["tokens"]


def test_resuming_on_other_data_is_refused(pairs_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert train.main(["--loss", "nca", *flags(pairs_file, out)]) == 0
    pairs_file.write_text(pairs_file.read_text().replace("hat", "cap"))
    capsys.readouterr()
    assert train.main(["--loss", "nca", *flags(pairs_file, out), "--resume"]) == 2
    assert "the data or its template has changed" in capsys.readouterr().err
