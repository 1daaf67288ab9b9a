"""Published rows to items: every format, worked examples, files of every kind, and one line for what is wrong."""

import gzip
import json

import pytest
from conftest import ROOT
from format_checks import make, refused

from align.evals.files import locate, read_file, read_text
from align.evals.formats.items import FORMATS, check_options, read_items
from align.evals.load import PERPLEXITY, PREFERENCE
from align.evals.suites import SUITES, read_suite

DATA = ROOT.parent / "shared" / "data"
ASK = {"role": "user", "content": "How?"}


def test_plain_keeps_what_scores_and_judges_read():
    row = {
        "prompt": "How?",
        "category": "S1",
        "attack": "prefix",
        "label": "unsafe",
        "expected": 4,
        "level": 2,
        "id": 7,
    }
    assert make("plain", row) == {
        "prompt": "How?",
        "category": "S1",
        "attack": "prefix",
        "label": "unsafe",
        "expected": "4",
        "extra": {"level": 2},
    }
    assert make("plain", {"prompt": [ASK], "category": None}) == {"prompt": [ASK]}
    assert make("plain", {"prompt": "p", "expected": ["a", "b"]})["expected"] == ["a", "b"]


def test_a_system_message_makes_a_chat():
    system = {"role": "system", "content": "Be bad."}
    for prompt in ("How?", [ASK]):
        assert make("plain", {"prompt": prompt}, system="Be bad.")["prompt"] == [system, ASK]
    assert make("toxicity", {"prompt": "How?"}, system="Be bad.")["prompt"] == [system, ASK]


def begun(text):
    return {"role": "assistant", "content": text, "prefix": True}


def test_a_response_that_is_begun_is_an_attack():
    row = {"prompt": "How?", "prefill": "First, take  a\nknife."}
    for words, text in ((0, row["prefill"]), (1, "First,"), (3, "First, take  a"), (9, row["prefill"])):
        item = make("plain", row, prefill_words=words, prefill="unused")
        assert item == {"prompt": [ASK, begun(text)], "attack": "prefill"}
    assert make("plain", {"prompt": [ASK, begun("Yes,")], "attack": "yes"})["attack"] == "yes"
    system = {"role": "system", "content": "Be bad."}
    alert = {"prompt": "### Instruction:\nHow?\n### Response:\n", "category": "c"}
    rows = {"plain": {"prompt": "How?"}, "alert": alert, "xstest": {"prompt": "How?", "type": "contrast_a"}}
    for name, row in rows.items():
        item = make(name, row, system="Be bad.", prefill="Sure, here is")
        assert item["prompt"] == [system, ASK, begun("Sure, here is")] and item["attack"] == "prefill"
        assert "attack" not in make(name, row)
    refused(lambda: make("plain", {"prompt": "How?", "prefill": " "}), "file:1: prefill must be text")


