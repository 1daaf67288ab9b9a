"""Published rows to items: every form, worked examples, files in every format, and one line for what is wrong."""

import gzip
import json

import pytest
from conftest import ROOT

from align.errors import UserError
from align.evals.files import locate, read_file, read_text
from align.evals.load import PERPLEXITY, PREFERENCE
from align.evals.shapes import SHAPES, check_options, read_items
from align.evals.suites import SUITES, read_suite

DATA = ROOT.parent / "shared" / "data"
ASK = {"role": "user", "content": "How?"}


@pytest.fixture
def write(tmp_path):
    """Write a file below tmp_path, rows as JSON lines, and return tmp_path."""

    def write(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return tmp_path

    return write


def make(shape, row, **options):
    return SHAPES[shape](row, "file:1", options)


def refused(call, *needles):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message


def whole_texts(item):
    return [item["prompt"] + choice["context"] + choice["text"] for choice in item["choices"]]


# prompts to be answered


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
    item = make("gsm8k", GSM[3], format="chat", instruction="End with the number.")
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
    items = read_items("gsm8k", "test.jsonl", root, {"shots": 1, "shots_data": "train.jsonl", "format": "chat"})
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


# multiple choice


def test_arc_in_both_forms():
    choices = {"text": ["Sun", "Moon", "Sea"], "label": ["A", "B", "C"]}
    hub = {"id": "x", "question": "What shines?", "choices": choices, "answerKey": "B"}
    item = make("arc", hub)
    assert whole_texts(item) == [f"Question: What shines?\nAnswer: {text}" for text in choices["text"]]
    assert item["gold"] == 1 and "category" not in item
    listed = [{"text": text, "label": label} for text, label in zip(choices["text"], "123", strict=True)]
    first = {"id": "x", "question": {"stem": "What shines?", "choices": listed}, "answerKey": "2"}
    assert make("arc", first) == item
    refused(lambda: make("arc", hub | {"answerKey": "D"}), "answerKey 'D'")
    refused(lambda: make("arc", hub | {"choices": {"text": ["Sun"], "label": ["A"]}}), "two answers or more")
    refused(lambda: make("arc", {"question": "q", "answerKey": "A"}), "choices")
    refused(lambda: make("arc", {"choices": choices, "answerKey": "A"}), "question is missing")


def test_hellaswag_cleans_brackets():
    row = {
        "ind": 4,
        "activity_label": "Baking",
        "ctx_a": "A man stirs. [title] How it goes",
        "ctx_b": "then He",
        "endings": ["eats [substeps] it.", "  sings."],
        "label": "1",
    }
    item = make("hellaswag", row)
    prompt = "Baking: A man stirs.. How it goes Then he"
    assert whole_texts(item) == [f"{prompt} eats it.", f"{prompt} sings."] and item["gold"] == 1
    only = make("hellaswag", {**row, "ctx": "A man", "ctx_a": None, "label": 0})
    assert only["prompt"] == "Baking: A man" and only["gold"] == 0
    refused(lambda: make("hellaswag", row | {"label": ""}), "label", "test split")
    refused(lambda: make("hellaswag", row | {"label": "2"}), "0 to 1")
    refused(lambda: make("hellaswag", row | {"endings": ["[x]", "y"]}), "brackets")


MMLU_TEST = 'What is "2+2"?,1,2,3,4,D\n"Which, if any?",a,b,c,d,A\n'


def test_mmlu_a_file_a_subject(write):
    write("mmlu/test/us_history_test.csv", MMLU_TEST.replace('"2+2"', "3").strip())
    write("mmlu/dev/us_history_dev.csv", "Who?,w,x,y,z,C\nWhy?,a,b,c,d,B")
    write("mmlu/dev/abstract_algebra_dev.csv", "Ring?,1,2,3,4,A\nField?,5,6,7,8,B")
    root = write("mmlu/test/abstract_algebra_test.csv", "Group?,1,2,3,4,B")
    items = read_items("mmlu", "mmlu/test", root)
    assert [item["id"] for item in items] == [
        "abstract_algebra_test:1",
        "us_history_test:1",
        "us_history_test:2",
    ]
    assert [item["category"] for item in items] == ["abstract algebra", "us history", "us history"]
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    group = "Group?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert whole_texts(items[0]) == [f"{head}{group} {letter}" for letter in "ABCD"]
    assert [item["gold"] for item in items] == [1, 3, 0]
    # worked examples are of the same subject
    items = read_items("mmlu", "mmlu/test", root, {"shots": 1, "shots_data": "mmlu/dev"})
    assert items[0]["prompt"] == f"{head}Ring?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n\n{group}"
    assert "Who?" in items[1]["prompt"] and "Why?" not in items[1]["prompt"] and "Ring?" not in items[2]["prompt"]
    refused(
        lambda: read_items("mmlu", "mmlu/test", root, {"shots": 1}), "options.shots 1", "1 rows of abstract algebra"
    )


def test_mmlu_with_a_subject_column_and_an_index(write):
    row = {"question": "Who?", "choices": ["w", "x", "y"], "answer": 2, "subject": "us_history"}
    item = make("mmlu", row)
    assert item["gold"] == 2 and item["category"] == "us history"
    assert item["prompt"] == "Who?\nA. w\nB. x\nC. y\nAnswer:" and len(item["choices"]) == 3
    refused(lambda: make("mmlu", row | {"answer": 3}), "0 to 2")
    refused(lambda: make("mmlu", row | {"answer": "D"}), "answer")
    refused(lambda: make("mmlu", {"question": "q", "A": "a", "B": "b", "C": "c", "answer": "A"}), "D is missing")
    root = write("m.csv", "Who?,a,b,c,A")
    refused(lambda: read_items("mmlu", "m.csv", root), "m.csv:1", "5 fields", "6 columns")


def test_truthfulqa_in_both_forms(write):
    mc1 = {"choices": ["Yes.", "No."], "labels": [1, 0]}
    mc2 = {"choices": ["Yes.", "No.", "Sure."], "labels": [1, 0, 1]}
    row = {"question": "Is it?", "mc1_targets": mc1, "mc2_targets": mc2}
    first, second = make("truthfulqa", row), make("truthfulqa", row, targets="mc2")
    assert whole_texts(first) == ["Q: Is it?\nA: Yes.", "Q: Is it?\nA: No."] and first["gold"] == 0
    assert second["golds"] == [1, 0, 1] and "gold" not in second
    as_published = {key: dict(zip(row[key]["choices"], row[key]["labels"], strict=True)) for key in list(row)[1:]}
    for targets in ("mc1", "mc2"):
        assert make("truthfulqa", row | as_published, targets=targets) == make("truthfulqa", row, targets=targets)
    refused(lambda: make("truthfulqa", row | {"mc1_targets": {"choices": ["a", "b"], "labels": [1]}}), "labels of mc1")
    refused(lambda: make("truthfulqa", row | {"mc1_targets": {"a": 1, "b": 1}}), "right and wrong")
    refused(lambda: make("truthfulqa", row | {"mc1_targets": {"a": 1, "b": 1, "c": 0}}), "one right choice")
    refused(lambda: make("truthfulqa", {"question": "q"}), "mc1_targets")
    write("primer.txt", "Q: One?\nA: Two.\n")
    (item,) = read_items("truthfulqa", "t.jsonl", write("t.jsonl", row), {"preamble": "primer.txt"})
    assert item["prompt"] == "Q: One?\nA: Two.\n\nQ: Is it?\nA:"


def test_winogrande_scores_the_rest_of_the_sentence(write):
    row = {"qID": "w1", "sentence": "Ann beat Bea since _ was fast.", "option1": "Ann", "option2": "Bea", "answer": "1"}
    item = make("winogrande", row)
    assert item["choices"] == [
        {"context": "Ann beat Bea since Ann", "text": " was fast."},
        {"context": "Ann beat Bea since Bea", "text": " was fast."},
    ]
    assert item["gold"] == 0
    rows = [row, row | {"qID": "w2", "sentence": "It did not fit _ well.", "answer": "2"}]
    (item,) = read_items("winogrande", "w.jsonl", write("w.jsonl", *rows), {"shots": 1})
    assert item["id"] == "w2"
    assert whole_texts(item)[1] == "Ann beat Bea since Ann was fast.\n\nIt did not fit Bea well."
    refused(lambda: make("winogrande", row | {"sentence": "No gap."}), "_")
    refused(lambda: make("winogrande", row | {"sentence": "It ends in _"}), "go on after")
    refused(lambda: make("winogrande", row | {"answer": ""}), "test split")


# reading


def test_every_format_gives_the_same_rows(write, tmp_path):
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
        ("a.json", '{"prompt": "a"}', ["a.json", "list of rows"]),
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
    refused(lambda: read_items("plane", "a.jsonl", root), "shape plane", "plain")


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
            assert SHAPES[benchmark.shape].kind == benchmark.kind
            read = (benchmark.shape, benchmark.data, tmp_path, benchmark.options, benchmark.get, benchmark.where)
            refused(lambda read=read: read_items(*read), benchmark.data, benchmark.get)
    # the command that its comment gives
    assert f"--suite {name} --data DATA" in (SUITES / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("name, counts", [("gsm8k", [1319, 1314]), ("xstest", [450])])
def test_suites_read_the_shared_data(name, counts):
    found = [read_items(b.shape, b.data, DATA, b.options, b.get, b.where) for b in read_suite(name).benchmarks]
    assert list(map(len, found)) == counts
