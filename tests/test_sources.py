"""Several files in every step: one gradient, and one run however it is split, broken off or resumed."""

import json
import math
import shutil
import tomllib

import pytest
import torch
from conftest import MODEL, read_metrics, run_ranks

import train
from align import sources as room
from align.config import load_config
from align.data.batches import batch_indices
from align.losses.sft import SFT
from align.models import load_model

NOT_A_RESULT = ("seconds", "tokens_per_second", "mfu", "peak_memory_mib")
# beside pairs under nca: an anchor, which needs a live reference, replay, and a coupled loss with a memory
THREE = ["--sources.stay.loss", "anchor", "--sources.stay.weight", "3", "--sources.stay.batch_size", "4"]
THREE += ["--sources.replay.batch_size", "3", "--sources.replay.weight", "0.5"]
THREE += ["--sources.judged.loss", "bco", "--sources.judged.beta", "0.1", "--sources.judged.batch_size", "5"]


@pytest.fixture
def files(pairs_file, tmp_path):
    """Flags of the model, pairs, nine responses of another length, and twelve labelled ones."""
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    own = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in rows[:9]]
    labels = [
        {"prompt": f"Number {i}?", "completion": f"It is {i}." * (1 + i % 3), "label": i % 2 == 0} for i in range(12)
    ]
    for name, lines in {"own": own, "labels": labels}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    flags = ["--model", MODEL, "--data", pairs_file, "--loss", "nca", "--loss.beta", "0.1", "--optim.lr", "1e-3"]
    flags += ["--train.steps", "6", "--train.batch_size", "7", "--reference.cache", tmp_path / "cache"]
    return list(map(str, flags))


def three(tmp_path):
    at = {"stay": "own", "replay": "own", "judged": "labels"}
    given = {f"--sources.{name}.path": str(tmp_path / f"{file}.jsonl") for name, file in at.items()}
    return [word for pair in given.items() for word in pair] + THREE


def results(output):
    return [{k: v for k, v in line.items() if k not in NOT_A_RESULT} for line in read_metrics(output)]


