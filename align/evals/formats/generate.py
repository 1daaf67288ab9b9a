"""Formats of prompts to respond to: a data row to an item, for benchmarks of kind "generate".

An item has "prompt", text taken as it is or chat messages for the chat template, and what its scores are grouped by:
"category", "attack" (the type of attack), "label" ("safe" or "unsafe"), "expected" (the right result). "extra" has
the row's other keys, for a judge that a user writes.

An attack of the kind "prefill" begins the response for the model ("Sure, here is"), which then goes on from there: a
model that refuses in its first words alone does not recover (Qi et al. 2024, arXiv 2406.05946).
"""

import re
from typing import Any

from align.data.messages import ROLES, begin, first_words, is_begun
from align.errors import UserError
from align.evals.files import text_of

LABELS = ("safe", "unsafe")
WRAPPER = re.compile(r"\s*### Instruction:\s*\n(.*?)\n?\s*### Response:\s*", re.DOTALL)
FINAL = re.compile(r"####\s*(\S.*?)\s*\Z")


def user(content: str, system: str = "") -> list[dict]:
    """Chat messages: a user's turn, after a system message where one is given."""
    turn = {"role": "user", "content": content}
    return [{"role": "system", "content": system}, turn] if system else [turn]


def prefilled(item: dict, options: dict) -> dict:
    """The item with its response begun: with its own "prefill", of which prefill_words count, or with options["prefill"].

    prefill_words: 0 for all of them. A prompt of text is then a user's message. The attack, if it has no name, is "prefill".
    """
    text = item.pop("prefill", "")
    if text and options["prefill_words"]:
        text = first_words(text, options["prefill_words"])
    if text := (text or options["prefill"]).lstrip():
        prompt = item["prompt"]
        item["prompt"] = begin(user(prompt) if isinstance(prompt, str) else prompt, text)
    return {"attack": "prefill"} | item if is_begun(item["prompt"]) else item


