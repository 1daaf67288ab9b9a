"""--plan: what a run would do and take, before it does it. It reads no weights; a Hub model's description is enough.

    train.py --plan --config falcon-11b                        on this machine
    train.py --plan --config falcon-11b --plan.gpus 8          on eight GPUs of 80 GiB, from anywhere

Without --data every row is taken to be as long as data.max_length allows, half of it the prompt.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from align.checkpoint import check_output
from align.config import CONFIGS
from align.data import load_tokenizer
from align.data.batches import Dataset, split_batch
from align.data.tokenizer import check_fits
from align.files import to_toml
from align.kernels import evidence, hardware, resolve_impls
from align.losses import Loss
from align.models import DecoderConfig, build_model, check_weights, read_config, resolve_model
from align.parallel import World, compute_dtype
from align.plan.devices import card_flops, device_memory, peak_flops
from align.plan.flops import model_flops, step_flops
from align.plan.memory import largest_tokens, memory
from align.plan.mends import mends
from align.plan.setup import Setup, setup_of
from align.plan.shape import HasLengths, Lengths, Work
from align.sections import Config, settle_length
from align.sources import MICRO_BATCH_TOKENS, load_dataset

GIB = 2**30
CARD = "H100"  # whose peak --plan.gpus assumes where --plan.tflops says nothing
PUBLISHED = CONFIGS / "architectures"  # OWNER/NAME/config.json of Hub models
SAMPLED = 32  # steps whose batches are looked at


class Machine(NamedTuple):
    text: str
    memory: float  # bytes of a rank
    peak: float | None  # FLOP/s of a rank


def describe_length(max_length: int, architecture: DecoderConfig) -> str:
    return f"length: at most {max_length} tokens of prompt + response; the model's context is {architecture.context_length}"


def describe_plan(config: Config, loss: Loss, world: World) -> str:
    """What --plan prints. Raises UserError for all that a run would refuse before it starts."""
    check_output(config)
    source, architecture = find_architecture(config)
    settle_length(config.data, architecture.context_length)
    gpus = config.plan.gpus if config.plan else 0
    planned = World(0, gpus or world.size, world.device)
    setup = setup_of(config, architecture, loss, planned)
    if gpus:
        setup = replace(setup, device="cuda", dtype=compute_dtype(config.parallel.dtype, torch.device("cuda")))
    machine = find_machine(config, setup, world)
    data = None
    if config.data.path:
        tokenizer = load_tokenizer(source)
        check_fits(tokenizer, architecture.vocab_size, str(source))
        data = load_dataset(config, loss, tokenizer, planned)
    steps = first_steps(config, loss, data, setup)
    return "\n".join(
        [
            f"model: {type(build_model(architecture, 'meta')).__name__} of {setup.base:,} parameters, from {source}"
            + (f"; {setup.trained:,} of adapters are trained" if setup.frozen else ""),
            *describe_data(config, data, steps, planned.size),
            describe_length(config.data.max_length, architecture),
            f"machine: {machine.text}",
            *describe_memory(setup, machine, steps),
            describe_flops(config, setup, machine, steps, data),
            describe_kernels(config, world),
            f"output: {config.output}",
            "",
            to_toml(config.to_dict()),
        ]
    )


def find_architecture(config: Config) -> tuple[Path, DecoderConfig]:
    """The model's folder; for a Hub model, where no data asks for its tokenizer, the config.json that is kept here."""
    here = Path(config.model.path).exists()
    kept = PUBLISHED / config.model.path
    if not here and not config.data.path and (kept / "config.json").is_file():
        return kept, read_config(kept, weights=False)
    source = resolve_model(config.model.path, weights=here)
    architecture = read_config(source, weights=here)
    if here:
        check_weights(build_model(architecture, "meta"), source)
    return source, architecture


def find_machine(config: Config, setup: Setup, world: World) -> Machine:
    """The machine that is planned for: this one, or --plan.gpus with --plan.memory."""
    asked = config.plan
    assert asked is not None
    dtype = str(setup.dtype).removeprefix("torch.")
    if asked.gpus:
        gib, ranks = asked.memory or 80.0, f"{asked.gpus} GPUs"
        peak = card_flops(CARD) if setup.dtype == torch.bfloat16 else None
        whose = f"an {CARD} SXM's"
    else:
        gib, ranks = (
            asked.memory or device_memory(world.device) / GIB,
            f"{hardware(world.device.type)}, {world.size} ranks",
        )
        peak = peak_flops(world.device, setup.dtype)
        whose = "measured" if world.device.type == "cpu" else "its datasheet's"
    if asked.tflops:
        peak, whose = asked.tflops * 1e12, "--plan.tflops"
    rate = f"{peak / 1e12:.4g} TFLOP/s in {dtype} ({whose})" if peak else f"a peak in {dtype} that is not known"
    return Machine(f"{ranks} of {gib:.4g} GiB and {rate}", gib * GIB, peak)


