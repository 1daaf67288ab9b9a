"""Bytes that a rank holds at its fullest moment, by kind.

Held throughout, sharded over the ranks: what is trained in float32, with AdamW's two moments, and what is frozen in the
dtype of compute. A micro-batch adds what its forward keeps for backward, and the head's working memory. Two moments can
be the fullest. Backward begins: all activations are there, the gradients of the micro-batches before this one, and the
head's, whose memory the forward has used. Backward ends: all gradients are there.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import torch

from align.kernels import tile_columns
from align.models import FalconConfig
from align.plan.setup import Setup
from align.plan.shape import HasLengths, Lengths, Work
from align.sections import Config

STEP = 256  # tokens; budgets are whole multiples
# tokens of a micro-batch, where they fit and the configuration names no number: more hardly run faster per token
SUITS = {"cpu": 4096, "cuda": 16384}


@dataclass(frozen=True)
class Memory:
    """Bytes by kind."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    reference: int
    gathered: int
    slack: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def items(self) -> list[tuple[str, int]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def kept_by_block(setup: Setup, work: Work, checkpointing: str) -> int:
    """Bytes that a block's forward keeps for its backward."""
    model, size = setup.model, setup.dtype.itemsize
    d, f = model.hidden_size, model.ffn_hidden_size
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    # what attention returns, and of every query and head the logarithm of its sum; a CPU attends in float32
    attending = 4 if setup.device == "cpu" else size
    attended = work.queries * (queries * attending + model.num_heads * 4)
    if checkpointing == "full":
        return work.tokens * d * size
    if checkpointing == "selective":
        return work.tokens * d * size + attended
    # rows of queries, keys and values; the masks of responses, or, for ALiBi, the weights of prompts
    rows = (work.queries * queries + 2 * work.keys * keys) * attending
    rows += attending * (work.masked if model.rope else work.causal * model.num_heads)
    if isinstance(model, FalconConfig):
        # what each norm reads and returns, attention's output in the order of the stream, the MLP before and after GELU
        each = size * ({0: 4, 1: 2, 2: 3}[model.norms] * d + queries + 2 * f)
    else:
        # an RMSNorm keeps its input in float32, that over its norm, and what it returns; SwiGLU its gate before and
        # after, and what it multiplies
        each = 2 * (4 + 2 * size) * d + size * (queries + 4 * f)
    if model.rope and size < 4:
        each += 4 * model.head_dim * size  # the tables of positions, once for queries and once for keys
    each += size * sum(linear.rank for linear in setup.linears)  # what an adapter's A returns
    return attended + rows + work.tokens * each


def passing_by(setup: Setup, work: Work) -> int:
    """Bytes of gradients on their way through a block's MLP, and of the residual stream's."""
    gates = 1 if isinstance(setup.model, FalconConfig) else 2
    each = (1 + gates) * setup.model.ffn_hidden_size + 2 * setup.model.hidden_size
    return work.tokens * each * setup.dtype.itemsize


def activations(setup: Setup, work: Work) -> int:
    """What the forward has kept when backward begins, with what the last block's needs beside it."""
    kept = setup.model.num_layers * kept_by_block(setup, work, setup.checkpointing)
    again = 0 if setup.checkpointing == "none" else kept_by_block(setup, work, "none")
    final = 2 * work.tokens * setup.model.hidden_size * setup.dtype.itemsize  # what the last norm reads and returns
    return kept + again + passing_by(setup, work) + final


def head_buffers(setup: Setup, work: Work) -> int:
    """Of the states that predict, their gradient's sum, one product on its way there, and tiles of logits."""
    size, d, v = setup.dtype.itemsize, setup.model.hidden_size, setup.model.vocab_size
    if setup.logp == "reference":
        return work.targets * v * 4 * 3
    tile = min(tile_columns(work.targets, setup.dtype, device=setup.device), v) * work.targets
    return work.targets * d * (size + 4 + 4) + tile * (size + (4 if setup.dtype == torch.bfloat16 else 0))


def memory(setup: Setup, work: Work, accumulates: bool) -> Memory:
    """Of a rank whose largest micro-batch asks for `work`. accumulates: a step has more than one."""
    size, shards = setup.dtype.itemsize, setup.shards
    head_gradient = setup.head * size * setup.dense
    held = {
        "weights": (4 * setup.trained + size * setup.frozen) // shards,
        "optimizer": (8 + 4 * setup.extra) * setup.trained // shards,
        "reference": reference_bytes(setup) // shards,
        "gathered": gathered(setup),
    }
    gradients = 4 * setup.trained // shards
    begins = Memory(
        **held,
        gradients=gradients if accumulates else 0,
        activations=activations(setup, work),
        head=head_buffers(setup, work) + head_gradient,
    )
    # of tied weights autograd has the head's gradient and the embedding's until it has their sum
    both = 2 * head_gradient if setup.model.tied else 0
    ends = Memory(**held, gradients=gradients, activations=0, head=both)
    fullest = max(begins, ends, key=lambda moment: moment.total)
    return with_slack(setup, fullest)


def reference_bytes(setup: Setup) -> int:
    """A frozen copy in the dtype of compute, one that moves in float32; with LoRA it is the policy without adapters."""
    mode = setup.reference if setup.live else setup.beside
    if mode not in ("live", "moving") or not setup.dense:
        return 0
    return (4 if mode == "moving" else setup.dtype.itemsize) * setup.base


def gathered(setup: Setup) -> int:
    """What FSDP holds whole: embedding and head, two blocks, a gradient and the float32 copy of it that is summed.

    A lone rank that computes in the dtype in which it stores has no FSDP.
    """
    if setup.ranks == 1 and setup.dtype == torch.float32:
        return 0
    size, head = setup.dtype.itemsize, 0 if setup.model.tied else setup.head
    gradient = max(setup.block, setup.head) * (4 + size) if setup.dense else 0
    return (setup.rest + head + 2 * setup.block) * size + gradient


def with_slack(setup: Setup, moment: Memory) -> Memory:
    """On a GPU a twentieth of what comes and goes, for an allocator's gaps, and a GiB for CUDA's and NCCL's own.

    An allowance, not a measurement. What a CPU's C library adds is in docs/scaling.md.
    """
    if setup.device == "cpu":
        return moment
    return replace(moment, slack=(moment.activations + moment.head + moment.gathered) // 20 + 2**30)


def largest_tokens(setup: Setup, work: Work, room: float, accumulates: bool = True) -> int:
    """The most tokens a micro-batch may have within `room` bytes, in whole STEPs; 0 where not even one STEP fits.

    work: of any groups; a micro-batch is taken to be made as they are.
    """
    fits, too_many = 0, 2**24 // STEP
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if memory(setup, work.filled(middle * STEP), accumulates).total <= room:
            fits = middle
        else:
            too_many = middle
    return fits * STEP


def settle_tokens(config: Config, setups: Sequence[Setup], room: float) -> None:
    """Settle train.micro_batch_tokens for ranks with `room` bytes: what suits the device, if it fits every source."""
    if not config.train.micro_batch_tokens:
        assumed = Work.of(assumed_groups(config, 1))
        most = min(largest_tokens(setup, assumed, room) for setup in setups)
        config.train.micro_batch_tokens = max(min(most, SUITS[setups[0].device]), STEP)


def assumed_groups(config: Config, n: int) -> list[HasLengths]:
    """What data may be that is not known yet: pairs as long as data.max_length allows, half of it the prompt."""
    half = max(config.data.max_length // 2, 1)
    return [Lengths(config.data.max_length - half, [half, half])] * n
