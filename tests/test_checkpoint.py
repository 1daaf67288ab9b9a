"""Checkpoints with damage: found before they are used, named in one line, and the newest whole one taken instead."""

import json
import os
import pickle
import random
import re
import shutil

import pytest
import torch
from conftest import MODEL, ROOT, read_metrics, refuse
from safetensors.torch import load_file, save_file

import train
from align.checkpoint import damage_of, find_checkpoint, read_state, sealed
from align.files import read_json
from align.parallel import World

ALONE = World(0, 1, torch.device("cpu"))
NOT_A_RESULT = ("seconds", "tokens_per_second", "mfu", "peak_memory_mib")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Flags and folder of a run that has ended after three steps, with a checkpoint of the last two."""
    place = tmp_path_factory.mktemp("ended")
    rows = [{"prompt": f"Hide hat {i}.", "chosen": "I will not. " * (1 + i % 3), "rejected": "Here."} for i in range(9)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--loss", "nca", "--model", MODEL, "--data", place / "pairs.jsonl", "--reference.cache", place / "cache"]
    flags += ["--train.steps", "3", "--train.batch_size", "2", "--optim.lr", "1e-3", "--train.checkpoint_every", "1"]
    assert train.main(list(map(str, [*flags, "--output", place / "out"]))) == 0
    return flags, place / "out"


@pytest.fixture
def run(ended, tmp_path):
    """The flags for a copy of that run, in tmp_path / "out"."""
    flags, folder = ended
    shutil.copytree(folder, tmp_path / "out")
    return list(map(str, [*flags, "--output", tmp_path / "out"]))


def results(output):
    lines = [{k: v for k, v in line.items() if k not in NOT_A_RESULT} for line in read_metrics(output)]
    return lines, (output / "model" / "model.safetensors").read_bytes()


def spoil(file, damage):
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        file.write_bytes(
            content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
        )
    elif damage == "zeros":
        file.write_bytes(content[:64] + bytes(min(4096, len(content) - 64)) + content[64 + 4096 :])
    else:
        file.unlink()
        if damage == "link":
            os.symlink("nowhere", file)
        if damage == "folder":
            file.mkdir()


@pytest.mark.parametrize("name", ["rank-000.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(name, run, tmp_path, capsys):
    whole = results(tmp_path / "out")
    newest = tmp_path / "out" / "checkpoints" / "step-000003"
    for damage in ("missing", "cut", "bit", "zeros", "link", "folder"):
        shutil.rmtree(tmp_path / "out" / "model")
        spoil(newest / name, damage)
        capsys.readouterr()
        assert train.main([*run, "--resume"]) == 0, damage
        said = [line for line in capsys.readouterr().out.splitlines() if " is damaged (" in line]
        assert len(said) == 1 and said[0].startswith(f"{newest} is damaged ({name} "), damage
        # the step is done again, to the bit, and its checkpoint takes the place of the damaged one
        assert results(tmp_path / "out") == whole
        assert damage_of(newest, ALONE) == ""
    assert sorted(path.name for path in newest.parent.iterdir()) == ["step-000002", "step-000003"]


def test_where_no_checkpoint_is_whole_nothing_runs(run, tmp_path, capsys):
    for checkpoint in (tmp_path / "out" / "checkpoints").iterdir():
        spoil(checkpoint / "rank-000.safetensors", "bit")
    capsys.readouterr()
    assert train.main([*run, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "none of 2 is whole (step-000003: rank-000.safetensors " in said


def test_five_hundred_mutations_of_a_checkpoint(run, tmp_path):
    """Each is found, and none is a traceback: of any file any byte, and state.json put together again with other values."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    original = tmp_path / "out" / "checkpoints" / "step-000003"
    state = read_state(original)
    folder = tmp_path / "mutated" / "checkpoints" / "step-000003"
    contents = {file.name: file.read_bytes() for file in original.iterdir()}
    folder.mkdir(parents=True)
    for _ in range(500):
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        name = draw.choice(list(contents))
        content = bytearray(contents[name])
        start, length = draw.randrange(len(content)), draw.choice([1, 8, 512, 4096])
        kind = draw.choice(["bit", "zeros", "noise", "cut", "insert", "append", "swap"])
        if kind == "bit":
            content[start] ^= 1 << draw.randrange(8)
        elif kind in ("zeros", "noise"):
            piece = content[start : start + length]
            content[start : start + length] = bytes(len(piece)) if kind == "zeros" else draw.randbytes(len(piece))
        elif kind == "cut":
            del content[start:]
        elif kind == "insert":
            content[start:start] = draw.randbytes(length)
        elif kind == "append":
            content += draw.randbytes(length)
        else:
            content = bytearray(contents[draw.choice([other for other in contents if other != name])])
        (folder / name).write_bytes(content)
        if content != contents[name]:
            assert damage_of(folder, ALONE), (kind, name, start, length)
    (folder / "rank-000.safetensors").write_bytes(contents["rank-000.safetensors"])
    unsealed = {key: value for key, value in state.items() if key not in ("sha256", "files", "tensors")}
    assert set(unsealed) == {"step", "model", "data", "loss", "bad_steps", "ranks", "threads"}
    for text in ("[]", "{}", "null", '{"sha256": 3}', "[" * 9999, sealed({}), sealed({**state, "files": 3})):
        (folder / "state.json").write_text(text)
        assert damage_of(folder, ALONE)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"step": 9}, "not that of this folder"),
        ({"step": "3"}, "not that of this folder"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "not that of this folder"),
        ({"files": []}, ""),
        ({"tensors": {}}, "is missing"),
        ({"tensors": None}, ""),
        ({"loss": 5}, ""),
        ({"bad_steps": "x"}, ""),
        ({"model": "other"}, "the model's weights or config.json have changed"),
        ({"data": "other"}, "the data or its template has changed"),
    ],
)
def test_a_forged_state_is_one_line(change, words, run, tmp_path, capsys):
    """Sealed as ours are, so that the digests agree; nothing in it can run or be believed beyond the run's own shapes."""
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-000002")
    newest = tmp_path / "out" / "checkpoints" / "step-000003"
    state = {key: value for key, value in read_state(newest).items() if key != "sha256"}
    (newest / "state.json").write_text(sealed({**state, **change}))
    capsys.readouterr()
    assert train.main([*run, "--resume"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and words in said.out + said.err


@pytest.mark.parametrize("forge", ["shape", "rows", "dtype", "more", "nan"])
def test_a_forged_shard_is_one_line(forge, run, tmp_path, capsys):
    import hashlib

    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-000002")
    newest = tmp_path / "out" / "checkpoints" / "step-000003"
    state = {key: value for key, value in read_state(newest).items() if key != "sha256"}
    file, name = newest / "rank-000.safetensors", "model.transformer.ln_f.weight"
    tensors, where = load_file(file), state["tensors"][name]
    if forge == "shape":
        where["shape"] = [7]
    elif forge == "rows":
        tensors[name] = tensors[name][1:].clone()
    elif forge == "dtype":
        where["dtype"] = "BF16"
    elif forge == "more":
        state["tensors"]["model.another"] = where
        tensors["model.another"] = tensors[name].clone()
    else:
        tensors[name][0] = torch.nan
    save_file(tensors, file)
    state["files"][file.name]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (newest / "state.json").write_text(sealed(state))
    capsys.readouterr()
    assert train.main([*run, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{newest} cannot be resumed from (" in said and "remove that folder" in said


def test_a_checkpoint_of_an_older_version_is_refused(run, tmp_path, capsys):
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000003"
    (checkpoint / "rank-000.safetensors").rename(checkpoint / "__0_0.distcp")
    (checkpoint / ".metadata").write_bytes(pickle.dumps({}))
    capsys.readouterr()
    assert train.main([*run, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "written by an older version, pickled, which could run code" in said


def test_nothing_is_unpickled(run, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    assert train.main([*run, "--resume"]) == 0


def test_no_source_unpickles():
    """Nor does any pickle for another rank: torch's collectives of objects do."""
    words = (
        r"\bpickle|torch\.load|np\.load|distributed\.checkpoint|_object\b|_object_list\b|marshal|shelve|joblib|dill\b"
    )
    found = []
    for file in [ROOT / "train.py", ROOT / "eval.py", *ROOT.glob("align/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        for line in file.read_text().splitlines():
            # a message that refuses pickled files, and a comment on what would pickle
            if re.search(words, line) and not re.search(r'f?"|#|"""', line):
                found.append(f"{file}: {line}")
    assert found == []


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_another_base_under_the_same_path_is_refused(file, run, tmp_path, capsys):
    base = shutil.copytree(MODEL, tmp_path / "base", copy_function=shutil.copyfile)
    if file == "config.json":
        (base / file).write_text(json.dumps(read_json(base / file) | {"rope_theta": 5000.0}))
    else:
        tensors = load_file(base / file)
        tensors["transformer.ln_f.weight"][0] += 1e-3
        save_file(tensors, base / file, metadata={"format": "pt"})
    capsys.readouterr()
    assert train.main([*run, "--model", str(base), "--resume", "--override", "model.path"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the model's weights or config.json have changed since" in said


def test_a_step_number_beyond_six_digits_is_the_newest(tmp_path):
    for step in (999999, 1000000):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    said = refuse(find_checkpoint, tmp_path, {}, ALONE)
    assert "none of 2 is whole" in said


def test_an_output_in_use_is_found_before_the_data_is_read(run, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr(train, "load_sources", None)
    assert train.main(run) == 2
    assert "already in use; add --resume" in capsys.readouterr().err


def test_the_dtype_on_disk_may_change_on_resuming(run, tmp_path):
    assert train.main([*run, "--resume", "--model.save_dtype", "bfloat16"]) == 0
    assert read_json(tmp_path / "out" / "model" / "config.json")["torch_dtype"] == "bfloat16"
