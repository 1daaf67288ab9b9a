"""docs/extending.md carried out: a judge, a suite, a dataset, an architecture; a loss is in tests/losses."""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
import types

import pytest
import torch
from conftest import MODEL, ROOT

from align.data import read_rows
from align.generate import generate
from align.models import build_model, init_weights, load_model, save_model
from align.models.convert import FAMILIES

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_every_walk_is_carried_out():
    walks = ["A loss", "A judge", "A suite", "A dataset", "A model architecture"]
    assert re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE) == walks
    assert re.findall(r"\[(.*?)\]\(#", TEXT.split("\n## ")[0]) == [walk.lower() for walk in walks]


def blocks(section, language):
    """The code blocks of one language in a section of the page."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert found, (section, language)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a trained run, in which the page's files are written and its commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(MODEL, tmp_path / "runs" / "tiny-nca" / "model")
    (tmp_path / "runs" / "tiny-nca" / "metrics.jsonl").touch()
    for program in ("train.py", "eval.py"):
        (tmp_path / program).symlink_to(ROOT / program)
    for name in ("my_judges", "qwen3"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def write_files(folder, section, language):
    """Write every block that opens with its own name."""
    for block in blocks(section, language):
        if name := re.match(r"# (\w+\.\w+)\n", block):
            (folder / name[1]).write_text(block)


def shell(folder, command):
    """Run a block of the page with this Python."""
    path = folder / "bin"
    path.mkdir(exist_ok=True)
    (path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (path / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-euc", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_judge(folder):
    write_files(folder, "A judge", "python")
    (session,) = blocks("A judge", "pycon")
    test = doctest.DocTestParser().get_doctest(session, {}, "A judge", None, None)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted == 3 and not result.failed


@pytest.mark.slow
def test_a_suite(folder):
    write_files(folder, "A judge", "python")
    write_files(folder, "A suite", "toml")
    (command,) = blocks("A suite", "bash")
    table = shell(folder, command)
    assert "questions about locks: harmless requests refused, %" in table and "capitals: correct responses, %" in table
    results = json.loads((folder / "runs" / "locks" / "results.json").read_text())
    first, second = results["records"]["tiny-nca"]["locks"]
    assert (first["category"], second["category"]) == ("care", "history")
    words = [len(record["response"].split()) for record in (first, second)]
    assert [record["verdicts"]["my_judges:brief"]["words"] for record in (first, second)] == words
    assert results["benchmarks"][0]["metrics"]["over_refusal"]["axis"] == "over-refusal"


class Published(list):
    """Rows of a data set, with as much of the class of `datasets` as the page uses."""

    @property
    def column_names(self):
        return list(self[0])

    def map(self, function, remove_columns):
        assert set(remove_columns) == set(self.column_names)
        return Published(function(row) for row in self)

    def to_json(self, file):
        with open(file, "w") as out:
            out.writelines(json.dumps(row) + "\n" for row in self)


ULTRAFEEDBACK = [
    {
        "chosen": [{"role": "user", "content": f"Name number {i}."}, {"role": "assistant", "content": f"It is {i}."}],
        "rejected": [{"role": "user", "content": f"Name number {i}."}, {"role": "assistant", "content": "It is none."}],
        "score_chosen": 8.0,
        "score_rejected": 3.5,
    }
    for i in range(4)
]
SAFE_RLHF = [
    {
        "prompt": f"How do I hide hat {i}?",
        "response_0": "I would rather not say.",
        "response_1": f"Under {i} stones.",
        "is_response_0_safe": i % 2 == 0,
        "better_response_id": 1,
        "safer_response_id": i % 2,
    }
    for i in range(40)  # a batch needs 32
]


@pytest.fixture
def hub(monkeypatch):
    """The library `datasets`, or a stand-in, with two published data sets that need no network."""
    try:
        import datasets
    except ModuleNotFoundError:
        datasets, make = types.ModuleType("datasets"), Published
        monkeypatch.setitem(sys.modules, "datasets", datasets)
    else:
        make = datasets.Dataset.from_list
    rows = {"trl-lib/ultrafeedback_binarized": ULTRAFEEDBACK, "PKU-Alignment/PKU-SafeRLHF": SAFE_RLHF}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: make(rows[name]), raising=False)


def test_any_data_set_in_three_lines(folder, hub):
    short, mapped = blocks("A dataset", "python")
    assert len(short.strip().replace("\n\n", "\n").splitlines()) == 3
    exec(short, {})
    rows, dropped = read_rows("pairs.jsonl")
    assert [row.responses for row in rows] == [[f"It is {i}.", "It is none."] for i in range(4)] and not dropped
    assert rows[2].prompt == [{"role": "user", "content": "Name number 2."}]

    exec(mapped, {})
    rows, _ = read_rows("safer.jsonl")
    expected = [[row["response_0"], row["response_1"]] for row in SAFE_RLHF]
    assert [row.responses for row in rows] == [pair[:: -1 if i % 2 else 1] for i, pair in enumerate(expected)]
    assert rows[1].prompt == "How do I hide hat 1?" and not rows[1].extra


@pytest.mark.slow
def test_training_on_a_data_set(folder, hub):
    exec(blocks("A dataset", "python")[1], {})
    (command,) = blocks("A dataset", "bash")
    shell(folder, command)
    assert (folder / "runs" / "safer" / "model" / "model.safetensors").is_file()


def test_formats_of_trl(tmp_path):
    (lines,) = blocks("A dataset", "json")
    found = []
    for i, line in enumerate(lines.splitlines()):
        file = tmp_path / f"{i}.jsonl"
        file.write_text(line + "\n")
        ((row,), _) = read_rows(file)
        found.append((row.prompt, row.responses, row.label))
    text, chat = "The sky is", [{"role": "user", "content": "What colour is the sky?"}]
    pair = ["It is blue.", "It is green."]
    assert found == [
        (text, [" blue.", " green."], None),
        (chat, pair, None),
        (chat, pair, None),
        (text, [" blue."], True),
        (chat, pair[:1], True),
        (text, [" blue."], None),
    ]


def test_a_model_architecture(folder, monkeypatch):
    """From config.json to a loaded model that generates; what makes it Qwen3 is held to a closed form."""
    monkeypatch.setitem(FAMILIES, "qwen3", None)  # undone after the test, as the line that follows is
    write_files(folder, "A model architecture", "python")
    (line,) = [block for block in blocks("A model architecture", "python") if "FAMILIES" in block]
    exec(line, {})
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "use_sliding_window": False},
    }
    model = build_model(FAMILIES["qwen3"][0].from_dict(config))
    init_weights(model, seed=0)
    save_model(model, folder / "qwen3-tiny")
    model = load_model(folder / "qwen3-tiny")
    names = dict(model.named_parameters())
    assert names["model.layers.1.self_attn.q_norm.weight"].shape == (16,)
    assert json.loads((folder / "qwen3-tiny" / "config.json").read_text()) == config | {"torch_dtype": "float32"}

    ids = torch.arange(12)[None] * 5 % 64  # (1, T)
    logits = model.logits(ids)
    (new,) = generate(model, [ids[0].tolist()], 5)
    whole = ids[0].tolist()
    for _ in range(5):
        whole.append(int(model.logits(torch.tensor([whole]))[0, -1].argmax()))
    assert new == whole[12:]

    # the norm takes out any scale of queries and keys, which in Llama would sharpen the attention
    with torch.no_grad():
        for name, parameter in names.items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 3.0
        torch.testing.assert_close(model.logits(ids), logits, atol=1e-4, rtol=1e-4)
        names["model.layers.0.self_attn.k_norm.weight"] *= 3.0
        assert (model.logits(ids) - logits).abs().max() > 0.01
