"""What the decoder families share: norm, positions, attention, cache, head, and the model around the blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.kernels import linear_collision, linear_kl, linear_logp, pointwise
from align.models.config import DecoderConfig, Rope

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class RMSNorm(nn.Module):
    """x / rms(x), in float32 at least, then scaled in the dtype of x (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.impl = "auto"

    def forward(self, x: Tensor) -> Tensor:  # (..., D)
        return pointwise.rms_norm(x, self.weight, self.eps, self.impl)


def rotary(rope: Rope, head_dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, (..., T, d) float32, each half of d the same."""
    angle = positions[..., None].float() * rope.frequencies(head_dim, positions.device)  # (..., T, d/2)
    angle = torch.cat((angle, angle), dim=-1)  # (..., T, d)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor], impl: str = "auto") -> Tensor:  # (B, heads, T, d)
    """Turn every head by its position's angles."""
    return pointwise.rotate(x, *cos_sin, impl)


def alibi_slopes(heads: int, device: torch.device) -> Tensor:  # (heads,) float32
    """2^(-8i/n) for i = 1..n; when heads is no power of two, the rest interleave those of 2n (arXiv 2108.12409)."""
    n = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)] + [2 ** (-4 * i / n) for i in range(1, 2 * (heads - n), 2)]
    return torch.tensor(slopes, device=device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of q (B, H, T, d) over k, v (B, kv_heads, S, d), causal if no mask is given -> (B, T, H d)."""
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    groups = k.shape[1]
    grouped = groups != q.shape[1]
    if grouped and q.shape[2] == 1 and mask is not None and mask.ndim == 4:
        # one token of every row: the queries of a key/value head become its rows, so that its keys are read once
        q = q.view(len(q), groups, -1, q.shape[-1])  # (B, kv_heads, H / kv_heads, d)
        mask = mask if mask.shape[1] == 1 else mask.view(*q.shape[:3], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


class Cache(Protocol):
    """What a forward of the model needs of a key/value cache (align/generate/cache.py has one)."""

    columns: int  # how many the tokens being read attend to

    def start(self, columns: int, device: torch.device) -> Tensor: ...

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


class TokenStats(NamedTuple):
    """Statistics of tokens, (N,) from the head and (B, T) from a Decoder; None for what was not requested."""

    logp: Tensor  # log p(target)
    collision: Tensor | None = None  # log Σ_v p(v)²
    kl: Tensor | None = None  # KL(other ‖ this)
    states: Tensor | None = None  # what the head reads, (B, T, D)


class LogProbHead(nn.Linear):
    """The output head: logits, or with targets their log-probabilities without the logits (`kernels.linear_logp`).

    impl: which implementation computes the log-probabilities (Decoder.set_kernels).
    """

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__(hidden_size, vocab_size, bias=False)
        self.impl = "auto"

    def forward(  # type: ignore[override]  # more than a linear map, where there are targets
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        collision: bool = False,
        other: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | TokenStats:
        """hidden (..., D) -> logits (..., V); or hidden (N, D), targets (N,) -> TokenStats, (N,) float32 each.

        collision: also log Σ_v p(v)². other: also KL(other ‖ this), the other model given by its hidden states (N, D')
        and head weight (V, D').
        """
        if targets is None:
            return F.linear(hidden, self.weight)
        return TokenStats(
            linear_logp(hidden, self.weight, targets, impl=self.impl),
            linear_collision(hidden.detach(), self.weight.detach()) if collision else None,
            linear_kl(hidden, self.weight, *other) if other is not None else None,
        )


class Decoder(nn.Module):
    """Embedding, blocks, norm, head. A family adds its block and the published names of its parts.

    A block is called as block(x, cos_sin, mask, extend): x (B, T, D); cos_sin the rotary tables or None; mask what
    each token sees, None for plain causal; extend hands keys and values through the cache, None without one.
    """

    config: DecoderConfig
    lm_head: LogProbHead
    targets: ClassVar[dict[str, tuple[str, ...]]]  # what --lora.targets calls some of a block's linear maps

    @property
    def embedding(self) -> nn.Embedding:
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        raise NotImplementedError

    @property
    def final_norm(self) -> nn.Module:
        raise NotImplementedError

    def set_kernels(self, logp: str = "auto", pointwise: str = "auto") -> None:
        """Choose implementations: of kernels.linear_logp for the head, of kernels.pointwise for all that has a choice."""
        for module in self.modules():
            if hasattr(module, "impl"):
                module.impl = logp if module is self.lm_head else pointwise  # type: ignore[assignment]  # a str

    def tie(self) -> None:
        """Make the head's weight the embedding's, the same Parameter, if the config ties them."""
        if self.config.tied:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        ids: Tensor,
        targets: Tensor,
        mask: Tensor,
        *,
        states: bool = False,
        collision: bool = False,
        other: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | TokenStats:
        """log p(targets[b, t] | ids[b, :t + 1]) where mask is true, 0 elsewhere.

        ids, targets: (B, T) int64; mask: (B, T) bool. Rows are right-padded. Returns (B, T) float32 (float64 for a
        float64 model). Only the masked positions meet the head, which runs even when there are none: a sharded model
        needs every rank to call it.

        With states, collision or other it returns TokenStats instead: the same, and what these request. states: what the
        head reads. For methods that look at whole next-token distributions, collision: log Σ_v p(v)²; other: KL(other ‖
        this), the other model given by its states (B, T, D') and head weight (V, D').
        """
        chosen = mask.nonzero(as_tuple=True)  # rows (n,), columns (n,)
        h = self.hidden(ids)  # (B, T, D)
        if other is not None:
            other = (other[0][chosen], other[1])  # (n, D'), (V, D')
        found = self.lm_head(h[chosen], targets[chosen], collision, other)  # (n,) each

        def scatter(values: Tensor) -> Tensor:  # (n,) -> (B, T)
            # not a view: a sharded model registers its backward hook on what this returns
            return values.new_zeros(mask.shape).index_put(chosen, values)

        logp = scatter(found.logp)
        if not states and not collision and other is None:
            return logp
        return TokenStats(
            logp,
            None if found.collision is None else scatter(found.collision),
            None if found.kl is None else scatter(found.kl),
            h if states else None,
        )

    def logits(self, ids: Tensor, cache: Cache | None = None, at: Tensor | None = None) -> Tensor:
        """Scores of the next token, (B, T, V); or (B, V) at one position `at` (B,) of each row."""
        h = self.hidden(ids, cache)  # (B, T, D)
        if at is not None:
            h = h[torch.arange(len(h), device=h.device), at]  # (B, D)
        return self.lm_head(h)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads, (B, T, D)."""
        cos_sin, mask = self.locate(ids, cache)
        x = self.embedding(ids)  # (B, T, D)
        for i, block in enumerate(self.blocks):
            x = block(x, cos_sin, mask, partial(cache.extend, i) if cache is not None else None)
        return self.final_norm(x)

    def locate(self, ids: Tensor, cache: Cache | None) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """The rotary tables and the attention mask of one forward: computed here, so that the model has no buffers."""
        config, columns, device = self.config, ids.shape[1], ids.device
        positions = torch.arange(columns, device=device) if cache is None else cache.start(columns, device)
        seen = columns if cache is None else cache.columns
        cos_sin = rotary(config.rope, config.head_dim, positions) if config.rope else None
        if config.rope and seen == columns:
            return cos_sin, None
        key_positions = torch.arange(seen, device=device)  # (S,)
        mask = key_positions <= positions[..., None]  # (T, S) or (B, 1, T, S)
        if config.rope is None:
            # rounded to bfloat16 before the division by sqrt(d), whatever the dtype: Falcon-RW's published code does so
            bias = alibi_slopes(config.num_heads, device).bfloat16()[:, None, None] * key_positions  # (H, 1, S)
            mask = (bias.float() / math.sqrt(config.head_dim)).masked_fill(~mask, -math.inf)  # ([B,] H, T, S)
        return cos_sin, mask


def init_weights(model: Decoder, seed: int) -> None:
    """Fresh weights, the same for the same seed: normal(0, initializer_range), norms one, biases zero.

    The projections that write to the residual stream are divided by sqrt(2 layers), as in GPT-2, so that its variance
    does not grow with depth.
    """
    generator = torch.Generator().manual_seed(seed)
    std = model.config.initializer_range
    written = ("dense.weight", "dense_4h_to_h.weight", "o_proj.weight", "down_proj.weight")
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.ndim == 1:
                param.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            scale = std / math.sqrt(2 * model.config.num_layers) if name.endswith(written) else std
            param.copy_(torch.empty(param.shape).normal_(0.0, scale, generator=generator))