def assert_same_curve(a, b):
    for ours, theirs in zip(results(a), results(b), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-4 if name.endswith("kl") else 2e-5), name


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every step, as it is before clipping."""
    clip, seen = torch.nn.utils.clip_grad_norm_, []

    def clip_and_keep(parameters, norm):
        parameters = list(parameters)
        seen.append(torch.cat([p.grad.detach().flatten() for p in parameters]).double())
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_keep)
    return seen


def test_a_steps_gradient_is_the_weighted_sum_of_each_sources_alone(files, gradients, tmp_path):
    """At the reference, where nca, sft and bco each have a gradient; each alone is a run of its own."""
    own, labels = tmp_path / "own.jsonl", tmp_path / "labels.jsonl"
    alone = {
        "pairs": (1, []),
        "replay": (0.5, ["--loss", "sft", "--data", own, "--train.batch_size", "3"]),
        "judged": (1, ["--loss", "bco", "--loss.beta", "0.1", "--data", labels, "--train.batch_size", "5"]),
    }
    for name, (_, more) in alone.items():
        at_beta = files[:6] + files[8:] if "sft" in more else files
        assert train.main([*at_beta, *map(str, more), "--train.steps", "1", "--output", str(tmp_path / name)]) == 0
    assert train.main([*files, *three(tmp_path), "--train.steps", "1", "--output", str(tmp_path / "all")]) == 0
    *parts, whole = gradients
    by_hand = sum(weight * part for (weight, _), part in zip(alone.values(), parts, strict=True))
    torch.testing.assert_close(whole, by_hand, rtol=1e-4, atol=1e-6 * by_hand.abs().max().item())
    # and each source's numbers are those that it has alone
    (line,) = read_metrics(tmp_path / "all")
    for name, prefix in {"pairs": "", "replay": "replay/", "judged": "judged/"}.items():
        (theirs,) = read_metrics(tmp_path / name)
        for metric in ("loss", "logps/chosen"):
            assert line[prefix + metric] == pytest.approx(theirs[metric], rel=1e-6), (name, metric)
    assert line["stay/loss"] == 0.0 and line["tokens"] > theirs["tokens"]
    assert line["grad_norm"] == pytest.approx(whole.norm().item(), rel=1e-5)


def test_an_anchor_pulls_as_its_weight_says(files, gradients, tmp_path):
    """At the reference it has no gradient, so three weights share a first step; in the second the pull is linear in it."""
    more = ["--train.steps", "2", "--optim.warmup", "0", "--sources.stay.path", str(tmp_path / "own.jsonl")]
    for weight in (1e-30, 2.0, 4.0):
        flags = [
            "--sources.stay.loss",
            "anchor",
            "--sources.stay.batch_size",
            "4",
            "--sources.stay.weight",
            str(weight),
        ]
        assert train.main([*files, *more, *flags, "--output", str(tmp_path / str(weight))]) == 0
    (first, none), (_, two), (_, four) = (gradients[i : i + 2] for i in (0, 2, 4))
    assert torch.equal(first, gradients[2]) and torch.equal(first, gradients[4])
    assert (two - none).norm() > 1e-3 * none.norm()
    torch.testing.assert_close(four - none, 2 * (two - none), rtol=1e-3, atol=1e-5 * none.abs().max().item())


def test_a_source_can_take_the_others_off_its_direction(files, gradients, tmp_path):
    """OGPSA's step from the gradients of two runs, one with the source and one of it alone."""
    own = str(tmp_path / "own.jsonl")
    replay = ["--sources.replay.path", own, "--sources.replay.batch_size", "3", "--train.steps", "1"]
    alone = [*files[:6], *files[8:], "--loss", "sft", "--data", own, "--train.batch_size", "3", "--train.steps", "1"]
    assert train.main([*files, "--train.steps", "1", "--output", str(tmp_path / "g")]) == 0
    assert train.main([*alone, "--output", str(tmp_path / "b")]) == 0
    # it comes last, wherever it stands in the file
    last = ["--sources.zero.path", own, "--sources.zero.batch_size", "3", "--sources.zero.weight", "1e-30"]
    flags = [*files, *replay, *last, "--optim.project", "replay", "--output", str(tmp_path / "both")]
    assert train.main(flags) == 0
    sizes = [p.numel() for p in load_model(MODEL).parameters()]
    for g, b, found in zip(*(gradient.split(sizes) for gradient in gradients), strict=True):
        expected = b + g - ((g @ b) / (b @ b) if b.any() else 0) * b
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * g.abs().max().item())


def test_any_accumulation_gives_one_curve(files, tmp_path):
    flags = [*files, *three(tmp_path), "--optim.project", "replay", "--optim.ema", "0.9", "--train.steps", "4"]
    assert train.main([*flags, "--output", str(tmp_path / "one")]) == 0
    assert train.main([*flags, "--train.micro_batch_tokens", "90", "--output", str(tmp_path / "tokens")]) == 0
    assert_same_curve(tmp_path / "tokens", tmp_path / "one")
    lines = results(tmp_path / "one")
    # data.path decides the number of steps, and the others have gone round
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[-1]["stay/loss"] > lines[1]["stay/loss"] > 0
    assert {i for step in range(4) for i in batch_indices(9, step, 4, 0)} == set(range(9))


def break_off(output, broken):
    shutil.copytree(output, broken)
    for folder in ("model", "checkpoints/step-000004"):
        shutil.rmtree(broken / folder)
    assert (broken / "checkpoints" / "step-000002").exists()


def everything(files, tmp_path):
    """Three sources with all that a run has to remember."""
    more = [
        "--optim.project",
        "replay",
        "--optim.ema",
        "0.9",
        "--train.checkpoint_every",
        "2",
        "--train.steps",
        "4",
    ]
    return [*files, *three(tmp_path), *more, "--sources.stay.direction", "reverse", "--train.micro_batch_size", "2"]


def assert_same_run(a, b):
    assert results(a) == results(b)
    assert (a / "model" / "model.safetensors").read_bytes() == (b / "model" / "model.safetensors").read_bytes()
    state = json.loads((b / "checkpoints" / "step-000004" / "state.json").read_text())["loss"]
    assert state and all(name.startswith("judged/") for name in state)