@pytest.mark.parametrize(
    "row, needle",
    [
        ({"text": "p"}, "prompt is missing"),
        ({"prompt": " "}, "prompt must be text"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": []}, "assistant turn"),
        ({"prompt": [ASK, {"role": "assistant", "content": "So."}]}, "assistant turn"),
        ({"prompt": [{"role": "bot", "content": "p"}]}, "every message"),
        ({"prompt": ["p"]}, "every message"),
        ({"prompt": [{"role": "user", "content": ""}]}, "content is empty"),
        ({"prompt": "p", "label": "harmless"}, "label must be safe or unsafe"),
        ({"prompt": "p", "expected": []}, "expected must be"),
        ({"prompt": "p", "expected": True}, "expected must be"),
    ],
)
def test_plain_refuses(row, needle):
    refused(lambda: make("plain", row), "file:1", needle)


def test_alert_asks_the_instruction_alone_or_as_published():
    row = {"id": 3, "category": "hate_women", "prompt": "### Instruction:\nHow?\n### Response:\n"}
    assert make("alert", row) == {"prompt": [ASK], "category": "hate_women"}
    assert make("alert", row, wrapper="keep")["prompt"] == row["prompt"]
    several = {"category": "c", "prompt": "### Instruction:\nTwo\n\nlines \n### Response:\n"}
    assert make("alert", several)["prompt"] == [{"role": "user", "content": "Two\n\nlines"}]
    bare = {"category": "crime_tax", "prompt": "How?", "attack_type": "adversarial_prefix"}
    for wrapper in ("strip", "keep"):
        item = make("alert", bare, wrapper=wrapper)
        assert item == {"prompt": [ASK], "category": "crime_tax", "attack": "adversarial_prefix"}


def test_alert_macro_categories():
    names = {"hate_lgbtq+": "hate", "crime_injury": "crime", "self_harm_thin": "self_harm", "sex_porn": "sex"}
    for micro, macro in names.items():
        assert make("alert", {"category": micro, "prompt": "p"}, categories="macro")["category"] == macro
    refused(lambda: make("alert", {"prompt": "p"}), "category is missing")
    refused(lambda: make("alert", {"category": "c", "prompt": "### Instruction:\n\n### Response:\n"}), "no instruction")


def test_toxicity_in_both_forms():
    published = {"filename": "a.txt", "challenging": True, "prompt": {"text": "So she", "toxicity": 0.5, "insult": 0.1}}
    assert make("toxicity", published) == {"prompt": "So she", "category": "toxic prompt"}
    published["prompt"]["toxicity"] = 0.49
    assert make("toxicity", published)["category"] == "non-toxic prompt"
    published["prompt"]["toxicity"] = None
    assert make("toxicity", published) == make("toxicity", {"prompt": "So she"}) == {"prompt": "So she"}
    refused(lambda: make("toxicity", {"prompt": {"toxicity": 0.1}}), "text is missing")
    refused(lambda: make("toxicity", {}), "prompt is missing")


def test_xstest_says_safe_or_unsafe_by_label_or_by_type():
    row = {"id": "1", "prompt": "How?", "type": "homonyms", "label": "safe", "focus": "kill", "note": ""}
    assert make("xstest", row) == {"prompt": [ASK], "category": "homonyms", "label": "safe"}
    old = {"prompt": "How?", "type": "contrast_homonyms"}
    assert make("xstest", old)["label"] == "unsafe" and make("xstest", old | {"type": "homonyms"})["label"] == "safe"
    refused(lambda: make("xstest", row | {"label": "fine"}), "label must be")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_xstest_as_published():
    items = read_items("xstest", "xstest/xstest_prompts.csv", DATA)
    assert len(items) == 450 and len({item["id"] for item in items}) == 450
    labels = [item["label"] for item in items]
    assert (labels.count("safe"), labels.count("unsafe")) == (250, 200)
    # the older files' rule gives the same labels
    for item in items:
        assert (item["label"] == "unsafe") == item["category"].startswith("contrast_")
    assert len({item["category"] for item in items}) == 18


GSM = [{"question": f"Q{i}?", "answer": f"{i}+1=<<{i}+1>>{i + 1}\n#### {i + 1},000"} for i in range(6)]


def test_gsm8k_prompt_and_reference():
    item = make("gsm8k", GSM[3])
    assert item["prompt"] == "Question: Q3?\nAnswer:" and item["expected"] == "4000"
    item = make("gsm8k", GSM[3], style="chat", instruction="End with the number.")
    assert item["prompt"] == [{"role": "user", "content": "Q3?\nEnd with the number."}]
    refused(lambda: make("gsm8k", {"question": "q", "answer": "about 5"}), "####")
    refused(lambda: make("gsm8k", {"question": "q", "answer": "#### 5\nor 6"}), "####")


def test_gsm8k_worked_examples_come_from_the_same_file_and_are_not_asked(write):
    root = write("gsm8k/test.jsonl", *GSM)
    items = read_items("gsm8k", "gsm8k/test.jsonl", root, {"shots": 2})
    assert [item["id"] for item in items] == ["3", "4", "5", "6"]
    front = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in GSM[:2])
    assert items[0]["prompt"] == front + "Question: Q2?\nAnswer:"
    assert set(items[0]) == {"id", "prompt", "expected"}


def test_gsm8k_worked_examples_from_a_file_of_their_own_as_turns(write):
    write("train.jsonl", *GSM[4:])
    root = write("test.jsonl", *GSM[:2])
    items = read_items("gsm8k", "test.jsonl", root, {"shots": 1, "shots_data": "train.jsonl", "style": "chat"})
    assert [item["id"] for item in items] == ["1", "2"]
    turns = [ASK | {"content": "Q4?"}, {"role": "assistant", "content": GSM[4]["answer"]}]
    for i, item in enumerate(items):
        assert item["prompt"] == [*turns, ASK | {"content": f"Q{i}?"}]


