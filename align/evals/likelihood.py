"""Benchmarks without generation: how likely a model finds given texts. Multiple choice, perplexity, preference pairs.

Each function takes items and returns one record per item: the item, its log-probabilities in nats, and "values", what
they are scored by. A record may have "error", one line, instead of values. A record does not depend on the others
in its batch but for the rounding of float32, and the same items in one call give the same bits. A sharded model must be
given the same items on every rank.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from align.data import collate, encode_rows, read_rows
from align.data.encode import MIN_PROMPT, Group
from align.data.formatter import PromptFormatter
from align.data.rows import Row
from align.data.tokenizer import Tokenizer
from align.errors import UserError
from align.logps import response_logps
from align.models import Decoder

NON_FINITE = "the model's log-probabilities are non-finite"


@torch.no_grad()
def sum_logps(model: Decoder, rows: Sequence[tuple[list[int], list[int]]], batch_size: int) -> list[float]:
    """log p(response | prompt), summed over the response, of (prompt ids, response ids) rows."""
    found = [0.0] * len(rows)
    # similar lengths run side by side; the longest first, so that a batch which does not fit in memory fails at once
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([Group(rows[i][0], [rows[i][1]], i) for i in chosen])
        logps, _ = response_logps(model, batch.to(model.embedding.weight.device))  # (B, 1)
        for i, value in zip(chosen, logps[:, 0].tolist(), strict=True):
            found[i] = value
    return found


def start_ids(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Ids of a text that a model reads from its start: after a BOS or, so that the first token can be scored where the
    model has none, after an EOS, which is what precedes a text in training."""
    return tokenizer.with_bos(ids) if tokenizer.bos_id is not None else [tokenizer.eos_id, *ids]


def encode_choice(tokenizer: Tokenizer, form: PromptFormatter, before: str, text: str) -> tuple[list[int], list[int]]:
    """Ids of the text before a choice, and of the choice.

    Both are encoded as one text, as they would stand in a document, and spaces at the end of `before` belong to the
    choice: the field's convention. The border is where the ids of `before` alone and of the whole text first differ, so
    that no token is lost where the two share one. Through a chat template the choice is the assistant's turn.
    """
    if form.mode == "chat":
        before, text = form.prompt(before), text.lstrip()
    stripped = before.rstrip(" ")
    alone, whole = tokenizer.encode_batch([stripped, before + text])
    border = next(
        (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole))
    )
    # a template writes its own BOS, or none
    prompt = whole[:border] if form.mode == "chat" else tokenizer.with_bos(whole[:border])
    return prompt or [tokenizer.eos_id], whole[border:]


def cut_left(ids: list[int], room: int, bos_id: int | None) -> list[int]:
    """The last `room` ids of a prompt, its BOS kept."""
    if len(ids) <= room:
        return ids
    return [bos_id, *ids[len(ids) - room + 1 :]] if ids[0] == bos_id else ids[len(ids) - room :]


def choice_records(
    model: Decoder,
    tokenizer: Tokenizer,
    items: Sequence[dict],
    batch_size: int,
    max_length: int,
    template: str = "auto",
) -> list[dict]:
    """Multiple choice (align/evals/formats/choice.py). A record has "logps", "tokens" and "bytes", one of each per choice.

    values: "acc", whether the right choice is the likeliest; "acc_norm", the same by log-probability per UTF-8 byte of
    the choice's text, the space in front left out; for several right ones, "mc2": their share of the probability of
    all. What does not fit in max_length tokens loses the beginning of its prompt, and the record says how many tokens
    at most, "truncated"; an item with a choice that alone does not fit has an error.
    """
    # what is published to be continued is taken as it is, however the model was trained
    form = tokenizer.formatter("chat" if template == "chat" else "none")
    rows: list[tuple[list[int], list[int]]] = []
    records, spans = [], []
    for item in items:
        record = dict(item)
        records.append(record)
        spans.append(slice(len(rows), len(rows)))
        encoded = []
        for choice in item["choices"]:
            if not choice["text"].strip():
                record["error"] = "a choice is empty"
                break
            prompt, choice_ids = encode_choice(tokenizer, form, item["prompt"] + choice["context"], choice["text"])
            if not choice_ids:
                record["error"] = "the tokenizer has no token for a choice"
                break
            # the last token is scored, not read
            room = max_length + 1 - len(choice_ids)
            if room < min(len(prompt), MIN_PROMPT):
                record["error"] = f"a choice of {len(choice_ids)} tokens does not fit in a context of {max_length}"
                break
            if len(prompt) > room:
                record["truncated"] = max(record.get("truncated", 0), len(prompt) - room)
            encoded.append((cut_left(prompt, room, tokenizer.bos_id), choice_ids))
        else:
            rows += encoded
            spans[-1] = slice(len(rows) - len(encoded), len(rows))
    logps = sum_logps(model, rows, batch_size)
    for record, span in zip(records, spans, strict=True):
        if "error" in record:
            continue
        if not all(map(math.isfinite, logps[span])):
            record["error"] = NON_FINITE
            continue
        record["logps"] = logps[span]
        record["tokens"] = [len(ids) for _, ids in rows[span]]
        record["bytes"] = [len(choice["text"].strip().encode()) for choice in record["choices"]]
        record["values"] = choice_values(record)
    return records


