"""Generation with a key/value cache: greedy or sampled, in batches, with no result depending on the batching."""

from collections.abc import Sequence

import torch
from torch import Tensor

from align.models.layers import Decoder, KVCache


@torch.no_grad()  # not inference_mode: a model that trains later must not have seen inference tensors
def generate(
    model: Decoder,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 128,
) -> list[list[int]]:
    """The new ids that follow each prompt, at most max_new_tokens, without the id of eos_ids that ended them.

    temperature 0 takes the likeliest token; above 0 samples from softmax(logits / temperature), the same tokens for
    the same seed and place in `prompts`, on any device. A sharded model must be given the same prompts on every rank.
    Raises ValueError for an empty prompt or a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, not {temperature}")
    if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
        raise ValueError(f"prompt {empty[0]} is empty: there is nothing to continue")
    if max_new_tokens < 1:
        return [[] for _ in prompts]
    # one uniform number per prompt and step decides every sample, so the batches cannot
    noise = torch.rand(len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), batch_size):
        rows = by_length[start : start + batch_size]
        new = decode(model, [prompts[i] for i in rows], noise[rows], temperature, tuple(eos_ids))
        for i, ids in zip(rows, new, strict=True):
            answers[i] = ids
    return answers


def decode(
    model: Decoder, prompts: list[list[int]], noise: Tensor, temperature: float, eos_ids: tuple[int, ...]
) -> list[list[int]]:
    """One batch. noise: (B, max_new_tokens), uniform."""
    device, steps = model.embedding.weight.device, noise.shape[1]
    longest = max(map(len, prompts))
    # what pads a row never matters: its columns are masked until they are overwritten
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)  # (B, T)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    noise, eos = noise.to(device), torch.tensor(eos_ids, dtype=torch.long, device=device)
    cache = KVCache(lengths, longest + steps - 1)
    new = torch.zeros(len(prompts), steps, dtype=torch.long, device=device)
    rows = torch.arange(len(prompts), device=device)  # those of `new` that are still being decoded
    done = torch.zeros_like(rows, dtype=torch.bool)
    logits = model.logits(ids, cache, at=lengths - 1)  # (B, V)
    for step in range(steps):
        token = choose(logits, temperature, noise[rows, step])  # (B,)
        new[rows, step] = token
        done = done | torch.isin(token, eos)
        unfinished = int((~done).sum())
        if step + 1 == steps or not unfinished:
            break
        # dropping rows copies the cache, so finished ones are carried until they are half of the batch
        if 2 * unfinished <= len(rows):
            going = (~done).nonzero()[:, 0]
            cache.keep(going)
            rows, token, done = rows[going], token[going], done[going]
        logits = model.logits(token[:, None], cache)[:, 0]
    return [until(row, eos_ids) for row in new.tolist()]


def choose(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """logits (B, V), uniform (B,) in [0, 1) -> (B,) token ids."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cdf = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    return token.clamp(max=logits.shape[-1] - 1)  # uniform * cdf can round up to the last step of cdf


def until(ids: list[int], eos_ids: tuple[int, ...]) -> list[int]:
    return next((ids[:i] for i, token in enumerate(ids) if token in eos_ids), ids)
