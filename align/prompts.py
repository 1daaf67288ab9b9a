"""Prompts in the shapes that people have them in, as the chats that a model is asked with."""

from collections import Counter
from pathlib import Path
from typing import Any

from align.data.formats import EMPTY_TURN, UNREADABLE, parse
from align.data.messages import BadRow, begin, check_text, is_dialogue, without_nulls
from align.data.rows import describe
from align.data.templates import dialogue_messages
from align.errors import UserError, shortened
from align.evals.files import read_file
from align.evals.formats.generate import expected
from align.evals.store import digest
from align.files import READERS, kind_of, local_file

CARRIED = ("category", "attack", "label")  # what scores are grouped by
UNPAIRED = (EMPTY_TURN, "equal responses")  # rows that hold no preference; what they ask is nobody's fault


def read_prompts(path: str | Path, column: str = "") -> tuple[list[dict[str, Any]], Counter]:
    """The prompts of a file, each once, and how many rows were left out for each reason.

    The file is .jsonl, .json, .csv, .tsv or .parquet with a prompt (text or chat messages), a dialogue of messages that
    ends with the user's, or rows of preferences, of which it takes the prompts; or .txt, a prompt a line; or
    hf://OWNER/NAME[:FILE]. column: where the prompt stands, if not there.
    A prompt is {"id": a hash of it, "prompt": chat messages, and the row's CARRIED and "expected"}. A text is a user's
    message, and Human/Assistant text the turns that it has; "prefill" is how the response begins. Raises UserError
    naming the file, the row and the fix.
    """
    file = local_file(path)
    if kind_of(file) not in READERS or not file.is_file():
        raise UserError(f"{path}: no such file; --prompts takes one of {', '.join(READERS)}, or of them with .gz")
    prompts: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    for where, row in read_file(file):
        row = without_nulls(row)
        try:
            prompt = as_chat(row, column)
        except BadRow as problem:
            if problem.reason not in UNPAIRED:
                raise UserError(f"{where}: {problem}; fix the row, or take it out") from None
            left_out[problem.reason] += 1
            continue
        name = digest(prompt)
        if name in prompts:
            left_out["repeated prompt"] += 1
            continue
        carried = {key: row[key] for key in CARRIED if key in row}
        if "expected" in row:
            carried["expected"] = expected(row["expected"], where)
        prompts[name] = {"id": name, "prompt": prompt, **carried}
    if not prompts:
        raise UserError(f"{path}: no row asks anything, {describe(left_out)}")
    return list(prompts.values()), left_out


def as_chat(row: dict[str, Any], column: str) -> list[dict]:
    """The prompt of a row as chat messages. Raises BadRow."""
    begun = check_text(row.get("prefill", ""), "prefill").lstrip()
    key = column or ("prompt" if "prompt" in row else "messages" if asks(row.get("messages")) else "")
    if column and column not in row:
        raise BadRow("no such column", f"has no column {column}; it has {names(row)}")
    if key:
        # a row of preferences with any response at all is read for its prompt alone
        about = {name: row[name] for name in ("system", "tools", *UNREADABLE) if name in row and name != column}
        row = about | {"prompt": row[key], "completion": "any"}
    elif not {"chosen", "messages", "text"} & row.keys():
        raise BadRow("no prompt", f"has no prompt, but {names(row)}; --column NAME says where the prompt is")
    _, fields = parse(row)
    if fields["tools"]:
        raise BadRow("tools", "a prompt with tools cannot be asked here")
    prompt, system = fields["prompt"], fields["system"]
    if isinstance(prompt, str):
        prompt = dialogue_messages(prompt) if is_dialogue(prompt) else [{"role": "user", "content": prompt}]
    return with_system(begin(prompt, begun) if begun else prompt, system)


def with_system(chat: list[dict], system: str) -> list[dict]:
    """The chat with a system message in front; in front of the text of the one that it has, since templates take one."""
    if not system:
        return chat
    if chat[0]["role"] in ("system", "developer"):
        return [chat[0] | {"content": f"{system}\n\n{chat[0]['content']}"}, *chat[1:]]
    return [{"role": "system", "content": system}, *chat]


def asks(messages: Any) -> bool:
    """Do they end where a model is to speak, or is to go on?"""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and (last.get("role") == "user" or last.get("prefix") is True)


def names(row: dict[str, Any]) -> str:
    return shortened(", ".join(str(key) for key in row if key != "file"))
