"""A training step as train.py makes it: milliseconds, tokens a second, MFU, peak memory, for each way to run it.

MFU counts what the step must compute once, by the shapes of its products: blocks and causal attention on every token, the
head on the responses, three times (forward, and twice that backward), and once more each for a live reference. What
checkpointing or a kernel computes again does not count. It is a share of the datasheet's peak, where the card is known.
"""

from typing import NamedTuple

import torch

from align import command
from align.blocks import checkpoint_blocks, compile_blocks
from align.data.batches import Batch
from align.losses import build_loss
from align.models import Decoder, build_model
from align.models.falcon import FalconConfig
from align.optim import build_optimizer
from align.parallel import World, distributed, gather, shard
from align.reference import CachedReference, LiveReference, Reference
from align.sections import OptimSection, ParallelSection
from benchmarks.gpu import models
from benchmarks.gpu.part import CUDA, DTYPE, Part, datasheet, free, left, milliseconds, peak_gib
from train import loss_inputs

part = Part("steps")
RESERVED_GIB = (
    12  # besides weights, their gradients, moments and activations: logits written out, chunks, what is cached
)


class Case(NamedTuple):
    name: str
    logp: str = "triton"
    pointwise: str = "auto"
    reference: str = "cached"
    checkpointing: str = "none"
    compile: bool = False


CASES = (
    Case("triton, cached"),
    Case("chunked, cached", logp="chunked"),
    Case("triton, live", reference="live"),
    Case("triton, cached, checkpointing", checkpointing="full"),
    Case("triton, cached, selective checkpointing", checkpointing="selective"),
    Case("triton, cached, compiled", compile=True),
    Case("triton, cached, compiled, selective checkpointing", checkpointing="selective", compile=True),
    Case("triton, pointwise triton, cached", pointwise="triton"),
    Case("reference, cached", logp="reference"),
)


def operations(config: FalconConfig, model: Decoder, batch: Batch) -> float:
    """Of forward and backward, in TFLOP."""
    stream = batch.stream
    in_blocks = sum(p.numel() for block in model.blocks for p in block.parameters() if p.ndim == 2)
    seen = sum(run.length * (run.before + run.length / 2) for run in stream.runs)  # pairs of tokens; causal: half
    attention = 12 * config.num_layers * seen * config.hidden_size
    head = 6 * config.vocab_size * config.hidden_size * len(stream.target)
    return (6 * in_blocks * len(stream.ids) + attention + head) / 1e12


def layers_that_fit(size: str, free_bytes: int) -> int:
    """As many layers as that much memory holds with a live reference and all activations; at least one."""
    one, two = (build_model(models.config(size, layers), "meta") for layers in (1, 2))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (one, two)]
    block = sizes[1] - sizes[0]
    state = 4 * 4 + 2  # bytes a parameter: weight, gradient, two moments in float32; the reference's in bfloat16
    config = one.config
    width = 4 * config.hidden_size + 2 * config.ffn_hidden_size + 3 * config.num_kv_heads * config.head_dim
    activations = 2 * 2 * models.PROMPTS * models.LENGTH * width  # bfloat16
    room = free_bytes - RESERVED_GIB * 2**30 - state * (sizes[0] - block)
    return max(1, min(models.layers_of(size), int(room // (state * block + activations))))


def make(config: FalconConfig, world: World, stored: torch.dtype) -> Decoder:
    model = build_model(config, "meta", stored)
    shard(model, world, DTYPE, ParallelSection())
    model.to_empty(device=world.device)
    model.tie()
    models.fill(model)
    return model


def prepare(model: Decoder, case: Case) -> None:
    for block in model.blocks:
        block.__dict__.pop("forward", None)
    if case.checkpointing != "none":
        checkpoint_blocks(model, case.checkpointing == "selective")
    if case.compile and CUDA:  # a dry run would wait minutes for a C++ compiler
        compile_blocks(model)


def run(size: str, world: World) -> None:
    """Every case on one model, policy and reference alike."""
    free_bytes = torch.cuda.mem_get_info()[0] if CUDA else 2**35
    config = models.config(size, layers_that_fit(size, free_bytes))
    model = make(config, world, torch.float32)
    live = make(config, world, DTYPE).requires_grad_(False).eval()
    batch = models.pairs(config.vocab_size)
    loss, optimizer = build_loss("nca"), build_optimizer(model, OptimSection())
    frozen = LiveReference(live, distributions=False)
    numbers = frozen(batch)
    table = torch.stack([numbers.ref_logps, numbers.ref_shared_logps], dim=-1)  # (N, K, 2)
    references: dict[str, Reference] = {"live": frozen, "cached": CachedReference(table)}
    n_params = sum(p.numel() for p in model.parameters())
    tflop, n_tokens = operations(config, model, batch), 2 * models.PROMPTS * (models.LENGTH - 1)
    part.row(f"{size} model", layers=config.num_layers, parameters=n_params, tokens=n_tokens, step_tflop=tflop)

    def step(reference: Reference) -> None:
        x = loss_inputs(model, reference, batch, (), models.LENGTH / 2)
        (loss(x).sum() / models.PROMPTS).backward()
        gather(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)).item()
        optimizer.step()
        optimizer.zero_grad()

    def one(case: Case) -> None:
        for each in (model, live):
            each.set_kernels(case.logp, case.pointwise)
        prepare(model, case)
        reference = references[case.reference]
        step(reference)
        peak, _ = peak_gib(lambda: step(reference))
        ms = milliseconds(lambda: step(reference), rounds=5, warm=1)
        # the update alone: gradients of zero cost as much as any
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        update = milliseconds(optimizer.step, rounds=3, warm=1)
        work = tflop * (4 / 3 if case.reference == "live" else 1)
        roof = datasheet()
        mfu = 1e3 * work / ms / roof if roof else None
        rates = {"tokens_s": 1e3 * n_tokens / ms, "tflops": 1e3 * work / ms, "mfu": mfu}
        part.row(f"{size} {case.name}", ms=ms, **rates, peak_gib=peak, update_ms=update)

    for case in CASES:
        part.attempt(f"{size} {case.name}", one, case, need=6)
        optimizer.zero_grad()


def main(argv: list[str]) -> None:
    with distributed() as world:
        for size in models.SIZES:
            part.attempt(size, run, size, world, need=15)
            free()
    print(f"{left():.0f} s left")


if __name__ == "__main__":
    command.run(main)
