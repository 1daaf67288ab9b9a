"""What can be done to every block of a decoder: compute its activations again in backward, or compile it."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from align.kernels import pointwise
from align.models import Decoder


def checkpoint_blocks(model: Decoder, keep_attention: bool = False) -> None:
    """Activation checkpointing: every block computes its activations again in backward, from its input alone.

    keep_attention: all but what attention returns, which costs most to compute for the memory that it takes.
    """
    how: dict[str, Any] = {}
    if keep_attention:
        how["context_fn"] = partial(create_selective_checkpoint_contexts, attention_operators())
    for block in model.blocks:
        # inside FSDP's hooks: the recomputation runs on weights that the backward pass has already gathered. A block
        # draws nothing at random, so there is no generator's state to keep
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **how)


def attention_operators() -> list[Any]:
    """Every form that attention takes on a device; where it is products and a softmax, it is computed again."""
    from torch.nn.attention import varlen  # noqa: F401  # makes torch.ops.torch_attn, with a second of imports

    aten = torch.ops.aten
    return [
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.torch_attn._varlen_attn.default,
    ]


def compile_blocks(model: Decoder) -> None:
    """torch.compile, for any number of tokens, of every block with its recomputation. Equal blocks share what it makes."""
    torch.compiler.assume_constant_result(pointwise.choose_pointwise)  # it asks files, which a graph cannot
    for block in model.blocks:
        # inside FSDP's hooks, which it would only break its graph at
        block.forward = torch.compile(block.forward, dynamic=True)
