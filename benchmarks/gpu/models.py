"""Falcons with random weights: what a step, a generation and the peers run on, where there is no published model."""

import json
from pathlib import Path

import torch
from torch import Tensor

from align.data.batches import Batch, collate
from align.data.encode import Group
from align.models import Decoder, build_model, read_config, save_model
from align.models.falcon import FalconConfig
from benchmarks.gpu.part import CUDA, DEVICE, DRY, ROWS
from benchmarks.records import ROOT

TEXT = ROOT / "tests" / "golden" / "falcon2_11b_text"  # whose tokenizer and config.json the folders take
SIZES = {  # hidden, layers, heads, key/value heads
    "1.3B": (2048, 24, 16, 4),
    "Falcon 11B": (4096, 60, 32, 8),
}
PROMPTS, LENGTH = (2, 32) if DRY else (4, 1024)  # a micro-batch of pairs, half of each row prompt


def layers_of(size: str) -> int:
    return 2 if DRY else SIZES[size][1]


def raw_config(size: str, layers: int | None = None) -> dict:
    """A config.json, with fewer layers on request."""
    hidden, _, heads, kv_heads = (32, 2, 4, 2) if DRY else SIZES[size]
    return json.loads((TEXT / "config.json").read_text()) | {
        "hidden_size": hidden,
        "num_hidden_layers": layers or layers_of(size),
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "ffn_hidden_size": 4 * hidden,
        "vocab_size": 512 if DRY else 65024,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
    }


def config(size: str, layers: int | None = None) -> FalconConfig:
    return FalconConfig.from_dict(raw_config(size, layers))


def fill(model: Decoder, seed: int = 0) -> None:
    """init_weights' distribution, drawn where the parameters, or this rank's part of them, are."""
    torch.manual_seed(seed)
    std = model.config.initializer_range
    with torch.no_grad():
        for name, p in model.named_parameters():
            local = p.to_local() if hasattr(p, "to_local") else p
            if local.ndim == 1:
                local.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                written = name.endswith(("dense.weight", "dense_4h_to_h.weight"))
                local.normal_(0.0, std / (2 * model.config.num_layers) ** 0.5 if written else std)


def folder(size: str) -> Path:
    """A model folder of that size, in bfloat16, made once a run."""
    path = ROWS.parent / "models" / size.replace(" ", "-")
    if not (path / "config.json").exists():
        bare = path.with_name(path.name + "-config")
        bare.mkdir(parents=True, exist_ok=True)
        (bare / "config.json").write_text(json.dumps(raw_config(size)))
        model = build_model(read_config(bare), DEVICE, torch.bfloat16 if CUDA else torch.float32)
        fill(model)
        save_model(model, path, torch.bfloat16, extras=sorted(TEXT.glob("tokenizer*.json")))
    return path


def pair_rows(vocab_size: int, prompts: int = PROMPTS, length: int = LENGTH) -> Tensor:
    """Random ids of pairs, (2 N, T): both rows of a pair begin with its prompt, their first half."""
    ids = torch.randint(20, vocab_size, (2 * prompts, length), generator=torch.Generator().manual_seed(3))
    ids[1::2, : length // 2] = ids[::2, : length // 2]
    return ids


def pairs(vocab_size: int, prompts: int = PROMPTS, length: int = LENGTH) -> Batch:
    """The pairs of `pair_rows`."""
    rows, half = pair_rows(vocab_size, prompts, length).tolist(), length // 2
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return collate([Group(a[:half], [a[half:], b[half:]], i) for i, (a, b) in enumerate(pairs)]).to(DEVICE)
