"""What aligning moved: the divergence from the base on neutral requests, and how likely worked solutions are."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from align.data import encode_rows, load_tokenizer
from align.data.encode import Group
from align.data.rows import Row
from align.evals.files import read_file
from align.models import Decoder, load_model

SOLUTIONS = 200  # the first of GSM8K's test set
CALCULATION = re.compile(r"<<.*?>>")  # GSM8K's marks for a calculator


def solutions(gsm8k: Path, count: int = SOLUTIONS) -> list[Row]:
    rows = [row for _, row in read_file(gsm8k)][:count]
    return [Row([{"role": "user", "content": r["question"]}], [CALCULATION.sub("", r["answer"])]) for r in rows]


@torch.no_grad()
def distributions(model: Decoder, groups: Sequence[Group]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each group, log p of every token at each place of its first response, and which one stands there.

    (T, V) float32 and (T,) int64.
    """
    for group in groups:
        ids = torch.tensor([[*group.prompt_ids, *group.response_ids[0]]], device=model.embedding.weight.device)
        start = len(group.prompt_ids)
        yield model.logits(ids[:, :-1])[0, start - 1 :].float().log_softmax(dim=-1), ids[0, start:]


def measure(folder: Path, base_folder: Path, said: Sequence[Row], solved: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each response of the base that is text, KL(base || model) summed over its tokens; of each solution its -log p.

    said, solved: rows with one response. Two entries of a record, each with its values and tokens.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, (model, base) = (
        load_tokenizer(base_folder),
        (load_model(f, device=device) for f in (folder, base_folder)),
    )

    def encoded(rows: Sequence[Row]) -> list[Group]:
        return list(encode_rows(rows, tokenizer, max_length=1024)[0])

    kl, likely = [], []
    groups = encoded(said)
    for (q, _), (p, ids) in zip(distributions(model, groups), distributions(base, groups), strict=True):
        kl.append((kl_div(q, p, log_target=True, reduction="sum").item(), len(ids)))
    for logp, ids in distributions(model, encoded(solved)):
        likely.append((-logp.gather(1, ids[:, None]).sum().item(), len(ids)))
    entries = (("neutral", "kl", kl), ("gsm8k", "nll", likely))
    return [
        {"part": part, "name": name, "values": [round(v, 4) for v, _ in found], "tokens": [n for _, n in found]}
        for part, name, found in entries
    ]
