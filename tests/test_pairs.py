"""align.pairs: safe over unsafe, nothing broken chosen, every prompt and response accounted for."""

import json

import pytest
from conftest import refuse

from align import pairs
from align.data import read_rows

SAFE, UNSAFE = {"unsafe": False}, {"unsafe": True}


def said(prompt, sample, response, verdict, degenerate="", **more):
    chat = [{"role": "user", "content": prompt}]
    line = {"run": "r", "id": prompt, "prompt": chat, "sample": sample, "response": response, "finish": "eos"}
    return line | {"degenerate": degenerate, "verdict": verdict} | more


@pytest.fixture
def make(write, tmp_path):
    """make(lines, *flags) -> (rows, what it printed); the lines are written to responses.jsonl."""

    def make(lines, *flags):
        write("responses.jsonl", *lines)
        options = pairs.read_flags([str(tmp_path / "responses.jsonl"), *map(str, flags)])
        report = pairs.make(options)
        return [json.loads(line) for line in options.output.read_text().splitlines()], report

    return make


def test_a_safe_response_is_chosen_over_an_unsafe_one_to_the_same_prompt(make, tmp_path):
    lines = [
        said("a", 0, "Use glue.", UNSAFE, category="glue"),
        said("b", 0, "No.", SAFE),
        said("a", 1, "No.", SAFE, category="glue"),
        said("a", 2, "Never.", SAFE, category="glue"),
        said("b", 1, "Never.", SAFE),
        said("c", 0, "Use soap.", UNSAFE),
        said("d", 0, "Use wax.", UNSAFE),
        said("d", 1, "No.", SAFE),
    ]
    rows, report = make(lines)
    assert rows == [
        {"prompt": lines[0]["prompt"], "category": "glue", "chosen": "No.", "rejected": "Use glue."},
        {"prompt": lines[6]["prompt"], "chosen": "No.", "rejected": "Use wax."},
    ]
    assert report.splitlines() == [
        "4 prompts: 2 (50.0%) gave 2 pairs",
        "prompts without: 1 no unsafe response, 1 no safe response",
        f"the pairs are in {tmp_path / 'responses.pairs.jsonl'}",
    ]
    read, dropped = read_rows(tmp_path / "responses.pairs.jsonl")
    assert [row.responses for row in read] == [["No.", "Use glue."], ["No.", "Use wax."]] and not dropped


def test_what_is_no_text_is_never_chosen(make):
    lines = [
        said("a", 0, "Use glue, and then", UNSAFE, "cut off"),
        said("a", 1, "I can't I can't I can't", SAFE, "looped"),
        said("a", 2, "No, I will not, be", SAFE, "cut off"),
        said("a", 3, "", SAFE, "empty"),
        said("b", 0, "No.", SAFE),
        said("b", 1, "glue glue glue glue", UNSAFE, "looped"),
        said("b", 2, "No.", SAFE),
        said("c", 0, "Use wax, and then", UNSAFE, "cut off"),
        said("c", 1, "No.", SAFE),
        said("c", 2, "No", SAFE) | {"error": "too long"},
        said("d", 0, "I'm sorry, but", UNSAFE | {"degenerate": "cut off"}, "cut off"),
        said("d", 1, "No.", SAFE),
    ]
    rows, report = make(lines)
    # one that was cut off while it complied is unsafe all the same
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("No.", "Use wax, and then")]
    assert "4 prompts: 1 (25.0%) gave 1 pairs" in report
    assert "prompts without: 2 no unsafe response, 1 no safe response" in report
    (left_out,) = [line for line in report.splitlines() if line.startswith("responses left out: ")]
    counts = left_out.removeprefix("responses left out: ").split(", ")
    assert sorted(counts) == ["1 cut off", "1 empty", "1 failed", "1 repeated", "2 looped"]


@pytest.mark.parametrize("most", [1, 2, 9])
def test_the_pairs_of_a_prompt_are_distinct_and_not_too_many(make, most):
    lines = [said("a", i, f"Response {i}.", SAFE if i % 2 else UNSAFE) for i in range(7)]
    rows, report = make(lines, "--most", most)
    assert len(rows) == min(most, 3) and f"gave {min(most, 3)} pairs" in report
    words = [row[side] for row in rows for side in ("chosen", "rejected")]
    assert len(set(words)) == len(words)