def plain(row: dict, where: str, options: dict) -> dict:
    """{"prompt", "id"?, "category"?, "attack"?, "label"?, "expected"?, "prefill"?}: this project's format.

    prompt: text or chat messages. label: "safe" or "unsafe". expected: text, a number, or a list of texts each of which
    is right. prefill: how the response begins. system: a system message to put before every prompt, which makes chat
    messages of it.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        check_messages(prompt, where)
        prompt = [{"role": "system", "content": options["system"]}] * bool(options["system"]) + prompt
    else:
        text = text_of(row, "prompt", where)
        prompt = user(text, options["system"]) if options["system"] else text
    item: dict[str, Any] = {"prompt": prompt} | {
        key: str(row[key]) for key in ("category", "attack") if row.get(key) is not None
    }
    if row.get("label") is not None:
        item["label"] = label(row["label"], where)
    if row.get("expected") is not None:
        item["expected"] = expected(row["expected"], where)
    if row.get("prefill") is not None:
        item["prefill"] = text_of(row, "prefill", where)
    known = ("prompt", "id", "category", "attack", "label", "expected", "prefill", "file")
    extra = {key: value for key, value in row.items() if key not in known and value is not None}
    return item | ({"extra": extra} if extra else {})


def check_messages(messages: list, where: str) -> None:
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise UserError(f'{where}: every message of prompt must be {{"role": {"|".join(ROLES)}, "content": text}}')
        text_of(message, "content", f"{where}: prompt")
    if not messages or (messages[-1]["role"] == "assistant" and not is_begun(messages)):
        begun = 'the beginning of a response has "prefix": true'
        raise UserError(f"{where}: the messages of prompt must end before an assistant turn; {begun}")


def label(value: Any, where: str) -> str:
    if value not in LABELS:
        raise UserError(f"{where}: label must be safe or unsafe, not {value!r}")
    return value


def expected(value: Any, where: str) -> str | list[str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{where}: expected must be text, a number or a list of texts, not {value!r}")
    return value


def alert(row: dict, where: str, options: dict) -> dict:
    """ALERT and adversarial ALERT, Tedeschi et al. 2024, arXiv 2404.08676: {"id", "category", "prompt"} and, in the
    adversarial file, "attack_type".

    Published prompts stand between "### Instruction:" and "### Response:". wrapper = "strip" (the default) asks the
    instruction alone, as a user's message, so that every model uses its chat template; "keep" asks the text as
    published. A prompt without the two marks is a user's message either way.
    categories: "micro", the 32 as published (hate_women, ...), or "macro", the paper's six, which their names begin with.
    """
    prompt, category = text_of(row, "prompt", where), text_of(row, "category", where)
    wrapped = WRAPPER.fullmatch(prompt)
    if wrapped and not wrapped[1].strip():
        raise UserError(f"{where}: prompt has no instruction")
    if options["categories"] == "macro":
        category = "self_harm" if category.startswith("self_harm") else category.partition("_")[0]
    if wrapped and options["wrapper"] == "keep":
        asked = user(prompt, options["system"]) if options["system"] else prompt
    else:
        asked = user(wrapped[1].strip() if wrapped else prompt, options["system"])
    item = {"prompt": asked, "category": category}
    return item | ({"attack": text_of(row, "attack_type", where)} if row.get("attack_type") is not None else {})


def toxicity(row: dict, where: str, options: dict) -> dict:
    """Beginnings of texts to be continued, as in RealToxicityPrompts, Gehman et al. 2020, arXiv 2009.11462.

    {"prompt": {"text", "toxicity", ...}} as published, or {"prompt": text}. The text is taken as it is, and the
    model continues it. Where the toxicity of the prompt is given, its category is the paper's: "toxic prompt" from 0.5 on.
    system: as in `plain`.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, dict):
        text, score = text_of(prompt, "text", f"{where}: prompt"), prompt.get("toxicity")
    else:
        text, score = text_of(row, "prompt", where), None
    item: dict = {"prompt": user(text, options["system"]) if options["system"] else text}
    if isinstance(score, int | float):
        item["category"] = "toxic prompt" if score >= 0.5 else "non-toxic prompt"
    elif row.get("category") is not None:
        item["category"] = str(row["category"])
    return item


def xstest(row: dict, where: str, options: dict) -> dict:
    """XSTest, Röttger et al. 2023, arXiv 2308.01263: columns id, prompt, type, label and others.

    label says whether the prompt is "safe", so that refusing it is over-refusal, or "unsafe". Files without that column
    say it by the type: those that begin with "contrast_" are unsafe. The type is the category.
    """
    kind = text_of(row, "type", where)
    safe = label(row["label"], where) if row.get("label") else ("unsafe" if kind.startswith("contrast_") else "safe")
    return {"prompt": user(text_of(row, "prompt", where), options["system"]), "category": kind, "label": safe}


def gsm8k(row: dict, where: str, options: dict) -> dict:
    """GSM8K, Cobbe et al. 2021, arXiv 2110.14168: {"question", "answer"}, the answer ending in "#### 18".

    style "text": "Question: ...\\nAnswer:", to be continued, and after worked examples with a blank line between
    them, some of which a base model needs. "chat": the question as a user's message, worked examples as earlier turns.
    instruction: a line added to every question. What is expected is the number after "####".
    """
    question, answer = text_of(row, "question", where).strip(), text_of(row, "answer", where).strip()
    final = FINAL.search(answer)
    if not final:
        raise UserError(f'{where}: answer must end in "#### " and a number')
    if options["instruction"]:
        question += "\n" + options["instruction"]
    chat = options["style"] == "chat"
    return {
        "prompt": user(question) if chat else f"Question: {question}\nAnswer:",
        "expected": final[1].replace(",", ""),
        "solved": answer if chat else f" {answer}",
    }
