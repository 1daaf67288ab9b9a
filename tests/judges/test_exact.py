"""Numbers read as people write them, the number a response ends on, and GSM8K's own solutions."""

import json
from fractions import Fraction

import pytest
from conftest import ROOT

from align.errors import UserError
from align.evals.formats.items import read_items
from align.judges.exact import EXACT_JUDGES, ExactJudge
from align.judges.numbers import final_number, numbers

DATA = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("18", ["18"]),
        ("18.", ["18"]),
        ("18.00", ["18"]),
        ("0.50 or .5", ["1/2", "1/2"]),
        ("1,000 and 1,234,567.89", ["1000", "123456789/100"]),
        ("1,00,000", ["100000"]),
        ("1, 2, 3", ["1", "2", "3"]),
        ("1,2,3", ["1", "2", "3"]),
        ("$5, -$5, $-5, $ 5, €7, £8.50", ["5", "-5", "-5", "5", "7", "17/2"]),
        ("-5 +5 \u22125", ["-5", "5", "-5"]),
        ("10-5, 2-year, (5)-3, 3% -2", ["10", "5", "2", "5", "3", "3", "-2"]),
        ("x=-4", ["-4"]),
        ("3/4, 3 / 4, 1 1/2, -1 1/2", ["3/4", "3/4", "3/2", "-3/2"]),
        ("2\n1/2", ["2", "1/2"]),
        ("5/0", ["5"]),
        ("50% 18kg 3rd 7pm", ["50", "18", "3", "7"]),
        ("H2O x2 v1.2 n_3", []),
        (r"\frac{3}{4} \dfrac{1}{2} 2\frac{1}{2}", ["3/4", "1/2", "5/2"]),
        (r"\$1{,}000 25\% 12\,500 7\!000", ["1000", "25", "12500", "7000"]),
        ("12\u202f500 1\u00a0000 1\u2009000\u2009000", ["12500", "1000", "1000000"]),
        ("**42** `7` (8) [9] 6!", ["42", "7", "8", "9", "6"]),
        ("16-3-4=9", ["16", "3", "4", "9"]),
        ("007", ["7"]),
        ("9" * 400 + " 3", ["3"]),
        ("none, zero", []),
        ("", []),
    ],
)
def test_numbers(text, expected):
    assert numbers(text) == [Fraction(value) for value in expected]


