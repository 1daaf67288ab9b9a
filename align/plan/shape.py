"""What a model consists of and what a micro-batch asks of it, as numbers: nothing here makes a tensor.

Symbols are those of CONTRIBUTING.md; S counts the tokens of a micro-batch's stream, M those that are predicted.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple, Protocol

from align.models import DecoderConfig, FalconConfig, LlamaConfig


class Linear(NamedTuple):
    """One matrix of a block, (outputs, inputs)."""

    name: str  # its last part in the published checkpoints, and in a family's `targets`
    inputs: int
    outputs: int
    bias: bool
    after: tuple[str, ...] = ()  # the matrices of the block that what it reads has been through
    rank: int = 0  # of its LoRA adapter

    @property
    def adapter(self) -> int:
        """Parameters of A (rank, inputs) and B (outputs, rank)."""
        return self.rank * (self.inputs + self.outputs)


def linears(config: DecoderConfig) -> list[Linear]:
    """The matrices of a block, in the order in which its forward multiplies by them."""
    d, f = config.hidden_size, config.ffn_hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if isinstance(config, FalconConfig):
        bias, parallel = config.bias, config.norms > 0
        attended: tuple[str, ...] = () if parallel else ("query_key_value", "dense")
        attention = [
            Linear("query_key_value", d, queries + 2 * keys, bias),
            Linear("dense", queries, d, bias, ("query_key_value",)),
        ]
        mlp = [
            Linear("dense_h_to_4h", d, f, bias, attended),
            Linear("dense_4h_to_h", f, d, bias, (*attended, "dense_h_to_4h")),
        ]
        return [*mlp, *attention] if parallel else [*attention, *mlp]
    assert isinstance(config, LlamaConfig)
    bias, mlp_bias = config.attention_bias, config.mlp_bias
    projections = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    before = (*projections, "o_proj")
    return [
        *(Linear(name, d, width, bias) for name, width in projections.items()),
        Linear("o_proj", queries, d, bias, tuple(projections)),
        *(Linear(name, d, f, mlp_bias, before) for name in ("gate_proj", "up_proj")),
        Linear("down_proj", f, d, mlp_bias, (*before, "gate_proj", "up_proj")),
    ]


class HasLengths(Protocol):
    """Of a prompt group (align.data.encode.Group)."""

    @property
    def prompt_length(self) -> int: ...

    @property
    def response_lengths(self) -> Sequence[int]: ...


class Lengths(NamedTuple):
    """A prompt group of which only the lengths are known."""

    prompt_length: int
    response_lengths: Sequence[int]


@dataclass(frozen=True)
class Work:
    """What a micro-batch asks of a model. Attention takes it as rows: of prompts, and of responses behind their prompts."""

    tokens: int  # S
    targets: int  # M
    pairs: int  # of a query and a key that it sees
    queries: int  # in rows, padding included
    keys: int
    masked: int  # pairs in rows of responses, which take a mask
    causal: int  # and in those of prompts, or of prompts and responses in one, which take none

    @classmethod
    def of(cls, groups: Sequence[HasLengths], share: bool = True) -> "Work":
        """Of prompt groups, as align.models.stream lays them out; a response's last token predicts nothing."""
        tokens = targets = pairs = 0
        prompts: list[tuple[int, int]] = []  # queries and keys of each run
        responses: list[tuple[int, int]] = []
        for group in groups:
            p, read = group.prompt_length, [length - 1 for length in group.response_lengths]
            targets += sum(group.response_lengths)
            if share and len(read) > 1:
                prompts.append((p, p))
                responses += [(n, p + n) for n in read if n]
            else:
                prompts += [(p + n, p + n) for n in read]
        for queries, keys in (*prompts, *responses):
            tokens += queries
            pairs += queries * (2 * keys - queries + 1) // 2
        # every row is as long as the longest of its kind
        (q, k), (rq, rk) = (
            tuple(map(max, zip(*runs, strict=True))) if runs else (0, 0) for runs in (prompts, responses)
        )
        n, r = len(prompts), len(responses)
        return cls(tokens, targets, pairs, n * q + r * rq, n * k + r * rk, r * rq * rk, n * q * k)

    def filled(self, tokens: int) -> "Work":
        """A micro-batch of that many tokens, made as this one is."""
        return Work(*(-(-count * tokens // max(self.tokens, 1)) for count in astuple(self)))
