"""What there is to configure: typed sections, with a line of help, the choices and the bounds of every key."""

import math
import operator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from align.errors import UserError
from align.kernels import IMPLEMENTATIONS
from align.losses import Loss, build_loss
from align.tracker import TRACKERS

BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
# they say where and how often files are written and in which dtype, when to stop, what is computed twice, and how many
# replicas the processes make, which must be able to change with their number; but for rounding, no number depends on them
FREE_KEYS = (
    "output",
    "model.save_dtype",
    "train.micro_batch_tokens",
    "train.micro_batch_size",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_bad_steps",
    "train.tracker",
    "train.profile",
    "reference.cache",
    "parallel.checkpointing",
    "parallel.replicate",
)
# what earlier versions called something else
RETIRED = {"parallel.activation_checkpointing": "parallel.checkpointing; write full for true, none for false"}
MAX_STEPS, MAX_GPUS = 10**9, 10**5
MAX_LENGTH = 1024  # where neither data.max_length nor the model's context says less


def key(default: Any, help: str, choices: tuple[str, ...] = (), hint: str = "", **bounds: float) -> Any:
    """bounds: by the names of BOUNDS. hint: what to do instead of a value beyond them."""
    return field(default=default, metadata={"help": help, "choices": choices, "hint": hint, "bounds": bounds})


@dataclass
class ModelSection:
    path: str = key("", "Hugging Face folder or hub id of the model to align; tiny:base is the embedded one")
    logp_impl: str = key("auto", "how log-probs are computed", ("auto", *IMPLEMENTATIONS))
    attention_impl: str = key(
        "rows",
        "how attention over prompts and responses is: padded rows, or PyTorch's varlen_attn on a GPU",
        ("rows", "varlen"),
    )
    pointwise_impl: str = key("auto", "how norms, rotary positions and SwiGLU are", ("auto", "reference", "triton"))
    save_dtype: str = key(
        "auto", "dtype of the exported model/; auto: as the checkpoint", ("auto", "float32", "bfloat16", "float16")
    )


@dataclass
class LoraSection:
    rank: int = key(
        0, "rank of adapters that are trained in place of the weights (arXiv 2106.09685); 0: none", at_least=0
    )
    alpha: float = key(32.0, "an adapter's product is added times alpha / rank", above=0, below=math.inf)
    targets: str = key("all", "linear maps of the blocks that get an adapter", ("all", "attention", "mlp-up"))


@dataclass
class DataSection:
    path: str = key("", "preference file: .jsonl, .json, .csv or .parquet, or hf://OWNER/NAME[:FILE] of the Hub")
    eval_path: str = key("", "held-out preference file, measured as eval/... and never trained on")
    template: str = key("auto", "auto, none, chat or FILE.jinja: how prompts and responses become text")
    max_length: int = key(
        0,
        "most tokens of prompt + response, the oldest of a longer prompt are left out; "
        f"0: {MAX_LENGTH}, or the model's context where that is shorter",
        at_least=0,
    )
    beyond_context: bool = key(False, "allow a max_length beyond the context that the model was made for")
    overlong: str = key("drop", "a response that does not fit", ("drop", "error", "truncate"))
    bad_rows: str = key(
        "auto",
        "a row that cannot be used: stop, or drop and count; auto stops, but for the few dialogues whose last turn is empty",
        ("auto", "error", "drop"),
    )


@dataclass
class ReferenceSection:
    mode: str = key(
        "auto",
        "log-probs computed once and kept, by a live frozen copy, or by one that follows the policy (TR-DPO). "
        "auto: cached, but live for a loss that compares whole distributions",
        ("auto", "cached", "live", "moving"),
    )
    cache: str = key("runs/reference-cache", "folder for cached reference log-probs, keyed by model and data")
    alpha: float = key(
        0.6, "moving: how far the reference goes towards the policy, 0 to 1 (arXiv 2404.09656)", above=0, at_most=1
    )
    every: int = key(512, "moving: steps between two of its moves", at_least=1)