@pytest.mark.parametrize(
    "response, expected",
    [
        # GSM8K's mark goes before all else, and the first of several: what follows may be another question
        ("She has 5 + 3 = 8 left.\n#### 8", "8"),
        ("#### $1,200.50", "1200.5"),
        ("####18\n\nQuestion: Ann has 3 hats.\nAnswer: 3\n#### 3", "18"),
        ("####\n18", "18"),
        ("#### 6 * 3 = 18 hats and 2 caps", "18"),
        ("#### none\nThe answer is 4.", "4"),
        (r"The answer is 5. #### 6 \boxed{7}", "6"),
        # boxed
        (r"Thus \boxed{18}. Check: 18 - 3 = 15.", "18"),
        (r"First \boxed{3}, then \boxed{\frac{3}{4}} at last, out of 9.", "3/4"),
        (r"$\boxed{18\text{ dollars and } 0 \text{ cents}}$", "18"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{5 = x}", "5"),
        (r"\boxed{\text{none}} 4", "4"),
        (r"\boxed{18", "18"),
        # in words
        ("The answer is 18. That is 2 more than 16.", "18"),
        ("The answer is: $18.", "18"),
        ("So the answer is that she keeps 18 eggs of 24.", "18"),
        ("the final answer is therefore -7, not 9.", "-7"),
        ("The answer is 5. Wait, no. The answer is 6. I took 5 for it.", "6"),
        ("The answer is 20 - 2 = 18 eggs, half of 36.", "18"),
        ("The answer is not 5. It is 6.", "6"),
        ("The answer isn't 5, it is 6", "6"),
        ("**Answer:** 18 hats of 20", "18"),
        ("**Answer**: 18 hats of 20", "18"),
        ("ANSWER = 18, of 20", "18"),
        ("Answer:\n\n18 hats\n20 caps", "18"),
        ("My answer would be 3/4 of 100.", "3/4"),
        ("The answer is **1,000** of 2000", "1000"),
        ("The answer is unknown. She has 4", "4"),
        # else the last number
        ("She sells 9 eggs for $2 each and makes $18 every day.", "18"),
        ("9 * 2 = <<9*2=18>>18", "18"),
        ("It is 75%.", "75"),
        ("It costs $3.50.", "3.5"),
        ("He is 1,5 m and weighs 70kg.", "70"),
        ("You asked 2 things; I answered 1", "1"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_final_number(response, expected):
    assert final_number(response) == (None if expected is None else Fraction(expected))


def judged(name, response, expected):
    (verdict,) = ExactJudge(name)([{"id": "1", "prompt": "p", "response": response, "expected": expected}])
    return verdict


def test_number_judge():
    assert judged("number", "It is $18.00.", "18") == {"correct": True, "found": "18"}
    assert judged("number", "It is 1,000", "1000") == {"correct": True, "found": "1000"}
    assert judged("number", "It is 0.5", "1/2") == {"correct": True, "found": "1/2"}
    assert judged("number", "It is 18.5", "18") == {"correct": False, "found": "37/2"}
    assert judged("number", "I do not know", "18") == {"correct": False, "found": None}
    assert (
        judged("number", "It is 5", ["4", "5"])["correct"] and not judged("number", "It is 45", ["4", "5"])["correct"]
    )
    # 0.1 + 0.2 is 0.3: numbers are compared as written, not as floats
    assert judged("number", "0.30", "0.3")["correct"] and not judged("number", "0.30000000000000004", "0.3")["correct"]


def test_text_judges():
    assert judged("equals", " 7 \n", "7") == {"correct": True}
    assert judged("equals", "7 hats", "7") == {"correct": False}
    assert judged("equals", "b", ["a", "b"])["correct"]
    assert judged("contains", "Take a hat.", "hat") == {"correct": True}
    assert judged("contains", "Take a hat.", "Hat") == {"correct": False}
    assert judged("contains", "Take a hat.", ["cap", "hat "])["correct"]


def test_one_verdict_a_record_in_order():
    records = [{"id": str(i), "response": str(i), "expected": "2"} for i in range(4)]
    for name in EXACT_JUDGES:
        judge = ExactJudge(name)
        assert judge.name == name
        assert [verdict["correct"] for verdict in judge(records)] == [False, False, True, False]
    json.dumps(ExactJudge("number")(records))


def test_a_record_without_what_is_expected():
    with pytest.raises(UserError, match=r"prompt 7: .*equals.*expected"):
        ExactJudge("equals")([{"id": "7", "response": "a"}])
    with pytest.raises(UserError, match=r"prompt 1: expected 'many' has no number"):
        judged("number", "4", "many")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_all_solutions_of_gsm8k_are_right():
    items = read_items("gsm8k", "gsm8k/test.jsonl", DATA)
    rows = [json.loads(line) for line in (DATA / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(items) == len(rows) == 1319
    judge = ExactJudge("number")

    def right(responses):
        records = [item | {"response": response} for item, response in zip(items, responses, strict=True)]
        return sum(verdict["correct"] for verdict in judge(records))

    assert right(row["answer"] for row in rows) == 1319
    # the same number in the words of chat models
    for form in ("{} hats.", "The answer is ${}.00.", r"\boxed{{{}}}", "Out of 99999, it is:\n\n**Answer:** {}"):
        assert right(form.format(item["expected"]) for item in items) == 1319
    assert right(f"It is {int(item['expected']):,}." for item in items) == 1319
    # and never another one
    assert right(f"#### {int(item['expected']) + 1}" for item in items) == 0