def test_resumed_it_is_the_same_run_to_the_bit(files, tmp_path):
    flags, whole, broken = everything(files, tmp_path), tmp_path / "whole", tmp_path / "broken"
    assert train.main([*flags, "--output", str(whole)]) == 0
    break_off(whole, broken)
    assert train.main([*flags, "--output", str(broken), "--resume"]) == 0
    assert_same_run(whole, broken)


def train_and_resume(world, flags, tmp_path):
    train.train(load_config([*flags, "--output", str(tmp_path / "two")]), world)
    if world.main:
        break_off(tmp_path / "two", tmp_path / "again")
    world.barrier()
    train.train(load_config([*flags, "--output", str(tmp_path / "again"), "--resume"]), world)


@pytest.mark.slow
def test_two_ranks_are_one_run_and_resume_to_the_bit(files, tmp_path):
    """With a projection, whose products are over whole parameters, and averages that stand in for sharded weights."""
    flags = everything(files, tmp_path)
    held_out = ["--data.eval_path", str(tmp_path / "pairs.jsonl"), "--train.eval_every", "3"]
    flags += [*held_out, "--train.stop_when", "eval/loss < -1"]
    assert train.main([*flags, "--output", str(tmp_path / "one")]) == 0
    run_ranks(train_and_resume, 2, flags, tmp_path)
    assert_same_curve(tmp_path / "two", tmp_path / "one")
    assert_same_run(tmp_path / "two", tmp_path / "again")


def test_live_references_are_one_model(files, tmp_path, monkeypatch):
    load, loaded = room.load_frozen, []
    monkeypatch.setattr(room, "load_frozen", lambda *args: loaded.append(args) or load(*args))
    flags = [*files, *three(tmp_path), "--train.steps", "2", "--reference.mode", "live"]
    assert train.main([*flags, "--output", str(tmp_path / "live")]) == 0
    assert len(loaded) == 1 and not (tmp_path / "cache").exists()
    cached = [*files, *three(tmp_path), "--train.steps", "2", "--output", str(tmp_path / "cached")]
    assert train.main(cached) == 0
    assert len(loaded) == 2 and len(list((tmp_path / "cache").iterdir())) == 2  # of the pairs and of the labelled ones
    assert_same_curve(tmp_path / "cached", tmp_path / "live")


def test_with_adapters_no_reference_is_loaded_and_a_moving_one_serves_all(files, tmp_path, monkeypatch):
    flags = [*files, *three(tmp_path), "--train.steps", "3", "--optim.warmup", "0"]
    moving = ["--reference.mode", "moving", "--reference.every", "1", "--reference.alpha", "1"]
    assert train.main([*flags, *moving, "--output", str(tmp_path / "moving")]) == 0
    # it is where the policy is at the start of each step
    for line in results(tmp_path / "moving"):
        assert line["stay/loss"] == pytest.approx(0, abs=1e-6) and line["loss"] == pytest.approx(
            2 * math.log(2), rel=1e-5
        )
    monkeypatch.setattr(room, "load_frozen", None)
    assert train.main([*flags, "--lora.rank", "2", "--output", str(tmp_path / "lora")]) == 0
    assert results(tmp_path / "lora")[-1]["stay/loss"] > 0


def test_any_loss_is_a_source_and_pairs_can_be_one(files, tmp_path):
    pairs = str(tmp_path / "pairs.jsonl")
    flags = [
        *files,
        "--train.steps",
        "2",
        "--sources.a.path",
        pairs,
        "--sources.a.loss",
        "tdpo",
        "--sources.b.path",
        pairs,
    ]
    flags += ["--sources.b.loss", "dpo+sft", "--sources.b.weights", "1,0.5", "--sources.b.dpo.beta", "0.3"]
    flags += ["--sources.c.path", pairs, "--sources.c.loss", "kto"]
    assert train.main([*flags, "--output", str(tmp_path / "out")]) == 0
    line = read_metrics(tmp_path / "out")[0]
    assert line["a/loss"] == pytest.approx(math.log(2), rel=1e-6) and line["c/loss"] == pytest.approx(0.5, rel=1e-6)
    assert line["b/rewards/accuracy"] == 0.5 and "c/rewards/margin" in line
    resolved = tomllib.loads((tmp_path / "out" / "config.toml").read_text())["sources"]
    assert resolved["b"]["dpo"] == {"beta": 0.3} and resolved["a"]["alpha"] == 0.5 and resolved["c"]["batch_size"] == 0


