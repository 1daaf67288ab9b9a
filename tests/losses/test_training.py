"""Every loss through the real training loop: one curve for any number of ranks and any accumulation, and what they need."""

import itertools
import json
import math
import shutil

import pytest
import torch
from conftest import read_metrics, run_ranks
from loss_checks import inputs

import train
from align import sources
from align.config import load_config
from align.losses import LOSSES, build_loss
from align.tiny.build import write_lines, write_model
from align.tiny.world import ToyWorld

MIXTURES = ["dpo+sft", "nca+bco", "ld_dpo+wpo+tdpo"]
NAMES = [*(name for name, cls in LOSSES.items() if cls.moves), *MIXTURES]
SPLITS = {"1x1": (1, 6), "1x2": (1, 3), "2x1": (2, 3), "2x2": (2, 2)}  # ranks x accumulation: ranks, micro-batch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The toy world's untrained Falcon and some of its pairs."""
    folder = tmp_path_factory.mktemp("tiny")
    world = ToyWorld(seed=0)
    write_model(folder / "init", list(world.dialogues(500)), seed=0)
    write_lines(folder / "pairs.jsonl", world.pairs(18))
    return folder


def arguments(tiny, name, output, *more):
    flags = ["--loss", name, "--model", tiny / "init", "--data", tiny / "pairs.jsonl", "--output", output]
    flags += ["--train.steps", "3", "--train.batch_size", "6", "--optim.lr", "1e-3", "--optim.warmup", "0"]
    return [str(flag) for flag in [*flags, "--reference.cache", tiny / "cache", *more]]


def train_all(world, tiny, split, micro):
    for name in NAMES:
        more = ["--train.micro_batch_size", micro]
        train.train(load_config(arguments(tiny, name, tiny / split / name, *more)), world)


@pytest.mark.slow
def test_every_loss_gives_one_curve_for_every_split(tiny):
    for split, (ranks, micro) in SPLITS.items():
        run_ranks(train_all, ranks, tiny, split, micro)
    for name, split in itertools.product(NAMES, SPLITS):
        curve, first = read_metrics(tiny / split / name), read_metrics(tiny / "1x1" / name)
        assert len(curve) == 3, name
        for ours, theirs in zip(curve, first, strict=True):
            assert ours.keys() == theirs.keys()
            for key in theirs.keys() & {"loss", "grad_norm", "logps/chosen", "rewards/margin", "kl"}:
                tolerance = 1e-4 if key == "kl" else 2e-5  # kl: sums of -70 cancel
                near = pytest.approx(theirs[key], rel=1e-5, abs=tolerance)
                assert ours[key] == near, (name, split, key, ours["step"])
        assert all(math.isfinite(line["loss"]) for line in curve) and curve[0]["grad_norm"] > 0, name


def test_pairs_serve_unpaired_losses_and_labels_train_as_they_are(tiny, tmp_path):
    """A pair is two labelled responses: the same file written out that way gives the same run."""
    pairs = [json.loads(line) for line in (tiny / "pairs.jsonl").read_text().splitlines()]
    rows = [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in pairs
        for key in ("chosen", "rejected")
    ]
    write_lines(tmp_path / "labels.jsonl", rows)
    for name in ("kto", "bco"):
        assert train.main(arguments(tiny, name, tmp_path / name)) == 0
        assert train.main(arguments(tiny, name, tmp_path / "labels" / name, "--data", tmp_path / "labels.jsonl")) == 0
    kto, labels = read_metrics(tmp_path / "kto"), read_metrics(tmp_path / "labels" / "kto")
    assert [line["loss"] for line in kto] == [line["loss"] for line in labels]
    assert kto[0]["loss"] == pytest.approx(0.5, rel=1e-6) and "rewards/accuracy" not in kto[0]
    # bco on pairs compares log-ratios of the same prompts; on labels each response stands alone: log 2, not 2 log 2
    first = [read_metrics(tmp_path / folder)[0]["loss"] for folder in ("bco", "labels/bco")]
    assert first == pytest.approx([2 * math.log(2), math.log(2)], rel=1e-6)


