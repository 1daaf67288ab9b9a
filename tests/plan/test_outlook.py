"""--plan, from published descriptions alone and on data: what it says, and what it refuses."""

import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import MODEL, refuse

import train
from align.config import CONFIGS, load_config
from align.models import read_config
from align.parallel import World
from align.plan.__main__ import table
from align.plan.mends import mends
from align.plan.outlook import look
from align.plan.setup import Setup
from benchmarks import plan_memory, records

ROOT = Path(__file__).resolve().parents[2]
# as their model cards and papers have it, in units of 10^9
PUBLISHED = {
    "falcon-7b": 7, "falcon-11b": 11, "falcon-40b": 40, "falcon-180b": 180,
    "falcon3-1b": 1.67, "falcon3-3b": 3, "falcon3-7b": 7, "falcon3-10b": 10,
}  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def unreachable(*args, **kwargs):
        raise AssertionError("a plan without data asks the Hub for nothing it has a description of")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)


def outlook(*flags):
    config = load_config([*map(str, flags)])
    return look(config, World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    config = load_config(["--config", name, "--plan"])
    model = read_config(CONFIGS / "architectures" / config.model.path, weights=False)
    assert Setup(model).base / 1e9 == pytest.approx(PUBLISHED[name], rel=0.08)
    assert load_config(["--config", f"{name}-lora", "--plan"]).model.path == config.model.path


def test_the_table_of_the_documentation_is_current():
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    stale = [line for line in table().splitlines() if line not in text.splitlines()]
    assert not stale, "run python -m align.plan, and put what it prints into docs/scaling.md"


def test_falcon_11b_on_eight_gpus(capsys):
    command = ["--plan", "--config", "falcon-11b", "--plan.gpus", "8", "--train.batch_size", "512"]
    assert train.main(command) == 0
    said = capsys.readouterr().out
    assert "Falcon of 11,102,822,400 parameters" in said and "8 GPUs of 80 GiB and 989.4 TFLOP/s in bfloat16" in said
    listed = said.split("its fullest: ")[1].split("\n")[0]
    kinds = {name: float(size) for name, size in re.findall(r"(\w+) ([\d.]+)(?:,|$)", listed)}
    # a float32 weight, its gradient and two moments, an eighth of each
    assert kinds["weights"] == kinds["gradients"] == pytest.approx(4 * 11.1028 / 8 / 1.073741824, abs=0.01)
    assert kinds["optimizer"] == pytest.approx(2 * kinds["weights"], abs=0.01)
    assert sum(kinds.values()) == pytest.approx(float(re.search(r"memory: ([\d.]+) GiB", said)[1]), abs=0.05)
    assert "it fits: a micro-batch may have" in said and "micro_batch_tokens = 16384" in said


@pytest.mark.parametrize("model", ["tiiuae/Falcon3-1B-Base", "tiiuae/falcon-11B"])
def test_the_recipe_is_planned_for_the_models_that_it_names(capsys, model):
    assert train.main(["--plan", "--config", "safe", "--model", model, "--plan.gpus", "8"]) == 0
    said = capsys.readouterr().out
    assert "in every step 10 x anchor on 64 prompts each" in said and "it fits: a micro-batch may have" in said
    assert load_config(["--config", "safe", "--plan"]).loss.parameters["weights"] == [1.0, 1.0]


def test_what_does_not_fit_is_told_what_would(capsys):
    assert train.main(["--config", "falcon-11b", "--plan.gpus", "1"]) == 0  # --plan.gpus asks for a plan by itself
    said = capsys.readouterr().out
    assert "it does not fit; it would with --lora.rank 16, or with 4 GPUs" in said
    # each of them does
    for more in (["--lora.rank", "16"], ["--plan.gpus", "4"]):
        assert outlook("--config", "falcon-11b", "--plan.gpus", "1", *more).fits
    assert not outlook("--config", "falcon-11b", "--plan.gpus", "2").fits
    found = outlook("--config", "falcon-11b", "--plan.gpus", "1", "--plan.memory", "20")
    assert mends(found.setup, found.fullest, found.machine.memory, True) == ["16 GPUs"]


def test_time_follows_from_what_is_stated():
    base = ("--config", "falcon-11b", "--plan.gpus", "8")
    usual, half, slow = outlook(*base), outlook(*base, "--plan.mfu", "0.2"), outlook(*base, "--plan.tflops", "494.7")
    assert usual.seconds == pytest.approx(usual.needed / (8 * 989.4e12 * 0.4))
    assert half.seconds == slow.seconds == pytest.approx(2 * usual.seconds)
    assert usual.run > usual.needed  # recomputation


def test_a_run_that_is_given_no_number_of_tokens_takes_what_fits():
    roomy, tight = (outlook("--config", "falcon-11b", "--plan.gpus", "8", "--plan.memory", gib) for gib in (80, 28))
    assert tight.fits and tight.micro_batches >= roomy.micro_batches
    assert tight.held.total <= 28 * 2**30 < roomy.held.total + 2**30


def test_on_data_and_this_machine(pairs_file, tmp_path, capsys):
    command = [
        "--model",
        MODEL,
        "--data",
        pairs_file,
        "--output",
        tmp_path / "out",
        "--train.batch_size",
        "8",
        "--plan",
    ]
    assert train.main([str(word) for word in [*command, "--train.micro_batch_tokens", "90"]]) == 0
    said = capsys.readouterr().out
    assert "data: 23 prompts of 2 responses" in said and "micro-batches of at most 90 tokens" in said
    assert "1 rank of" in said and "(measured)" in said and "hours for all 3 steps" in said


def test_flags_of_a_plan():
    assert load_config(["--config", "falcon-11b", "--plan.memory", "40"]).plan.memory == 40
    assert "plan.gpus must be at least 0" in refuse(load_config, ["--config", "falcon-11b", "--plan.gpus", "-1"])
    assert "plan.gpus must be a whole number" in refuse(load_config, ["--config", "falcon-11b", "--plan.gpus", "many"])
    assert "did you mean --plan.memory" in refuse(load_config, ["--config", "falcon-11b", "--plan.memmory", "40"])
    # without a plan, data is as needed as ever
    assert "data.path is missing" in refuse(load_config, ["--config", "falcon-11b"])


def test_a_file_cannot_ask_for_a_plan(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[plan]\ngpus = 8\n")
    assert "plan.gpus is not a configuration key" in refuse(load_config, ["--config", str(file), "--model", "m"])


def test_replicas_divide_the_gpus_that_are_planned_for():
    flags = ("--config", "falcon-11b", "--plan.gpus", "8", "--parallel.replicate")
    assert outlook(*flags, "2").setup.shards == 4
    assert "parallel.replicate 3 does not divide" in refuse(outlook, *flags, "3")


def test_the_measured_table_is_the_record():
    record = records.read(sorted(records.FOLDER.glob("plan-memory-*.json"))[-1])
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    assert all(line in text for line in plan_memory.table(record).splitlines())
    for row in record["numbers"]:
        assert row["error_percent"] == pytest.approx(100 * (row["planned_mib"] / row["held_mib"] - 1), abs=0.1)
        assert abs(row["error_percent"]) < 10
