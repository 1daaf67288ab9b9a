"""What the tests of generation share: small random models of every kind, the truth without a cache, a view inside."""

import pytest
import torch

from align.generate import engine
from align.generate.cache import KVCache
from align.models import FalconConfig, LlamaConfig, build_model, init_weights


def random_prompts(count, longest, vocabulary=64):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, longest, (count,), generator=generator)
    return [torch.randint(vocabulary, (int(n),), generator=generator).tolist() for n in sizes]


# every shape of attention: one head for all queries, a head each, groups; rotary positions and alibi, alone and grouped
KINDS = {
    "multi_query": {},
    "alibi": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "grouped_alibi": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": True},
    "llama": {"intermediate_size": 40, "num_key_value_heads": 2},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind, seed=0, **more):
    """A model with untied random weights."""
    raw = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    raw |= {"initializer_range": 0.3, "tie_word_embeddings": False, **KINDS[kind], **more}
    model = build_model((LlamaConfig if kind == "llama" else FalconConfig).from_dict(raw))
    init_weights(model, seed)
    return model


@torch.no_grad()
def by_whole_forwards(model, prompt, count):
    """Greedy tokens without a cache: up to the first non-finite scores."""
    ids = list(prompt)
    for _ in range(count):
        scores = model.logits(torch.tensor([ids]))[0, -1]
        if not scores.isfinite().all():
            break
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


def watch(monkeypatch, model):
    """The shapes (B, T) that the model reads from now on, and the sizes (rows, capacity) of the caches."""
    read, caches, logits = [], [], model.logits

    class Watched(KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            caches.append((self.rows, self.capacity))

    monkeypatch.setattr(model, "logits", lambda ids, *rest: read.append(tuple(ids.shape)) or logits(ids, *rest))
    monkeypatch.setattr(engine, "KVCache", Watched)
    return read, caches