def first_steps(config: Config, loss: Loss, data: Dataset | None, setup: Setup) -> list[list[Work]]:
    """The micro-batches of the first steps, of all ranks."""
    train = config.train
    if data is None:
        half = config.data.max_length // 2
        group = Lengths(config.data.max_length - half, [half] * (1 if loss.responses in ("one", "unpaired") else 2))
        batches: list[list[HasLengths]] = [[group] * train.batch_size]
        share = True
    else:
        batches = [[data.groups[i] for i in data.global_batch(step)] for step in range(min(data.steps, SAMPLED))]
        share = data.share
    limits = train.micro_batch_size, train.micro_batch_tokens or MICRO_BATCH_TOKENS[setup.device]
    steps = []
    for groups in batches:
        sizes = [Work.of([group], share).tokens for group in groups]
        dealt = [chunk for rank in range(setup.ranks) for chunk, _ in split_batch(sizes, rank, setup.ranks, *limits)]
        steps.append([Work.of([groups[position] for position in chunk], share) for chunk in dealt])
    return steps


def describe_data(config: Config, data: Dataset | None, steps: list[list[Work]], ranks: int) -> list[str]:
    micro_batches = max(len(step) for step in steps) // ranks
    tokens = max(work.tokens for step in steps for work in step)
    each = f"{config.train.batch_size} prompts each: {ranks} ranks x {micro_batches} micro-batches of at most "
    each += f"{tokens:,} tokens"
    if data is None:
        return [
            f"data: not given; every row is taken to be {config.data.max_length} tokens, half of them the prompt",
            f"steps: {config.train.steps or 'as many as the data has'}, {each}",
        ]
    epochs = data.steps * config.train.batch_size / data.n_train
    return [
        f"data: {data.n_train:,} prompts of {len(data.groups[0].response_ids)} responses",
        f"steps: {data.steps}, {each}; {epochs:.2f} epochs",
    ]


def describe_memory(setup: Setup, machine: Machine, steps: list[list[Work]]) -> list[str]:
    works = [work for step in steps for work in step]
    fullest = max(works, key=lambda work: memory(setup, work, True).total)
    accumulates = max(len(step) for step in steps) > setup.ranks
    held = memory(setup, fullest, accumulates)
    lines = [
        "memory: "
        + f"{held.total / GIB:.2f} GiB a rank at its fullest: "
        + ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in held.items() if size),
    ]
    tokens = largest_tokens(setup, fullest, machine.memory, accumulates)
    if held.total <= machine.memory:
        return [*lines, f"it fits: a micro-batch may have {tokens:,} tokens"]
    found = mends(setup, fullest, machine.memory, accumulates)
    return [*lines, f"IT DOES NOT FIT; it would with {', or with '.join(found) or 'no single change'}"]


def describe_flops(
    config: Config, setup: Setup, machine: Machine, steps: list[list[Work]], data: Dataset | None
) -> str:
    needed = sum(model_flops(setup, work) for step in steps for work in step) / len(steps)
    run = sum(step_flops(setup, step) for step in steps) / len(steps)
    text = f"a step: {needed:.3g} FLOPs for the method, {run:.3g} as it is run"
    if not machine.peak:
        return text
    assert config.plan is not None
    seconds = needed / (setup.ranks * machine.peak * config.plan.mfu)
    text += f"; {seconds:.3g} s at an MFU of {config.plan.mfu:.0%} (--plan.mfu)"
    return text + (f", {seconds * data.steps / 3600:.3g} hours for all {data.steps} steps" if data else "")


def describe_kernels(config: Config, world: World) -> str:
    dtype = compute_dtype(config.parallel.dtype, world.device)
    logp, pointwise = resolve_impls(config.model.logp_impl, config.model.pointwise_impl, dtype, world.device)
    reason = evidence.why_not("logp", world.device) if config.model.logp_impl == "auto" else ""
    return f"kernels: {logp} log-probs{reason and f' (auto: {reason})'}; {pointwise} pointwise operations"
