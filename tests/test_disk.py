"""What the disk refuses is one line with status 2, and leaves the checkpoints before as they were."""

import errno
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
from conftest import MODEL, read_metrics, run_train
from safetensors.torch import load_file

import train
from align import disk, shards
from align.checkpoint import damage_of
from align.parallel import World


@pytest.fixture
def flags(pairs_file, tmp_path):
    base = ["--loss", "nca", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out"]
    base += ["--train.steps", "3", "--train.batch_size", "4", "--reference.cache", tmp_path / "cache"]
    return list(map(str, [*base, "--train.checkpoint_every", "1", "--optim.lr", "1e-3"]))


def refused(flags, capsys):
    capsys.readouterr()
    assert train.main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_checkpoint_that_cannot_be_written(number, flags, tmp_path, capsys, monkeypatch):
    whole = tmp_path / "whole"
    assert train.main([*flags, "--output", str(whole)]) == 0
    write = shards.write_safetensors

    def fails(file, tensors):
        if "step-000002" in str(file):
            file.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        return write(file, tensors)

    monkeypatch.setattr(shards, "write_safetensors", fails)
    said = refused(flags, capsys)
    assert f"step-000002: cannot be written ({os.strerror(number)})" in said and "--resume goes on" in said
    out = tmp_path / "out"
    assert damage_of(out / "checkpoints" / "step-000001", World(0, 1, None)) == ""
    monkeypatch.undo()
    assert train.main([*flags, "--resume"]) == 0
    assert [line["loss"] for line in read_metrics(out)] == [line["loss"] for line in read_metrics(whole)]
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def test_a_limit_on_the_size_of_files(flags, tmp_path):
    """ulimit -f, which a real write meets: in a process of its own."""
    size = 100_000
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    done = run_train(*flags, **limited)
    assert done.returncode == 2, done.stderr
    assert "step-000001: cannot be written (File too large)" in done.stderr and done.stderr.count("\n") == 1
    assert not list((tmp_path / "out" / "checkpoints").glob("*/rank-*"))
    assert run_train(*flags, "--resume").returncode == 0


@pytest.mark.parametrize("gone", ["out", "out/checkpoints"])
def test_a_folder_that_vanishes(gone, flags, tmp_path, capsys, monkeypatch):
    step = train.Log.step

    def and_remove(self, metrics):
        step(self, metrics)
        if metrics["step"] == 2:
            shutil.rmtree(tmp_path / gone)

    monkeypatch.setattr(train.Log, "step", and_remove)
    assert "step-000002: cannot be written (No such file or directory)" in refused(flags, capsys)


def test_a_cache_that_cannot_be_written(flags, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    assert train.main([*flags, "--output", str(tmp_path / "first")]) == 0
    (file,) = (tmp_path / "cache").iterdir()
    file.unlink()
    file.mkdir()  # a folder where the file should be
    said = refused(flags, capsys)
    assert f"{file}: cannot be written (Is a directory); give another --reference.cache" in said
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.name]


@pytest.mark.parametrize("flag", ["--output", "--reference.cache"])
def test_a_disk_that_refuses_is_found_before_the_data_is_read(flag, flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "load_sources", None)
    files = disk.tempfile.TemporaryFile

    def full(dir):
        if str(dir).endswith("full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return files(dir=dir)

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", full)
    (tmp_path / "full").mkdir()
    said = refused([*flags, flag, str(tmp_path / "full" / "a")], capsys)
    assert f"{flag} {tmp_path / 'full' / 'a'}: {tmp_path / 'full'} cannot be written in (No space left" in said


def test_room_is_reckoned_before_anything_runs(flags, tmp_path, capsys, monkeypatch):
    """As a run's own files turn out, but for their headers."""
    assert train.main(flags) == 0
    checkpoint = sum(file.stat().st_size for file in (tmp_path / "out" / "checkpoints" / "step-000003").iterdir())
    model = (tmp_path / "out" / "model" / "model.safetensors").stat().st_size
    needed = 3 * checkpoint + model  # two are kept, and one more is there while it is written
    free = SimpleNamespace(free=int(0.8 * needed))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: free)
    said = refused([*flags, "--output", str(tmp_path / "other")], capsys)
    assert "for 3 checkpoints of " in said and "lower --train.keep_checkpoints" in said
    assert not (tmp_path / "other").exists()
    assert train.main([*flags, "--output", str(tmp_path / "other"), "--train.keep_checkpoints", "1"]) == 0
    free.free = int(1.2 * checkpoint)  # what the run has there already is its own
    assert train.main([*flags, "--resume"]) == 0


def test_folders_in_a_models_folder_are_no_files_of_its_tokenizer(flags, tmp_path):
    base = shutil.copytree(MODEL, tmp_path / "base", copy_function=shutil.copyfile)
    (base / "tokenizer_old").mkdir()
    (base / "tokenizer_old" / "tokenizer.json").write_text("{}")
    assert train.main([*flags, "--model", str(base), "--train.steps", "1"]) == 0
    assert "tokenizer_old" not in {path.name for path in (tmp_path / "out" / "model").iterdir()}
