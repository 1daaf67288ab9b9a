"""--plan: what a run would do, before it does it."""

import math
from pathlib import Path

from align.data.batches import Dataset
from align.files import to_toml
from align.kernels import evidence, resolve_impls
from align.models import DecoderConfig, build_model
from align.parallel import World, compute_dtype
from align.sections import Config


def describe_length(max_length: int, architecture: DecoderConfig) -> str:
    return f"length: at most {max_length} tokens of prompt + response; the model's context is {architecture.context_length}"


def describe_plan(
    config: Config, source: Path, architecture: DecoderConfig, data: Dataset, needs_reference: bool, world: World
) -> str:
    """Parameters, batches, the memory of each rank's state, and the resolved configuration."""
    model = build_model(architecture, "meta")
    n = sum(p.numel() for p in model.parameters())
    train = config.train
    dtype = compute_dtype(config.parallel.dtype, world.device)
    # what FSDP gathers at once: the largest group whole, in the dtype of compute
    groups = [sum(p.numel() for p in block.parameters()) for block in model.blocks] + [model.lm_head.weight.numel()]
    gib = 2**30
    state, gathered = 4 * 4 * n / world.size / gib, max(groups) * dtype.itemsize / gib
    # besides the policy: a frozen copy in the dtype of compute, one that moves in float32
    copy = {"live": dtype.itemsize, "moving": 4}.get(config.reference.mode, 0) * needs_reference
    frozen = copy * n / world.size / gib
    logp, pointwise = resolve_impls(config.model.logp_impl, config.model.pointwise_impl, dtype, world.device)
    reason = evidence.why_not("logp", world.device) if config.model.logp_impl == "auto" else ""
    micro_batches = math.ceil(train.batch_size / (world.size * train.micro_batch_size))
    return "\n".join(
        [
            f"model: {type(model).__name__} of {n:,} parameters, from {source}",
            f"data: {data.n_train:,} prompts of {len(data.groups[0].response_ids)} responses",
            f"steps: {data.steps}, {train.batch_size} prompts each: {world.size} ranks x {micro_batches} micro-batches "
            f"of at most {train.micro_batch_size}; {data.steps * train.batch_size / data.n_train:.2f} epochs",
            describe_length(config.data.max_length, architecture),
            f"memory per rank: {state:.2f} GiB of float32 weights, gradients and AdamW moments, sharded over "
            f"{world.size}; {frozen:.2f} GiB of reference model; {gathered:.2f} GiB for the largest group gathered in "
            f"{str(dtype).removeprefix('torch.')}; "
            "activations come on top",
            f"kernels: {logp} log-probs{reason and f' (auto: {reason})'}; {pointwise} pointwise operations",
            f"output: {config.output}",
            "",
            to_toml(config.to_dict()),
        ]
    )
