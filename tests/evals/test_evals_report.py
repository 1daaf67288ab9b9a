"""The report: what it computes, and that its files say it. test_report_browser.py looks at the page in a browser."""

import itertools
import json
import re
from html.parser import HTMLParser

import pytest
from report_results import HOSTILE, MODELS, demo, results

from align.evals.report import page, tables
from align.evals.report.text import summary_table, write_report


def test_better_follows_the_direction_of_the_metric():
    lower = tables.Row("toxicity", "", "lower", "safety", [])
    higher = tables.Row("safe", "%", "higher", "safety", [])
    fell = tables.Cell(1.0, difference=-2.0, p=0.01)
    assert (lower.verdict(fell), higher.verdict(fell)) == ("better", "worse")
    assert lower.verdict(tables.Cell(1.0, difference=-2.0, p=0.05)) == ""
    assert lower.verdict(tables.Cell(1.0, difference=0.0, p=0.0)) == ""


def test_headline_is_what_has_a_side_and_everything_where_nothing_has():
    rows = tables.all_rows(results(count=20))
    assert [row.axis for row in tables.headline(rows)] == ["safety"] * 3 + ["over-refusal"] + ["capability"] * 3
    bare = [tables.Row("a", "%", "higher", None, []), tables.Row("b", "%", "higher", None, [])]
    assert tables.headline(bare) == bare


def test_groups_are_in_natural_order():
    made = results(count=20)
    made["scores"].reverse()
    table = tables.group_tables(made)[0]
    assert [row.title for row in table.rows] == ["S1", "S2", "S9", "S10", "hate & <i>slurs</i>"]
    assert table.caption == "ALERT: safe responses by category"


def test_side_is_the_summary_or_the_mean_with_lower_turned_over():
    def row(values, better="higher", unit="%", benchmark="b"):
        cells = [None if v is None else tables.Cell(v, v - 1, v + 2) for v in values]
        return tables.Row("t", unit, better, "safety", cells, benchmark)

    success = row([30.0, None], better="lower")
    label, points = tables.side([success], "safety")
    assert label == "100 − t, %" and points == [(70.0, 68.0, 71.0), None]
    _, points = tables.side([success, row([80.0, 90.0]), row([5.0, 5.0], unit="nats")], "safety")
    assert points == [(75.0, None, None), None]
    _, points = tables.side([row([60.0, 61.0], benchmark=None), success], "safety")
    assert points == [(60.0, 59.0, 62.0), (61.0, 60.0, 63.0)]
    assert tables.side([success], "capability") == ("", [])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (84.2, "%", "84.2"),
        (-0.04, "%", "0.0"),
        (-25.77, "%", "−25.8"),
        (0.0712, "", "0.071"),
        (12.344, "", "12.34"),
        (1234.5, "", "1234.5"),
        (-0.0001, "", "0.000"),
    ],
)
def test_number(value, unit, text):
    assert tables.number(value, unit) == text


def record(error=None, **verdicts):
    return {"id": "a", "prompt": "p"} | ({"error": error} if error else {"response": "x", "verdicts": verdicts})


def test_flags_are_the_first_judge_s_changes_and_anyone_s_alarm():
    def flags(*records, judge="guard"):
        return page.flags(list(records), judge)

    safe, unsafe = {"unsafe": False}, {"unsafe": True, "p_unsafe": 0.9}
    assert flags(record(guard=safe), record(guard=safe)) == frozenset()
    assert flags(record(guard=safe), record(guard=unsafe)) == {"changed", "unsafe"}
    assert flags(record(rules=safe, guard=safe), record(rules=unsafe, guard=safe)) == {"unsafe"}
    assert flags(record(guard=safe), record(error="too long"), None) == {"error"}
    assert flags(record(guard=safe), record(guard={"error": "no turn"})) == {"error"}
    # a base that failed does not make the others' agreement a change
    assert flags(record(error="NaN"), record(guard=safe), record(guard=safe)) == {"error"}
    right, wrong = ({"id": "a", "prompt": "p", "values": {"acc": value, "mc2": 0.3}} for value in (True, False))
    assert flags(right, wrong, judge=None) == {"changed"} and flags(right, right, judge=None) == frozenset()


def test_margins_are_over_the_base():
    def pair(chosen, rejected):
        return {"id": "a", "logps": [chosen, rejected]}

    records = {"base": {"pairs": [pair(-10.0, -12.0), {"id": "b", "error": "NaN"}]}}
    records["nca"] = {"pairs": [pair(-9.0, -15.0), pair(-9.0, -15.0)]}
    made = {"models": [{"name": "base"}, {"name": "nca"}], "records": records}
    assert page.margins_of(made, "pairs") == [[], [1.0 + 3.0]]


def test_badges_are_words():
    texts = [
        (badge.text, badge.tone) for badge in page.badges(record(guard={"unsafe": True, "categories": ["S1", "S9"]}))
    ]
    assert texts == [("unsafe S1, S9 · guard", "bad")]
    both = record(words={"refusal": True}, scorer={"toxicity": 0.071})
    assert [badge.text for badge in page.badges(both)] == ["refusal · words", "toxicity 0.07 · scorer"]
    assert [badge.text for badge in page.badges(record(error="NaN"))] == ["error"]
    values = {"id": "a", "values": {"acc": False, "mc2": 0.25}}
    assert [badge.text for badge in page.badges(values)] == ["acc: no", "mc2 0.250"]


