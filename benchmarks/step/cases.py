"""The work that is measured: a small Falcon2-11B, and the pairs that it learns from, in files that both sides read.

small           prompts and responses of about 96 tokens each, of random words, 8 pairs a step
hh-harmless     Anthropic's pairs as they are, with Falcon's tokenizer, 16 pairs a step
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from align.data import encode_rows, load_tokenizer, read_rows
from align.data.batches import batch_indices
from align.data.encode import Group
from align.files import open_text, write_json
from align.models import DecoderConfig, FalconConfig, build_model, init_weights, read_config, save_model

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HH, FALCON_TOKENIZER = SHARED / "hh-harmless" / "test.jsonl.gz", SHARED / "falcon_tokenizer"
BATCHES = {"small": 8, "hh-harmless": 16}  # pairs a step
SEED, MAX_LENGTH = 0, 1024
END = "<|endoftext|>"

# Falcon2-11B, an eighth as wide and with 8 of its 60 layers: heads of 64 and 4 queries to a key, vocabulary as it is
ARCHITECTURE: dict[str, Any] = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "activation": "gelu",
    "alibi": False,
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "ffn_hidden_size": 2048,
    "hidden_dropout": 0.0,
    "hidden_size": 512,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "multi_query": True,
    "new_decoder_architecture": True,
    "num_attention_heads": 8,
    "num_hidden_layers": 8,
    "num_kv_heads": 2,
    "num_ln_in_parallel_attn": 1,
    "parallel_attn": True,
    "rope_theta": 500042.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 65024,
}


@dataclass(frozen=True)
class Step:
    """What a step has to compute, at least: each prompt once, each response behind it, and no padding."""

    tokens: int
    flops: dict[str, float]  # by mode of the reference


def absent(case: str) -> str:
    """Why a case cannot be run here; "" where it can."""
    missing = [str(path) for path in (HH, FALCON_TOKENIZER) if not path.exists()]
    return f"no {', no '.join(missing)}" if case == "hh-harmless" and missing else ""


def write_case(case: str, folder: Path, steps: int) -> list[Step]:
    """model/, pairs.jsonl, and trl.jsonl: the same texts in the order in which `steps` steps of ours take them."""
    model, batch = folder / "model", BATCHES[case]
    write_model(model)
    if case == "small":
        write_words(model, ARCHITECTURE["vocab_size"])
        records = word_pairs(steps * batch)
    else:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(FALCON_TOKENIZER / file, model / file)
        with open_text(HH) as lines:
            records = [json.loads(line) for line in lines]
    tokenizer = load_tokenizer(model)
    write_lines(folder / "all.jsonl", records)
    rows, _ = read_rows(folder / "all.jsonl")
    encoded, _ = encode_rows(rows, tokenizer, max_length=10**6)
    groups = [group for group in encoded if group.length <= MAX_LENGTH][: steps * batch]
    # rows that hold no pair were left out, so one is found again by its line
    write_lines(folder / "pairs.jsonl", (records[int(group.where.rpartition(":")[2]) - 1] for group in groups))
    formatter, by_line = tokenizer.formatter("auto"), {row.where: row for row in rows}
    order = [batch_indices(len(groups), step, batch, SEED) for step in range(steps)]
    texts = [formatter.texts(by_line[groups[i].where]) for indices in order for i in indices]
    write_lines(
        folder / "trl.jsonl",
        ({"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, (chosen, rejected) in texts),
    )
    config = read_config(model)
    return [work([groups[i] for i in indices], config) for indices in order]


def write_lines(file: Path, rows: Iterable[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path) -> None:
    model = build_model(FalconConfig.from_dict(ARCHITECTURE))
    init_weights(model, SEED)
    save_model(model, folder)


def write_words(folder: Path, size: int) -> None:
    """A tokenizer of as many words as the model's vocabulary has entries: w0, w1, ..., the twelfth of them the end."""
    words = {(END if i == ARCHITECTURE["eos_token_id"] else f"w{i}"): i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"})


def word_pairs(count: int) -> list[dict]:
    """Pairs of random words, prompts and responses of 80 to 112 each, the end of a response among them."""
    rng = np.random.default_rng(SEED)

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(12, ARCHITECTURE["vocab_size"], length))

    lengths = rng.integers(80, 113, (count, 3))
    return [
        {"prompt": text(p), "chosen": " " + text(c - 1), "rejected": " " + text(r - 1)} for p, c, r in lengths.tolist()
    ]


def work(groups: Sequence[Group], config: DecoderConfig) -> Step:
    """Tokens and floating-point operations of a step: matrix products of the policy forward and backward, and of a live
    reference forward. The last token of a response predicts nothing, and the head works for responses alone.
    """
    width = config.num_heads * config.head_dim
    block = config.hidden_size * (2 * width + 2 * config.num_kv_heads * config.head_dim + 2 * config.ffn_hidden_size)
    forward, tokens = 0.0, 0
    for group in groups:
        P, responses = group.prompt_length, group.response_lengths
        seen = P * (P + 1) / 2 + sum((R - 1) * P + R * (R - 1) / 2 for R in responses)  # pairs of query and key
        n = P + sum(R - 1 for R in responses)
        forward += config.num_layers * (2 * n * block + 4 * seen * width)
        forward += 2 * sum(responses) * config.hidden_size * config.vocab_size
        tokens += P + sum(responses)
    return Step(tokens, {"cached": 3 * forward, "live": 4 * forward})
