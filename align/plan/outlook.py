"""What a configuration comes to on a machine: its micro-batches, memory, operations and time. It reads no weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from align.config import CONFIGS
from align.data import load_tokenizer
from align.data.batches import Dataset, cut_batch
from align.data.tokenizer import check_fits
from align.errors import UserError
from align.files import reachable
from align.kernels import hardware
from align.models import DecoderConfig, add_adapters, build_model, check_weights, read_config, resolve_model
from align.parallel import World, check_ranks, compute_dtype
from align.plan.devices import card_flops, device_memory, peak_flops
from align.plan.flops import model_flops, step_flops
from align.plan.memory import Memory, assumed_groups, largest_tokens, memory, settle_tokens
from align.plan.setup import Setup, setups_of
from align.plan.shape import HasLengths, Work
from align.sections import Config, PlanSection, settle_length
from align.sources import load_sources

GIB = 2**30
CARD, CARD_GIB = "H100", 80.0  # what --plan.gpus are where nothing else is said
PUBLISHED = CONFIGS / "architectures"  # OWNER/NAME/config.json of Hub models
SAMPLED = 32  # steps whose batches are looked at
MOST_ASSUMED = 10**5  # prompts of a batch that are made up where there is no data


@dataclass(frozen=True)
class Machine:
    text: str
    memory: float  # bytes of a rank
    peak: float | None  # FLOP/s of a rank


@dataclass(frozen=True)
class Part:
    """Of a step, what one source asks for."""

    config: Config  # of that source (Config.each)
    setup: Setup
    data: Dataset | None  # None: none was given
    micro_batches: int  # of a rank in a step
    accumulates: bool  # gradients of others are there by then, if only of another source
    fullest: Work  # the micro-batch that takes the most memory
    held: Memory  # then
    needed: float  # FLOPs of a step, for the method
    run: float  # as this code runs it


@dataclass(frozen=True)
class Outlook:
    source: Path  # of the model's description
    model: DecoderConfig
    machine: Machine
    parts: list[Part]  # of data.path, and of the other sources
    mfu: float

    @property
    def most(self) -> Part:
        """The one that takes the most memory."""
        return max(self.parts, key=lambda part: part.held.total)

    @property
    def setup(self) -> Setup:
        return self.most.setup

    @property
    def fullest(self) -> Work:
        return self.most.fullest

    @property
    def held(self) -> Memory:
        return self.most.held

    @property
    def fits(self) -> bool:
        return self.held.total <= self.machine.memory

    @property
    def micro_batches(self) -> int:
        """Of a rank in a step."""
        return sum(part.micro_batches for part in self.parts)

    @property
    def accumulates(self) -> bool:
        return self.most.accumulates

    @property
    def largest(self) -> int:
        """Tokens that a micro-batch may have, whosever it is."""
        room = self.machine.memory
        return min(largest_tokens(part.setup, part.fullest, room, part.accumulates) for part in self.parts)

    @property
    def needed(self) -> float:
        """FLOPs of a step, for the method."""
        return sum(part.needed for part in self.parts)

    @property
    def run(self) -> float:
        """FLOPs of a step as this code runs it."""
        return sum(part.run for part in self.parts)

    @property
    def seconds(self) -> float | None:
        """Of a step, at --plan.mfu."""
        return self.needed / (self.setup.ranks * self.machine.peak * self.mfu) if self.machine.peak else None


def look(config: Config, world: World) -> Outlook:
    """Settles what the configuration leaves open. Raises UserError for what a run would refuse before it starts."""
    asked = config.plan or PlanSection()
    source, model = find_model(config)
    settle_length(config.data, model.context_length)
    if not config.data.path and config.train.batch_size > MOST_ASSUMED:
        raise UserError(
            f"train.batch_size must be at most {MOST_ASSUMED:,} for a plan without --data; lower it, or give data"
        )
    planned = World(0, asked.gpus or world.size, world.device)
    check_ranks(config.parallel, planned)
    setups = setups_of(config, model, planned)
    if asked.gpus:
        cuda = compute_dtype(config.parallel.dtype, torch.device("cuda"))
        setups = [replace(setup, device="cuda", dtype=cuda) for setup in setups]
    machine = find_machine(asked, setups[0], world)
    settle_tokens(config, setups, machine.memory)
    data: list[Dataset | None] = [None] * len(setups)
    if config.data.path:
        tokenizer = load_tokenizer(source)
        check_fits(tokenizer, model.vocab_size, str(source))
        data = [each.data for each in load_sources(config, tokenizer, planned)]
    steps = [first_steps(each, d, setup.ranks) for each, d, setup in zip(config.each(), data, setups, strict=True)]
    parts = [part_of(*each) for each in zip(config.each(), setups, data, steps, strict=True)]
    return Outlook(source, model, machine, parts, asked.mfu)


def part_of(config: Config, setup: Setup, data: Dataset | None, steps: list[list[Work]]) -> Part:
    """steps: micro-batches of the first steps, of all ranks."""
    micro_batches = max(map(len, steps)) // setup.ranks
    accumulates = micro_batches > 1 or bool(config.source)  # data.path's come first in a step
    fullest = max((work for step in steps for work in step), key=lambda work: memory(setup, work, accumulates).total)
    return Part(
        config,
        setup,
        data,
        micro_batches,
        accumulates,
        fullest=fullest,
        held=memory(setup, fullest, accumulates),
        needed=sum(model_flops(setup, work) for step in steps for work in step) / len(steps),
        run=sum(step_flops(setup, step) for step in steps) / len(steps),
    )


def find_model(config: Config) -> tuple[Path, DecoderConfig]:
    """The model's folder; for a Hub model, where no data asks for its tokenizer, the config.json that is kept here."""
    here = reachable(config.model.path).exists()
    kept = PUBLISHED / config.model.path
    source, weights = kept, False
    if here or config.data.path or not (kept / "config.json").is_file():
        source, weights = resolve_model(config.model.path, weights=here), here
    model = read_config(source, weights=weights)
    whole = add_adapters(build_model(model, "meta"), **vars(config.lora))
    if weights:
        check_weights(whole, source)
    return source, model


