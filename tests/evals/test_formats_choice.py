"""Published rows of multiple choice to items: every form, by hand."""

from format_checks import make, refused, whole_texts

from align.evals.formats.items import read_items


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
    refused(lambda: make("arc", hub | {"choices": {"text": ["Sun"], "label": ["A"]}}), "two texts or more")
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
