"""What a decoder's config.json says, checked: one line names the file and the key of anything not supported."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from align.errors import UserError

REQUIRED = object()
# more than any model has: a config is checked before a module is made of it, and a module of 10^12 layers never is
MOST_LAYERS, MOST, MOST_FLOAT = 1000, 2**24, 10**12


class Fields:
    """Typed reads from the dictionary of a config.json. Null is the same as absent, as in transformers."""

    def __init__(self, raw: dict[str, Any], file: str):
        self.raw, self.file = raw, file

    def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        value = self.raw.get(key)
        if value is None:
            if default is REQUIRED:
                raise UserError(f"{self.file}: {key} is missing")
            return default
        # a bool is an int to Python, and JSON writes 10000.0 as 10000
        good = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not good or (kind in (int, float) and not value > 0):
            wanted = {int: "a positive integer", float: "a positive number", bool: "true or false"}.get(
                kind, kind.__name__
            )
            raise UserError(f"{self.file}: {key} must be {wanted}, not {value!r}")
        most = MOST_FLOAT if kind is float else MOST_LAYERS if key.endswith("layers") else MOST
        if kind in (int, float) and not value <= most:
            raise UserError(f"{self.file}: {key} is above {most:,.0f}, and no model's is")
        return kind(value)

    def only(self, key: str, supported: tuple, default: Any) -> None:
        """Refuse every value of this key but the supported ones."""
        value = self.raw.get(key)
        if (default if value is None else value) not in supported:
            raise UserError(
                f"{self.file}: {key} {value!r} is not supported; it can be {', '.join(map(str, supported))}"
            )


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and Llama 3's rescaling of the slow frequencies when factor is given."""

    theta: float
    factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: float = 8192.0

    @classmethod
    def read(cls, fields: Fields) -> "Rope":
        """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (every published checkpoint)."""
        key = "rope_parameters" if fields.raw.get("rope_parameters") else "rope_scaling"
        scaling = Fields(fields.get(key, dict, {}), f"{fields.file}: {key}")
        theta = scaling.get("rope_theta", float, fields.get("rope_theta", float, 10000.0))
        kind = scaling.get("rope_type", str, scaling.get("type", str, "default"))
        if kind not in ("default", "llama3"):
            raise UserError(f"{scaling.file}: rope_type {kind!r} is not supported; it can be default, llama3")
        for holder in (fields, scaling):
            holder.only("partial_rotary_factor", (1.0,), 1.0)
        if kind == "default":
            return cls(theta)
        return cls(
            theta,
            factor=scaling.get("factor", float),
            low_freq_factor=scaling.get("low_freq_factor", float),
            high_freq_factor=scaling.get("high_freq_factor", float),
            original_length=scaling.get("original_max_position_embeddings", float),
        )

    def frequencies(self, head_dim: int, device: torch.device) -> Tensor:  # (d/2,) radians per position
        freq = self.theta ** -(torch.arange(0, head_dim, 2, device=device).float() / head_dim)
        if self.factor is None:
            return freq
        # s: 1 for waves that repeat often within the original length (kept), 0 for those that hardly do (slowed down)
        turns = self.original_length * freq / (2 * math.pi)
        s = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return s * freq + (1 - s) * freq / self.factor


@dataclass(kw_only=True)
class DecoderConfig:
    """What both decoder families share. raw: the published dictionary, which saving writes back."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_hidden_size: int
    norm_eps: float
    initializer_range: float
    tied: bool
    rope: Rope | None
    raw: dict[str, Any] = field(repr=False)
    stored_dtype: torch.dtype | None = field(default=None, repr=False, compare=False)  # of the weights it was read with

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response together that the model was made for; Falcon-7B's 2048 where the file is silent."""
        return int(self.raw.get("max_position_embeddings") or self.raw.get("n_positions") or 2048)


def check_common(fields: Fields, architectures: tuple[str, ...]) -> None:
    """Refuse what no decoder here supports: heads other than the language model's, quantised weights."""
    for name in fields.get("architectures", list, []):
        if name not in architectures:
            raise UserError(
                f"{fields.file}: architectures {name!r} is not supported; it can be {', '.join(architectures)}"
            )
    for key in ("max_position_embeddings", "n_positions"):
        fields.get(key, int, None)
    for key in ("torch_dtype", "dtype"):
        fields.only(key, ("float32", "bfloat16", "float16", "float64"), "float32")
    if fields.raw.get("quantization_config"):
        raise UserError(f"{fields.file}: quantization_config is not supported; use the unquantised checkpoint")


def check_heads(fields: Fields, heads: int, kv_heads: int, head_dim: int, key: str) -> None:
    if heads % kv_heads:
        raise UserError(f"{fields.file}: {key} {kv_heads} does not divide num_attention_heads {heads}")
    if head_dim % 2:
        raise UserError(f"{fields.file}: a head size of {head_dim} is odd, and rotary positions need an even one")