def find_machine(asked: PlanSection, setup: Setup, world: World) -> Machine:
    """This machine, or --plan.gpus with --plan.memory."""
    dtype = str(setup.dtype).removeprefix("torch.")
    if asked.gpus:
        gib, ranks = asked.memory or CARD_GIB, f"{asked.gpus} GPUs"
        peak = card_flops(CARD) if setup.dtype == torch.bfloat16 else None
        whose = f"an {CARD} SXM's"
    else:
        gib = asked.memory or device_memory(world.device) / GIB
        ranks = f"{hardware(world.device.type)}, {world.size} rank{'s' * (world.size > 1)}"
        peak = peak_flops(world.device, setup.dtype)
        whose = "measured" if world.device.type == "cpu" else "its datasheet's"
    if asked.tflops:
        peak, whose = asked.tflops * 1e12, "--plan.tflops"
    rate = f"{peak / 1e12:.4g} TFLOP/s in {dtype} ({whose})" if peak else f"a peak in {dtype} that is not known"
    return Machine(f"{ranks} of {gib:.4g} GiB and {rate}", gib * GIB, peak)


def first_steps(config: Config, data: Dataset | None, ranks: int) -> list[list[Work]]:
    """The micro-batches of the first steps, of all ranks."""
    batches: list[list[HasLengths]] = [assumed_groups(config, config.train.batch_size)]
    if data is not None:
        batches = [[data.groups[i] for i in data.global_batch(step)] for step in range(min(data.steps, SAMPLED))]
    share = data is None or data.share
    limits = config.train.micro_batch_size, config.train.micro_batch_tokens, config.flag("batch_size")
    steps = []
    for groups in batches:
        sizes = [Work.of([group], share).tokens for group in groups]
        chunks = cut_batch(sizes, ranks, *limits)
        steps.append([Work.of([groups[position] for position in chunk], share) for chunk, _ in chunks])
    return steps
