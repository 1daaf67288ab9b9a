"""Checkpoints with damage: found before anything runs, named in one line with what to do."""

import json
import os

import pytest
from conftest import MODEL, read_metrics

import train
from align.files import read_json


@pytest.fixture
def run(pairs_file, tmp_path):
    """Flags of a run that has ended after two steps, with a checkpoint of each; its last step is to be done again."""
    flags = ["--loss", "nca", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out"]
    flags += ["--train.steps", "2", "--train.batch_size", "2", "--reference.cache", tmp_path / "cache"]
    flags = list(map(str, [*flags, "--train.checkpoint_every", "1"]))
    assert train.main(flags) == 0
    return flags


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "link"])
def test_a_damaged_checkpoint(name, damage, run, tmp_path, capsys, monkeypatch):
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000002"
    file = checkpoint / name
    capsys.readouterr()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    if damage == "link":
        os.symlink("nowhere", file)
    if name == "state.json" and damage != "cut":  # it is written last: a checkpoint without it is none
        assert train.main([*run, "--resume"]) == 0
        assert [line["step"] for line in read_metrics(tmp_path / "out")] == [1, 2]
        return
    monkeypatch.setattr(train, "load_dataset", None)  # it is not read
    assert train.main([*run, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"error: {checkpoint} cannot be resumed from")
    assert name in said and "remove that folder" in said


def test_a_checkpoint_of_an_older_version_needs_its_metadata(run, tmp_path, capsys):
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000002"
    state = json.loads((checkpoint / "state.json").read_text())
    assert set(state.pop("files")) == {".metadata", "__0_0.distcp"}
    (checkpoint / "state.json").write_text(json.dumps(state))
    assert train.main([*run, "--resume"]) == 0
    (checkpoint / ".metadata").unlink()
    assert train.main([*run, "--resume"]) == 2
    assert ".metadata is missing" in capsys.readouterr().err


def test_damage_that_keeps_the_size_is_one_line_too(run, tmp_path, capfd):
    file = tmp_path / "out" / "checkpoints" / "step-000002" / "__0_0.distcp"
    file.write_bytes(bytes(file.stat().st_size))
    assert train.main([*run, "--resume"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "cannot be resumed from (UnpicklingError: Weights only load failed); remove that folder" in said


def test_an_output_in_use_is_found_before_the_data_is_read(run, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr(train, "load_dataset", None)
    assert train.main(run) == 2
    assert "already in use; add --resume" in capsys.readouterr().err


def test_the_dtype_on_disk_may_change_on_resuming(run, tmp_path):
    assert train.main([*run, "--resume", "--model.save_dtype", "bfloat16"]) == 0
    assert read_json(tmp_path / "out" / "model" / "config.json")["torch_dtype"] == "bfloat16"
