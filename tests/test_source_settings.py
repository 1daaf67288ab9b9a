"""[sources.NAME] and its flags: what is read, and what is refused before anything runs."""

import pytest
from conftest import refuse

from align.config import load_config
from align.files import to_toml
from align.tiny import paths


def test_a_config_with_sources_reads_back_as_itself(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[model]\npath = "m"\n[data]\npath = "d"\n[sources.stay]\npath = "a"\nloss = "anchor"\ndirection = "reverse"\n'
        '[sources.both]\npath = "b"\nloss = "dpo+sft"\nweights = [1, 0.5]\ndpo.beta = 0.3\nbatch_size = 4\n'
    )
    config = load_config(["--config", str(file), "--sources.stay.weight=2", "--sources.more.path", "c"])
    assert list(config.sources) == ["stay", "both", "more"] and config.sources["stay"].weight == 2.0
    assert [each.loss.name for each in config.each()] == ["nca", "anchor", "dpo+sft", "sft"]
    assert [each.train.batch_size for each in config.each()] == [32, 32, 4, 32]
    assert [each.reference.mode for each in config.each()] == ["cached", "live", "cached", "cached"]
    text = to_toml(config.to_dict())
    file.write_text(text)
    assert to_toml(load_config(["--config", str(file)]).to_dict()) == text
    # a flag that gives a source another loss comes before what the file says of the old one's parameters
    said = refuse(load_config, ["--config", str(file), "--sources.stay.loss", "sft"])
    assert "sources.stay.direction is no key of a source" in said


def test_a_run_that_could_never_move_is_refused():
    """Anchors alone: at the reference they have no gradient."""
    base = ["--model", "m", "--data", "d", "--loss", "anchor"]
    assert "--loss anchor has no gradient at the reference" in refuse(load_config, base)
    anchored = ["--sources.stay.path", "f", "--sources.stay.loss", "anchor"]
    assert "alone trains nothing" in refuse(load_config, [*base, *anchored])
    assert load_config([*base, "--sources.stay.path", "f", "--sources.stay.loss", "dpo"]).reference.mode == "live"
    assert load_config([*base[:4], "--loss", "anchor+sft"]).reference.mode == "live"


BASE = ["--model", "m", "--data", "d", "--sources.stay.path", "f"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--sources.stay.wieght", "2"],
            "--sources.stay.wieght is no key of a source (path, loss, weight, batch_size)",
        ),
        (["--sources.stay.beta", "2"], "--sources.stay.beta is no key of a source"),
        (["--sources.stay.loss", "anchr"], "--sources.stay.loss: unknown loss 'anchr'; did you mean 'anchor'"),
        (
            ["--sources.stay.loss", "anchor", "--sources.stay.direction", "up"],
            "sources.stay.direction must be forward or",
        ),
        (["--sources.stay.weight", "0"], "sources.stay.weight must be above 0, not 0.0"),
        (["--sources.stay.weight", "-1"], "sources.stay.weight must be above 0"),
        (["--sources.stay.weight", "nan"], "sources.stay.weight must be above 0, not nan"),
        (["--sources.stay.weight", "inf"], "sources.stay.weight must be below inf"),
        (["--sources.stay.batch_size", "-1"], "sources.stay.batch_size must be at least 0"),
        (["--sources.stay.batch_size", "2.5"], "--sources.stay.batch_size must be a whole number"),
        (["--sources.stay.loss", "dpo", "--sources.stay.beta", "0"], "sources.stay.beta must be greater than 0"),
        (
            ["--sources.stay.loss", "dpo+sft", "--sources.stay.weights", "1"],
            "sources.stay.weights must be one for each of 2",
        ),
        (["--sources.stay.loss", "rpo", "--sources.stay.alpha", "inf"], "sources.stay.alpha must be"),
        (["--sources.go.loss", "sft"], "sources.go.path is missing; give --sources.go.path FILE"),
        (["--sources.eval.path", "f"], "--sources.eval.path: eval means something else in the metrics"),
        (["--sources.data.path", "f"], "--sources.data.path: data means something else"),
        (["--sources.a/b.path", "f"], "--sources.a/b.path: a source is a table [sources.NAME]"),
        (["--sources.path", "f"], "--sources.path: a source is a table [sources.NAME]"),
        (["--sources", "f"], "--sources: a source is a table [sources.NAME]"),
        (["--optim.project", "staye"], "optim.project staye: names no source; there are: stay"),
        (["--optim.ema", "1"], "optim.ema must be below 1"),
        (["--loss", "sft", "--reference.mode", "moving"], "reference.mode moving: sft has no reference"),
    ],
)
def test_what_is_wrong_with_a_source_is_named_by_its_key(flags, words):
    assert refuse(load_config, [*BASE, *flags]).startswith(words)


@pytest.mark.parametrize(
    "text",
    ["sources = 3", "[sources.stay]\n", "[sources]\nstay = 3", "[sources.'a b']\npath = 'f'"],
)
def test_a_file_that_has_no_table_of_a_source_is_told_how_to_write_one(text, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    said = refuse(load_config, [*BASE[:4], "--config", str(file)])
    assert said.startswith(f"{file}: sources") and "a source is a table [sources.NAME] with path = FILE" in said


def test_a_source_of_the_toy_world(monkeypatch):
    flags = ["--sources.stay.path", "tiny:dialogues", "--sources.own.path", "mine.jsonl"]
    config = load_config(["--loss", "nca", *flags, "--data.eval_path", "tiny:held-out-pairs"])
    monkeypatch.setattr(paths, "resolve_path", lambda path, *_, **__: path.replace("tiny:", "there/"))
    paths.resolve_tiny(config, None, None)
    assert [source.path for source in config.sources.values()] == ["there/dialogues", "mine.jsonl"]
    assert config.data.eval_path == "there/held-out-pairs"