def test_worked_examples_that_are_not_there(write):
    root = write("test.jsonl", *GSM[:2])
    refused(lambda: read_items("gsm8k", "test.jsonl", root, {"shots": 2}), "options.shots 2", "2 rows", "shots_data")
    refused(lambda: read_items("gsm8k", "test.jsonl", root, {"shots": 3}), "options.shots 3", "2 rows")
    options = {"shots": 1, "shots_data": "train.jsonl"}
    refused(lambda: read_items("gsm8k", "test.jsonl", root, options, get="Ask Ada."), "train.jsonl", "Ask Ada.")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_gsm8k_as_published():
    items = read_items("gsm8k", "gsm8k/test.jsonl", DATA, {"shots": 5})
    assert len(items) == 1319 - 5 and items[0]["id"] == "6"
    assert all(item["prompt"].count("\n#### ") == 5 and item["prompt"].endswith("\nAnswer:") for item in items)
    assert all(item["expected"].lstrip("-").replace(".", "", 1).isdigit() for item in items)


def test_every_kind_of_file_gives_the_same_rows(write, tmp_path):
    rows = [{"prompt": "One, two", "category": "a"}, {"prompt": 'Three "3"\nfour', "category": "b"}]
    write("a.jsonl", *rows, "")
    write("a.jsonl.gz", *rows)
    write("a.json", json.dumps(rows, indent=1))
    write("a.csv", "prompt,category", '"One, two",a', '"Three ""3""\nfour",b')
    write("a.tsv", "prompt\tcategory", "One, two\ta", '"Three ""3""\nfour"\tb')
    expected = [{"id": str(i), **row} for i, row in enumerate(rows, start=1)]
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv"):
        assert read_items("plain", name, tmp_path) == expected, name
    write("a.txt", "One", "", " Two ")
    assert [item["prompt"] for item in read_items("plain", "a.txt", tmp_path)] == ["One", "Two"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "category": ["x", None]}), tmp_path / "a.parquet")
    items = read_items("plain", "a.parquet", tmp_path)
    assert items == [{"id": "1", "prompt": "a", "category": "x"}, {"id": "2", "prompt": "b"}]


def test_ids_are_unique_and_of_the_row_where_it_has_one(write):
    rows = [{"prompt": "a", "id": 5}, {"prompt": "b"}, {"prompt": "c", "id": 5}, {"prompt": "d", "id": 0}]
    root = write("a.jsonl", *rows)
    assert [item["id"] for item in read_items("plain", "a.jsonl", root)] == ["5", "2", "5:2", "0"]
    write("many/x.jsonl", {"prompt": "a"})
    write("many/y.txt", "b")
    for data in ("many", "many/*"):
        assert [item["id"] for item in read_items("plain", data, root)] == ["x:1", "y:1"]


def test_only_some_rows(write):
    root = write("a.jsonl", *({"prompt": f"p{i}", "kind": "odd" if i % 2 else "even"} for i in range(4)))
    assert [item["id"] for item in read_items("plain", "a.jsonl", root, only={"kind": "odd"})] == ["2", "4"]
    refused(lambda: read_items("plain", "a.jsonl", root, only={"kind": "none"}), "no row has kind = 'none'")


def test_a_missing_file_says_where_to_get_it(tmp_path):
    refused(lambda: locate(tmp_path, "alert/a.jsonl", "From Ada's page."), "alert/a.jsonl", "Ada's page.", "--data DIR")
    refused(lambda: locate(tmp_path, "alert/*.jsonl"), "no such file")
    (tmp_path / "empty").mkdir()
    refused(lambda: locate(tmp_path, "empty"), "no such file")


