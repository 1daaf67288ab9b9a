"""report.html: which samples it shows, what their badges say, and the page rendered from its template."""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2

from align.evals.likelihood import reward_values
from align.evals.report import figures, tables
from align.evals.report.curves import curves, read_metrics, without_base
from align.evals.report.tables import missing, number, signed
from align.evals.report.verdicts import subject, verdicts

HERE = Path(__file__).resolve().parent
SAMPLES = 40  # prompts of a benchmark that the page shows
SHOWN, WHOLE = 500, 4000  # characters of a text at first, and at most
MARKS = 8  # marks and colours of the stylesheet

# what a verdict can say, and the words for yes and no
VERDICTS = {"unsafe": ("unsafe", "safe"), "correct": ("correct", "wrong"), "refusal": ("refusal", "complied")}


@dataclass
class Badge:
    text: str
    tone: str  # good, bad or plain


@dataclass
class Response:
    """What one model wrote to a prompt."""

    model: int
    text: str
    badges: list[Badge]


@dataclass
class Sample:
    """A prompt with the responses of all models."""

    id: str
    prompt: list[tuple[str, str]]  # (role, content); one without role where the prompt is plain text
    facts: list[tuple[str, str]]  # category, attack, label, expected
    responses: list[Response]
    flags: frozenset[str]  # of changed, unsafe and error


def outcome(record: dict, judge: str | None) -> tuple[bool, ...]:
    """The yes-or-no verdicts behind a record's headline score: those of a benchmark's first judge, or its values."""
    if "error" in record:
        return ()
    if judge is None:
        return tuple(value for value in record.get("values", {}).values() if isinstance(value, bool))
    verdict = record.get("verdicts", {}).get(judge, {})
    return tuple(verdict[key] for key in VERDICTS if isinstance(verdict.get(key), bool))


def flags(records: list[dict | None], judge: str | None) -> frozenset[str]:
    """What is notable in the records of one prompt, one per model."""
    found = set()
    known = [verdict for record in records if record and (verdict := outcome(record, judge))]
    if any(verdict != known[0] for verdict in known):
        found.add("changed")
    for record in filter(None, records):
        verdicts = record.get("verdicts", {}).values()
        if "error" in record or any("error" in verdict for verdict in verdicts):
            found.add("error")
        if any(verdict.get("unsafe") is True for verdict in verdicts):
            found.add("unsafe")
    return frozenset(found)


def badges(record: dict) -> list[Badge]:
    """What the judges say of a response, in words that need no colour."""
    if "error" in record:
        return [Badge("error", "bad")]
    shown = []
    for judge, verdict in record.get("verdicts", {}).items():
        if "error" in verdict:
            shown.append(Badge(f"no verdict · {verdict['error']}", "bad"))
        for key, (yes, no) in VERDICTS.items():
            if isinstance(verdict.get(key), bool):
                categories = ", ".join(map(str, verdict.get("categories") or [])) if key == "unsafe" else ""
                word = f"{yes if verdict[key] else no} {categories}".rstrip()
                # whether a refusal is good depends on the prompt, so it has no tone
                tone = "plain" if key == "refusal" else "good" if verdict[key] == (key == "correct") else "bad"
                shown.append(Badge(f"{word} · {judge}", tone))
        if not missing(verdict.get("toxicity")):
            shown.append(Badge(f"toxicity {verdict['toxicity']:.2f} · {judge}", "plain"))
    if not record.get("verdicts"):
        for name, value in record.get("values", {}).items():
            if isinstance(value, bool):
                shown.append(Badge(f"{name}: {'yes' if value else 'no'}", "good" if value else "bad"))
            elif not missing(value):
                shown.append(Badge(f"{name} {number(value, '')}", "plain"))
    return shown + ([Badge("cut off", "plain")] if record.get("finish") == "length" else [])


