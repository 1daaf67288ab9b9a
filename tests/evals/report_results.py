"""Results as eval.py writes them, made up: four models, every kind of benchmark, and texts that try to break a page."""

import json
import math
import random
from pathlib import Path

MODELS = ["tiny-base", "tiny-nca", "tiny-dpo", "tiny-sft"]
CATEGORIES = ["S1", "S2", "S9", "S10", "hate & <i>slurs</i>"]
ATTACKS = ["prefix", "suffix", "token"]
LONG = "A long response, word by word. " * 94  # 3,008 characters
HOSTILE = [
    "</script><img src=x onerror=\"window.hacked = true; console.error('hacked')\">",
    "{{ 7 * 7 }} {% raw %} <script>window.hacked = true</script> &lt; &amp;",
    "Pneumono" * 60,
    "Sure 👩‍👩‍👧‍👦 🏳️‍🌈 " + "👍🏽" * 30,
    "لا أستطيع المساعدة في ذلك. \u202e<b>evil</b>\u202c שלום",
    "half a pair \ud83d and a tab\tand | a pipe | in `code`\n\n# not a heading\n- not a list",
    LONG,
]

# model: probability of what is good, by benchmark
SKILL = {
    "alert": (0.84, 0.99, 0.97, 0.93),
    "alert_adversarial": (0.19, 0.98, 0.9, 0.55),
    "xstest": (0.97, 0.55, 0.8, 0.93),
    "gsm8k": (0.62, 0.5, 0.57, 0.61),
    "arc": (0.58, 0.56, 0.57, 0.59),
}
TITLES = {
    "alert": "ALERT",
    "alert_adversarial": "Adversarial ALERT",
    "xstest": "XSTest",
    "gsm8k": "GSM8K",
    "arc": "ARC-Challenge",
    "wikitext": "WikiText-2",
    "pairs": "Held-out pairs",
}


def wilson(values: list[bool]) -> tuple[float, float]:
    n, p, z = len(values), sum(values) / len(values), 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n)


def sign_test(first: list[bool], second: list[bool]) -> float:
    """Two-sided, exact, over the prompts where the two differ."""
    gained, lost = sum(b > a for a, b in zip(first, second)), sum(a > b for a, b in zip(first, second))  # noqa: B905
    n = gained + lost
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)


def judged(benchmark: str, good: bool, rng: random.Random) -> dict:
    """The verdicts of a benchmark's judges: the headline's first."""
    if benchmark.startswith("alert"):
        guard = {"unsafe": not good, "p_unsafe": round(rng.uniform(0, 0.4) + 0.55 * (not good), 3)}
        guard["categories"] = [] if good else ["S1"]
        return {"guard": guard, "rules": {"unsafe": (not good) != (rng.random() < 0.04)}}
    if benchmark == "xstest":
        return {"words": {"refusal": not good}}
    return {"exact": {"correct": good}}


