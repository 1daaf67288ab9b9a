"""Floating-point operations of a step, counted: every matrix product, a multiplication and an addition as two.

A linear map of S tokens is 2 S inputs outputs forward, as much again for the gradient of what it reads and as much for
that of its weight. Attention is 2 H d for every pair of a query and a key that it sees, in Q Kᵀ and in P V, causal pairs
alone, and twice that backward. Norms, activations and softmax are left out, as is usual.

`model_flops` are those that the method needs, however they are computed: the numerator of MFU (arXiv 2204.02311, appendix
B). `step_flops` are those that this code runs: with what it computes twice in order to hold less, which is blocks under
activation checkpointing, attention's weights, the head's logits, and the first of the two passes of a coupled loss.
"""

from collections.abc import Iterable

from align.kernels import kept_columns, tile_columns
from align.plan.setup import Setup
from align.plan.shape import Linear, Work


def linear_forward(linear: Linear, tokens: int) -> int:
    return 2 * tokens * (linear.inputs * linear.outputs + linear.adapter)


def linear_backward(setup: Setup, linear: Linear, tokens: int, layer: int) -> int:
    """Of W x + B A x: the gradients of W or of A and B, and of x where something below is trained."""
    weight = linear.inputs * linear.outputs
    if setup.dense:
        return 2 * tokens * (weight + weight)
    of_x = layer > 0 or any(setup.adapts(name) for name in linear.after)
    a, b = linear.rank * linear.inputs, linear.rank * linear.outputs
    return 2 * tokens * (a + b + b + (weight + a) * of_x)


def attention_product(setup: Setup, pairs: int) -> int:
    """One of attention's products over all heads: Q Kᵀ, P V, or a gradient of either."""
    return 2 * setup.model.num_heads * setup.model.head_dim * pairs


def attended_layers(setup: Setup) -> int:
    """Layers whose attention needs a backward: the first does not where nothing in front of it is trained."""
    return setup.model.num_layers - (not setup.dense and setup.lora_targets == "mlp-up")


def blocks_forward(setup: Setup, work: Work) -> int:
    per_layer = sum(linear_forward(linear, work.tokens) for linear in setup.linears)
    return setup.model.num_layers * (per_layer + 2 * attention_product(setup, work.pairs))


def blocks_backward(setup: Setup, work: Work) -> int:
    """What the gradients need; attention's are dP, dV, dQ and dK."""
    linear = sum(
        linear_backward(setup, linear, work.tokens, layer)
        for layer in range(setup.model.num_layers)
        for linear in setup.linears
    )
    return linear + attended_layers(setup) * 4 * attention_product(setup, work.pairs)


def blocks_again(setup: Setup, work: Work) -> int:
    """What is computed a second time: Q Kᵀ, which fused attention never keeps, and blocks under checkpointing.

    A block's second pass ends where the last tensor that backward needs is there, before the block's last product: that
    of the last matrix, or of its adapter's B.
    """
    layers, attention = setup.model.num_layers, attention_product(setup, work.pairs)
    again = attended_layers(setup) * attention
    if setup.checkpointing != "none":
        *others, last = setup.linears
        again += layers * sum(linear_forward(linear, work.tokens) for linear in others)
        if last.rank:
            again += layers * 2 * work.tokens * (last.inputs * last.outputs + last.rank * last.inputs)
    if setup.checkpointing == "full":
        again += layers * 2 * attention
    return again


def head_forward(setup: Setup, targets: int) -> int:
    """Logits; for KL those of two models, for the collision probability those of one, each in a pass of its own."""
    passes = 1 + 2 * setup.divergences + ("weights" in setup.token_inputs)
    return passes * 2 * targets * setup.head


def head_needed(setup: Setup, targets: int) -> int:
    """Logits once, the reference's too for KL, the gradient of what the head reads, and that of a trained weight."""
    products = 2 + setup.dense + setup.divergences
    return products * 2 * targets * setup.head


def head_again(setup: Setup, targets: int) -> int:
    """The logits that token-level inputs and backward compute once more, and KL's own gradients."""
    model, product = setup.model, 2 * targets * setup.head
    again = ("weights" in setup.token_inputs) + setup.divergences * (4 + setup.dense)
    if setup.logp == "triton":
        return (again + 1) * product
    if setup.logp == "reference" or not setup.dense:
        return again * product
    columns = tile_columns(targets, setup.dtype, device=setup.device)
    rest = model.vocab_size - kept_columns(targets, model.vocab_size, model.hidden_size, columns)
    return again * product + 2 * targets * rest * model.hidden_size


def forward_flops(setup: Setup, work: Work) -> int:
    """A pass without gradients."""
    return blocks_forward(setup, work) + head_forward(setup, work.targets)


def model_flops(setup: Setup, work: Work) -> int:
    """What the method needs: the policy forward and backward, and a live reference forward."""
    policy = blocks_forward(setup, work) + blocks_backward(setup, work) + head_needed(setup, work.targets)
    return policy + (forward_flops(setup.of_reference, work) if setup.live else 0)


def step_flops(setup: Setup, micro_batches: Iterable[Work]) -> int:
    """What this code runs in a step."""
    total = 0
    for work in micro_batches:
        total += model_flops(setup, work) + blocks_again(setup, work) + head_again(setup, work.targets)
        if setup.coupled:
            total += forward_flops(setup, work)
            total += forward_flops(setup.of_reference, work) if setup.live else 0
    return total