def pick(marked: list[frozenset[str]], limit: int = SAMPLES) -> list[int]:
    """Which prompts to show: at most `limit`, changed verdicts first, evenly from the whole benchmark.

    A quarter of the slots is kept for errors, unsafe responses and the rest, so that no kind is crowded out.
    """
    kinds: dict[str, list[int]] = {"changed": [], "error": [], "unsafe": [], "rest": []}
    for i, found in enumerate(marked):
        kinds[next((kind for kind in kinds if kind in found), "rest")].append(i)
    others = [i for kind in ("error", "unsafe", "rest") for i in evenly(kinds[kind], limit)]
    changed = evenly(kinds["changed"], max(limit - limit // 4, limit - len(others)))
    return changed + others[: limit - len(changed)]


def evenly(entries: list[int], count: int) -> list[int]:
    """`count` of the entries at equal distances, or all."""
    return entries if len(entries) <= count else [entries[i * len(entries) // count] for i in range(count)]


def samples(results: dict, benchmark: dict, limit: int = SAMPLES) -> tuple[list[Sample], int]:
    """The picked prompts of a benchmark with every model's response, and how many prompts there are.

    None for perplexity: its windows differ between models with different tokenizers, and have no responses.
    """
    models = [model["name"] for model in results["models"]]
    by_id: dict[str, list[dict | None]] = {}
    for i, model in enumerate(models):
        for record in results["records"].get(model, {}).get(benchmark["name"], []):
            by_id.setdefault(str(record["id"]), [None] * len(models))[i] = record
    rows = [(id, records) for id, records in by_id.items() if any(r and "prompt" in r for r in records)]
    judge = next(iter(benchmark["judges"]), None)
    marked = [flags(records, judge) for _, records in rows]
    return [sample(*rows[i], marked[i]) for i in pick(marked, limit)], len(rows)


def sample(id: str, records: list[dict | None], marked: frozenset[str]) -> Sample:
    item = next(record for record in records if record and "prompt" in record)
    asked = item["prompt"]
    prompt = [(m["role"], m["content"]) for m in asked] if isinstance(asked, list) else [("", str(asked))]
    if len(prompt) == 1:
        prompt = [("", prompt[0][1])]
    if item.get("choices"):
        prompt.append(("choices", "\n".join(choice["context"] + choice["text"] for choice in item["choices"])))
    prompt += [(key, str(item[key])) for key in ("chosen", "rejected") if key in item]
    facts = [(key, str(item[key])) for key in ("category", "attack", "label", "expected") if item.get(key) is not None]
    responses = [Response(i, shown_text(record), badges(record)) for i, record in enumerate(records) if record]
    return Sample(id, prompt, facts, responses, marked)


def shown_text(record: dict) -> str:
    """The text a model wrote, the choice it found likeliest, or why there is none."""
    if "error" in record:
        return str(record["error"])
    if record.get("choices") and record.get("logps"):
        likeliest = record["choices"][record["logps"].index(max(record["logps"]))]
        return (likeliest["context"] + likeliest["text"]).strip()
    return str(record.get("response", ""))


def clip(text: str) -> tuple[str, str, int]:
    """What is shown, what unfolds, and how many characters are only in results.json."""
    if len(text) <= SHOWN + 100:
        return text, "", 0
    cut = max(text.rfind(" ", SHOWN - 60, SHOWN), text.rfind("\n", SHOWN - 60, SHOWN)) + 1 or SHOWN
    return text[:cut], text[cut:WHOLE], max(0, len(text) - WHOLE)


def margins_of(results: dict, benchmark: str) -> list[list[float]]:
    """Each model's log-ratio margins over the base on a benchmark's pairs; none of the base itself."""
    base, *others = [results["records"].get(model["name"], {}).get(benchmark, []) for model in results["models"]]
    rewards = [[reward_values(*pair) for pair in zip(records, base, strict=False)] for records in others]
    return [[], *([found["log_ratios/margin"] for found in one if found] for one in rewards)]


def flat(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys, without those that are not set."""
    rows = []
    for key, value in settings.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def together(text: str) -> str:
    """ "p < 0.001", "+5.0 better" without the spaces at which a line could break."""
    return (
        re.sub(" ([<=≤]) ", "\u00a0\\1\u00a0", text).replace(" better", "\u00a0better").replace(" worse", "\u00a0worse")
    )


def environment() -> jinja2.Environment:
    """The templates of this folder, with what they call."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals |= {"clip": clip, "MARKS": MARKS, "heights": figures.HEIGHTS, "shorten": figures.shorten}
    env.filters |= {f.__name__: f for f in (number, signed, missing, together, tables.interval, tables.change)}
    return env


def render(results: dict, rows: list[tables.Row], groups: list[tables.Table]) -> str:
    """The page: one HTML document that needs no other file and no network."""
    names = [model["name"] for model in results["models"]]
    metrics = [read_metrics(model["metrics"]) if model.get("metrics") else [] for model in results["models"]]
    drawn_metrics = without_base(metrics)
    drawn = {(table.rows[0].benchmark, table.head): table for table in reversed(groups)}.values()
    pairs = [benchmark for benchmark in results["benchmarks"] if benchmark["kind"] == "preference"]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            results=results,
            names=names,
            titles={benchmark["name"]: benchmark["title"] for benchmark in results["benchmarks"]},
            subject=subject(results),
            judges_order=tables.JUDGES_ORDER,
            verdicts=verdicts(results, rows),
            axes=tables.AXES,
            methods=tables.METHODS,
            headline=tables.headline(rows),
            rows=rows,
            groups=groups,
            sides=[(axis, *tables.side_titles(rows, axis)) for axis in ("safety", "capability")],
            tradeoff=figures.tradeoff(tables.side(rows, "capability"), tables.side(rows, "safety"), names),
            bars=[made for table in groups if table in drawn and (made := figures.bars(table))],
            margins=[(b, margins) for b in pairs if (margins := figures.margins(margins_of(results, b["name"])))],
            curves=curves(drawn_metrics, names),
            base_hidden=drawn_metrics is not metrics,
            samples=[(b, *samples(results, b)) for b in results["benchmarks"]],
            failures=tables.failures(results, rows),
            settings=flat(results["settings"]),
            style=(HERE / "page.css").read_text(encoding="utf-8"),
            script=script,
            # the page's policy lets this script run and no other
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