@dataclass
class TrainSection:
    steps: int = key(0, "optimizer steps; 0: as many as --train.epochs takes", at_least=0, at_most=MAX_STEPS)
    epochs: float = key(1.0, "passes over the data, where steps is 0", above=0, below=math.inf)
    batch_size: int = key(32, "prompts per optimizer step, over all ranks", at_least=1)
    micro_batch_tokens: int = key(
        0,
        "most tokens per rank in one forward pass, the rest is gradient accumulation; 0: what suits the device",
        at_least=0,
    )
    micro_batch_size: int = key(0, "most prompts per rank in one forward pass; 0: any number", at_least=0)
    seed: int = key(0, "seed of the data order and of fresh adapters", at_least=0, at_most=2**40)
    deterministic: bool = key(
        False, "the same bits again on the same machine, in some operations slower; --deterministic"
    )
    eval_every: int = key(0, "steps between measurements on data.eval_path; 0: only after the last one", at_least=0)
    stop_when: str = key("", 'a rule on those measurements that ends the run, such as "eval/rewards/accuracy >= 0.98"')
    checkpoint_every: int = key(0, "steps between checkpoints; 0: only the last one", at_least=0)
    keep_checkpoints: int = key(2, "how many of the newest checkpoints stay on disk", at_least=1)
    max_bad_steps: int = key(
        0, "steps that may be left out because a number is not finite, before the run stops", at_least=0
    )
    tracker: str = key("none", "where metrics go beside metrics.jsonl; trackio has wandb's interface", TRACKERS)
    profile: int = key(0, "how many steps, from the third on, are traced into OUTPUT/profile; 0: none", at_least=0)


@dataclass
class OptimSection:
    lr: float = key(5e-7, "peak learning rate of AdamW", at_least=0, at_most=1e30)
    beta1: float = key(0.9, "AdamW beta1", at_least=0, below=1)
    beta2: float = key(0.95, "AdamW beta2", at_least=0, below=1)
    weight_decay: float = key(0.0, "AdamW weight decay, on matrices only", at_least=0, below=math.inf)
    warmup: float = key(
        0.1,
        "share of the steps over which the learning rate rises linearly to its peak",
        hint="it is a share of the steps, not their number",
        at_least=0,
        at_most=1,
    )
    schedule: str = key(
        "cosine", "after warmup: towards 0 along this curve, or constant", ("cosine", "linear", "constant")
    )
    max_grad_norm: float = key(1.0, "gradients are scaled down to at most this norm", hint="inf clips nothing", above=0)
    project: str = key(
        "", "a source whose gradient's direction is taken out of the others', per parameter (OGPSA, arXiv 2602.07892)"
    )
    ema: float = key(
        0.0,
        "decay of an exponential moving average of the weights, which is then the model that is exported; 0: none",
        at_least=0,
        below=1,
    )


@dataclass
class ParallelSection:
    dtype: str = key(
        "auto",
        "dtype of compute; parameters and reductions stay float32. auto: bfloat16 on GPUs",
        ("auto", "float32", "bfloat16"),
    )
    checkpointing: str = key(
        "none",
        "compute blocks again in backward, for less memory: all of a block (full, a third more time), or all but its "
        "attention (selective)",
        ("none", "selective", "full"),
    )
    compile: str = key(
        "auto", "torch.compile of blocks; auto: off, until a card has shown that it pays", ("auto", "on", "off")
    )
    replicate: int = key(
        1, "copies of the model, each sharded over its part of the processes; 1 where they all fit one node", at_least=1
    )


@dataclass
class LossSection:
    name: str = key(
        "nca", "the alignment method, several as dpo+sft with --loss.weights 1,0.5, or module:Class of your own"
    )
    parameters: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Loss:
        return build_loss(self.name, **self.parameters)


@dataclass
class SourceSection:
    """A file that a run learns from beside data.path, under a loss of its own, whose parameters stand here, too."""

    path: str = key("", "the file, in any shape that data.path may have")
    loss: str = key("sft", "any loss; its parameters are keys of the source, too")
    weight: float = key(1.0, "what its loss, a mean over its prompts, is multiplied by", above=0, below=math.inf)
    batch_size: int = key(0, "its prompts per optimizer step, over all ranks; 0: train.batch_size", at_least=0)
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class PlanSection:
    """For what machine --plan plans; no file can ask for a plan."""

    gpus: int = key(0, "plan for this many GPUs, wherever it runs; 0: for this machine", at_least=0, at_most=MAX_GPUS)
    memory: float = key(0.0, "GiB of each; 0: 80, or what this machine has", at_least=0, below=math.inf)
    tflops: float = key(
        0.0,
        "dense TFLOP/s of each in the dtype of compute; 0: an H100's, or this machine's",
        at_least=0,
        below=math.inf,
    )
    mfu: float = key(0.4, "the share of that which a step is taken to use", above=0, at_most=1)


