"""The exported folder says what was trained: its template, and where a generation ends."""

import json
import shutil

import pytest
import torch
from conftest import MODEL, refuse, run_train
from safetensors.torch import load_file, save_file

import train
from align.config import load_config
from align.data import encode_prompts, load_tokenizer
from align.dataset import load_groups
from align.export import end_tokens, export_model, template_files
from align.files import read_json
from align.generate import Finished
from align.losses import build_loss
from align.models import load_model
from align.parallel import distributed
from eval import main as eval_main

MINE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello.", "rejected": "Go."}
PLAIN = {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden text model, its settings changed by file: {key: value, or None to drop it}."""

    def make(**files):
        folder = tmp_path / "m"
        shutil.copytree(MODEL, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        for name, changes in files.items():
            file = folder / f"{name}.json"
            settings = (read_json(file) if file.exists() else {}) | changes
            file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
        return folder

    return make


def trained(model, row, tmp_path, *flags):
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    args = ["--model", model, "--data", tmp_path / "d.jsonl", "--output", tmp_path / "out", "--loss", "nca"]
    args += ["--train.batch_size", "2", "--train.steps", "1", "--reference.cache", tmp_path / "cache", *flags]
    assert train.main(list(map(str, args))) == 0
    return tmp_path / "out" / "model"


@pytest.mark.parametrize("before", ["key", "file", "names", "nothing"])
def test_the_template_of_a_file_becomes_the_folders(before, folder, tmp_path):
    (tmp_path / "mine.jinja").write_text(MINE)
    other = {"key": "{{ 'no' }}", "names": [{"name": "default", "template": "no"}, {"name": "rag", "template": "r"}]}
    source = folder(tokenizer_config={"chat_template": other.get(before)})
    if before == "file":
        (source / "chat_template.jinja").write_text("no")
    out = trained(source, CHAT, tmp_path, "--data.template", tmp_path / "mine.jinja")
    assert (out / "chat_template.jinja").read_text() == MINE
    assert "chat_template" not in read_json(out / "tokenizer_config.json")
    tokenizer = load_tokenizer(out)
    (asked,) = encode_prompts([CHAT["prompt"]], tokenizer)
    assert tokenizer.decode(asked, skip_special=False) == "<user>Hi\n<assistant>"


def test_a_template_that_no_prompt_went_through_is_not_written(folder, tmp_path):
    source = folder(tokenizer_config={"chat_template": None})
    out = trained(source, PLAIN, tmp_path)
    assert not (out / "chat_template.jinja").exists() and "chat_template" not in read_json(
        out / "tokenizer_config.json"
    )
    shutil.rmtree(tmp_path / "out")
    out = trained(source, CHAT, tmp_path)  # Falcon2's, since the folder has none
    assert "Falcon:" in (out / "chat_template.jinja").read_text()


def test_what_the_folder_says_already_stays_as_it_is(folder, tmp_path):
    source = folder()
    template = load_tokenizer(source).chat_template.source
    assert template_files(source, load_tokenizer(source), template, "auto") == {}
    assert template_files(source, load_tokenizer(source), None, "auto") == {}
    out = trained(source, CHAT, tmp_path)
    assert (out / "tokenizer_config.json").read_bytes() == (source / "tokenizer_config.json").read_bytes()


def taught_and_exported(source, rows, template, tmp_path, name):
    """The prompt ids that training on these rows uses, and the folder that it exports; all but the steps."""
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", source, "--data", tmp_path / "d.jsonl", "--data.template", template, "--data.max_length", 99]
    config, tokenizer = load_config(list(map(str, flags))), load_tokenizer(source)
    with distributed() as world:
        groups, chat = load_groups(config, config.data.path, build_loss("dpo"), tokenizer, world)
        model = export_model(tmp_path / name, source, load_model(source), tokenizer, chat, config, world)
    return [group.prompt_ids for group in groups], model


@pytest.mark.parametrize(
    "template, chat_template",
    [("none", True), ("auto", True), ("auto", False), ("chat", True), ("chat", False), ("FILE", True)],
)
def test_prompts_are_put_as_training_put_them(template, chat_template, folder, tmp_path):
    """By who asks the exported model, and by a second training on it."""
    (tmp_path / "mine.jinja").write_text(MINE)
    flag = tmp_path / "mine.jinja" if template == "FILE" else template
    source = folder(tokenizer_config={} if chat_template else {"chat_template": None})
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Where is it?\n\nAssistant:"
    rows = {"string": PLAIN, "dialogue": PLAIN | {"prompt": dialogue}} | ({} if template == "none" else {"chat": CHAT})
    for name, row in rows.items():
        taught, model = taught_and_exported(source, [row], flag, tmp_path, name)
        assert encode_prompts([row["prompt"]], load_tokenizer(model)) == taught
    again, second = taught_and_exported(model, [row], "auto", tmp_path, "again")
    assert again == taught == encode_prompts([row["prompt"]], load_tokenizer(second))


def test_eval_asks_with_what_training_taught(folder, tmp_path, monkeypatch):
    seen = []

    def stream(model, prompts, settings, keys, world):
        seen.extend(prompts)
        return [Finished(i, [], "eos", "No.") for i in range(len(prompts))]

    monkeypatch.setattr("align.evals.run.stream", stream)
    model = trained(folder(), PLAIN, tmp_path, "--data.template", "chat")
    (tmp_path / "suite.toml").write_text(
        '[benchmarks.b]\ntitle = "b"\nkind = "generate"\ndata = "d.jsonl"\njudges = ["refusal"]\n'
    )
    flags = ["--suite", tmp_path / "suite.toml", "--data", tmp_path, "--output", tmp_path / "eval"]
    assert eval_main(["--model", str(model), *map(str, flags)]) == 0
    assert seen == encode_prompts([PLAIN["prompt"]] * 2, load_tokenizer(MODEL), "chat")


def test_messages_can_be_put_to_a_model_trained_on_bare_text(folder, tmp_path):
    _, model = taught_and_exported(folder(), [PLAIN], "none", tmp_path, "out")
    assert load_tokenizer(model).trained_template == "none"
    asked = [encode_prompts([CHAT["prompt"]], load_tokenizer(of)) for of in (model, MODEL)]
    assert asked[0] == asked[1]


def test_a_training_template_that_there_is_not(folder):
    source = folder(tokenizer_config={"align_template": ["chat"]})
    assert "tokenizer_config.json: align_template must be one of" in refuse(load_tokenizer, source)


@pytest.mark.parametrize(
    "tokenizer, config, generation, ids",
    [
        (10, 11, 11, [10, 11]),  # a base model's files, a chat tokenizer
        (10, 11, None, [10, 11]),
        (10, None, None, [10]),
        (10, 11, 10, [10]),  # generation_config.json decides
        (10, 11, [12, 10], [10, 12]),
        (None, 11, [12, 10], [12, 10]),
        (None, 11, None, [11]),
        (10, [10, 11], None, [10, 11]),
    ],
)
def test_a_generation_ends_where_training_ended(tokenizer, config, generation, ids, folder):
    backend = load_tokenizer(MODEL).backend
    source = folder(
        tokenizer_config={"eos_token": backend.id_to_token(tokenizer) if tokenizer else None},
        config={"eos_token_id": config},
        generation_config={"eos_token_id": generation, "top_p": 0.5},
    )
    loaded = load_tokenizer(source)
    assert loaded.eos_ids == set(ids) and loaded.eos_id == ids[0]
    eos, whole = end_tokens(source, loaded)
    written = read_json(source / "config.json") | eos
    for settings in (written, whole):
        found = settings["eos_token_id"]
        assert set(found if isinstance(found, list) else [found]) == set(ids)
    assert whole["top_p"] == 0.5


def test_without_a_generation_config_one_is_written(folder, tmp_path):
    source = folder(config={"eos_token_id": 11, "bos_token_id": 11})
    out = trained(source, CHAT, tmp_path)
    written = read_json(out / "generation_config.json")
    assert (
        written == {"bos_token_id": 11, "eos_token_id": load_tokenizer(source).eos_id} or 11 in written["eos_token_id"]
    )
    assert load_tokenizer(out).eos_ids == load_tokenizer(source).eos_ids


@pytest.mark.slow
def test_every_rank_refuses_a_weight_that_cannot_be_written(folder, tmp_path):
    """And then the run is resumed with another dtype: nothing of it is lost."""
    source = folder(config={"torch_dtype": "bfloat16"})
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    tensors["transformer.h.0.mlp.dense_h_to_4h.weight"][0, 0] = 1e5
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(PLAIN)}\n" * 2)
    flags = ["--model", source, "--data", tmp_path / "d.jsonl", "--output", tmp_path / "out", "--train.batch_size", "2"]
    flags += ["--train.steps", "1", "--reference.cache", tmp_path / "cache", "--loss", "nca"]
    done = run_train(*flags, "--model.save_dtype", "float16", ranks=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(errors) == 1 and "dense_h_to_4h.weight" in errors[0] and "float16" in errors[0]
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["checkpoints", "config.toml", "metrics.jsonl", "run.json"]
    done = run_train(*flags, "--model.save_dtype", "bfloat16", "--resume", ranks=2)
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() and tensor.dtype == torch.bfloat16 for tensor in written.values())