def choice_values(record: dict) -> dict[str, bool | float]:
    """The values of choice_records from a record's logps and bytes. Of equals, the first counts as likeliest."""
    logps = record["logps"]
    if "golds" in record:
        # subtracting the largest keeps exp from underflowing
        mass = [math.exp(logp - max(logps)) for logp in logps]
        return {"mc2": sum(m for m, gold in zip(mass, record["golds"], strict=True) if gold) / sum(mass)}
    by_byte = [logp / n for logp, n in zip(logps, record["bytes"], strict=True)]
    gold = record["gold"]
    return {"acc": logps.index(max(logps)) == gold, "acc_norm": by_byte.index(max(by_byte)) == gold}


def perplexity_items(text: str, tokenizer: Tokenizer, window: int, stride: int) -> list[dict]:
    """A text as overlapping windows of at most `window` tokens, each of which scores what no earlier one did.

    The first window scores all its tokens; every later one ends `stride` tokens further and scores those, so that they
    are predicted from window - stride tokens at least (one fewer where the model has a BOS, which opens each window).
    An item: "id", "context" and "ids", token ids read only and scored, and "bytes", the UTF-8 bytes of the scored text.
    Raises UserError unless 1 <= stride < window.
    """
    if not 1 <= stride < window:
        raise UserError(f"options.stride {stride} must be at least 1 and less than options.window, which is {window}")
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    ids, ends = encoding.ids, [end for _, end in encoding.offsets]
    if not ids:
        raise UserError("the tokenizer has no token for the text of a perplexity benchmark")
    has_bos = tokenizer.bos_id is not None
    items: list[dict] = []
    start = read = 0  # tokens and characters so far
    while start < len(ids):
        stop = min(start + stride if items else window - 1, len(ids))
        # characters that the tokenizer drops count too, so that the bytes of all windows are the text's
        end = max(read, *ends[start:stop]) if stop < len(ids) else len(text)
        context = ids[max(0, stop - window + has_bos) : start]
        if has_bos or not items:
            context = start_ids(tokenizer, context)
        n_bytes = len(text[read:end].encode())
        items.append({"id": str(len(items)), "context": context, "ids": ids[start:stop], "bytes": n_bytes})
        start, read = stop, end
    return items


def perplexity_records(model: Decoder, tokenizer: Tokenizer, items: Sequence[dict], batch_size: int) -> list[dict]:
    """Windows of perplexity_items. values: "nll", "tokens", "bytes", sums over what the window scores.

    Perplexity is exp(sum of nll / sum of tokens), bits per byte sum of nll / (log 2 x sum of bytes); the latter
    compares models with different tokenizers.
    """
    logps = sum_logps(model, [(item["context"], item["ids"]) for item in items], batch_size)
    records = []
    for item, logp in zip(items, logps, strict=True):
        found = {"values": {"nll": -logp, "tokens": len(item["ids"]), "bytes": item["bytes"]}}
        records.append({"id": item["id"]} | (found if math.isfinite(logp) else {"error": NON_FINITE}))
    return records