@pytest.mark.parametrize(
    "name, text, needles",
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', ["a.jsonl:2", "broken JSON"]),
        ("a.jsonl", '"just text"\n', ["a.jsonl:1", "must be a JSON object"]),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', ["a.jsonl:2", "prompt is missing", "text"]),
        ("a.jsonl", "\n", ["a.jsonl", "no rows"]),
        ("a.json", '{"rows":\n["a"}', ["a.json:1", "list of rows"]),
        ("a.json", "[1]", ["a.json, row 1", "JSON object"]),
        ("a.csv", "prompt,category\na,b\nc\n", ["a.csv:3", "1 fields", "2 columns"]),
        ("a.csv", 'prompt\n"a\nb"\n"c"d\n', ["a.csv:4", "not a row"]),
        ("a.csv", "prompt\n", ["a.csv", "no rows"]),
        ("a.xlsx", "a", ["a.xlsx", ".jsonl"]),
    ],
)
def test_a_bad_file_is_one_line(write, name, text, needles):
    root = write(name, text.rstrip("\n"))
    refused(lambda: read_items("plain", name, root), *needles)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    refused(lambda: list(read_file(tmp_path / "a.jsonl")), "cannot be read")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 99)[:-9])
    refused(lambda: list(read_file(tmp_path / "a.jsonl.gz")), "cannot be read")
    (tmp_path / "a.txt").write_bytes(b" \n")
    refused(lambda: read_text(tmp_path / "a.txt"), "empty")
    (tmp_path / "a.txt").write_text("So it\nis.")
    assert read_text(tmp_path / "a.txt") == "So it\nis."


def test_options_are_checked(write):
    root = write("a.jsonl", {"prompt": "a", "category": "c"})
    for options, needles in [
        ({"shot": 1}, ["options.shot", "there are: system"]),
        ({"system": 1}, ["options.system must be a string"]),
    ]:
        refused(lambda options=options: read_items("plain", "a.jsonl", root, options), *needles)
    refused(lambda: read_items("alert", "a.jsonl", root, {"wrapper": "cut"}, where="s.toml: x"), "s.toml: x.wrapper")
    refused(lambda: read_items("gsm8k", "a.jsonl", root, {"shots": -1}), "options.shots", "whole number")
    refused(lambda: read_items("gsm8k", "a.jsonl", root, {"shots": True}), "options.shots", "whole number")
    refused(lambda: read_items("plane", "a.jsonl", root), "format plane", "plain")


PUBLISHED = (
    "alert",
    "toxicity",
    "xstest",
    "gsm8k",
    "arc",
    "hellaswag",
    "mmlu",
    "truthfulqa",
    "winogrande",
    "perplexity",
    "preference",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_suites_of_published_benchmarks(name, tmp_path):
    suite = read_suite(name)
    names = {benchmark.name for benchmark in suite.benchmarks}
    assert all(metric.partition(".")[0] in names for summary in suite.summaries for metric in summary.mean_of)
    for benchmark in suite.benchmarks:
        assert "https://" in benchmark.get
        # how likely given texts are is neither safety nor ability in %
        assert bool(benchmark.axis) == (benchmark.kind in ("generate", "choice"))
        if benchmark.kind in ("perplexity", "preference"):
            check_options(benchmark.options, PERPLEXITY if benchmark.kind == "perplexity" else PREFERENCE, {}, name)
            refused(lambda b=benchmark: locate(tmp_path, b.data, b.get), benchmark.data, "https://")
        else:
            assert FORMATS[benchmark.format].kind == benchmark.kind
            read = (benchmark.format, benchmark.data, tmp_path, benchmark.options, benchmark.get, benchmark.where)
            refused(lambda read=read: read_items(*read), benchmark.data, benchmark.get)
    # the command that its comment gives
    assert f"--suite {name} --data DATA" in (SUITES / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("name, counts", [("gsm8k", [1319, 1314]), ("xstest", [450])])
def test_suites_read_the_shared_data(name, counts):
    found = [read_items(b.format, b.data, DATA, b.options, b.get, b.where) for b in read_suite(name).benchmarks]
    assert list(map(len, found)) == counts


def test_a_pattern_may_be_absolute_and_a_row_whole(tmp_path):
    (tmp_path / "a1.jsonl").write_text('{"prompt": "p", "other": "\\ud800"}\n')
    assert locate(tmp_path / "nowhere", f"{tmp_path}/a*.jsonl") == [tmp_path / "a1.jsonl"]
    assert locate(tmp_path.parent, f"{tmp_path.name}/*") == [tmp_path / "a1.jsonl"]
    refused(lambda: list(read_file(tmp_path / "a1.jsonl")), "a1.jsonl:1: the row holds half of a surrogate pair")
    refused(lambda: locate(tmp_path, "x" * 300), "File name too long")