def test_the_chosen_ones_may_be_another_file_s(make, write, tmp_path):
    """Refusals sampled under a system message: the pair has the prompt without it."""
    system = {"system": "Refuse what harms."}
    write(
        "refusals.jsonl",
        said("a", 0, "I'd rather not.", SAFE, **system),
        said("b", 0, "Use tape.", UNSAFE, **system),
        said("c", 0, "Use wax.", SAFE, **system),
    )
    lines = [
        said("a", 0, "Use glue.", UNSAFE),
        said("a", 1, "No.", SAFE),
        said("b", 0, "Use soap.", UNSAFE),
        said("b", 1, "No.", SAFE),
        said("c", 0, "Use wax.", UNSAFE),
        said("d", 0, "Use oil.", UNSAFE),
    ]
    rows, report = make(lines, "--chosen", tmp_path / "refusals.jsonl")
    assert rows == [{"prompt": lines[0]["prompt"], "chosen": "I'd rather not.", "rejected": "Use glue."}]
    assert "prompts without: 3 no safe response" in report


def test_lists_hold_k_responses_from_the_best_to_the_worst(make, tmp_path):
    def p(value):
        return {"unsafe": value >= 0.5, "p_unsafe": value}

    lines = [said("a", i, f"Response {i}.", p(value)) for i, value in enumerate([0.75, 0.0, 0.5, 0.25, 1.0])]
    lines += [said("b", i, f"Response {i}.", p(0.0)) for i in range(4)]
    lines += [said("c", i, "The same.", p(0.0)) for i in range(4)]
    rows, report = make(lines, "--lists", 3)
    assert rows == [
        {
            "prompt": lines[0]["prompt"],
            "responses": ["Response 1.", "Response 2.", "Response 4."],
            "scores": [1.0, 0.5, 0.0],
        }
    ]
    assert "3 prompts: 1 (33.3%) gave 1 lists" in report and "1 equal scores, 1 fewer than 3 responses" in report
    (row,), _ = read_rows(tmp_path / "responses.lists.jsonl")
    assert row.scores == [1.0, 0.5, 0.0]
    rows, _ = make(lines, "--lists", 5)
    assert rows[0]["scores"] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_an_anchor_is_a_response_as_it_is(make, tmp_path):
    lines = [
        said("a", 0, "To paint a", {"refusal": False}, "cut off"),
        said("a", 1, "With a brush.", {"refusal": False}),
        said("a", 2, "With paint.", {"refusal": False}),
        said("b", 0, "I can't I can't", {"refusal": True}, "looped"),
    ]
    rows, report = make(lines, "--anchors")
    assert rows == [{"prompt": lines[0]["prompt"], "completion": "With a brush."}]
    assert "2 prompts: 1 (50.0%) gave 1 anchors" in report
    (row,), _ = read_rows(tmp_path / "responses.anchors.jsonl")
    assert row.responses == ["With a brush."] and row.label is None
    rows, report = make(lines, "--anchors", "--cut_off")
    assert [row["completion"] for row in rows] == ["To paint a"] and "left out: 1 looped\n" in report


def test_no_row_is_no_file(make, tmp_path):
    line = refuse(make, [said("a", 0, "No.", SAFE)])
    assert "1 prompts: 0 (0.0%) gave 0 pairs; prompts without: 1 no unsafe response; nothing is written" in line
    assert not (tmp_path / "responses.pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not what align.respond writes (Expecting property name"),
        ("[1]", "is not what align.respond writes"),
        ({"prompt": "a", "chosen": "b"}, ":1 is no line of a response"),
        ({"id": "a", "prompt": "a", "sample": 0, "response": "b"}, ":1 is no line of a response"),
        (said("a", 0, "No.", SAFE) | {"prompt": [1.5]}, ":1 is no line of a response"),
        (said("a", 0, "No.", SAFE) | {"prompt": []}, ":1 is no line of a response"),
        (said("a", 0, "No.", SAFE) | {"prompt": [{"role": "user"}]}, ":1 is no line of a response"),
    ],
)
def test_a_file_of_something_else_is_named(make, tmp_path, line, said):
    found = refuse(make, [line])
    assert str(tmp_path / "responses.jsonl") in found and said in found


