"""Flags, files and defaults: which one wins, what is kept, what --help and config.toml say."""

import tomllib
from dataclasses import fields

import pytest
from conftest import refuse

from align.config import Config, help_text, load_config
from align.errors import UserError
from align.files import to_toml
from align.sections import SECTIONS, DataSection, settle_length

BASE = ["--model", "m", "--data", "d"]


def test_later_wins(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "output = 'here'\n[train]\nsteps = 5\nseed = 3\n[optim]\nlr = 1\n[loss]\nname = 'dpo'\nbeta = 0.7\n"
    )
    config = load_config([*BASE, "--config", str(file), "--train.steps=9"])
    assert (config.train.steps, config.train.seed, config.optim.lr, config.output) == (9, 3, 1.0, "here")
    assert config.loss.name == "dpo" and config.loss.parameters == {"beta": 0.7}
    assert load_config([*BASE, "--config", str(file), "--loss.beta", "0.2"]).loss.parameters == {"beta": 0.2}


def test_a_table_per_loss_counts_for_the_loss_that_runs(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[loss.nca]\nbeta = 0.2\n[loss.dpo]\nbeta = 0.3\n")
    flags = [*BASE, "--config", str(file)]
    assert load_config(flags).loss.parameters == {"beta": 0.2, "temperature": 1e-3}
    assert load_config([*flags, "--loss", "dpo"]).loss.parameters == {"beta": 0.3}
    assert load_config([*flags, "--loss", "sft"]).loss.parameters == {}


def test_the_resolved_configuration_reads_back_as_itself(tmp_path):
    config = load_config([*BASE, "--loss", "dpo", "--optim.lr", "3e-5", "--data.beyond_context", "TRUE"])
    text = to_toml(config.to_dict())
    assert tomllib.loads(text) == config.to_dict()
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert load_config(["--config", str(file)]).to_dict() == config.to_dict()


def test_a_config_of_ours_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config([*BASE, "--config", "falcon-11b", "--loss", "dpo"])
    assert config.output == "runs/falcon-11b-dpo" and config.parallel.checkpointing == "full"
    assert "configs/ has falcon-11b, falcon-11b-lora, " in refuse(load_config, ["--config", "tinny"])
    (tmp_path / "tiny").write_text("[train]\nsteps = 5\n")  # a file of that name comes first
    assert load_config([*BASE, "--config", "tiny"]).train.steps == 5


def test_the_output_is_named_after_config_and_loss(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[model]\npath = "m"\n[data]\npath = "d"\n')
    assert load_config(["--config", str(file), "--loss", "dpo"]).output == "runs/mine-dpo"
    assert load_config(["--loss", "dpo+sft"]).output == "runs/tiny-dpo+sft"
    assert load_config(["--loss", "dpo", "--loss.beta", "0.5"]).output == "runs/tiny-dpo"


def use(folder):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")


def test_a_second_run_of_other_settings_finds_a_place_and_resumes_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = ["--loss", "dpo", "--loss.beta", "0.5"], ["--loss", "dpo", "--loss.beta", "0.1"]
    assert load_config(first).output == load_config([*first, "--resume"]).output == "runs/tiny-dpo"
    use(tmp_path / "runs" / "tiny-dpo")
    assert load_config(second).output == "runs/tiny-dpo-beta-0.1"
    use(tmp_path / "runs" / "tiny-dpo-beta-0.1")
    assert load_config([*first, "--resume"]).output == "runs/tiny-dpo"
    assert load_config([*second, "--resume"]).output == "runs/tiny-dpo-beta-0.1"
    assert load_config(["--loss", "dpo"]).output == "runs/tiny-dpo", "which is then refused as in use"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun starts the same command again
    assert load_config(first).restarted and load_config(first).output == "runs/tiny-dpo"


def test_two_settings_have_two_output_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use(tmp_path / "runs" / "tiny-dpo")
    settings = [
        [],
        ["--loss.beta", "0.5"],
        ["--loss.beta", "0.05"],
        ["--loss.beta", "0.5", "--train.steps", "7"],
        ["--train.steps", "7"],
        ["--model", "a/x"],
        ["--model", "b/x"],
        ["--data", "a/x"],
        ["--model", "a/x", "--data", "b/x"],
        ["--model", "b/x", "--data", "a/x"],
        ["--data.template", "long/" * 50 + "one"],
        ["--data.template", "long/" * 50 + "two"],
        ["--data.template", "x" * 99 + "1"],
        ["--data.template", "x" * 99 + "2"],
        ["--sources.a.path", "x"],
        ["--sources.b.path", "x"],
        ["--sources.a.path", "x", "--sources.a.weight", "2"],
        ["--sources.a.path", "x", "--sources.a.batch_size", "2"],
    ]
    outputs = [load_config(["--config", "tiny", "--loss", "dpo", *flags]).output for flags in settings]
    assert len(set(outputs)) == len(outputs)
    for output in outputs:
        assert output.startswith("runs/tiny-dpo") and output.count("/") == 1 and len(output) < 100
    # the order of flags and what only says where files are written do not count, so that --resume finds the run
    same = ["--config", "tiny", "--train.steps", "7", "--loss", "dpo", "--loss.beta", "0.5"]
    (tmp_path / outputs[3]).mkdir()
    assert load_config([*same, "--train.checkpoint_every", "2", "--resume"]).output == outputs[3]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--optim.warmup", "10"], "optim.warmup must be at most 1, not 10.0; it is a share of the steps"),
        (["--optim.warmup", "nan"], "optim.warmup must be at least 0, not nan"),
        (["--optim.lr", "inf"], "optim.lr must be at most 1e+30, not inf"),
        (["--optim.beta2", "1"], "optim.beta2 must be below 1"),
        (["--optim.weight_decay", "-0.1"], "optim.weight_decay must be at least 0"),
        (["--optim.max_grad_norm", "0"], "optim.max_grad_norm must be above 0, not 0.0; inf clips nothing"),
        (["--train.epochs", "inf"], "train.epochs must be below inf"),
        (["--train.epochs", "0"], "train.epochs must be above 0"),
        (["--train.seed", "9" * 30], "train.seed must be at most"),
        (["--data.max_length", "-1"], "data.max_length must be at least 0"),
        (["--loss", "robust", "--loss.label_smoothing", "nan"], "loss.label_smoothing must be"),
        (["--loss", "rpo", "--loss.alpha", "inf"], "loss.alpha must be"),
        (["--loss", "dpo+sft", "--loss.weights", "1,inf"], "loss.weights"),
        (["--train.keep_checkpoints", "0"], "train.keep_checkpoints must be at least 1"),
        (["--reference.mode", "moving", "--reference.alpha", "1.1"], "reference.alpha must be at most 1"),
    ],
)
def test_numbers_have_bounds(flags, words):
    with pytest.raises(UserError) as caught:
        load_config([*BASE, *flags])
    assert str(caught.value).startswith(words)