@dataclass
class Config:
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    loss: LossSection = field(default_factory=LossSection)
    reference: ReferenceSection = field(default_factory=ReferenceSection)
    train: TrainSection = field(default_factory=TrainSection)
    optim: OptimSection = field(default_factory=OptimSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    sources: dict[str, SourceSection] = field(default_factory=dict)
    source: str = ""  # whose configuration this is (`each`); empty: data.path's
    output: str = ""
    resume: bool = False
    override: tuple[str, ...] = ()  # keys that may differ from the run that --resume continues
    restarted: bool = False  # by torchrun --max-restarts
    job: str = ""  # Rendezvous.job
    plan: PlanSection | None = None  # None: run

    @property
    def tables(self) -> dict[str, Any]:
        """Every section by its dotted name; those of sources are sources.NAME."""
        return {name: getattr(self, name) for name in SECTIONS} | {f"sources.{n}": s for n, s in self.sources.items()}

    def to_dict(self) -> dict[str, Any]:
        """What config.toml of a run holds: every key that shapes the result, none left to a default."""
        out = {"output": self.output} | {name: keys_of(getattr(self, name)) for name in SECTIONS}
        sources = {name: keys_of(source) for name, source in self.sources.items()}
        return out | ({"sources": sources} if sources else {})

    def each(self) -> list["Config"]:
        """The configuration of everything that a run learns from: its own, of data.path, and its sources'."""
        # the one that others are projected off comes last, when their gradient is whole
        return [self, *map(self.of_source, sorted(self.sources, key=lambda name: name == self.optim.project))]

    def of_source(self, name: str) -> "Config":
        """This configuration with data.path, its loss, its batch size and its reference replaced by a source's."""
        own = self.sources[name]
        loss = LossSection(own.loss, own.parameters)
        built, mode = loss.build(), self.reference.mode
        # what has no live reference yet gets one where the loss cannot do without
        live = mode == "cached" and (built.needs_distributions or built.nonsmooth_at_reference)
        return replace(
            self,
            data=replace(self.data, path=own.path, eval_path=""),
            loss=loss,
            reference=replace(self.reference, mode="live" if live else mode),
            train=replace(self.train, batch_size=own.batch_size or self.train.batch_size),
            source=name,
        )

    def flag(self, key: str) -> str:
        """The flag that sets what is "loss" or "batch_size" here, for messages."""
        usual = {"loss": "--loss", "batch_size": "--train.batch_size"}
        return f"--sources.{self.source}.{key}" if self.source else usual[key]


SECTIONS = ("model", "lora", "data", "loss", "reference", "train", "optim", "parallel")
SHORTHANDS = {"model": "model.path", "data": "data.path", "output": "output", "deterministic": "train.deterministic"}
SWITCHES = ("resume", "plan", "deterministic")
# metrics begin with a source's name, and with these
TAKEN = ("data", "eval", "rewards", "logps", "log_ratios")


def keys_of(section: Any) -> dict[str, Any]:
    """A section's keys, and the parameters of its loss if it has one."""
    own = {f.name: getattr(section, f.name) for f in fields(section) if f.name != "parameters"}
    return own | getattr(section, "parameters", {})


def check_bounds(config: Config) -> None:
    """Raise UserError for a number beyond its key's bounds."""
    for name, section in (config.tables | ({"plan": config.plan} if config.plan else {})).items():
        for f in fields(section):
            value, hint = getattr(section, f.name), f.metadata.get("hint")
            for words, bound in f.metadata.get("bounds", {}).items():
                if not BOUNDS[words](value, bound):  # NaN is beyond every bound
                    wanted = f"{words.replace('_', ' ')} {bound}"
                    raise UserError(f"{name}.{f.name} must be {wanted}, not {value}{hint and f'; {hint}'}")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise UserError(f"{name}.{f.name} must be below 2^63")


def settle_length(data: DataSection, context: int) -> None:
    """Settle data.max_length for a model made for `context` tokens. Raises UserError."""
    if data.max_length > context and not data.beyond_context:
        raise UserError(
            f"data.max_length {data.max_length}: the model was made for a context of {context} tokens; lower it, or set "
            "--data.beyond_context true"
        )
    data.max_length = data.max_length or min(MAX_LENGTH, context)
