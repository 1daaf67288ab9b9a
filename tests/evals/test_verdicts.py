"""What a report says of each model in one sentence: the gain, its price, and what else stands beside safety."""

from report_results import demo

from align.evals.report import tables
from align.evals.report.text import write_report
from align.evals.report.verdicts import subject, verdicts


def verdict(made, model=0):
    return verdicts(made, tables.all_rows(made))[model][1]


def test_verdict_says_gain_and_price():
    assert verdict(demo()) == (
        "global safety 51.7 → 100.0 (+48.3, p < 0.001 on each safety metric); "
        "the price: chores helpful −100.0, sums exact −25.8"
    )


def test_verdict_names_a_price_once():
    """What is refused is not complied with: on the prompts of one benchmark that is one price."""
    made = demo()
    chores = next(benchmark for benchmark in made["benchmarks"] if benchmark["name"] == "chores")
    chores["metrics"]["refused"] = {"title": "refused", "unit": "%", "better": "lower", "axis": "over-refusal"}
    chores["metrics"]["helpful"]["axis"] = "capability"
    for model, value in (("base", 0.0), ("nca", 100.0)):
        row = next(s for s in made["scores"] if s["benchmark"] == "chores" and s["model"] == model)
        made["scores"].append(row | {"metric": "refused", "value": value})
    row = next(c for c in made["comparisons"] if c["benchmark"] == "chores")
    made["comparisons"].append(row | {"metric": "refused", "difference": 100.0})
    assert verdict(made).endswith("the price: chores helpful −100.0, sums exact −25.8")


def test_the_order_of_judges_is_explained_where_a_later_one_is_listed(tmp_path):
    made = demo()
    order = tables.JUDGES_ORDER
    write_report(made, tmp_path)
    assert (tmp_path / "report.html").read_text().count(order) == 1  # among the methods
    plain = made["benchmarks"][0]
    plain["judges"].append("guard")
    plain["metrics"]["safe/guard"] = {"title": "safe, by guard", "unit": "%", "better": "higher", "axis": None}
    made["scores"] += [s | {"metric": "safe/guard"} for s in made["scores"] if s["benchmark"] == "plain"]
    rows = tables.all_rows(made)
    assert [row.title for row in rows if row.judge == "guard"] == ["plain: safe, by guard"]
    write_report(made, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count(order) == 2 and text.index(order) > text.index("Every score")
    assert order in (tmp_path / "report.md").read_text().partition("## Every other score")[2].partition("| metric")[0]


def test_subject():
    def about(*names, **more):
        found = subject({"benchmarks": [{"suite": "tiny"}], "models": [{"name": n} for n in names]} | more)
        return found.suites, found.models

    assert about("base", "nca", suites={"tiny": "The toy world"}) == ("The toy world", "nca against base")
    assert about("base", "nca", "dpo", "sft") == ("tiny", "nca, dpo and sft against base")
    assert about("base", *"abcd")[1] == "4 models against base"
    assert about("base")[1] == "base"


def test_what_responses_are_like_stands_beside_safety(tmp_path):
    made = demo()
    plain = made["benchmarks"][0]
    about = {"title": "degenerate responses", "unit": "%", "better": "lower", "axis": "text"}
    plain["metrics"] |= {"degenerate": about, "length": about | {"title": "words", "unit": "", "better": ""}}
    for model, share, words in (("base", 0.0, 12.0), ("nca", 46.5, 90.0)):
        row = next(s for s in made["scores"] if s["benchmark"] == "plain" and s["model"] == model)
        made["scores"] += [row | {"metric": "degenerate", "value": share}, row | {"metric": "length", "value": words}]
    row = next(c for c in made["comparisons"] if c["benchmark"] == "plain")
    made["comparisons"].append(row | {"metric": "length", "difference": 78.0})
    assert "on each safety metric); plain degenerate responses 46.5 %; the price:" in verdict(made)
    write_report(made, tmp_path)
    text = (tmp_path / "report.html").read_text()
    scores = text[text.index('id="scores"') : text.index('id="figures"')]
    assert scores.index("plain: safe") < scores.index("plain: degenerate responses") < scores.index("chores: helpful")
    (words,) = [row for row in tables.all_rows(made) if row.metric == "length"]
    assert words.direction == words.verdict(words.cells[1]) == ""  # longer is neither better nor worse


def test_verdict_takes_the_p_of_the_summary_where_it_has_one():
    made = demo()
    made["comparisons"].append(
        {"model": "nca", "against": "base", "benchmark": None, "metric": "global", "difference": 48.3, "p": 0.0312}
    )
    assert "(+48.3, p = 0.031)" in verdict(made)


def test_verdict_of_insignificant_changes():
    made = demo()
    for row in made["comparisons"]:
        row["p"] = 0.4
    assert verdict(made) == (
        "global safety 51.7 → 100.0 (+48.3, significantly safer on 0 of 2 safety metrics); "
        "no significant loss in 2 measures of capability and over-refusal"
    )


def test_verdict_does_not_hide_a_benchmark_that_got_less_safe():
    made = demo()
    made["comparisons"][0]["difference"] = -10.0
    assert "significantly safer on 1 of 2 safety metrics" in verdict(made)
    assert verdict(made).endswith("; less safe: plain safe −10.0")


def test_verdict_without_safety_or_price():
    made = demo(summaries=[])
    for benchmark in made["benchmarks"]:
        for metric in benchmark["metrics"].values():
            metric["axis"] = None
    assert verdict(made) == "safety was not measured; the price was not measured"


def test_verdict_of_one_model_is_its_levels():
    made = demo()
    made["models"] = made["models"][:1]
    assert verdict(made).startswith("global safety 51.7, plain safe 84.2")
