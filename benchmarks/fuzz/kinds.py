"""What is read: for every kind of input its healthy files, and the code that reads them.

A Kind's read raises UserError for what it refuses. What must not go unnoticed, as a flipped bit in a checkpoint, it
compares with what was written, and raises Silent where it was taken for that.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import nn

from align import pairs
from align.checkpoint import Run, find_checkpoint, load_checkpoint, save_checkpoint
from align.config import load_config
from align.data import encode_prompts, encode_rows, load_tokenizer, read_rows
from align.data.templates import FALCON, ChatTemplate
from align.evals.flags import read_flags as eval_flags
from align.evals.load import load_suites
from align.evals.report.runs import write_curves
from align.evals.scoring.judging import judge_specs
from align.evals.store import Store
from align.files import to_toml
from align.judges.toxicity import ToxicityJudge
from align.log import trim_metrics
from align.losses import build_loss
from align.models import build_model, check_weights, load_weights, read_config, resolve_model
from align.models.peft import write_adapter
from align.output import check_output
from align.parallel import World
from align.plan.describe import describe_plan
from align.prompts import read_prompts
from align.reference import packed, read_cache
from benchmarks.fuzz.mutate import as_flags, mutate

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "golden" / "falcon2_11b_text"
CLASSIFIER = ROOT / "tests" / "golden" / "bert_classifier"
LLAMA = ROOT / "tests" / "golden" / "llama31"
USER, SAID = {"role": "user", "content": "Hide hat 3."}, {"role": "assistant", "content": "I will not."}


class Silent(Exception):
    """Something else was taken for what was written."""


@dataclass(frozen=True)
class Kind:
    """make: writes the healthy files into a folder. change: one mutation of a copy. read: what the code makes of it."""

    make: Callable[[Path, World], None]
    read: Callable[[Path, World], object]
    files: str = "*"  # those that are mutated
    change: Callable[[Path, Random], None] | None = None


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS: dict[str, list[dict]] = {
    "pairs": [{"prompt": f"Hat {i}?", "chosen": "No. " * (i + 1), "rejected": "Yes."} for i in range(4)],
    "dialogues": [
        {"chosen": f"\n\nHuman: Hat {i}?\n\nAssistant: No.", "rejected": f"\n\nHuman: Hat {i}?\n\nAssistant: Yes."}
        for i in range(4)
    ],
    "messages": [{"prompt": [USER], "chosen": [SAID], "rejected": [SAID | {"content": "Here."}]}] * 3,
    "lists": [{"prompt": "a b", "responses": ["x y", "z", "w"], "scores": [1, 0.5, -2]}] * 3,
    "labelled": [{"prompt": "a b", "completion": "x y", "label": True}] * 3,
    "tools": [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            ],
            "tools": '[{"function": {"name": "f"}}]',
        }
    ],
}


def make_rows(folder: Path, world: World) -> None:
    for name, rows in ROWS.items():
        lines(folder / f"{name}.jsonl", rows)
        (folder / f"{name}-list.json").write_text(json.dumps(rows, indent=1))
    for mark, suffix in ((",", "csv"), ("\t", "tsv")):
        table = [list(ROWS["pairs"][0]), *(list(row.values()) for row in ROWS["pairs"])]
        (folder / f"pairs.{suffix}").write_text("".join(mark.join(map(str, row)) + "\n" for row in table))


TOKENIZER = load_tokenizer(MODEL)
TALKATIVE = replace(  # with a template that writes calls
    TOKENIZER,
    chat_template=ChatTemplate("{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}", "TALKATIVE"),
)


def read_preferences(folder: Path, world: World) -> None:
    for file in (file for file in folder.iterdir() if not file.is_symlink()):
        rows, _ = read_rows(file)
        encode_rows(rows, TALKATIVE if rows[0].tools else TOKENIZER, "auto", 512)


CONFIG = ["--model", str(MODEL), "--loss", "nca", "--train.steps", "3", "--optim.lr", "1e-6", "--output", "out"]
CONFIG += ["--sources.own.path", "own.jsonl", "--sources.own.loss", "sft", "--train.stop_when", "eval/loss <= 0.1"]
CONFIG += ["--data.eval_path", "held-out.jsonl", "--train.eval_every", "2"]


def make_config(folder: Path, world: World) -> None:
    tables = load_config([*CONFIG, "--data", "pairs.jsonl"]).to_dict()
    (folder / "run.toml").write_text(to_toml(tables))


def read_configured(folder: Path, world: World) -> None:
    config = load_config(["--config", str(folder / "run.toml")])
    config.output = str(folder / "out")
    check_output(config)
    to_toml(config.to_dict())


def read_train_flags(folder: Path, world: World) -> None:
    load_config((folder / "flags").read_text(errors="surrogateescape").split("\x01"))


def read_eval_flags(folder: Path, world: World) -> None:
    try:
        eval_flags((folder / "flags").read_text(errors="surrogateescape").split("\x01"))
    except SystemExit as end:  # of --help
        if end.code:
            raise


def make_flags(*flags: str) -> Callable[[Path, World], None]:
    return lambda folder, world: lines_of(folder / "flags", list(flags))


def lines_of(file: Path, words: list[str]) -> None:
    file.unlink(missing_ok=True)
    file.write_text("\x01".join(words), errors="replace")


def change_flags(folder: Path, draw: Random) -> None:
    words = as_flags((folder / "flags").read_text().split("\x01"), draw)
    lines_of(folder / "flags", words)


def copy_model(source: Path) -> Callable[[Path, World], None]:
    def make(folder: Path, world: World) -> None:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            if (source / name).exists():
                shutil.copy(source / name, folder)
        (folder / "generation_config.json").write_text('{"eos_token_id": [11]}')

    return make


def read_model(folder: Path, world: World) -> None:
    source = resolve_model(folder)
    model = build_model(read_config(source), "meta")
    check_weights(model, source)
    load_weights(model.to_empty(device="cpu"), source)


def make_classifier(folder: Path, world: World) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CLASSIFIER / name, folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "cls_token": "[CLS]"}')


def read_classifier(folder: Path, world: World) -> None:
    judge = ToxicityJudge(folder, "LABEL_0", batch_size=2)
    judge([{"id": "1", "prompt": "p", "response": "a bad thing"}])


def read_planned(folder: Path, world: World) -> None:
    config = load_config(["--model", str(folder), "--loss", "nca", "--plan", "--output", str(folder / "out")])
    describe_plan(config, world)


def read_tokenizer(folder: Path, world: World) -> None:
    tokenizer = load_tokenizer(folder)
    ids = encode_prompts(["Hide hat 3.", [USER, SAID, USER]], tokenizer)
    tokenizer.decode(ids[0])


def make_template(folder: Path, world: World) -> None:
    (folder / "falcon.jinja").write_text(FALCON)


def read_template(folder: Path, world: World) -> None:
    ChatTemplate.from_file(folder / "falcon.jinja", {"eos_token": "</s>"}).render([USER, SAID, USER], True)


def make_adapter(folder: Path, world: World) -> None:
    name = "transformer.h.0.mlp.dense_h_to_4h"
    rows, columns = build_model(read_config(MODEL), "meta").get_parameter(f"{name}.weight").shape
    write_adapter(folder, str(MODEL), {name: (torch.zeros(2, columns), torch.zeros(rows, 2))}, 4.0)


SUITE = """
title = "Mine"
guard = "somewhere"
[summary.both]
title = "both"
mean_of = ["a.safe", "a"]
axis = "safety"
[benchmarks.a]
title = "A"
kind = "generate"
data = "a.jsonl"
judges = ["refusal", "equals"]
axis = "safety"
metric = "refused"
stop = ["x"]
max_new_tokens = 9
where = { kind = "plain" }
options = { system = "Be kind." }
[benchmarks.b]
title = "B"
kind = "choice"
format = "arc"
data = "b*.jsonl"
options = { shots = 1 }
[benchmarks.c]
title = "C"
kind = "perplexity"
data = "c.txt"
options = { window = 9, stride = 3 }
[benchmarks.d]
title = "D"
kind = "preference"
data = "d.jsonl"
"""


def make_suite(folder: Path, world: World) -> None:
    (folder / "mine.toml").write_text(SUITE)
    lines(folder / "a.jsonl", [{"id": i, "kind": "plain", "prompt": f"Hat {i}?", "category": "x"} for i in range(3)])
    choices = {"text": ["x", "y"], "label": ["A", "B"]}
    lines(folder / "b.jsonl", [{"id": i, "question": "q", "choices": choices, "answerKey": "A"} for i in range(3)])
    (folder / "c.txt").write_text("A text.\n")
    lines(folder / "d.jsonl", ROWS["pairs"])


def read_suites(folder: Path, world: World) -> None:
    options = eval_flags(["--model", "m", "--suite", str(folder / "mine.toml"), "--data", str(folder)])
    suites = load_suites(options, lambda path: path)
    options.guard = str(MODEL)
    judge_specs([benchmark for suite in suites for benchmark in suite.benchmarks], options, world)


def fresh() -> Run:
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    return Run(model, optimizer, build_loss("nca"), None, {"model": "m", "data": "d"})


def make_checkpoint(folder: Path, world: World) -> None:
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder, 3, fresh(), 2, world)


def read_checkpoint(folder: Path, world: World) -> None:
    run = fresh()
    if path := find_checkpoint(folder, run.made_of, world):
        load_checkpoint(path, run, world)
        healthy = folder.with_name("healthy")
        if any(f.read_bytes() != (healthy / f.relative_to(folder)).read_bytes() for f in path.iterdir()):
            raise Silent


TABLE, EMPTY = torch.arange(60.0).reshape(10, 3, 2), torch.full((10, 3, 2), torch.nan)


def make_cache(folder: Path, world: World) -> None:
    (folder / "cache.safetensors").write_bytes(packed(TABLE))


def read_cached(folder: Path, world: World) -> None:
    if (found := read_cache(folder / "cache.safetensors", EMPTY)) is not EMPTY and not found.equal(TABLE):
        raise Silent


FOUND = [[{"id": str(i), "prompt": "p", "response": f"r {i}", "finish": "eos"} for i in range(3)] for _ in range(3)]


def make_records(folder: Path, world: World) -> None:
    store = Store(folder / "records.jsonl", writes=True)
    for chunk, found in enumerate(FOUND):
        store.add("k", chunk, found)


def read_records(folder: Path, world: World) -> None:
    for (key, chunk), found in Store(folder / "records.jsonl", writes=False).found.items():
        if key != "k" or found != FOUND[chunk]:
            raise Silent


def make_metrics(folder: Path, world: World) -> None:
    make_config(folder, world)
    (folder / "run.toml").rename(folder / "config.toml")
    lines(folder / "metrics.jsonl", [{"step": i, "loss": 1 / i, "rewards/accuracy": 0.5} for i in range(1, 5)])


def read_run(folder: Path, world: World) -> None:
    write_curves([str(folder), str(folder.with_name("healthy"))], folder / "page")
    trim_metrics(folder / "metrics.jsonl", 2)


def make_responses(folder: Path, world: World) -> None:
    about = {"run": "r", "finish": "eos", "degenerate": ""}
    rows = [
        about | {"id": f"{i}", "prompt": [USER], "sample": k, "response": f"said {k}", "verdict": {"unsafe": k > 1}}
        for i in range(3)
        for k in range(4)
    ]
    lines(folder / "responses.jsonl", rows)


def read_responded(folder: Path, world: World) -> None:
    flags = [str(folder / "responses.jsonl"), "--recover", "2", "--output", str(folder / "pairs.jsonl")]
    pairs.make(pairs.read_flags(flags))


def make_prompts(folder: Path, world: World) -> None:
    lines(folder / "prompts.jsonl", [{"prompt": f"Hat {i}?", "category": "x", "expected": "3"} for i in range(3)])


EVAL = ("--model", "m", "--suite", "tiny", "--limit", "3", "--temperature", "0.5", "--seed", "1", "--top_k", "4")
KINDS: dict[str, Kind] = {
    "preference files": Kind(make_rows, read_preferences),
    "prompt files": Kind(make_prompts, lambda folder, world: read_prompts(folder / "prompts.jsonl")),
    "response files": Kind(make_responses, read_responded),
    "configurations": Kind(make_config, read_configured),
    "flags of train.py": Kind(make_flags(*CONFIG, "--data", "x"), read_train_flags, change=change_flags),
    "flags of eval.py": Kind(make_flags(*EVAL), read_eval_flags, change=change_flags),
    "config.json, Falcon": Kind(copy_model(MODEL), read_model, "config.json"),
    "config.json, Llama": Kind(copy_model(LLAMA), read_model, "config.json"),
    "config.json, planned": Kind(copy_model(MODEL), read_planned, "config.json"),
    "tokenizer.json": Kind(copy_model(MODEL), read_tokenizer, "tokenizer.json"),
    "its settings": Kind(copy_model(MODEL), read_tokenizer, "*config.json"),
    "classifiers": Kind(make_classifier, read_classifier, "[!m]*"),
    "weights": Kind(copy_model(MODEL), read_model, "model.safetensors"),
    "adapters": Kind(make_adapter, read_model),
    "templates": Kind(make_template, read_template),
    "suites": Kind(make_suite, read_suites, "*.toml"),
    "benchmark files": Kind(make_suite, read_suites, "?.*"),
    "checkpoints": Kind(make_checkpoint, read_checkpoint, "checkpoints/*/*"),
    "reference caches": Kind(make_cache, read_cached),
    "records.jsonl": Kind(make_records, read_records),
    "curves of runs": Kind(make_metrics, read_run, "*.*"),
}


def change(kind: Kind, folder: Path, draw: Random) -> None:
    if kind.change:
        return kind.change(folder, draw)
    mutate(draw.choice(sorted(file for file in folder.glob(kind.files) if file.is_file())), draw)