def preference_items(path: Path, bad_rows: str = "auto") -> tuple[list[dict], dict[str, int]]:
    """Pairs of a preference file (docs/data.md) as items {"id", "prompt", "chosen", "rejected", "category"?}.

    Returns them and how many rows were dropped for each reason (bad_rows: read_rows). Raises UserError.
    """
    try:
        rows, dropped = read_rows(path, bad_rows)
    except UserError as error:
        raise UserError(str(error).replace("--data.bad_rows drop", 'options.bad_rows = "drop"')) from None
    if len(rows[0].responses) != 2:
        raise UserError(f"{path}: preference needs two responses a prompt, not {len(rows[0].responses)}")
    items = []
    for number, row in enumerate(rows, start=1):
        chosen, rejected = row.responses
        item = {"id": str(number), "prompt": row.prompt, "chosen": chosen, "rejected": rejected}
        item |= {key: value for key in ("system", "tools") if (value := getattr(row, key))}
        items.append(item | ({"category": str(row.extra["category"])} if "category" in row.extra else {}))
    return items, dict(dropped)


def preference_records(
    model: Decoder,
    tokenizer: Tokenizer,
    items: Sequence[dict],
    batch_size: int,
    max_length: int,
    template: str = "auto",
) -> list[dict]:
    """Pairs of preference_items, encoded as training encodes them, EOS included.

    A record has "logps" and "tokens" of [chosen, rejected]. values: "accuracy", whether the chosen response is the
    likelier; "accuracy_norm", the same by log-probability per token. A pair longer than max_length loses the beginning
    of its prompt ("truncated": tokens), but for MIN_PROMPT tokens; beyond that it has an error.
    """
    records, rows = [], []
    for item in items:
        record = dict(item)
        records.append(record)
        asked = {key: item[key] for key in ("system", "tools") if key in item}
        row = Row(item["prompt"], [item["chosen"], item["rejected"]], where=f"pair {item['id']}", **asked)
        try:
            # a row at a time, so that a bad one gets its own error
            (group,), _ = encode_rows([row], tokenizer, template, max_length=sys.maxsize, bad_rows="error")
        except UserError as error:
            record["error"] = str(error).split("; fix the row")[0]
            continue
        longest = max(map(len, group.response_ids))
        room = max_length + 1 - longest
        if room < min(len(group.prompt_ids), MIN_PROMPT):
            record["error"] = f"a response of {longest} tokens does not fit in a context of {max_length}"
            continue
        if len(group.prompt_ids) > room:
            record["truncated"] = len(group.prompt_ids) - room
        prompt = cut_left(group.prompt_ids, room, tokenizer.bos_id)
        rows += [(prompt, response) for response in group.response_ids]
    found = iter(sum_logps(model, rows, batch_size))
    lengths = (len(response) for _, response in rows)
    for record in records:
        if "error" in record:
            continue
        logps, tokens = [next(found), next(found)], [next(lengths), next(lengths)]
        if not all(map(math.isfinite, logps)):
            record["error"] = NON_FINITE
            continue
        record |= {"logps": logps, "tokens": tokens}
        record["values"] = {
            "accuracy": logps[0] > logps[1],
            "accuracy_norm": logps[0] / tokens[0] > logps[1] / tokens[1],
        }
    return records


def reward_values(record: dict, base: dict) -> dict[str, bool | float] | None:
    """What a model's record of a pair shows against that of the base model, its reference.

    As train.py names them. "log_ratios/margin", in nats: the log-ratio of model to base of the chosen response minus that
    of the rejected one; beta times it is the reward margin of DPO (arXiv 2305.18290). "rewards/accuracy": whether it is
    positive; a tie counts half. None where either record has an error.
    """
    if "error" in record or "error" in base:
        return None
    chosen, rejected = (ours - theirs for ours, theirs in zip(record["logps"], base["logps"], strict=True))
    accuracy = 0.5 if chosen == rejected else chosen > rejected
    return {"log_ratios/margin": chosen - rejected, "rewards/accuracy": accuracy}
