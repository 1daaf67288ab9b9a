"""A step whose numbers are not finite is not taken, its rows are named, and it is the same on every rank."""

import json

import pytest
import torch
from conftest import MODEL, read_metrics, run_train
from safetensors.torch import load_file, save_file

import train
from align.losses.dpo import DPO
from align.nonfinite import is_finite


@pytest.fixture
def flags(pairs_file, tmp_path):
    base = ["--loss", "dpo", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out"]
    base += ["--train.steps", "4", "--train.batch_size", "4", "--reference.cache", tmp_path / "cache"]
    return list(map(str, [*base, "--train.micro_batch_size", "2", "--optim.lr", "1e-3"]))


@pytest.fixture
def spoil(monkeypatch):
    """Make the losses of chosen calls of the loss something else."""

    def spoil(at, change):
        value, calls = DPO.__call__, []

        def spoiled(self, x):
            losses = value(self, x)
            calls.append(None)
            return change(losses) if len(calls) in at else losses

        monkeypatch.setattr(DPO, "__call__", spoiled)

    return spoil


def first_is_nan(losses):
    return torch.cat([losses[:1] * torch.nan, losses[1:]])


def test_one_pass_finds_what_isfinite_finds():
    for value in (0.0, 3e38, -3e38, torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            tensor = torch.ones(5, 3, dtype=dtype)
            tensor[2, 1] = value
            assert is_finite(tensor) == bool(tensor.isfinite().all()), (value, dtype)
    assert is_finite(torch.ones(0, 2))


def test_a_row_without_a_finite_loss_is_named_and_nothing_is_taken(flags, spoil, tmp_path, capsys):
    spoil({3}, first_is_nan)  # the first micro-batch of step 2
    assert train.main([*flags, "--train.checkpoint_every", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "error: step 2: the loss of 1 of its 4 prompts is not finite; look at " in said
    assert f"{tmp_path / 'pairs.jsonl'}:" in said and said.endswith(
        "To go on without such steps: --train.max_bad_steps 1\n"
    )
    assert [line["step"] for line in read_metrics(tmp_path / "out")] == [1]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000001"]


def test_so_many_are_left_out_and_no_more(flags, spoil, tmp_path, capsys):
    spoil({3, 5}, first_is_nan)
    assert train.main([*flags, "--train.max_bad_steps", "1"]) == 2
    said = capsys.readouterr()
    assert "step 2 is left out, 1 of at most 1: the loss of 1 of its 4 prompts" in said.out
    assert "error: step 3: the loss of 1 of its 4 prompts" in said.err and "max_bad_steps 2" in said.err


def test_a_run_of_no_step_at_all_exports_nothing(flags, spoil, tmp_path, capsys):
    spoil({1}, first_is_nan)
    assert train.main([*flags, "--train.steps", "1", "--train.max_bad_steps", "9"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "error: none of 1 steps could be taken" in said
    assert not (tmp_path / "out" / "model").exists()


def test_a_step_left_out_changes_nothing(flags, spoil, tmp_path):
    """The last step's: the weights are those of three steps, and each line of the metrics is finite."""
    more = ["--optim.schedule", "constant", "--optim.warmup", "0"]
    assert train.main([*flags, *more, "--output", str(tmp_path / "three"), "--train.steps", "3"]) == 0
    spoil({7}, first_is_nan)
    assert train.main([*flags, *more, "--train.max_bad_steps", "1"]) == 0
    three, four = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("three", "out"))
    assert all(torch.equal(three[name], four[name]) for name in three)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines] == [1, 2, 3]
    state = json.loads((tmp_path / "out" / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["bad_steps"] == 1


def test_the_running_state_of_a_loss_is_what_it_was(pairs_file, tmp_path, flags, monkeypatch):
    from align.losses import LOSSES

    observe, calls = LOSSES["bco"].observe, []

    def spoiled(self, x):
        observe(self, x)
        calls.append(None)
        if len(calls) == 2:
            self.load_state(dict.fromkeys(self.state(), torch.nan))

    monkeypatch.setattr(LOSSES["bco"], "observe", spoiled)
    assert train.main([*flags, "--loss", "bco", "--train.max_bad_steps", "1"]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "out")] == [1, 3, 4]


def test_a_gradient_alone(flags, spoil, tmp_path, capsys):
    spoil({1}, lambda losses: losses + (losses - losses.detach()).abs().sqrt().sum())  # 0, with an infinite slope
    assert train.main(flags) == 2
    said = capsys.readouterr().err
    assert "step 1: each prompt's loss is finite, and the gradient is not" in said and "pairs.jsonl:" in said


def test_a_rate_that_is_too_high_is_called_that(flags, tmp_path, capsys):
    assert train.main([*flags, "--optim.lr", "1e30"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "diverged; lower --optim.lr" in said and "--override optim.lr" in said
    assert not (tmp_path / "out" / "model").exists()


def test_the_last_steps_weights_are_neither_saved_nor_exported(flags, tmp_path, capsys, monkeypatch):
    step = torch.optim.AdamW.step

    def to_nan(self, *args):
        step(self, *args)
        self.param_groups[0]["params"][0].data.mul_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", to_nan)
    assert train.main([*flags, "--train.steps", "1"]) == 2
    assert "step 1 has left model." in capsys.readouterr().err
    assert not list((tmp_path / "out" / "checkpoints").iterdir()) and not (tmp_path / "out" / "model").exists()


def test_a_base_with_a_nan_is_no_learning_rate(flags, tmp_path, capsys):
    import shutil

    base = shutil.copytree(MODEL, tmp_path / "base", copy_function=shutil.copyfile)
    tensors = load_file(base / "model.safetensors")
    tensors["transformer.ln_f.weight"][1] = torch.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert train.main([*flags, "--model", str(base)]) == 2
    said = capsys.readouterr().err
    assert f"{base}: tensor transformer.ln_f.weight holds numbers that are not finite; download the model again" in said
    assert "optim.lr" not in said and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_rank_leaves_out_the_same_step(flags, pairs_file, tmp_path):
    """A loss of the user's own that is NaN for some rows, on two ranks as on one."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom align.losses.dpo import DPO\n\n\n"
        "@dataclass\nclass Mine(DPO):\n    def __call__(self, x):\n"
        "        return super().__call__(x).masked_fill(x.n_tok[:, 1] > 25, float('nan'))\n"
    )
    said, steps = [], []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        more = ["--loss", "mine:Mine", "--train.max_bad_steps", "4", "--output", out]
        done = run_train(*flags, *more, ranks=ranks, env={"PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        said.append([line for line in done.stdout.splitlines() if "is left out" in line])
        steps.append([line["step"] for line in read_metrics(out)])
    assert said[0] == said[1] and steps[0] == steps[1]
    assert 0 < len(said[0]) < 4 and len(steps[0]) == 4 - len(said[0])