@pytest.mark.parametrize("name", ["bco", "kto", "mpo"])
def test_a_resumed_loss_remembers_its_statistics(name, tiny, tmp_path):
    """Stopped after step 2 of 4: what the loss has seen is in the checkpoint, and the rest is bit-identical."""
    more = ["--train.steps", "4", "--train.checkpoint_every", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main(arguments(tiny, name, whole, *more)) == 0
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-000004")
    shutil.rmtree(broken / "model")
    assert train.main(arguments(tiny, name, broken, *more, "--resume")) == 0
    curves = [[(m["loss"], m["grad_norm"]) for m in read_metrics(folder)] for folder in (whole, broken)]
    assert curves[0] == curves[1]
    state = json.loads((broken / "checkpoints" / "step-000004" / "state.json").read_text())["loss"]
    assert (len(state) > 0) == (name != "kto")  # kto's baseline is each batch's own


def test_the_moving_reference_follows_the_policy(tiny, tmp_path):
    """TR-DPO: after `every` steps the reference is α of the way to the policy, so the next margin starts from there."""
    more = [
        "--train.steps",
        "4",
        "--train.batch_size",
        "18",
        "--train.checkpoint_every",
        "2",
        "--optim.schedule",
        "constant",
    ]
    moving = [*more, "--reference.mode", "moving", "--reference.every", "2"]
    for name, flags in {
        "live": [*more, "--reference.mode", "live"],
        "half": [*moving, "--reference.alpha", "0.5"],
        "full": [*moving, "--reference.alpha", "1"],
    }.items():
        assert train.main(arguments(tiny, "dpo", tmp_path / name, *flags)) == 0
    live, half, full = (read_metrics(tmp_path / name) for name in ("live", "half", "full"))
    for a, b in zip(live[:2], half[:2], strict=True):
        assert a["loss"] == b["loss"]  # nothing has moved yet
    # at α = 1 the third step starts from a reference that is the policy: log 2 again, and no reward
    assert full[2]["loss"] == pytest.approx(math.log(2), rel=1e-6) and full[2]["rewards/margin"] == pytest.approx(
        0, abs=1e-5
    )
    assert 0 < half[2]["rewards/margin"] < live[2]["rewards/margin"]
    # the reference is part of a checkpoint
    for folder in ("checkpoints/step-000004", "model"):
        shutil.rmtree(tmp_path / "half" / folder)
    flags = [*moving, "--reference.alpha", "0.5", "--resume"]
    assert train.main(arguments(tiny, "dpo", tmp_path / "half", *flags)) == 0
    assert [m["loss"] for m in read_metrics(tmp_path / "half")] == [m["loss"] for m in half]


def train_moving_twice(world, tiny, tmp_path):
    """The whole run, then its second half again from the checkpoint."""
    more = ["--train.steps", "5", "--train.checkpoint_every", "3", "--train.keep_checkpoints", "9"]
    more += ["--reference.mode", "moving", "--reference.every", "2", "--reference.alpha", "0.5"]
    train.train(load_config(arguments(tiny, "tdpo", tmp_path / "whole", *more)), world)
    if world.main:
        shutil.copytree(tmp_path / "whole", tmp_path / "again")
        shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000005")
    world.barrier()
    train.train(load_config(arguments(tiny, "tdpo", tmp_path / "again", *more, "--resume")), world)


@pytest.mark.slow
def test_a_resumed_moving_reference_has_its_own_distributions(tiny, tmp_path):
    """On several ranks its whole head is gathered from what the checkpoint holds, not from the model it began as."""
    run_ranks(train_moving_twice, 2, tiny, tmp_path)
    whole, again = (read_metrics(tmp_path / name) for name in ("whole", "again"))
    assert [m["loss"] for m in again] == [m["loss"] for m in whole] and len(whole) == 5


def test_labels_are_part_of_what_a_run_goes_on_with(tiny, tmp_path, capsys):
    rows = [{"prompt": f"Number {i}?", "completion": f"It is {i}.", "label": i % 2 == 0} for i in range(12)]
    write_lines(tmp_path / "labels.jsonl", rows)
    flags = arguments(tiny, "bco", tmp_path / "run", "--data", tmp_path / "labels.jsonl")
    assert train.main(flags) == 0
    rows[3]["label"] = True
    write_lines(tmp_path / "labels.jsonl", rows)
    capsys.readouterr()
    assert train.main([*flags, "--resume"]) == 2
    assert "the data or its template has changed" in capsys.readouterr().err


def test_coupled_losses_are_evaluated_on_the_whole_held_out_set(tiny, tmp_path):
    for micro in ("6", "2"):
        more = ["--data.eval_path", tiny / "pairs.jsonl", "--train.micro_batch_size", micro]
        assert train.main(arguments(tiny, "aot", tmp_path / micro, *more)) == 0
    six, two = (read_metrics(tmp_path / micro)[-1] for micro in ("6", "2"))
    for key in ("eval/loss", "eval/rewards/margin", "eval/logps/chosen"):
        assert six[key] == pytest.approx(two[key], rel=1e-5), key


def test_methods_without_a_reference_load_none(tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a reference was built")

    monkeypatch.setattr(sources, "load_frozen", refuse)
    monkeypatch.setattr(sources, "cached_sums", refuse)
    for name in [name for name, cls in LOSSES.items() if not cls.needs_reference]:
        assert train.main(arguments(tiny, name, tmp_path / name, "--train.steps", "1")) == 0
        assert "rewards/margin" not in read_metrics(tmp_path / name)[0]


def test_ld_dpo_is_the_same_with_a_cached_and_a_live_reference(tiny, tmp_path):
    for mode in ("cached", "live"):
        assert train.main(arguments(tiny, "ld_dpo", tmp_path / mode, "--reference.mode", mode)) == 0
    cached, live = (read_metrics(tmp_path / mode) for mode in ("cached", "live"))
    for a, b in zip(cached, live, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_sums_of_losses_by_name():
    x = inputs()
    both = build_loss("dpo+sft", weights=[2.0, 0.5], beta=0.3)
    by_hand = 2 * build_loss("dpo", beta=0.3)(x) + 0.5 * build_loss("sft")(x)
    torch.testing.assert_close(both(x), by_hand, rtol=1e-14, atol=0)
    only_one = build_loss("nca+dpo", **{"dpo.beta": 0.3})
    assert [part.beta for part in only_one.losses] == [build_loss("nca").beta, 0.3]
    with pytest.raises(ValueError, match="names 'dpo' twice"):
        build_loss("dpo+dpo")
    with pytest.raises(ValueError, match="unknown loss 'sfd'; did you mean 'sft'"):
        build_loss("dpo+sfd")
