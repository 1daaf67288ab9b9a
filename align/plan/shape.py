"""What a run computes and holds, as numbers: nothing here makes a tensor.

Symbols are those of CONTRIBUTING.md; S counts the tokens of a micro-batch's stream, M those that are predicted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from align.models import DecoderConfig, FalconConfig, LlamaConfig


class Linear(NamedTuple):
    """One matrix of a block, (outputs, inputs)."""

    inputs: int
    outputs: int
    part: str  # attention or mlp
    bias: bool
    after: tuple[str, ...]  # the parts of the block that what it reads has been through
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
        parallel, bias = config.norms > 0, config.bias
        before = () if parallel else ("attention",)
        attention = [
            Linear(d, queries + 2 * keys, "attention", bias, ()),
            Linear(queries, d, "attention", bias, ("attention",)),
        ]
        mlp = [Linear(d, f, "mlp", bias, before), Linear(f, d, "mlp", bias, (*before, "mlp"))]
        return [*mlp, *attention] if parallel else [*attention, *mlp]
    assert isinstance(config, LlamaConfig)
    bias, mlp_bias = config.attention_bias, config.mlp_bias
    return [
        *(Linear(d, width, "attention", bias, ()) for width in (queries, keys, keys)),
        Linear(queries, d, "attention", bias, ("attention",)),
        *[Linear(d, f, "mlp", mlp_bias, ("attention",))] * 2,
        Linear(f, d, "mlp", mlp_bias, ("attention", "mlp")),
    ]


@dataclass(frozen=True)
class Setup:
    """A run's choices, as far as they decide its FLOPs and memory."""

    model: DecoderConfig
    lora_rank: int = 0  # 0: every parameter is trained
    lora_parts: tuple[str, ...] = ("attention", "mlp")
    reference: str = "none"  # none, cached, live or moving
    coupled: bool = False  # the loss needs the whole global batch: every micro-batch runs forward once more
    token_inputs: tuple[str, ...] = ()  # of the loss
    checkpointing: str = "none"  # none, selective or full
    logp: str = "chunked"  # of kernels.IMPLEMENTATIONS
    dtype: torch.dtype = torch.float32  # of compute; what is trained is stored in float32
    device: str = "cpu"
    shards: int = 1  # ranks over which a model is sharded

    @property
    def linears(self) -> list[Linear]:
        return [
            linear._replace(rank=self.lora_rank if linear.part in self.lora_parts else 0)
            for linear in linears(self.model)
        ]

    @property
    def dense(self) -> bool:
        return self.lora_rank == 0

    @property
    def block(self) -> int:
        """Parameters of a block without adapters."""
        norms = 1 if isinstance(self.model, FalconConfig) and self.model.norms == 1 else 2
        per_norm = (2 if isinstance(self.model, FalconConfig) else 1) * self.model.hidden_size
        return norms * per_norm + sum(
            linear.inputs * linear.outputs + linear.bias * linear.outputs for linear in self.linears
        )

    @property
    def head(self) -> int:
        """Parameters of the head, which are the embedding's as well where the two are tied."""
        return self.model.vocab_size * self.model.hidden_size

    @property
    def rest(self) -> int:
        """Parameters of the root group: the embedding and the final norm."""
        return self.head + (2 if isinstance(self.model, FalconConfig) else 1) * self.model.hidden_size

    @property
    def base(self) -> int:
        """Parameters of the model without adapters."""
        return self.model.num_layers * self.block + self.rest + (0 if self.model.tied else self.head)

    @property
    def adapters(self) -> int:
        return self.model.num_layers * sum(linear.adapter for linear in self.linears)

    @property
    def live(self) -> bool:
        """A model computes the reference's numbers in every step."""
        return self.reference in ("live", "moving")

    @property
    def of_reference(self) -> "Setup":
        """Of the reference model's passes: no adapters, and log-probs alone."""
        return replace(self, lora_rank=0, token_inputs=())

    @property
    def trained(self) -> int:
        return self.base if self.dense else self.adapters

    @property
    def frozen(self) -> int:
        return 0 if self.dense else self.base


class HasLengths(Protocol):
    """Of a prompt group (align.data.encode.Group)."""

    @property
    def prompt_length(self) -> int: ...

    @property
    def response_lengths(self) -> tuple[int, ...]: ...


class Lengths(NamedTuple):
    """A prompt group of which only the lengths are known."""

    prompt_length: int
    response_lengths: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """What a micro-batch asks of a model."""

    tokens: int  # S, each prompt once
    targets: int  # M
    pairs: int  # of a query and a key that it sees
    responses: int = 0

    @classmethod
    def of(cls, groups: Iterable[HasLengths]) -> "Work":
        """Of prompt groups: a prompt sees itself, a response its prompt and itself; its last token predicts nothing."""
        tokens = targets = pairs = responses = 0
        for group in groups:
            p, read = group.prompt_length, [length - 1 for length in group.response_lengths]
            tokens += p + sum(read)
            targets += sum(group.response_lengths)
            pairs += p * (p + 1) // 2 + sum(n * p + n * (n + 1) // 2 for n in read)
            responses += len(read)
        return cls(tokens, targets, pairs, responses)
