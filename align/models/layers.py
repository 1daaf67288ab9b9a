"""What the decoder families share: norm, positions, head, and the model around the blocks."""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.kernels import linear_collision, linear_kl, linear_logp, pointwise
from align.models.attention import Attend, Cache, Cached, Causal, OfStream, Varlen, visibility
from align.models.config import DecoderConfig, Rope
from align.stream import Stream, stream_of_rows


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


class TokenStats(NamedTuple):
    """Statistics of M tokens, (M,) float32 each; None for what was not requested."""

    logp: Tensor  # log p(target)
    collision: Tensor | None = None  # log Σ_v p(v)²
    kl: Tensor | None = None  # KL(other ‖ this)
    reverse_kl: Tensor | None = None  # KL(this ‖ other)
    states: Tensor | None = None  # what the head reads, (M, D)


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
        other: tuple[Tensor, Tensor | None] | None = None,
        divergences: Sequence[str] = ("kl",),
    ) -> Tensor | TokenStats:
        """hidden (..., D) -> logits (..., V); or hidden (N, D), targets (N,) -> TokenStats, (N,) float32 each.

        collision: also log Σ_v p(v)². other: also the `divergences` from another model, given by its hidden states (N, D')
        and head weight (V, D'), None for this head's own: kl and reverse_kl of TokenStats.
        """
        if targets is None:
            return F.linear(hidden, self.weight)
        theirs = (other[0], self.weight if other[1] is None else other[1]) if other else None
        kls = {name: linear_kl(hidden, self.weight, *theirs, name == "reverse_kl") for name in divergences if theirs}
        return TokenStats(
            linear_logp(hidden, self.weight, targets, impl=self.impl),
            linear_collision(hidden.detach(), self.weight.detach()) if collision else None,
            **kls,
        )


class Decoder(nn.Module):
    """Embedding, blocks, norm, head. A family adds its block and the published names of its parts.

    A block is called as block(x, cos_sin, attend): x (B, T, D); cos_sin the rotary tables or None; attend what knows
    which tokens see each other (align/models/attention.py).
    """

    config: DecoderConfig
    lm_head: LogProbHead
    targets: ClassVar[dict[str, tuple[str, ...]]]  # what --lora.targets calls some of a block's linear maps
    attention = "rows"  # or "varlen": how a stream is attended to

    @property
    def embedding(self) -> nn.Embedding:
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        raise NotImplementedError

    @property
    def final_norm(self) -> nn.Module:
        raise NotImplementedError

    def set_kernels(self, logp: str = "auto", pointwise: str = "auto", attention: str = "rows") -> None:
        """Choose implementations: of kernels.linear_logp for the head, of kernels.pointwise for all that has a choice, and
        of attention over a stream."""
        self.attention = attention
        for module in self.modules():
            if hasattr(module, "impl"):
                module.impl = logp if module is self.lm_head else pointwise  # type: ignore[assignment]  # a str

    def tie(self) -> None:
        """Make the head's weight the embedding's, the same Parameter, if the config ties them."""
        if self.config.tied:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        ids: Tensor | Stream,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        states: bool = False,
        collision: bool = False,
        other: tuple[Tensor, Tensor | None] | None = None,
        divergences: Sequence[str] = ("kl",),
    ) -> Tensor | TokenStats:
        """Of rows ids, targets (B, T) int64 and mask (B, T) bool: log p(targets[b, t] | ids[b, :t + 1]), 0 where mask is 0.

        (B, T) float32, float64 for a float64 model. Of a Stream: TokenStats of its M response tokens, with what states,
        collision and other request. states: what the head reads. For methods that look at whole next-token
        distributions, collision: log Σ_v p(v)²; other: those of `divergences`, kl = KL(other ‖ this) and reverse_kl =
        KL(this ‖ other), the other model given by its states (M, D') and head weight (V, D').

        The head reads only the states that predict a wanted token, and runs even when there are none: a sharded model
        needs every rank to call it.
        """
        stream = ids if isinstance(ids, Stream) else stream_of_rows(ids, cast(Tensor, targets), cast(Tensor, mask))
        attend = self.attend(stream)
        h = self.run(stream.ids[None], stream.positions, [attend] * len(self.blocks))[0]  # (S, D)
        h = h[stream.source]  # (M, D)
        found: TokenStats = self.lm_head(h, stream.target, collision, other, divergences)
        if mask is None:
            return found._replace(states=h if states else None)
        # not a view: a sharded model registers its backward hook on what this returns
        return found.logp.new_zeros(mask.shape).index_put(mask.nonzero(as_tuple=True), found.logp)

    def attend(self, stream: Stream) -> Attend:
        return Varlen(stream) if self.attention == "varlen" else OfStream(self.config, stream)

    def logits(self, ids: Tensor, cache: Cache | None = None, at: Tensor | None = None) -> Tensor:
        """Scores of the next token, (B, T, V); or (B, V) at one position `at` (B,) of each row. Rows are right-padded."""
        h = self.hidden(ids, cache)  # (B, T, D)
        if at is not None:
            h = h[torch.arange(len(h), device=h.device), at]  # (B, D)
        return self.lm_head(h)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads of rows, (B, T, D)."""
        columns, layers = ids.shape[1], len(self.blocks)
        if cache is None:
            causal = Causal(self.config, columns, ids.device)
            return self.run(ids, torch.arange(columns, device=ids.device), [causal] * layers)
        positions = cache.start(columns, ids.device)  # (T,) or (B, 1, T)
        mask = None
        if self.config.rope is None or cache.columns != columns:
            seen = torch.arange(cache.columns, device=ids.device) <= positions[..., None]  # (T, C) or (B, 1, T, C)
            mask = visibility(self.config, seen)
        return self.run(ids, positions, [Cached(cache, layer, mask) for layer in range(layers)])

    def run(self, ids: Tensor, positions: Tensor, attends: Sequence[Attend]) -> Tensor:
        """Embedding, blocks, norm: ids (B, T) at positions (T,) or (B, 1, T), an attention for each layer -> (B, T, D)."""
        # computed here, so that the model has no buffers
        cos_sin = rotary(self.config.rope, self.config.head_dim, positions) if self.config.rope else None
        x = self.embedding(ids)
        for block, attend in zip(self.blocks, attends, strict=True):
            x = block(x, cos_sin, attend)
        return self.final_norm(x)


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