def test_every_number_has_a_bound():
    for name in SECTIONS:
        for f in fields(getattr(Config(), name)):
            assert f.type not in (int, float) or f.metadata["bounds"], f"{name}.{f.name}"


def test_the_length_goes_with_the_context():
    def settled(context, **given):
        data = DataSection(**given)
        settle_length(data, context)
        return data.max_length

    assert settled(512) == 512 and settled(8192) == 1024
    assert settled(512, max_length=100) == 100 and settled(512, max_length=512) == 512
    with pytest.raises(UserError, match=r"max_length 513.* context of 512 .*--data\.beyond_context true"):
        settled(512, max_length=513)
    assert settled(512, max_length=513, beyond_context=True) == 513 and settled(512, beyond_context=True) == 512


def test_the_embedded_default_needs_no_arguments():
    config = load_config([])
    assert config.model.path.startswith("tiny:") and config.data.path.startswith("tiny:")
    assert config.output == "runs/tiny-nca"


def test_a_key_of_an_earlier_version_is_told_what_it_has_become(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[parallel]\nactivation_checkpointing = true\n")
    new = "has become parallel.checkpointing; write full for true, none for false"
    said = refuse(load_config, [*BASE, "--config", str(file)])
    assert said == f"{file}: parallel.activation_checkpointing {new}"
    said = refuse(load_config, [*BASE, "--parallel.activation_checkpointing", "true"])
    assert said == f"--parallel.activation_checkpointing {new}"


def test_types_are_strict(tmp_path):
    file = tmp_path / "mine.toml"
    for text in ("[train]\nsteps = 5.0\n", "[train]\nsteps = true\n", "[optim]\nlr = '1e-3'\n", "[loss]\nbeta = 'x'\n"):
        file.write_text(text)
        with pytest.raises(UserError, match=str(file)):
            load_config([*BASE, "--config", str(file)])
    with pytest.raises(UserError, match="must be true or false"):
        load_config([*BASE, "--data.beyond_context", "yes"])
    file.write_text(f"[optim]\nlr = {10**400}\n")  # more than a float can be
    assert refuse(load_config, [*BASE, "--config", str(file)]) == "optim.lr must be at most 1e+30, not inf"


def test_every_key_has_help():
    text = help_text()
    for section, keys in Config().to_dict().items():
        if isinstance(keys, dict) and section != "loss":
            for name in keys:
                assert f"--{section}.{name} " in text


def test_a_resolved_configuration_reads_back_as_itself(tmp_path):
    """Infinities, letters beyond 16 bits and sums of losses among them: --resume compares with what was written."""
    file = tmp_path / "config.toml"
    for flags in (
        ["--loss", "dpo+sft", "--loss.weights", "1,0.5", "--loss.beta", "0.2", "--optim.max_grad_norm", "inf"],
        ["--loss", "fdpo", "--loss.divergence", "alpha", "--loss.alpha", "0.3", "--output", "runs/\U0001f600 \x7f"],
        ["--loss", "nca+bco", "--loss.bco.shift", "0", "--reference.mode", "live"],
    ):
        config = load_config(flags)
        file.write_text(to_toml(config.to_dict()), encoding="utf-8")
        assert load_config(["--config", str(file)]).to_dict() == config.to_dict()


def test_a_table_for_one_loss_beats_the_one_for_all_in_any_order(tmp_path):
    file = tmp_path / "c.toml"
    tables = ["[loss]\nbeta = 0.7\n", "[loss.nca]\nbeta = 0.2\n"]
    for text in ("".join(tables), "".join(reversed(tables))):
        file.write_text(text)
        assert load_config(["--config", str(file), "--model", "m", "--data", "d"]).loss.parameters["beta"] == 0.2
        both = load_config(["--config", str(file), "--model", "m", "--data", "d", "--loss", "nca+dpo"])
        assert both.loss.parameters["nca.beta"] == 0.2 and both.loss.parameters["dpo.beta"] == 0.7


@pytest.mark.parametrize("text", ["a\0b", "a\udcff"])
def test_a_text_that_no_file_can_hold(text):
    assert "must be text without NUL, in UTF-8" in refuse(
        load_config, ["--model", "m", "--data", text, "--loss", "nca"]
    )
