"""Falcon (arXiv 2311.16867), in every variant that was published: 7B, 40B and 180B, Falcon2-11B, and RW.

Modules and parameters have the names of the published checkpoints.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from align.errors import UserError
from align.models.attention import Attend
from align.models.config import DecoderConfig, Fields, Rope, check_common, check_heads
from align.models.layers import Decoder, LogProbHead, rotate

# the names of the first releases (modelling_RW.py), before transformers took Falcon in
OLD_NAMES = {
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_head_kv": "num_kv_heads",
    "n_embed": "hidden_size",
}


def modernise(raw: dict[str, Any]) -> dict[str, Any]:
    """The same config under today's names: old names would be ignored, and their values silently become defaults."""
    raw = {OLD_NAMES.get(key, key): value for key, value in raw.items()}
    if raw.get("model_type") in ("RefinedWeb", "RefinedWebModel"):
        # RefinedWeb was the 40B, whose grouped queries and two norms are the new decoder's; RefinedWebModel 7B and RW
        grouped = raw["model_type"] == "RefinedWeb"
        raw = {"new_decoder_architecture": grouped, "parallel_attn": grouped, "multi_query": False} | raw
        raw |= {"model_type": "falcon", "architectures": ["FalconForCausalLM"]}
    return raw


@dataclass(kw_only=True)
class FalconConfig(DecoderConfig):
    """norms: how many layer norms a block has in front of parallel attention and MLP; 0 for a sequential block."""

    norms: int
    bias: bool

    @classmethod
    def from_dict(cls, raw: dict[str, Any], file: str = "config.json") -> "FalconConfig":
        """Read a published config.json, with the defaults of transformers' FalconConfig for what it leaves out.

        Dropout is not read: preference optimisation compares the policy with itself. Raises UserError.
        """
        raw = modernise(raw)
        fields = Fields(raw, file)
        check_common(fields, ("FalconForCausalLM",))
        fields.only("activation", ("gelu",), "gelu")
        fields.only("apply_residual_connection_post_layernorm", (False,), False)
        hidden, heads = fields.get("hidden_size", int, 4544), fields.get("num_attention_heads", int, 71)
        if hidden % heads:
            raise UserError(f"{file}: num_attention_heads {heads} does not divide hidden_size {hidden}")
        grouped = fields.get("new_decoder_architecture", bool, False)
        parallel = fields.get("parallel_attn", bool, True)
        if grouped and not parallel:
            raise UserError(f"{file}: parallel_attn false with new_decoder_architecture is not supported")
        fields.only("num_ln_in_parallel_attn", (1, 2) if grouped else (1,), 1)
        norms = fields.get("num_ln_in_parallel_attn", int, 2 if grouped else 1) if parallel else 0
        # num_kv_heads means something only to the new decoder: transformers writes 71 for the 7B, which has one
        kv_heads = 1 if fields.get("multi_query", bool, True) else heads
        if grouped:
            kv_heads = fields.get("num_kv_heads", int, heads)
        check_heads(fields, heads, kv_heads, hidden // heads, "num_kv_heads")
        return cls(
            vocab_size=fields.get("vocab_size", int, 65024),
            hidden_size=hidden,
            num_layers=fields.get("num_hidden_layers", int, 32),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=hidden // heads,
            ffn_hidden_size=fields.get("ffn_hidden_size", int, 4 * hidden),
            norm_eps=fields.get("layer_norm_epsilon", float, 1e-5),
            initializer_range=fields.get("initializer_range", float, 0.02),
            tied=fields.get("tie_word_embeddings", bool, True),
            rope=None if fields.get("alibi", bool, False) else Rope.read(fields),
            raw=raw,
            norms=norms,
            bias=fields.get("bias", bool, False),
        )


class FalconAttention(nn.Module):
    def __init__(self, config: FalconConfig):
        super().__init__()
        self.kv_heads, self.head_dim = config.num_kv_heads, config.head_dim
        self.impl = "auto"
        fused = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, fused, bias=config.bias)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, attend: Attend) -> Tensor:
        # one layout serves all variants: for each key/value head its queries, then its key, then its value
        fused = self.query_key_value(x).unflatten(-1, (self.kv_heads, -1, self.head_dim))  # (B, T, kv, H/kv + 2, d)
        q = fused[..., :-2, :].flatten(2, 3).transpose(1, 2)  # (B, H, T, d)
        k, v = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)  # (B, kv, T, d)
        if cos_sin is not None:
            q, k = rotate(q, cos_sin, self.impl), rotate(k, cos_sin, self.impl)
        return self.dense(attend(q, k, v))


class FalconMLP(nn.Module):
    def __init__(self, config: FalconConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=config.bias)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x)))


class FalconBlock(nn.Module):
    def __init__(self, config: FalconConfig):
        super().__init__()
        self.norms = config.norms
        names = {0: ("input_layernorm", "post_attention_layernorm"), 1: ("input_layernorm",), 2: ("ln_attn", "ln_mlp")}
        for name in names[config.norms]:
            self.add_module(name, nn.LayerNorm(config.hidden_size, eps=config.norm_eps))
        self.self_attention = FalconAttention(config)
        self.mlp = FalconMLP(config)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, attend: Attend) -> Tensor:
        norm = self.get_submodule
        if self.norms == 0:
            x = x + self.self_attention(norm("input_layernorm")(x), cos_sin, attend)
            return x + self.mlp(norm("post_attention_layernorm")(x))
        if self.norms == 1:
            for_attention = for_mlp = norm("input_layernorm")(x)
        else:
            for_attention, for_mlp = norm("ln_attn")(x), norm("ln_mlp")(x)
        return x + (self.mlp(for_mlp) + self.self_attention(for_attention, cos_sin, attend))


class Falcon(Decoder):
    """transformer.{word_embeddings, h, ln_f} and lm_head."""

    targets: ClassVar = {"attention": ("query_key_value", "dense"), "mlp-up": ("dense_h_to_4h",)}

    def __init__(self, config: FalconConfig):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
                "h": nn.ModuleList(FalconBlock(config) for _ in range(config.num_layers)),
                "ln_f": nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
            }
        )
        self.lm_head = LogProbHead(config.hidden_size, config.vocab_size)
        self.tie()

    @property
    def embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.transformer["word_embeddings"])

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.transformer["h"])

    @property
    def final_norm(self) -> nn.Module:
        return self.transformer["ln_f"]
