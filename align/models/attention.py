"""Attention: the one operation of a model that knows which tokens see each other.

A block calls attend(q, k, v): q (B, H, T, d); k, v (B, kv_heads, T, d); all turned by their positions; it returns
(B, T, H d). `Causal` takes rows of text, `Cached` the next tokens of rows whose keys and values a cache holds,
`OfStream` and `Varlen` a stream.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from align.errors import UserError
from align.models.config import DecoderConfig
from align.stream import Stream


def check_varlen(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raise UserError where `Varlen` cannot be used."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or config.rope is None:
        raise UserError(
            "--model.attention_impl varlen needs a GPU, 16 bits (--parallel.dtype bfloat16) and rotary positions; take rows"
        )


class Attend(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Cache(Protocol):
    """What a forward of the model needs of a key/value cache (align/generate/cache.py has one)."""

    columns: int  # how many the tokens being read attend to

    def start(self, columns: int, device: torch.device) -> Tensor: ...

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


def attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of q (B, H, T, d) over k, v (B, kv_heads, C, d), causal if no mask is given -> (B, T, H d)."""
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] > 1:
        # there the backward pass takes twice as long in bfloat16 as in float32
        return attend_rows(q.float(), k.float(), v.float(), mask).to(q.dtype)
    groups = k.shape[1]
    grouped = groups != q.shape[1]
    if grouped and q.shape[2] == 1 and mask is not None and mask.ndim == 4:
        # one token of every row: the queries of a key/value head become its rows, so that its keys are read once
        q = q.view(len(q), groups, -1, q.shape[-1])  # (B, kv_heads, H / kv_heads, d)
        mask = mask if mask.shape[1] == 1 else mask.view(*q.shape[:3], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


def alibi_slopes(heads: int, device: torch.device) -> Tensor:  # (heads,) float32
    """2^(-8i/n) for i = 1..n; when heads is no power of two, the rest interleave those of 2n (arXiv 2108.12409)."""
    n = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)] + [2 ** (-4 * i / n) for i in range(1, 2 * (heads - n), 2)]
    return torch.tensor(slopes, device=device)


def visibility(config: DecoderConfig, seen: Tensor) -> Tensor:
    """The mask of attention where `seen` (..., 1, T, C) or (T, C) bool is true, its C keys in the order of positions.

    For rotary positions that is all; for ALiBi its bias there and -inf elsewhere, (..., H, T, C) float32.
    """
    if config.rope:
        return seen
    slopes = alibi_slopes(config.num_heads, seen.device)
    # rounded to bfloat16 before the division by sqrt(d), whatever the dtype: Falcon-RW's published code does so
    bias = slopes.bfloat16()[:, None, None] * torch.arange(seen.shape[-1], device=seen.device)  # (H, 1, C)
    return (bias.float() / math.sqrt(config.head_dim)).masked_fill(~seen, -math.inf)


class Causal:
    """Rows (B, T) of text, right-padded or whole."""

    def __init__(self, config: DecoderConfig, columns: int, device: torch.device):
        causal = None if config.rope else torch.ones(columns, columns, dtype=torch.bool, device=device).tril()
        self.mask = None if causal is None else visibility(config, causal)  # (H, T, T)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_rows(q, k, v, self.mask)


@dataclass
class Cached:
    """The next tokens of rows, in one layer: their keys and values go through the cache."""

    cache: Cache
    layer: int
    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = self.cache.extend(self.layer, k, v)
        return attend_rows(q, k, v, self.mask)


class OfStream:
    """A stream whose runs are laid side by side for attention alone. q, k, v: (1, heads, S, d)."""

    def __init__(self, config: DecoderConfig, stream: Stream):
        self.slots, self.rows = stream.slots, []
        for queries, keys, seen in stream.rows:
            mask = Causal(config, keys.shape[1], keys.device).mask if seen is None else visibility(config, seen)
            self.rows.append((queries, keys, mask))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (S, heads, d)
        found = []
        for queries, keys, mask in self.rows:
            # (R, heads, T, d) and (R, kv_heads, C, d)
            rows = attend_rows(q[queries].transpose(1, 2), k[keys].transpose(1, 2), v[keys].transpose(1, 2), mask)
            found.append(rows.flatten(0, 1))  # (R T, H d)
        return torch.cat(found)[self.slots][None]  # (1, S, H d)


class Varlen:
    """A stream by PyTorch's attention over runs of any length, on a GPU in 16 bits: nothing is padded.

    A prompt's keys are gathered once for each of its responses; window (-1, 0) is causal, the ends of queries and keys
    aligned.
    """

    def __init__(self, stream: Stream):
        # here, since it takes torch._dynamo along, which costs every start a second
        from torch.nn.attention import varlen

        self.attention = varlen.varlen_attn
        # torch 2.11's takes all heads written out
        known = inspect.signature(self.attention).parameters
        self.groups = "enable_gqa" in known
        # the keys of a query in one part, not in as many as suit the card, whose sums are added up in another order
        single = torch.are_deterministic_algorithms_enabled() and "num_splits" in known
        self.more: dict[str, Any] = {"window_size": (-1, 0)} | ({"num_splits": 1} if single else {})
        lengths = torch.tensor([[run.length, run.before + run.length] for run in stream.runs])  # (R, 2)
        self.longest = lengths.amax(dim=0).tolist()
        ends = torch.cat((torch.zeros(1, 2, dtype=torch.int64), lengths.cumsum(0)))  # (R + 1, 2)
        self.ends = ends.to(stream.ids.device, torch.int32).unbind(1)
        self.keys: Tensor | None = None
        if any(run.before for run in stream.runs):
            gathered = [
                torch.arange(first, first + n)
                for run in stream.runs
                for first, n in ((run.prefix, run.before), (run.start, run.length))
            ]
            self.keys = torch.cat(gathered).to(stream.ids.device)  # (C,)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (S, heads, d)
        if self.keys is not None:
            k, v = k[self.keys], v[self.keys]
        more = dict(self.more)
        if k.shape[1] != q.shape[1]:
            if self.groups:
                more["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        (queries_end, keys_end), (queries_max, keys_max) = self.ends, self.longest
        out = cast(Tensor, self.attention(q, k, v, queries_end, keys_end, queries_max, keys_max, **more))  # (S, H, d)
        return out.flatten(1)[None]
