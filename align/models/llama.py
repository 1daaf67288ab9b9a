"""Llama (arXiv 2407.21783): also Falcon3, Llama Guard 3, SmolLM2.

Modules and parameters have the names of the published checkpoints.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from align.errors import UserError
from align.kernels import pointwise
from align.models.attention import Attend
from align.models.config import DecoderConfig, Fields, Rope, check_common, check_heads
from align.models.layers import Decoder, LogProbHead, RMSNorm, rotate


@dataclass(kw_only=True)
class LlamaConfig(DecoderConfig):
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_dict(cls, raw: dict[str, Any], file: str = "config.json") -> "LlamaConfig":
        """Read a published config.json, with the defaults of transformers' LlamaConfig for what may be left out.

        Raises UserError.
        """
        fields = Fields(raw, file)
        check_common(fields, ("LlamaForCausalLM",))
        fields.only("hidden_act", ("silu",), "silu")
        hidden, heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
        head_dim = fields.get("head_dim", int, 0)
        if not head_dim and hidden % heads:
            raise UserError(
                f"{file}: num_attention_heads {heads} does not divide hidden_size {hidden}, and there is no head_dim"
            )
        head_dim = head_dim or hidden // heads
        kv_heads = fields.get("num_key_value_heads", int, heads)
        check_heads(fields, heads, kv_heads, head_dim, "num_key_value_heads")
        return cls(
            vocab_size=fields.get("vocab_size", int),
            hidden_size=hidden,
            num_layers=fields.get("num_hidden_layers", int),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_hidden_size=fields.get("intermediate_size", int),
            norm_eps=fields.get("rms_norm_eps", float, 1e-6),
            initializer_range=fields.get("initializer_range", float, 0.02),
            tied=fields.get("tie_word_embeddings", bool, False),
            rope=Rope.read(fields),
            raw=raw,
            attention_bias=fields.get("attention_bias", bool, False),
            mlp_bias=fields.get("mlp_bias", bool, False),
        )


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.impl = "auto"
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in projections)  # (B, heads, T, d)
        q, k = rotate(q, cos_sin, self.impl), rotate(k, cos_sin, self.impl)
        return self.o_proj(attend(q, k, v))


class LlamaMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=config.mlp_bias)
        self.impl = "auto"

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(pointwise.swiglu(self.gate_proj(x), self.up_proj(x), self.impl))


class LlamaBlock(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos_sin, attend)  # (B, T, D)
        norm = self.post_attention_layernorm
        normed, x = pointwise.add_rms_norm(x, attended, norm.weight, norm.eps, norm.impl)
        return x + self.mlp(normed)


class Llama(Decoder):
    """model.{embed_tokens, layers, norm} and lm_head."""

    targets: ClassVar = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp-up": ("up_proj",)}

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(LlamaBlock(config) for _ in range(config.num_layers)),
                "norm": RMSNorm(config.hidden_size, config.norm_eps),
            }
        )
        self.lm_head = LogProbHead(config.hidden_size, config.vocab_size)
        self.tie()

    @property
    def embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model["embed_tokens"])

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model["layers"])

    @property
    def final_norm(self) -> nn.Module:
        return self.model["norm"]