def test_a_row_that_spoils_a_step_is_named_with_its_source(files, tmp_path, monkeypatch, capsys):
    value = SFT.__call__
    monkeypatch.setattr(SFT, "__call__", lambda self, x: value(self, x) * torch.tensor([torch.nan, 1.0, 1.0]))
    flags = [*files, *three(tmp_path), "--output", str(tmp_path / "out")]
    assert train.main(flags) == 2
    said = capsys.readouterr().err
    assert "step 1: the loss of sources.replay of 1 of its 3 prompts is not finite; look at " in said
    assert f"{tmp_path / 'own.jsonl'}:" in said and said.count("\n") == 1


def test_the_plan_shows_and_counts_each(files, tmp_path, capsys):
    plan = [*files, "--output", str(tmp_path / "out"), "--plan"]
    assert train.main(plan) == 0
    without = capsys.readouterr().out
    assert train.main([*plan, *three(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"sources.stay: 9 prompts of 1 response, 435 tokens, in {tmp_path / 'own.jsonl'}" in said
    assert "in every step 3 x anchor on 4 prompts each" in said and "0.5 x sft on 3 prompts" in said
    flops = [float(text.split("a step: ")[1].split()[0]) for text in (without, said)]
    assert flops[1] > 1.2 * flops[0] and not (tmp_path / "out").exists()


def test_sources_without_a_file_can_be_planned_for(tmp_path, capsys):
    flags = ["--config", "falcon-11b", "--plan.gpus", "8", "--output", str(tmp_path / "out")]
    assert train.main(flags) == 0
    one = capsys.readouterr().out
    assert train.main([*flags, "--sources.stay.loss", "anchor", "--sources.replay.batch_size", "16"]) == 0
    two = capsys.readouterr().out
    assert "sources.stay: none given" in two and "1 x sft on 16 prompts" in two
    memory = [float(text.split("memory: ")[1].split()[0]) for text in (one, two)]
    assert train.main([*flags, "--sources.replay.batch_size", "4"]) == 2
    assert "--sources.replay.batch_size 4 is less than a prompt for each of the 8 ranks" in capsys.readouterr().err
    # a frozen copy in bfloat16, an eighth of it, that the cached reference of the pairs did without
    assert memory[1] - memory[0] > 0.9 * 2 * 11.1e9 / 8 / 2**30


def test_data_that_does_not_fit_its_source_is_told_by_its_flags(files, tmp_path, capsys):
    flags = [*files, "--output", str(tmp_path / "out"), "--sources.stay.path", str(tmp_path / "own.jsonl")]
    for more, words in {
        ("--sources.stay.batch_size", "10"): "--sources.stay.batch_size 10 is more than the 9 prompts there are",
        ("--sources.stay.loss", "dpo"): "own.jsonl: one response a prompt; --sources.stay.loss dpo takes",
        ("--sources.stay.path", "nowhere.jsonl"): "nowhere.jsonl",
    }.items():
        assert train.main([*flags, *more]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_resuming_with_other_sources_is_refused(files, tmp_path, capsys):
    flags = [*files, "--train.steps", "1", "--output", str(tmp_path / "out")]
    replay = ["--sources.replay.path", str(tmp_path / "own.jsonl"), "--sources.replay.batch_size", "3"]
    assert train.main([*flags, *replay]) == 0
    for more, words in {
        (*replay, "--sources.replay.weight", "2"): "begun with sources.replay.weight = 1.0, not 2.0",
        (): "begun with sources.replay.batch_size = 3, not None",
        (*replay, "--sources.more.path", "f"): "begun with sources.more.path = '', not 'f'",
    }.items():
        assert train.main([*flags, *more, "--resume"]) == 2
        assert words in capsys.readouterr().err
    assert (
        train.main([*flags, *replay, "--sources.replay.weight", "2", "--resume", "--override", "sources.replay.weight"])
        == 0
    )
    rows = (tmp_path / "own.jsonl").read_text()
    (tmp_path / "own.jsonl").write_text(rows.replace("hat", "cap"))
    capsys.readouterr()
    assert train.main([*flags, *replay, "--sources.replay.weight", "2", "--resume"]) == 2
    assert "the data or its template has changed" in capsys.readouterr().err