def hostile(i: int) -> str:
    """Every sixth text is one of HOSTILE."""
    return HOSTILE[i // 6 % len(HOSTILE)] if i % 6 == 0 else ""


def items(benchmark: str, count: int) -> list[dict]:
    made = []
    for i in range(count):
        text = f"Question {i}: " + (hostile(i) or "how would one do this, and what would it take?")
        item = {"id": f"{benchmark}-{i:04}", "prompt": [{"role": "user", "content": text}]}
        if benchmark.startswith("alert"):
            item["category"] = CATEGORIES[i % len(CATEGORIES)]
        if benchmark == "alert_adversarial":
            item["attack"] = ATTACKS[i % len(ATTACKS)]
        if benchmark == "gsm8k":
            item |= {"prompt": text, "expected": str(i)}
        if benchmark == "arc":
            item |= {"choices": [{"context": "", "text": f" choice {c}"} for c in "ABCD"], "gold": i % 4}
        made.append(item)
    return made


def responses(benchmark: str, count: int) -> dict[str, list[dict]]:
    """Every model's records of a benchmark; the third prompt of GSM8K fails with tiny-nca."""
    asked = items(benchmark, count)
    # the same draw a prompt for all models: their responses are as correlated as those of a base and its descendants
    rng = random.Random(f"{benchmark} 0")
    draws = [rng.random() for _ in range(count)]
    found = {}
    for m, model in enumerate(MODELS):
        found[model] = []
        for i, item in enumerate(asked):
            if (benchmark, model, i) == ("gsm8k", "tiny-nca", 2):
                found[model].append(item | {"error": "prompt has 9,120 tokens; the context holds 8,192"})
                continue
            good = draws[i] * 0.8 + rng.random() * 0.2 < SKILL[benchmark][m]
            if benchmark == "arc":
                likeliest = item["gold"] if good else (item["gold"] + 1) % 4
                record = item | {"logps": [-9.0 + 2 * (c == likeliest) for c in range(4)], "values": {"acc": good}}
            else:
                text = hostile(i + m) or f"{model} says: response {i}, {'good' if good else 'bad'}."
                record = item | {"response": text, "finish": "length" if text == LONG else "eos"}
                record["verdicts"] = judged(benchmark, good, rng)
            found[model].append(record | {"_good": good})
    return found


def metric(title: str, unit: str = "%", better: str = "higher", axis: str | None = None) -> dict:
    return {"title": title, "unit": unit, "better": better, "axis": axis}


METRICS = {
    "alert": {"safe": metric("safe responses", axis="safety")},
    "alert_adversarial": {
        "safe": metric("safe responses", axis="safety"),
        "attack_success": metric("attack success", "%", "lower"),
    },
    "xstest": {"complied": metric("harmless prompts complied with", axis="over-refusal")},
    "gsm8k": {"correct": metric("exact responses", axis="capability")},
    "arc": {"acc": metric("accuracy", axis="capability")},
    "wikitext": {"perplexity": metric("perplexity of a token", "", "lower", "capability")},
    "pairs": {
        "accuracy": metric("preferred response likelier"),
        "log_ratios/margin": metric("log-ratio margin over the base, nats", ""),
    },
}
JUDGES = {"alert": ["guard", "rules"], "alert_adversarial": ["guard", "rules"], "xstest": ["words"], "gsm8k": ["exact"]}
KINDS = {"arc": "choice", "wikitext": "perplexity", "pairs": "preference"}


def score(model: str, benchmark: str, name: str, group: dict | None, good: list[bool], failed: int = 0) -> dict:
    low, high = wilson(good)
    value = 100 * sum(good) / len(good)
    row = {"model": model, "benchmark": benchmark, "metric": name, "group": group, "n": len(good), "failed": failed}
    return row | {"value": value, "low": low, "high": high}


def results(folder: Path | None = None, count: int = 120) -> dict:
    """Results of `count` prompts a benchmark. With a folder, metrics.jsonl of the aligned models are written below it."""
    records = {model: {} for model in MODELS}
    scores, comparisons = [], []
    for benchmark in SKILL:
        found = responses(benchmark, count)
        good = {m: {r["id"]: r.pop("_good") for r in rows if "error" not in r} for m, rows in found.items()}
        for model, rows in found.items():
            records[model][benchmark] = rows
            failed = sum("error" in row for row in rows)
            for name, about in METRICS[benchmark].items():
                passed = {i: g == (about["better"] == "higher") for i, g in good[model].items()}
                scores.append(score(model, benchmark, name, None, list(passed.values()), failed))
                for kind, groups in (("category", CATEGORIES), ("attack", ATTACKS)):
                    for group in groups:
                        own = [passed[row["id"]] for row in rows if row.get(kind) == group and row["id"] in passed]
                        if own:
                            scores.append(score(model, benchmark, name, {kind: group}, own))
                if model == MODELS[0]:
                    continue
                shared = [i for i in passed if i in good[MODELS[0]]]
                base = [good[MODELS[0]][i] == (about["better"] == "higher") for i in shared]
                new = [passed[i] for i in shared]
                difference = 100 * (sum(new) - sum(base)) / len(shared)
                comparisons.append(
                    {"model": model, "against": MODELS[0], "benchmark": benchmark, "metric": name, "n": len(shared),
                     "difference": difference, "low": difference - 8, "high": difference + 8, "p": sign_test(base, new)}
                )  # fmt: skip
    add_likelihoods(records, scores, count)
    whole = {(s["model"], s["benchmark"]): s for s in scores if s["group"] is None and s["metric"] == "safe"}
    summaries = []
    for model in MODELS:
        parts = [whole[model, "alert"], whole[model, "alert_adversarial"]]
        means = {key: sum(part[key] for part in parts) / 2 for key in ("value", "low", "high")}
        about = metric("global safety score (mean of the two)", axis="safety")
        summaries.append({"name": "global_safety", **about, "model": model, **means})
    about = {"judges": ["guard", "rules"], "verdict": "unsafe", "agree": 0.96, "n": count}
    agreements = [
        about | {"model": model, "benchmark": name, "kappa": kappa}
        for name in ("alert", "alert_adversarial")
        for model, kappa in ((None, 0.91), ("tiny-nca", None))
    ]
    models = [{"name": name, "path": f"runs/{name}", "parameters": 1021312, "metrics": None} for name in MODELS]
    for m, model in enumerate(models[1:], start=1):
        model["metrics"] = write_metrics(folder, model["name"], m)
    about = {"suite": "made-up", "n": count}
    benchmarks = [
        {"name": name, "title": TITLES[name], "kind": KINDS.get(name, "generate"), "judges": JUDGES.get(name, [])}
        | {"metrics": metrics, **about}
        for name, metrics in METRICS.items()
    ]
    return {
        "version": 1,
        "settings": {"seed": 0, "limit": None, "temperature": 0.0},
        "models": models,
        "benchmarks": benchmarks,
        "scores": scores,
        "summaries": summaries,
        "comparisons": comparisons,
        "agreements": agreements,
        "records": records,
    }


def add_likelihoods(records: dict, scores: list[dict], count: int) -> None:
    """Perplexity, and preference pairs: the base's log-probs, and others' that moved apart by a margin."""
    rng = random.Random("pairs 0")
    base = [[-20 + rng.gauss(0, 1), -20 + rng.gauss(0, 1)] for _ in range(count)]
    for m, model in enumerate(MODELS):
        margins = [m and rng.gauss((0.0, 9.0, 6.0, 1.5)[m], 3 + m) for _ in range(count)]
        records[model]["pairs"] = []
        for i, margin in enumerate(margins):
            logps = [base[i][0] + margin / 2, base[i][1] - margin / 2]
            record = {"id": f"pairs-{i:04}", "prompt": f"Pair {i}", "chosen": "No.", "rejected": "Yes.", "logps": logps}
            records[model]["pairs"].append(record | {"values": {"accuracy": logps[0] > logps[1]}})
        records[model]["wikitext"] = [{"id": "0", "values": {"nll": 80.5, "tokens": 20, "bytes": 81}}]
        right = [record["values"]["accuracy"] for record in records[model]["pairs"]]
        scores.append(score(model, "pairs", "accuracy", None, right))
        about = {"model": model, "group": None, "n": count, "failed": 0}
        if m:
            mean = sum(margins) / count
            ends = {"low": mean - 0.7, "high": mean + 0.7}
            scores.append(about | {"benchmark": "pairs", "metric": "log_ratios/margin", "value": mean, **ends})
        value = (12.31, 14.9, 13.02, 12.2)[m]
        scores.append(
            about | {"benchmark": "wikitext", "metric": "perplexity", "value": value, "low": None, "high": None}
        )


def write_metrics(folder: Path | None, model: str, m: int) -> str | None:
    """A training curve of 400 steps; sft has no rewards. The last line is half-written, as a killed run leaves it."""
    if folder is None:
        return None
    rng = random.Random(f"curve {m}")
    lines = []
    for step in range(1, 401):
        row = {"step": step, "loss": (0.4 + 0.3 * m) * math.exp(-step / 90) + 0.1 * m + rng.uniform(0, 0.05)}
        if model != "tiny-sft":
            rise = 1 - math.exp(-step / (60 + 30 * m))
            row |= {
                "log_ratios/margin": (50 - m) * rise + rng.uniform(-0.2, 0.2),
                "rewards/accuracy": 0.5 + 0.49 * rise,
            }
        lines.append(json.dumps(row))
    file = folder / model / "metrics.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + '\n{"step": 401, "lo', encoding="utf-8")
    return str(file)


def demo(**changes):
    """Two models with the figures of `make demo`, as results."""
    about = {
        "plain": ("safe", "safety", 84.2, 100.0, 1e-4),
        "adversarial": ("safe", "safety", 19.2, 100.0, 1e-20),
        "chores": ("helpful", "over-refusal", 100.0, 0.0, 1e-30),
        "sums": ("exact", "capability", 100.0, 74.2, 1e-8),
    }
    made = {
        "version": 1,
        "settings": {},
        "models": [{"name": name, "path": name, "parameters": 1, "metrics": None} for name in ("base", "nca")],
        "benchmarks": [],
        "scores": [],
        "summaries": [],
        "comparisons": [],
        "agreements": [],
        "records": {},
    }
    for name, (metric, axis, before, after, p) in about.items():
        described = {metric: {"title": metric, "unit": "%", "better": "higher", "axis": axis}}
        made["benchmarks"].append(
            {"name": name, "suite": "tiny", "title": name, "kind": "generate", "n": 120}
            | {"judges": ["rules"], "metrics": described}
        )
        for model, value in (("base", before), ("nca", after)):
            made["scores"].append(
                {"model": model, "benchmark": name, "metric": metric, "group": None, "value": value}
                | {"low": value, "high": value, "n": 120, "failed": 0}
            )
        made["comparisons"].append(
            {"model": "nca", "against": "base", "benchmark": name, "metric": metric, "p": p, "n": 120}
            | {"difference": after - before, "low": 0.0, "high": 0.0}
        )
    for model, value in (("base", 51.7), ("nca", 100.0)):
        made["summaries"].append(
            {
                "name": "global",
                "title": "global safety (mean of two)",
                "unit": "%",
                "better": "higher",
                "axis": "safety",
            }
            | {"model": model, "value": value, "low": value, "high": value}
        )
    return made | changes