def test_pick():
    changed, error, unsafe, rest = (frozenset(kind) for kind in (["changed", "unsafe"], ["error"], ["unsafe"], []))
    marked = [changed] * 100 + [rest] * 50 + [error] + [unsafe] * 3
    picked = page.pick(marked, 40)
    assert len(picked) == len(set(picked)) == 40
    assert [marked[i] for i in picked[:30]] == [changed] * 30  # changed verdicts first
    assert 150 in picked and {151, 152, 153} <= set(picked)  # the one error and all that is unsafe
    assert picked[:3] == [0, 3, 6]  # from the whole benchmark, not its beginning
    assert page.pick([changed] * 100, 40) == page.evenly(list(range(100)), 40)
    assert page.pick([rest] * 3, 40) == [0, 1, 2]


def test_clip_loses_nothing_of_a_shorter_text():
    for text in (*HOSTILE, "word " * 700, "x" * 3999, ""):
        opened, rest, left = page.clip(text)
        assert opened + rest == text and left == 0
        assert len(opened) <= page.SHOWN + 100
    opened, rest, left = page.clip("x" * 5000)
    assert (len(opened + rest), left) == (page.WHOLE, 1000)


class Document(HTMLParser):
    """Every element with its attributes and the chain of elements around it."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, *tags):
        return [(attributes, around) for tag, attributes, around in self.elements if tag in tags]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    made = results(folder)
    write_report(made, folder)
    return (
        made,
        (folder / "report.html").read_text(encoding="utf-8"),
        (folder / "report.md").read_text(encoding="utf-8"),
    )


def test_html_is_well_formed_and_accessible(written):
    document = Document(written[1])
    levels = [int(tag[1]) for tag, _, _ in document.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and all(b <= a + 1 for a, b in itertools.pairwise([0, *levels]))
    ids = [attributes["id"] for _, attributes, _ in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in document.elements:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
        assert attributes.get("href", "data:,") in ["data:,", "#", *(f"#{id}" for id in ids)]
    assert all("scope" in attributes for attributes, _ in document.all("th"))
    assert len(document.all("table")) == len(document.all("caption"))
    assert all("scroll" in str(a.get("class")) for a, _ in document.all("div") if a.get("role") == "region")
    images = [a for a, _ in document.all("svg") if a.get("role") == "img"]
    titled = [around for _, around in document.all("desc")]
    assert len(images) == len(titled) == len(document.all("title")) - 1 and all("svg" in around for around in titled)


def test_html_stands_alone_and_escapes_everything(written):
    document = Document(written[1])
    assert len(document.all("script")) == 1
    assert not document.all("img", "iframe", "object", "form", "base", "i")
    assert not [a for _, a, _ in document.elements if "src" in a or any(name.startswith("on") for name in a)]
    assert "url(" not in written[1] and "@import" not in written[1]


def test_same_results_same_bytes(written, tmp_path):
    made, html, md = written
    write_report(json.loads(json.dumps(made)), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == md


def table_rows(md):
    """The cells of every line of a table, its escapes undone."""
    lines = [line for line in md.splitlines() if line.startswith("|")]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_has_every_score(written):
    made, _, md = written
    rows = table_rows(md)
    titles = {b["name"]: b for b in made["benchmarks"]}
    for score in made["scores"]:
        benchmark = titles[score["benchmark"]]
        about = benchmark["metrics"][score["metric"]]
        name = next(iter(score["group"].values())) if score["group"] else f"{benchmark['title']}: {about['title']}"
        value = tables.number(score["value"], about["unit"])
        column = 1 + MODELS.index(score["model"])
        assert any(row[0].startswith(name) and row[column].split()[0].rstrip(";") == value for row in rows), score
    assert {len(row) for row in rows} <= {5, 7}
    assert "](" not in md and "<i>" not in md.replace("\\<i>", "")
    assert "- **tiny-nca**: global safety score 50.0 → 99.6" in md and "- tiny-nca, GSM8K: 1 failed" in md


def test_report_of_little(tmp_path):
    """One model, one benchmark of which every prompt failed, nothing to compare: still a page."""
    made = demo(summaries=[], comparisons=[])
    made["models"], made["benchmarks"] = made["models"][:1], made["benchmarks"][:1]
    made["scores"] = [made["scores"][0] | {"value": None, "low": None, "high": None, "n": 0, "failed": 120}]
    made["records"] = {"base": {"plain": [{"id": "1", "prompt": "x", "error": "NaN"}]}}
    write_report(made, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nothing was measured" in html and "Not drawn" in html and "NaN" in html
    assert Document(html).all("article")
    assert summary_table(made).splitlines()[1].split() == ["plain:", "safe,", "%", "-"]


def test_summary_table():
    assert summary_table(demo()) == "\n".join(
        [
            "                                  base              nca",
            "global safety (mean of two), %    51.7   100.0   +48.3",
            "plain: safe, %                    84.2   100.0   +15.8*",
            "adversarial: safe, %              19.2   100.0   +80.8*",
            "chores: helpful, %               100.0     0.0  -100.0*",
            "sums: exact, %                   100.0    74.2   -25.8*",
            "change against base; * p < 0.05",
        ]
    )
