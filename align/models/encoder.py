"""BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692) as sequence classifiers, for reading only: no dropout.

Modules and parameters have the names of the published checkpoints. The two differ in where positions start and in the
head; the encoder between is the same, with a norm after each residual sum.
"""

from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.errors import UserError
from align.models.attention import attend_rows
from align.models.config import Fields, check_common


@dataclass(kw_only=True)
class EncoderConfig:
    """What a classifier's config.json says. raw: the published dictionary.

    labels: the name of each logit. exclusive: whether one label holds at a time (softmax), or any number (sigmoid).
    first_position: the row of the position embeddings that the first token reads.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_hidden_size: int
    max_positions: int
    num_types: int
    norm_eps: float
    labels: tuple[str, ...]
    exclusive: bool
    first_position: int
    raw: dict[str, Any] = field(repr=False)

    @property
    def context(self) -> int:
        """Tokens of the longest row."""
        return self.max_positions - self.first_position

    @classmethod
    def read(cls, fields: Fields, architecture: str, first_position: int) -> Self:
        check_common(fields, (architecture,))
        # gelu_python is the same function by another route; every other gelu approximates it
        fields.only("hidden_act", ("gelu", "gelu_python"), "gelu")
        fields.only("position_embedding_type", ("absolute",), "absolute")
        fields.only("is_decoder", (False,), False)
        fields.only("add_cross_attention", (False,), False)
        fields.only("pruned_heads", ({},), {})
        kinds = ("single_label_classification", "multi_label_classification")
        fields.only("problem_type", kinds, kinds[0])
        hidden, heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
        if hidden % heads:
            raise UserError(f"{fields.file}: num_attention_heads {heads} does not divide hidden_size {hidden}")
        positions = fields.get("max_position_embeddings", int)
        if positions <= first_position:
            raise UserError(f"{fields.file}: max_position_embeddings {positions} leaves no position for a token")
        labels = read_labels(fields)
        return cls(
            vocab_size=fields.get("vocab_size", int),
            hidden_size=hidden,
            num_layers=fields.get("num_hidden_layers", int),
            num_heads=heads,
            ffn_hidden_size=fields.get("intermediate_size", int),
            max_positions=positions,
            num_types=fields.get("type_vocab_size", int, 2),
            norm_eps=fields.get("layer_norm_eps", float, 1e-12),
            labels=labels,
            # softmax over a single label would always be 1
            exclusive=fields.raw.get("problem_type") != kinds[1] and len(labels) > 1,
            first_position=first_position,
            raw=fields.raw,
        )


class BertConfig(EncoderConfig):
    @classmethod
    def from_dict(cls, raw: dict[str, Any], file: str = "config.json") -> "BertConfig":
        """Read a published config.json, with the defaults of transformers' BertConfig. Raises UserError."""
        return cls.read(Fields(raw, file), "BertForSequenceClassification", first_position=0)


class RobertaConfig(EncoderConfig):
    @classmethod
    def from_dict(cls, raw: dict[str, Any], file: str = "config.json") -> "RobertaConfig":
        """Read a published config.json, with the defaults of transformers' RobertaConfig. Raises UserError."""
        pad = 1 if raw.get("pad_token_id") is None else raw["pad_token_id"]
        if not isinstance(pad, int) or isinstance(pad, bool) or pad < 0:
            raise UserError(f"{file}: pad_token_id must be an id, not {pad!r}")
        # the rows up to and including the pad id's belong to padding
        return cls.read(Fields(raw, file), "RobertaForSequenceClassification", first_position=pad + 1)


def read_labels(fields: Fields) -> tuple[str, ...]:
    """The labels' names in the order of the logits: id2label, else LABEL_0, LABEL_1 and so on. Raises UserError."""
    named = fields.get("id2label", dict, {})
    if not named:
        return tuple(f"LABEL_{i}" for i in range(fields.get("num_labels", int, 2)))
    names = [named.get(str(i)) for i in range(len(named))]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(f"{fields.file}: id2label must give the ids 0 to {len(names) - 1} a name each, all different")
    return tuple(names)


class ResidualNorm(nn.Module):
    """The way back to the residual stream: LayerNorm(residual + dense(x))."""

    def __init__(self, inputs: int, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dense(x))


class EncoderAttention(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.num_heads, size = config.num_heads, config.hidden_size
        self.self = nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value")})
        self.output = ResidualNorm(size, config)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        projections = (self.self["query"], self.self["key"], self.self["value"])
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in projections)  # (B, H, T, d)
        return self.output(attend_rows(q, k, v, seen), x)


class EncoderBlock(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = EncoderAttention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.ffn_hidden_size)})
        self.output = ResidualNorm(config.ffn_hidden_size, config)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:  # (B, T, D), (B, 1, 1, T)
        x = self.attention(x, seen)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    """embeddings.{word, position, token_type, LayerNorm} and encoder.layer."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config, size = config, config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, size),
                "position_embeddings": nn.Embedding(config.max_positions, size),
                "token_type_embeddings": nn.Embedding(config.num_types, size),
                "LayerNorm": nn.LayerNorm(size, config.norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(EncoderBlock(config) for _ in range(config.num_layers))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask (B, T) -> (B, T, D)."""
        first, columns, parts = self.config.first_position, ids.shape[1], self.embeddings
        if columns > self.config.context:
            raise ValueError(f"rows of {columns} tokens: this model reads at most {self.config.context}")
        positions = parts.get_parameter("position_embeddings.weight")[first : first + columns]  # (T, D)
        # a single text is all of type 0
        x = parts["word_embeddings"](ids) + positions + parts.get_parameter("token_type_embeddings.weight")[0]
        x = parts["LayerNorm"](x)
        seen = mask.bool()[:, None, None]  # (B, 1, 1, T): every token sees every real one
        for block in cast(nn.ModuleList, self.encoder["layer"]):
            x = block(x, seen)
        return x


class Classifier(nn.Module):
    """What both families share: logits in float32 at least, and what they say."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config

    def head(self, ids: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, labels), float32 (float64 for a float64 model).

        ids: (B, T) int64, the tokenizer's special tokens among them; mask: (B, T), true or 1 where a token is real.
        Rows are right-padded, none empty. Raises ValueError where T exceeds config.context.
        """
        logits = self.head(ids, mask)
        return logits if logits.dtype == torch.float64 else logits.float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each label, (B, labels): softmax over exclusive labels, else a sigmoid each."""
        return logits.softmax(-1) if self.config.exclusive else logits.sigmoid()


class BertClassifier(Classifier):
    """bert and classifier; the first token ([CLS]) goes through the pooler."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = Encoder(config)
        self.bert.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def head(self, ids: Tensor, mask: Tensor) -> Tensor:
        first = self.bert(ids, mask)[:, 0]  # (B, D)
        return self.classifier(torch.tanh(self.bert.get_submodule("pooler.dense")(first)))


class RobertaClassifier(Classifier):
    """roberta and classifier.{dense, out_proj}, which reads the first token (<s>)."""

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.roberta = Encoder(config)
        self.classifier = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "out_proj": nn.Linear(config.hidden_size, len(config.labels)),
            }
        )

    def head(self, ids: Tensor, mask: Tensor) -> Tensor:
        first = self.roberta(ids, mask)[:, 0]  # (B, D)
        return self.classifier["out_proj"](torch.tanh(self.classifier["dense"](first)))
