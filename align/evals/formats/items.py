"""The files that benchmarks are published as, and the items made of their rows.

FORMATS names every format that is read; a suite's `format` is one of them and its `options` are that format's. An item
is a JSON-able dict: "id", "prompt" (text, or chat messages) and what its kind needs (generate.py, choice.py).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.evals.files import locate, read_file, read_text
from align.evals.formats import choice, generate

# options of a format of requests: a system message before each; how the response begins, or how many words of its own
REQUESTS: dict[str, Any] = {"system": "", "prefill": "", "prefill_words": 0}
# options of a format with worked examples: how many, and the file below --data that holds them
SHOTS = {"shots": 0, "shots_data": ""}


@dataclass(frozen=True)
class Format:
    """A published form of rows. Called with a row, its location and options, it returns the item without its id.

    options: those it takes, with their defaults. allowed: the values of an option that takes one of a few. id_key: the
    key of a row's id. columns: of a table without a header. header: what stands above the worked examples of an item.
    by_category: worked examples come from the item's category.
    """

    build: Callable[[dict, str, dict], dict]
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    id_key: str = "id"
    columns: tuple[str, ...] = ()
    header: Callable[[dict], str] | None = None
    by_category: bool = False

    def __call__(self, row: dict, where: str, options: dict | None = None) -> dict:
        options = self.options | (options or {})
        item = self.build(row, where, options)
        return generate.prefilled(item, options) if "prefill" in options else item


FORMATS: dict[str, Format] = {
    "plain": Format(generate.plain, "generate", REQUESTS),
    "alert": Format(
        generate.alert,
        "generate",
        {"wrapper": "strip", "categories": "micro"} | REQUESTS,
        {"wrapper": ("strip", "keep"), "categories": ("micro", "macro")},
    ),
    "toxicity": Format(generate.toxicity, "generate", {"system": ""}),
    "xstest": Format(generate.xstest, "generate", REQUESTS),
    "gsm8k": Format(
        generate.gsm8k, "generate", SHOTS | {"style": "text", "instruction": ""}, {"style": ("text", "chat")}
    ),
    "arc": Format(choice.arc, "choice", SHOTS),
    "hellaswag": Format(choice.hellaswag, "choice", SHOTS, id_key="ind"),
    "mmlu": Format(
        choice.mmlu,
        "choice",
        SHOTS,
        columns=("question", "A", "B", "C", "D", "answer"),
        header=choice.mmlu_header,
        by_category=True,
    ),
    "truthfulqa": Format(choice.truthfulqa, "choice", {"targets": "mc1", "preamble": ""}, {"targets": ("mc1", "mc2")}),
    "winogrande": Format(choice.winogrande, "choice", SHOTS, id_key="qID"),
}


def check_options(given: dict, known: dict[str, Any], allowed: dict[str, tuple[str, ...]], where: str) -> dict:
    """The options with their defaults. Raises UserError naming one that is unknown, of another type or not allowed."""
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{where}.{key} is not an option here; there are: {', '.join(known) or 'none'}")
        wanted = type(known[key])
        if type(value) is not wanted or (wanted is int and value < 0):
            named = {str: "a string", int: "a whole number from 0 on", bool: "true or false"}[wanted]
            raise UserError(f"{where}.{key} must be {named}, not {value!r}")
        if key in allowed and value not in allowed[key]:
            raise UserError(f"{where}.{key} cannot be {value!r}; it can be {', '.join(allowed[key])}")
    return known | given


def read_items(
    format: str,
    data: str,
    data_dir: str | Path,
    options: dict | None = None,
    get: str = "",
    only: dict | None = None,
    where: str = "options",
) -> list[dict]:
    """The items of a benchmark: every row of the file, folder or pattern `data` below data_dir that has all of `only`.

    An item's id is that of its row, else the row's number in its file; the file's name precedes it where there are
    several, and ":2" and so on follows one that occurs again. With options["shots"] = k the prompt opens with k worked
    examples: the first k of shots_data, or without that the first k items themselves, which are then not asked; those
    of its own category where the format says so. where: what messages call the options. Raises UserError.
    """
    if format not in FORMATS:
        raise UserError(f"format {format}: no such format; there are: {', '.join(FORMATS)}")
    known = FORMATS[format]
    options = check_options(options or {}, known.options, known.allowed, where)
    asked = _items(known, locate(data_dir, data, get), options, only or {}, data)
    if options.get("shots"):
        asked = _with_examples(known, asked, options, data_dir, get, where)
    preamble = ""
    if options.get("preamble"):
        preamble = read_text(locate(data_dir, options["preamble"], get)[0]).strip() + "\n\n"
    for item in asked:
        item.pop("solved", None)
        header = preamble + (known.header(item) if known.header else "")
        if header:
            item["prompt"] = header + item["prompt"]
    return asked


def _items(format: Format, files: Sequence[Path], options: dict, only: dict, data: str) -> list[dict]:
    items: list[dict] = []
    seen: Counter[str] = Counter()
    for file in files:
        for number, (line, row) in enumerate(read_file(file, format.columns), start=1):
            if any(row.get(key) != value for key, value in only.items()):
                continue
            given = row.get(format.id_key)
            name = str(number if given is None or given == "" else given)
            name = f"{row['file']}:{name}" if len(files) > 1 else name
            seen[name] += 1
            items.append({"id": name if seen[name] == 1 else f"{name}:{seen[name]}"} | format(row, line, options))
    if not items:
        wanted = ", ".join(f"{key} = {value!r}" for key, value in only.items())
        raise UserError(f"{data}: no row has {wanted}")
    return items


def _with_examples(
    format: Format, asked: list[dict], options: dict, data_dir: str | Path, get: str, where: str
) -> list[dict]:
    """The items to ask, each prompt with its worked examples in front."""
    shots, source = options["shots"], asked
    if options["shots_data"]:
        source = _items(format, locate(data_dir, options["shots_data"], get), options, {}, options["shots_data"])
    rows: dict[str, list[dict]] = {}
    for item in source:
        rows.setdefault(_key(format, item), []).append(item)
    for key in dict.fromkeys(_key(format, item) for item in asked):
        have = len(rows.get(key, []))
        if have < shots + (source is asked):
            of = f" of {key}" if key else ""
            hint = "" if options["shots_data"] else "; name a file of worked examples with shots_data"
            raise UserError(f"{where}.shots {shots} is too many for the {have} rows{of} that there are{hint}")
    examples = {key: items[:shots] for key, items in rows.items()}
    if source is asked:
        used = {item["id"] for items in examples.values() for item in items}
        asked = [item for item in asked if item["id"] not in used]
    fronts = {key: _front(items) for key, items in examples.items()}
    for item in asked:
        item["prompt"] = fronts[_key(format, item)] + item["prompt"]
    return asked


def _key(format: Format, item: dict) -> str:
    return item.get("category", "") if format.by_category else ""


def _front(examples: list[dict]) -> str | list[dict]:
    """Worked examples: as text, a blank line after each; as earlier turns where prompts are messages."""
    if isinstance(examples[0]["prompt"], list):
        return [turn for one in examples for turn in (*one["prompt"], {"role": "assistant", "content": one["solved"]})]
    return "".join(one["prompt"] + _solved(one) + "\n\n" for one in examples)


def _solved(item: dict) -> str:
    """What the reference solution adds to a prompt."""
    if "solved" in item:
        return item["solved"]
    right = item["choices"][item["gold"]]
    return right["context"] + right["text"]