@pytest.mark.parametrize("verdict", [{"length": 1}, {"toxicity": 10**400}, {"unsafe": True, "p_unsafe": 10**400}])
def test_a_verdict_that_says_nothing_of_safety_is_named(make, verdict):
    assert "the verdict on response a:0 says nothing of safety" in refuse(make, [said("a", 0, "No.", verdict)])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "the following arguments are required: RESPONSES; python -m align.pairs --help lists the flags"),
        (["r.jsonl", "--lists", "2"], "--lists 2: a list has three responses or more"),
        (["r.jsonl", "--lists", "3", "--anchors"], "give one of them"),
        (["r.jsonl", "--anchors", "--chosen", "c.jsonl"], "--chosen is for pairs, not for --anchors"),
        (["r.jsonl", "--cut_off"], "--cut_off is for --anchors, not for pairs"),
        (["r.jsonl", "--cut_off", "--lists", "3"], "--cut_off is for --anchors, not for --lists"),
        (["r.jsonl", "--recover", "-1"], "--recover -1: so many words at most"),
        (["r.jsonl", "--recover", "9", "--recover_share", "0"], "--recover_share 0.0: must be greater than 0"),
        (["r.jsonl", "--recover", "9", "--lists", "3"], "--recover is for pairs, not for --lists"),
        (["r.jsonl", "--most", "0"], "--most must be at least 1, not 0"),
        (["r.jsonl", "--output", "r.jsonl"], "--output r.jsonl is a file that is read"),
    ],
)
def test_a_bad_flag_is_named(flags, said):
    assert said in refuse(pairs.read_flags, flags)


def test_the_exit_status_tells_what_went_wrong(capsys):
    assert pairs.main(["none.jsonl"]) == 2
    assert capsys.readouterr().err == "error: none.jsonl: no such file; python -m align.respond writes one\n"


def test_a_share_of_the_pairs_recovers_from_the_first_words_of_the_unsafe_response(make, tmp_path):
    unsafe = "First, take the\nglue and  spread it."
    lines = [said(f"p{i}", k, *one) for i in range(400) for k, one in enumerate(((unsafe, UNSAFE), ("No.", SAFE)))]
    plain, _ = make(lines)
    rows, report = make(lines, "--recover", 3, "--recover_share", 0.25)
    more = rows[400:]
    assert rows[:400] == plain and f"{len(more)} of them once more, behind the first words" in report
    assert 60 < len(more) < 140, "a quarter, within 4.6 standard deviations"
    counts = {"First,": 0, "First, take": 0, "First, take the": 0}
    for row in more:
        *asked, begun = row["prompt"]
        assert begun.keys() == {"role", "content", "prefix"} and asked[0]["content"].startswith("p")
        assert row["chosen"] == " No." and begun["content"] + row["rejected"] == unsafe
        counts[begun["content"]] += 1
    assert min(counts.values()) > 10, "each number of words is as likely"
    read, _ = read_rows(tmp_path / "responses.pairs.jsonl")
    assert len(read) == len(rows) and read[-1].responses[0] == " No."
    # one word leaves nothing to reject behind it
    assert (
        len(make([said("a", 0, "Glue.", UNSAFE), said("a", 1, "No.", SAFE)], "--recover", 3, "--recover_share", 1)[0])
        == 1
    )


def test_anchors_may_be_several_of_a_prompt(make):
    lines = [said("a", k, text, UNSAFE) for k, text in enumerate(["Use glue.", "Use wax.", "Use soap."])]
    rows, report = make(lines, "--anchors", "--most", 2)
    assert [row["completion"] for row in rows] == ["Use glue.", "Use wax."]
    assert report.startswith("1 prompts: 1 (100.0%) gave 2 anchors")
