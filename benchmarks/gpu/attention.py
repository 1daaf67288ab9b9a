"""Attention over a stream: padded rows by SDPA against PyTorch's varlen attention, in values, gradients and time.

The truth is that of the rows in float64. Varlen attention is right where it is at most twice as far from it as the rows
are in the dtype of compute. With each prompt once for all its responses, and with it before each.
"""

import torch
from torch import Tensor

from align import command
from align.models.attention import Attend, OfStream, Varlen
from align.models.config import DecoderConfig
from align.stream import Stream, stream_of
from benchmarks.gpu import models
from benchmarks.gpu.correctness import error
from benchmarks.gpu.part import CUDA, DEVICE, DRY, DTYPE, Part, milliseconds

part = Part("attention")
PROMPTS, PROMPT, RESPONSE = (2, 9, 5) if DRY else (16, 512, 512)
NAMES = ("out", "dq", "dk", "dv")


def stream(share: bool) -> Stream:
    """Of uneven lengths, half to all of PROMPT and RESPONSE."""
    draw = torch.Generator().manual_seed(5)

    def ids(most: int) -> list[int]:
        return [1] * int(torch.randint(most // 2, most + 1, (), generator=draw))

    return stream_of([(ids(PROMPT), [ids(RESPONSE), ids(RESPONSE)]) for _ in range(PROMPTS)], share).to(DEVICE)


def run(attend: Attend, inputs: tuple[Tensor, Tensor, Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    out = attend(q, k, v)  # (1, S, H d)
    out.backward(upstream.to(out.dtype))
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return out.detach(), q.grad, k.grad, v.grad


def compare(config: DecoderConfig, share: bool) -> None:
    tokens = stream(share)
    S, H, kv, d = len(tokens.ids), config.num_heads, config.num_kv_heads, config.head_dim
    draw = torch.Generator(DEVICE).manual_seed(2)
    q, k, v = (torch.randn(1, h, S, d, generator=draw, device=DEVICE).to(DTYPE) for h in (H, kv, kv))
    upstream = torch.randn(1, S, H * d, generator=draw, device=DEVICE)
    rows = OfStream(config, tokens)
    expected = run(rows, (q.double(), k.double(), v.double()), upstream.double())
    limits = [
        2 * e + 1e-6 for e in (error(g, e) for g, e in zip(run(rows, (q, k, v), upstream), expected, strict=True))
    ]
    kinds: dict[str, Attend] = {"rows": rows, **({"varlen": Varlen(tokens)} if CUDA else {})}
    for name, attend in kinds.items():
        label = f"{name}, {'shared' if share else 'repeated'} prompts"
        part.attempt(label, one, label, attend, (q, k, v), upstream, expected, limits)


def one(
    label: str,
    attend: Attend,
    inputs: tuple[Tensor, Tensor, Tensor],
    upstream: Tensor,
    expected: tuple[Tensor, ...],
    limits: list[float],
) -> None:
    first, again = run(attend, inputs, upstream), run(attend, inputs, upstream)
    off = [error(a, b) for a, b in zip(first, expected, strict=True)]
    part.row(
        label,
        ok=all(e <= limit for e, limit in zip(off, limits, strict=True)),
        same_bits=all(torch.equal(a, b) for a, b in zip(first, again, strict=True)),
        ms=milliseconds(lambda: run(attend, inputs, upstream)),
        **dict(zip(NAMES, off, strict=True)),
    )


def main(argv: list[str]) -> None:
    config = models.config("11b", 1)
    for share in (True, False):
        part.attempt(f"{'shared' if share else 'repeated'} prompts", compare, config, share, need=6)


if __name__ == "__main__":
    command.run(main)
