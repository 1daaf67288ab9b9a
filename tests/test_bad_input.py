"""Whatever the user can fix: one line that names it, exit status 2, and nothing half-written."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN, MODEL, run_train

import train

ROW = {"prompt": "Say hello.", "chosen": "Hello to you.", "rejected": "No."}


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs train.py in this process, expects a refusal, returns its one line."""

    def run(*flags, data=None, rows=None, model=MODEL, output=None):
        if rows is not None:
            data = tmp_path / "rows.jsonl"
            data.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        output = output or tmp_path / "out"
        before = sorted(output.rglob("*")) if output.exists() else None
        base = ["--model", model, "--data", data or "none.jsonl", "--output", output, "--train.batch_size", "2"]
        base += ["--reference.cache", tmp_path / "cache"]
        if "--loss" not in flags:
            base += ["--loss", "nca"]
        capsys.readouterr()
        assert train.main([str(flag) for flag in [*base, *flags]]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
        assert (sorted(output.rglob("*")) if output.exists() else None) == before
        return said

    return run


def test_unknown_and_ill_typed_keys(refused, tmp_path):
    assert "did you mean --train.steps?" in refused("--train.stesp", "3")
    # keys without their section, as other trainers have them
    assert "--beta is not a configuration key; did you mean --loss.beta?" in refused("--loss", "dpo", "--beta", "0.1")
    assert "did you mean --optim.lr?" in refused("--lr", "1e-6")
    assert "did you mean --loss.dpo.beta?" in refused("--loss", "dpo+sft", "--beta", "0.1")
    assert "--train.steps must be a whole number, not 'many'" in refused("--train.steps", "many")
    assert "--optim.lr must be a number" in refused("--optim.lr", "fast")
    assert "did you mean live" in refused("--reference.mode", "liv")
    assert "--optim.lr needs a value" in refused("--optim.lr")
    assert "train.batch_size must be at least 1, not 0" in refused("--train.batch_size", "0")
    file = tmp_path / "c.toml"
    for text, line in [
        ("[train]\nsteps = 'three'\n", "train.steps must be a whole number, not 'three'"),
        ("[trian]\nsteps = 3\n", "trian.steps is not a configuration key; did you mean train.steps"),
        ("[loss.ncb]\nbeta = 1.0\n", "did you mean nca"),
        ("[loss.nca]\nbetta = 1.0\n", "loss.nca.betta is not a parameter of nca"),
        ("[train\n", "not valid TOML"),
    ]:
        file.write_text(text)
        assert line in refused("--config", file)
    assert "No such file" in refused("--config", tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--train.steps", "٣", "must be a whole number, not '٣'"),
        ("--train.steps", "1_000", "must be a whole number"),
        ("--train.steps", "1000000000000", "train.steps must be at most 1000000000"),
        ("--train.batch_size", "18446744073709551616", "train.batch_size must be below 2^63"),
        ("--train.micro_batch_tokens", "9999999999999999999", "train.micro_batch_tokens must be below 2^63"),
        ("--optim.lr", "１e-3", "must be a number"),
        ("--optim.lr", "nan", "optim.lr must be at least 0, not nan"),
        ("--optim.lr", "inf", "optim.lr must be at most"),
        ("--train.epochs", "inf", "train.epochs must be below inf"),
        ("--loss.beta", "inf", "loss.beta must be a finite number"),
        ("--loss.beta", "nan", "loss.beta must be greater than 0, not nan"),
        ("--loss=", None, "--loss needs a value"),
        ("--train.steps=", None, "--train.steps needs a value"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["run", "plan"])
def test_numbers_that_are_none(refused, flag, value, said, plan):
    assert said in refused(*([flag] if value is None else [flag, value]), *plan)


def test_a_plan_refuses_what_the_run_would(refused):
    for plan in ([], ["--plan"]):
        assert "lora.rank 1000000000000: self_attention.query_key_value has rank" in refused(
            "--lora.rank", "1000000000000", *plan, rows=[{**ROW, "prompt": f"Say {i}."} for i in range(4)]
        )
    huge = ["--train.batch_size", "1000000000000", "--plan.gpus", "8"]
    assert train.main(["--model", str(MODEL), "--loss", "nca", "--output", "none", *huge]) == 2


def test_more_epochs_than_ever_end(refused):
    assert "train.epochs 1e+12: of 4 prompts they are more than 1,000,000,000 steps; lower it" in refused(
        "--train.epochs", "1e12", rows=[{**ROW, "prompt": f"Say {i}."} for i in range(4)]
    )


def test_values_that_cannot_be(refused, tmp_path):
    assert "attention_impl varlen needs a GPU" in refused("--model.attention_impl", "varlen")
    assert "train.seed must be at least 0" in refused("--train.seed", "-1")
    assert "optim.beta1 must be below 1, not 1.5" in refused("--optim.beta1", "1.5")
    assert "inf clips nothing" in refused("--optim.max_grad_norm", "0")
    assert "loss.beta must be a finite number" in refused("--loss.beta", "inf")
    assert "sft has no reference" in refused("--loss", "sft", "--reference.mode", "moving")
    assert "are for --reference.mode moving" in refused("--reference.every", "3")
    assert "whole distributions" in refused("--loss", "tdpo", "--reference.mode", "cached")
    said = refused("--reference.mode", "moving", "--train.steps", "9", rows=[ROW] * 3)
    assert "in 9 steps the reference would never move" in said
    assert "takes a GPU" in refused("--model.logp_impl", "triton") or torch.cuda.is_available()
    file = tmp_path / "c.toml"
    for text, line in [
        ('loss = "dpo"\n', 'write [loss] and, below it, name = "dpo"'),
        ('[loss]\nname = ["dpo", "sft"]\n', "loss.name must be a string"),
        ("[loss]\nweights = 3\n", "must be a list of numbers"),
    ]:
        file.write_text(text)
        flags = ["--loss", "dpo+sft"] if "weights" in text else ["--loss.beta", "1"] if "name" not in text else []
        assert line in refused("--config", file, *flags)
    assert "has no parameter ''" in refused("--loss.", "3")


def test_scores_in_one_file_alone(refused, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(json.dumps(ROW) + "\n")
    scored = {"prompt": "a", "responses": ["x y", "z"], "scores": [1, 2]}
    assert "one has scores and the other none" in refused("--data.eval_path", held_out, rows=[scored] * 3)


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo", "aot", "nca+dpo"])
def test_equal_scores_are_no_preference(loss, refused, tmp_path, capsys):
    rows = [{"prompt": f"a {i}", "responses": ["x y", "z"], "scores": [1 + i % 3, 2]} for i in range(7)]
    flags = ["--loss", loss]
    said = refused(*flags, rows=rows)
    assert "rows.jsonl:2: both responses have the score 2, and" in said and "--data.bad_rows drop" in said
    assert "no row is left to train on, 2 dropped (2 equal scores)" in refused(
        *flags, "--data.bad_rows", "drop", rows=[rows[1], rows[4]]
    )
    data, base = tmp_path / "rows.jsonl", ["--model", MODEL, "--output", tmp_path / "plan", "--plan"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--data", data, "--train.batch_size", "2", "--data.bad_rows", "drop"]
    assert train.main(list(map(str, [*flags, *base, *more]))) == 0
    assert "2 dropped (2 equal scores)" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["nca", "infonca", "sft"])
def test_equal_scores_are_scores_to_a_loss_that_needs_no_order(loss, tmp_path):
    rows = [{"prompt": f"a {i}", "responses": ["x y", "z"], "scores": [2, 2]} for i in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--loss", loss, "--model", MODEL, "--data", data, "--output", tmp_path / "plan", "--plan"]
    assert train.main(list(map(str, [*flags, "--train.batch_size", "2"]))) == 0


def test_missing_keys(tmp_path, capsys):
    assert train.main(["--model", str(MODEL), "--output", str(tmp_path / "out")]) == 2
    assert "data.path is missing; give --data FILE" in capsys.readouterr().err


def test_unknown_loss_and_parameters(refused):
    assert "did you mean 'nca'" in refused("--loss", "nac")
    assert "no parameter 'betta'; it takes beta" in refused("--loss.betta", "1")
    assert "loss.beta must be greater than 0" in refused("--loss.beta", "-1")


def test_missing_and_broken_data(refused, tmp_path):
    assert "absent.jsonl: no such file" in refused(data=tmp_path / "absent.jsonl")
    assert "rows.jsonl:2" in refused(rows=[ROW, '{"prompt": "a", "chosen"', ROW])
    said = refused(rows=[ROW, {"prompt": "a", "good": "b", "bad": "c"}])
    assert "rows.jsonl:2" in said and "prompt, good, bad" in said
    assert "rows.jsonl:3" in refused(rows=[ROW, ROW, {**ROW, "chosen": " "}])
    said = refused(rows=[ROW, {**ROW, "chosen": ROW["rejected"]}])
    assert "rows.jsonl:2" in said and "equal" in said
    assert "empty" in refused(rows=[])


def test_data_that_does_not_suit_the_loss_or_batch(refused):
    demo = {"prompt": "a", "completion": "b c"}
    assert "one response a prompt; --loss nca takes a chosen and a rejected response or three or more" in refused(
        rows=[demo, demo]
    )
    scored = {"prompt": "a", "responses": ["x", "y", "z"], "scores": [1, 2, 3]}
    assert "three or more responses a prompt; --loss dpo takes a chosen and a rejected response" in refused(
        "--loss", "dpo", rows=[scored] * 2
    )
    assert "--train.batch_size 9" in refused("--train.batch_size", "9", rows=[ROW] * 3)


def test_models_that_are_none(refused, tmp_path):
    rows = [ROW] * 3
    assert "no such folder" in refused(rows=rows, model=tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(rows=rows, model=empty)
    copy = tmp_path / "copy"
    shutil.copytree(MODEL, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors" in refused(rows=rows, model=copy)
    weights.write_bytes((MODEL / "model.safetensors").read_bytes()[:20])
    assert "model.safetensors" in refused(rows=rows, model=copy)
    weights.unlink()
    assert "not a checkpoint" in refused(rows=rows, model=copy)


def test_a_tokenizer_that_does_not_fit_the_model(refused, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(GOLDEN / "falcon2_11b", copy)  # 160 embeddings
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, copy)  # 480 ids
    said = refused(rows=[ROW] * 3, model=copy)
    assert "479" in said and "160" in said


def test_an_output_folder_in_use(refused, pairs_file, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    assert "already in use; add --resume" in refused(data=pairs_file, output=used)
    out = tmp_path / "run"
    flags = ["--loss", "nca", "--model", str(MODEL), "--data", str(pairs_file), "--output", str(out)]
    flags += ["--train.steps", "2", "--reference.cache", str(tmp_path / "cache"), "--train.batch_size", "2"]
    assert train.main(flags) == 0
    steps = ("--train.steps", "2")
    assert "already in use" in refused(*steps, data=pairs_file, output=out)
    said = refused(*steps, "--train.seed", "5", "--resume", data=pairs_file, output=out)
    assert "was begun with train.seed = 0, not 5" in said


def test_a_run_begun_before_there_was_a_key_had_its_default(refused, pairs_file, tmp_path):
    out = tmp_path / "run"
    flags = ["--loss", "dpo", "--model", str(MODEL), "--data", str(pairs_file), "--output", str(out)]
    flags += ["--train.steps", "1", "--reference.cache", str(tmp_path / "cache"), "--train.batch_size", "2"]
    assert train.main(flags) == 0
    lines = (out / "config.toml").read_text().splitlines(keepends=True)
    newer = ("beyond_context", "seed", "beta", "max_grad_norm")
    older = [line for line in lines if line.split(" = ")[0] not in newer]
    assert len(older) == len(lines) - len(newer)
    (out / "config.toml").write_text("".join(older))
    assert train.main([*flags, "--resume"]) == 0
    for key, usual, other in (("train.seed", "0", "5"), ("loss.beta", "0.1", "0.2")):
        (out / "config.toml").write_text("".join(older))
        changed = ["--loss", "dpo", "--train.steps", "1", f"--{key}", other, "--resume"]
        said = refused(*changed, data=pairs_file, output=out)
        assert f"was begun with {key} = {usual}, not {other}" in said


@pytest.mark.parametrize("flag", ["--output", "--reference.cache"])
def test_folders_that_cannot_be_written_are_found_first(flag, pairs_file, tmp_path, capsys, monkeypatch):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(train, "load_sources", None)
    for folder, words in [(file, "is a file"), (file / "a" / "b", f"{file} is a file"), (link, "cannot be written in")]:
        flags = ["--loss", "nca", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out", flag, folder]
        assert train.main(list(map(str, flags))) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {flag} {folder}: ") and words in said and said.count("\n") == 1


def test_divergence_is_one_line(tmp_path, pairs_file, capsys):
    flags = [
        "--loss",
        "dpo",
        "--model",
        MODEL,
        "--data",
        pairs_file,
        "--output",
        tmp_path / "out",
        "--train.steps",
        "9",
    ]
    flags += ["--optim.lr", "1e30", "--train.batch_size", "4", "--reference.cache", tmp_path / "cache"]
    assert train.main(list(map(str, flags))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "lower --optim.lr" in said


@pytest.mark.slow
def test_more_ranks_than_prompts(pairs_file, tmp_path):
    out = tmp_path / "out"
    flags = ["--loss", "nca", "--model", MODEL, "--data", pairs_file, "--output", out, "--train.batch_size", "2"]
    done = run_train(*flags, "--reference.cache", tmp_path / "cache", ranks=3)
    assert done.returncode != 0 and not out.exists()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "--train.batch_size 2 is less than a prompt for each of the 3 ranks" in errors[0]
    assert "exitcode  : 2" in done.stderr
