"""The reference cache: named by all that its numbers depend on, and never believed where it has changed."""

import random
from dataclasses import replace

import pytest
import torch
from conftest import MODEL, read_metrics

import train
from align.config import Config
from align.data import encode_rows, load_tokenizer, read_rows
from align.data.batches import Dataset
from align.parallel import World
from align.reference import cache_file, packed, read_cache


@pytest.fixture
def cached(pairs_file):
    """cache_file of settings that differ from the usual: of a configuration, a World and a Dataset."""
    tokenizer = load_tokenizer(MODEL)
    groups, _ = encode_rows(read_rows(str(pairs_file))[0], tokenizer, "auto", 512, "drop", "auto")
    cpu = torch.device("cpu")

    def name(model_id="m", device=cpu, groups=groups, **settings):
        config = Config()
        for key, value in {"parallel.dtype": "float32", **settings}.items():
            section, _, key = key.partition(".")
            setattr(getattr(config, section), key, value)
        data = object.__new__(Dataset)
        object.__setattr__(data, "groups", groups)
        return cache_file(config, model_id, data, World(0, 1, device)).name

    name.groups = groups
    return name


def test_every_part_of_the_key_counts(cached):
    """Left out of the key, any of these would hand a run numbers that were computed otherwise."""
    others = {
        "dtype": cached(**{"parallel.dtype": "bfloat16"}),
        "device": cached(
            device=torch.device("meta"), **{"model.logp_impl": "chunked", "model.pointwise_impl": "reference"}
        ),
        "log-prob kernel": cached(**{"model.logp_impl": "reference"}),
        "pointwise kernel": cached(**{"model.pointwise_impl": "triton"}),
        "attention": cached(**{"model.attention_impl": "varlen"}),
        "model": cached(model_id="other"),
        "rows": cached(groups=cached.groups[:-1]),
        "order": cached(groups=[replace(g, index=22 - g.index) for g in cached.groups]),
        "usual": cached(**{"model.logp_impl": "chunked", "model.pointwise_impl": "reference"}),
    }
    assert len(set(others.values())) == len(others)


def test_what_changes_no_number_is_not_in_the_key(cached):
    usual = cached()
    assert cached(**{"model.logp_impl": "chunked"}) == usual, "which is what auto is on a CPU"
    assert cached(**{"train.batch_size": 5, "reference.cache": "elsewhere", "loss.name": "dpo"}) == usual


def test_five_hundred_mutations_of_a_cache(tmp_path, capsys):
    """Each reads as a missing cache, and is said."""
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    table = torch.randn(23, 2, 2)
    table[3] = torch.nan
    empty = torch.full_like(table, torch.nan)
    file, content = tmp_path / "cache.safetensors", packed(table)
    file.write_bytes(content)
    assert torch.equal(read_cache(file, empty).nan_to_num(7), table.nan_to_num(7))
    assert capsys.readouterr().out == ""
    for _ in range(500):
        changed = bytearray(content)
        start, length = draw.randrange(len(content)), draw.choice([1, 4, 64, 4096])
        kind = draw.choice(["bit", "zeros", "noise", "cut", "insert", "append"])
        if kind == "bit":
            changed[start] ^= 1 << draw.randrange(8)
        elif kind in ("zeros", "noise"):
            piece = changed[start : start + length]
            changed[start : start + length] = bytes(len(piece)) if kind == "zeros" else draw.randbytes(len(piece))
        elif kind == "cut":
            del changed[start:]
        else:
            at = start if kind == "insert" else len(content)
            changed[at:at] = draw.randbytes(length)
        if changed == content:
            continue
        file.write_bytes(changed)
        assert read_cache(file, empty) is empty, (seed, kind, start, length)
        assert capsys.readouterr().out.endswith("its log-probs are computed again\n")
    file.unlink()
    file.mkdir()
    assert read_cache(file, empty) is empty


def test_a_cache_of_other_sums_or_shape_is_none(tmp_path):
    file, empty = tmp_path / "cache.safetensors", torch.full((4, 2, 2), torch.nan)
    for table in (torch.zeros(4, 2, 3), torch.zeros(3, 2, 2), torch.zeros(4, 2, 2).double()):
        file.write_bytes(packed(table))
        assert read_cache(file, empty) is empty


def test_a_flipped_bit_does_not_reach_the_loss(pairs_file, tmp_path, capsys):
    flags = ["--loss", "dpo", "--model", MODEL, "--data", pairs_file, "--train.steps", "2", "--train.batch_size", "4"]
    flags = list(map(str, [*flags, "--reference.cache", tmp_path / "cache"]))
    assert train.main([*flags, "--output", str(tmp_path / "a")]) == 0
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x40  # an exponent's
    file.write_bytes(content)
    assert train.main([*flags, "--output", str(tmp_path / "b")]) == 0
    assert f"reference: {file} is damaged" in capsys.readouterr().out
    assert [m["loss"] for m in read_metrics(tmp_path / "a")] == [m["loss"] for m in read_metrics(tmp_path / "b")]
