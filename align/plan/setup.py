"""A run's choices, as far as they decide its operations and its memory."""

from dataclasses import dataclass, replace

import torch

from align.kernels import resolve_impls
from align.losses.base import DISTRIBUTIONS
from align.models import DecoderConfig, Falcon, FalconConfig, Llama
from align.parallel import World, compute_dtype
from align.plan.shape import Linear, linears
from align.sections import Config


def setups_of(config: Config, model: DecoderConfig, world: World) -> list["Setup"]:
    """Of everything that a run learns from, its own data first."""
    setups = [setup_of(each, model, world) for each in config.each()]
    modes = [setup.reference for setup in setups if setup.live]
    return [replace(setup, beside=modes[0] if modes else "none") for setup in setups]


def setup_of(config: Config, model: DecoderConfig, world: World) -> "Setup":
    loss = config.loss.build()
    dtype = compute_dtype(config.parallel.dtype, world.device)
    return Setup(
        model,
        lora_rank=config.lora.rank,
        lora_targets=config.lora.targets,
        reference=config.reference.mode if loss.needs_reference else "none",
        coupled=loss.needs_global_batch,
        token_inputs=tuple(loss.token_inputs),
        checkpointing=config.parallel.checkpointing,
        logp=resolve_impls(config.model.logp_impl, config.model.pointwise_impl, dtype, world.device)[0],
        dtype=dtype,
        device=world.device.type,
        shards=world.size // config.parallel.replicate,
        ranks=world.size,
        extra=(config.optim.ema > 0) + bool(config.optim.project),
    )


@dataclass(frozen=True)
class Setup:
    """A run's choices, as far as they decide its FLOPs and memory."""

    model: DecoderConfig
    lora_rank: int = 0  # 0: every parameter is trained
    lora_targets: str = "all"
    reference: str = "none"  # none, cached, live or moving
    coupled: bool = False  # the loss needs the whole global batch: every micro-batch runs forward once more
    token_inputs: tuple[str, ...] = ()  # of the loss
    beside: str = "none"  # the mode of a reference model that is held for other sources
    extra: int = 0  # float32 copies of what is trained: of averaged weights, of a gradient that is set aside
    checkpointing: str = "none"  # none, selective or full
    logp: str = "chunked"  # of kernels.IMPLEMENTATIONS
    dtype: torch.dtype = torch.float32  # of compute; what is trained is stored in float32
    device: str = "cpu"
    shards: int = 1  # ranks over which a model is sharded
    ranks: int = 1  # all of them

    @property
    def linears(self) -> list[Linear]:
        return [
            linear._replace(rank=self.lora_rank) if self.adapts(linear.name) else linear
            for linear in linears(self.model)
        ]

    def adapts(self, name: str) -> bool:
        """Whether the matrix of that name has an adapter."""
        if self.dense or self.lora_targets == "all":
            return not self.dense
        family = Falcon if isinstance(self.model, FalconConfig) else Llama
        return name in family.targets[self.lora_targets]

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
    def divergences(self) -> int:
        """How many KLs between whole distributions the loss reads."""
        return sum(name in self.token_inputs for name in DISTRIBUTIONS)

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
