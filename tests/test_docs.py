"""The documentation: links lead somewhere, math is what GitHub renders, and nothing named has ceased to exist."""

import re
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest

from align.config import SECTIONS, Config, PlanSection, SourceSection
from align.evals.suites import suite_names
from align.judges.exact import EXACT_JUDGES
from align.losses import LOSSES, loss_classes, loss_parameters
from align.losses.pages import MAP, PAGES, page, with_tables

ROOT = Path(__file__).resolve().parent.parent
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
FILES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
DISPLAY, INLINE = re.compile(r"\$\$(.*?)\$\$", re.DOTALL), re.compile(r"\$([^$\n]+)\$")
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text: str) -> str:
    """A page without its code, and `code` in place of code within a line."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<=\n\n)(    .*\n|\n)+", "\n", text)
    return re.sub(r"`[^`\n]+`", "code", text)


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def formulas(text: str) -> list[str]:
    text = prose(text)
    return DISPLAY.findall(text) + INLINE.findall(DISPLAY.sub("", text))


@EACH_FILE
def test_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        resolved = (path.parent / file).resolve() if file else path
        assert resolved.exists(), target
        assert not anchor or anchor in anchors(resolved), target


@EACH_FILE
def test_math_is_balanced(path):
    text = prose(path.read_text(encoding="utf-8"))
    assert text.count("$$") % 2 == 0
    for line in text.splitlines():
        assert "$$" not in line or line.strip() == "$$", line  # GitHub wants them on lines of their own
    assert "$" not in INLINE.sub("", DISPLAY.sub("", text))
    for formula in formulas(text):
        depth = 0
        for brace in re.findall(r"(?<!\\)[{}]", formula):
            depth += 1 if brace == "{" else -1
            assert depth >= 0, formula
        assert depth == 0, formula
        assert len(re.findall(r"\\left\b", formula)) == len(re.findall(r"\\right\b", formula)), formula


# GitHub reads a page as Markdown first and hands on what is left between the dollars
BROKEN_BY_MARKDOWN = {
    r"\\[^A-Za-z\s]": "Markdown drops a backslash before punctuation: \\thinspace for \\, and \\Vert for \\|",
    r"[<>]": "may start a tag: \\lt, \\gt",
    r"\*": "may start emphasis: \\ast, \\star",
    r"(?<![\w\\\s])_(?=\S)": "after punctuation it may start emphasis: put a space behind it",
    r"\]\(": "is a link",
    r"\\(operatorname|newcommand|def|require)\b": "is a macro that GitHub refuses",
}


@EACH_FILE
@pytest.mark.parametrize("pattern", BROKEN_BY_MARKDOWN)
def test_math_survives_markdown(path, pattern):
    for formula in formulas(path.read_text(encoding="utf-8")):
        assert not re.search(pattern, formula), (formula, BROKEN_BY_MARKDOWN[pattern])


@EACH_FILE
def test_math_in_tables_has_no_bars(path):
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for row in rows:
        assert not any("|" in formula for formula in INLINE.findall(row)), row


FIGURES = MAP.parent / "losses" / "figures"


@pytest.mark.parametrize("name", [name for name in LOSSES if page(name)])
def test_a_loss_with_a_page_has_a_line_and_a_figure(name):
    stem = page(name)
    assert f"| `{name}`" in MAP.read_text(encoding="utf-8")
    text = (MAP.parent / "losses" / f"{stem}.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text and f"(figures/{stem}.svg)" in text
    for figure in (stem, "overview"):
        drawn = (FIGURES / f"{figure}.svg").read_text(encoding="utf-8")
        assert re.search(rf">{name}\b[^<]*</text>", drawn), figure


def test_the_tables_of_methods_are_current():
    """A loss that is new need not be in them; what is in them is as its class says."""
    text = MAP.read_text(encoding="utf-8")
    current = with_tables(text).splitlines()
    stale = [line for line in text.splitlines() if line not in current]
    assert not stale, "run python -m align.losses.figures"
    assert len(re.findall(r"^\| `\w+`", text, flags=re.MULTILINE)) > 90  # methods, their names, identities


def test_the_family_tree_has_losses_and_nothing_else():
    (tree,) = re.findall(r"```mermaid\n(.*?)```", MAP.read_text(encoding="utf-8"), flags=re.DOTALL)
    tree = re.sub(r'"[^"]*"|\|\w+\|', "", tree)  # without what is written on nodes and arrows
    nodes = set(re.findall(r"\w+", tree)) - {"flowchart", "LR", "target"}
    assert nodes <= set(LOSSES) and len(nodes) >= 34


def test_figures_are_small_and_none_is_left_over():
    assert {path.name for path in FIGURES.iterdir()} == {f"{stem}.svg" for stem in {*PAGES.values(), "overview"}}
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".svg", ".png", ".jpg", ".gif", ".webp")]
    assert sum(path.stat().st_size for path in pictures) < 300e3


# π and π_ref are probabilities, ℓ and ℓ_ref their logarithms: what stood for both before
RETIRED = {
    r"ρ|\\rho\b": "the reference is π_ref, its log-probability ℓ_ref",
    r"π_[wlijnN0-9{]|\\pi_(?!\{\\mathrm\{ref\}\})": "the log-probability of a response is ℓ_i",
    r"/\s*d ?π|\\partial\s*\\pi": "gradients are in the log-probabilities ℓ",
    r"\|[wl]\||\\lvert [wl] |\bn_[wl]\b": "the tokens of a response are |y_w|, |y_l|",
    r"\bx_[wl]\b": "the mean log-probability of a token is a_w, a_l",
    r"(?i)\banswers?\b": "what a model writes is a response",
}
NOTED = [*sorted((ROOT / "align" / "losses").glob("*.py")), MAP, *sorted((MAP.parent / "losses").glob("*.md"))]


@pytest.mark.parametrize("path", NOTED, ids=lambda path: path.name)
def test_losses_have_one_notation(path):
    text = path.read_text(encoding="utf-8")
    for pattern, instead in RETIRED.items():
        found = re.search(pattern, text)
        assert not found, f"{found[0]!r} in line {text.count(chr(10), 0, found.start()) + 1}: {instead}"


@EACH_FILE
def test_losses_and_flags_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"--loss[ =]([a-z_0-9+]+)(?![a-z_0-9+:])", text):
        loss_classes(name)
    config = Config(plan=PlanSection())
    keys = {f"{section}.{f.name}" for section in (*SECTIONS, "plan") for f in fields(getattr(config, section))}
    for name in LOSSES:
        keys |= {f"loss.{key}" for key in loss_parameters(name)} | {
            f"loss.{name}.{key}" for key in loss_parameters(name)
        }
    keys |= {"loss.weights", "loss.goal"}  # goal: the parameter of the loss that extending.md makes
    of_sources = {f.name for f in fields(SourceSection)} | {key.rpartition(".")[2] for key in keys if "loss." in key}
    for flag in re.findall(r"--([a-z_]+\.[a-z_0-9.]*[a-z_0-9])", text):
        assert flag in keys or (flag.startswith("sources.") and flag.rpartition(".")[2] in of_sources), flag


def test_evaluation_names_every_suite_and_judge():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in [*suite_names(), *EXACT_JUDGES, "guard", "refusal", "toxicity", "rules"]:
        assert f"`{name}`" in page, name


def test_the_chapter_on_kernels_is_short():
    """Tables and formulas may be wide, prose and pictures not: what does not fit belongs in the log."""
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert text.count("\n") < 200
    wide = [line for line in DISPLAY.sub("", text).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not wide


def test_the_log_is_dated_and_descending():
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    _, *entries = re.split(r"^## ", text, flags=re.MULTILINE)
    days, titles = [], []
    for entry in entries:
        heading, _, body = entry.partition("\n")
        day, _, title = heading.partition(": ")
        days.append(date.fromisoformat(day))
        titles.append(title)
        assert title and re.search(r"\d", body), heading  # an experiment has numbers
        assert re.search(r"\bFollowed\b", body), heading
    assert len(days) > 20 and days == sorted(days, reverse=True)
    assert len(set(titles)) == len(titles)
    assert any(title.endswith("(negative)") for title in titles)
