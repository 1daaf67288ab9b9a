"""Configuration: typed sections with a line of help for every key, filled from a TOML file and dotted flags.

Later wins: defaults, then --config (FILE.toml, or the name of one in configs/), then flags. Unknown keys, wrong types
and missing values are refused in one line that names the key. A loss brings its own parameters: `[loss]` takes them for
whatever loss runs, `[loss.nca]` only for nca, `--loss.beta` for the one that runs. In a sum such as dpo+sft, `beta`
sets every part that has one, `dpo.beta` only dpo's.
"""

import json
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from align.errors import UserError, nearest
from align.files import read_toml
from align.kernels import IMPLEMENTATIONS
from align.losses import LOSSES, build_loss, loss_classes, loss_parameters, set_parameter
from align.losses.table import overview
from align.tracker import TRACKERS, check_tracker

PACKAGE = Path(__file__).resolve().parent
# an install has them inside the package, a checkout beside it
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())


def key(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class ModelSection:
    path: str = key("", "Hugging Face folder or hub id of the model to align; tiny:base is the embedded one")
    logp_impl: str = key("auto", "how log-probs are computed", ("auto", *IMPLEMENTATIONS))
    pointwise_impl: str = key("auto", "how norms, rotary positions and SwiGLU are", ("auto", "reference", "triton"))
    save_dtype: str = key(
        "auto", "dtype of the exported model/; auto: as the checkpoint", ("auto", "float32", "bfloat16", "float16")
    )


@dataclass
class DataSection:
    path: str = key("", "preference file: .jsonl, .jsonl.gz, .json or .parquet")
    eval_path: str = key("", "held-out preference file, measured as eval/... and never trained on")
    template: str = key("auto", "auto, none, chat or FILE.jinja: how prompts and responses become text")
    max_length: int = key(1024, "most tokens of prompt + response; longer prompts lose their oldest tokens")
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
    alpha: float = key(0.6, "moving: how far the reference goes towards the policy, 0 to 1 (arXiv 2404.09656)")
    every: int = key(512, "moving: steps between two of its moves")


@dataclass
class TrainSection:
    steps: int = key(0, "optimizer steps; 0: as many as --train.epochs takes")
    epochs: float = key(1.0, "passes over the data, where steps is 0")
    batch_size: int = key(32, "prompts per optimizer step, over all ranks")
    micro_batch_size: int = key(4, "most prompts per rank in one forward pass; the rest is gradient accumulation")
    seed: int = key(0, "seed of the data order")
    eval_every: int = key(0, "steps between measurements on data.eval_path; 0: only after the last one")
    checkpoint_every: int = key(0, "steps between checkpoints; 0: only the last one")
    keep_checkpoints: int = key(2, "how many of the newest checkpoints stay on disk")
    tracker: str = key("none", "where metrics go beside metrics.jsonl; trackio has wandb's interface", TRACKERS)


@dataclass
class OptimSection:
    lr: float = key(5e-7, "peak learning rate of AdamW")
    beta1: float = key(0.9, "AdamW beta1")
    beta2: float = key(0.95, "AdamW beta2")
    weight_decay: float = key(0.0, "AdamW weight decay, on matrices only")
    warmup: float = key(0.1, "share of the steps over which the learning rate rises linearly to its peak")
    schedule: str = key(
        "cosine", "after warmup: towards 0 along this curve, or constant", ("cosine", "linear", "constant")
    )
    max_grad_norm: float = key(1.0, "gradients are scaled down to at most this norm")


@dataclass
class ParallelSection:
    dtype: str = key(
        "auto",
        "dtype of compute; parameters and reductions stay float32. auto: bfloat16 on GPUs",
        ("auto", "float32", "bfloat16"),
    )
    activation_checkpointing: bool = key(False, "recompute blocks in backward: less memory, a third more time")


@dataclass
class LossSection:
    name: str = key(
        "nca", "the alignment method, several as dpo+sft with --loss.weights 1,0.5, or module:Class of your own"
    )
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    loss: LossSection = field(default_factory=LossSection)
    reference: ReferenceSection = field(default_factory=ReferenceSection)
    train: TrainSection = field(default_factory=TrainSection)
    optim: OptimSection = field(default_factory=OptimSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    output: str = ""
    resume: bool = False
    plan: bool = False

    def to_dict(self) -> dict[str, Any]:
        """What config.toml of a run holds: every key that shapes the result, none left to a default."""
        out: dict[str, Any] = {"output": self.output}
        for name in SECTIONS:
            section = getattr(self, name)
            out[name] = {f.name: getattr(section, f.name) for f in fields(section) if f.name != "parameters"}
        out["loss"].update(self.loss.parameters)
        return out


SECTIONS = ("model", "data", "loss", "reference", "train", "optim", "parallel")
SHORTHANDS = {"model": "model.path", "data": "data.path", "output": "output"}
SWITCHES = ("resume", "plan")


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A TOML value or the text of a flag, as `kind`; UserError names the key."""
    if kind is list:  # of numbers: a TOML array, or 1,0.5 on the command line
        items = value.split(",") if where.startswith("--") and isinstance(value, str) else value
        if not isinstance(items, list):
            raise UserError(f"{where} must be a list of numbers, not {value!r}")
        return [_convert(item, float, where) for item in items]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    if where.startswith("--") and isinstance(value, str):  # flags are text; a TOML string is never taken for a number
        if kind is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[kind]
    raise UserError(f"{where} must be {wanted}, not {value!r}")


def _set(config: Config, dotted: str, value: Any, where: str) -> None:
    """Set one `section.key`, or `output`; `where` names the flag or the file and key for error messages."""
    section_name, _, name = dotted.partition(".")
    if dotted == "output":
        config.output = _convert(value, str, where)
        return
    section = getattr(config, section_name) if section_name in SECTIONS else None
    known = {f.name: f for f in fields(section) if f.name != "parameters"} if section else {}
    if section_name == "loss" and name not in known:
        _set_loss_parameter(config.loss, name, value, where)
        return
    if name not in known:
        keys = [f"{s}.{f.name}" for s in SECTIONS for f in fields(getattr(config, s)) if f.name != "parameters"]
        keys += [f"loss.{parameter}" for parameter in loss_parameters(config.loss.name)]
        # a key without its section, as other trainers have it: --beta, --lr
        keys = [key for key in keys if key.rpartition(".")[2] == dotted] or keys
        near = nearest(dotted, keys, cutoff=0.0)
        near = near.replace("mean ", "mean --") if where.startswith("--") else near
        raise UserError(f"{where} is not a configuration key{near}")
    choices = known[name].metadata["choices"]
    value = _convert(value, known[name].type, where)
    if choices and value not in choices:
        raise UserError(
            f"{where} cannot be {value!r}{nearest(value, choices, cutoff=0.0)} There are: {', '.join(choices)}"
        )
    setattr(section, name, value)


def _set_loss_parameter(loss: LossSection, name: str, value: Any, where: str) -> None:
    """Set a parameter of the loss that runs, which must be known by now."""
    kinds = {key.rpartition(".")[2]: type(default) for key, default in loss_parameters(loss.name).items()}
    kind = kinds.get(name.rpartition(".")[2])
    try:
        set_parameter(loss.name, loss.parameters, name, _convert(value, kind, where) if kind else value)
    except ValueError as error:
        raise UserError(str(error)) from None


def _set_tables(config: Config, tables: dict[str, Any], path: Path) -> None:
    """Apply a TOML file. Of the tables [loss.NAME], only those of the loss that runs, or of its parts, count."""
    for section, table in tables.items():
        if not isinstance(table, dict):
            _set(config, section, table, f"{path}: {section}")
            continue
        # tables have no order: what [loss] says for whatever loss runs comes before what [loss.NAME] says for one
        for name, value in sorted(table.items(), key=lambda item: isinstance(item[1], dict)):
            if section == "loss" and isinstance(value, dict):
                if ":" in name and name not in config.loss.name.split("+"):
                    continue  # module:Class of another run, which is not imported to check its parameters
                if name not in LOSSES and ":" not in name:
                    raise UserError(f"{path}: [loss.{name}] is not a loss{nearest(name, LOSSES, cutoff=0.0)}")
                for parameter, v in value.items():
                    if parameter not in loss_parameters(name):
                        raise UserError(f"{path}: loss.{name}.{parameter} is not a parameter of {name}")
                    if name in loss_classes(config.loss.name):
                        _set(config, f"loss.{name}.{parameter}", v, f"{path}: loss.{name}.{parameter}")
            else:
                _set(config, f"{section}.{name}", value, f"{path}: {section}.{name}")


def _read_flags(argv: list[str]) -> dict[str, Any]:
    """`--a.b value`, `--a.b=value` and bare switches, as {flag: value}."""
    flags: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; every setting is a flag, such as --loss nca")
        name, equals, value = word[2:].partition("=")
        if name in SWITCHES:
            if equals:
                raise UserError(f"--{name} is a switch and takes no value")
            flags[name] = True
        elif equals:
            flags[name] = value
        elif rest and not rest[0].startswith("--"):
            flags[name] = rest.pop(0)
        else:
            raise UserError(f"--{name} needs a value")
    return flags


def _config_file(name: str) -> Path:
    """A file, or the one of that name in configs/, which an install has, too."""
    file = Path(name)
    if file.suffix or file.exists():
        return file
    known = sorted(file.stem for file in CONFIGS.glob("*.toml"))
    if name not in known:
        raise UserError(
            f"--config {name}: there is no such file, and configs/ has {', '.join(known)}{nearest(name, known)}"
        )
    return CONFIGS / f"{name}.toml"


def load_config(argv: list[str]) -> Config:
    """The resolved configuration of a command line. Raises UserError for anything the user can fix."""
    flags = _read_flags(argv)
    config = Config()
    path = flags.pop("config", None)
    if path is None and "model" not in flags and "model.path" not in flags:
        path = "tiny"
    if path is not None:
        path = str(_config_file(path))
    tables = read_toml(Path(path)) if path is not None else {}
    # which loss runs decides what its parameters are, so it is settled first
    section = tables.get("loss", {})
    if not isinstance(section, dict):
        raise UserError(f'{path}: loss is a table; write [loss] and, below it, name = "{section}"')
    named = section.pop("name", None)
    if named is not None:
        config.loss.name = _convert(named, str, f"{path}: loss.name")
    config.loss.name = flags.pop("loss", flags.pop("loss.name", None)) or config.loss.name
    try:
        loss_classes(config.loss.name)
    except ValueError as error:
        raise UserError(str(error)) from None
    _set_tables(config, tables, Path(path or ""))
    for name in SWITCHES:
        setattr(config, name, bool(flags.pop(name, False)))
    for name, value in flags.items():
        _set(config, SHORTHANDS.get(name, name), value, f"--{name}")
    _check(config)
    if not config.output:
        config.output = f"runs/{Path(path).stem if path else 'align'}-{config.loss.name}".replace(":", ".")
    return config


def _check(config: Config) -> None:
    for name, flag in (("model", "--model DIR"), ("data", "--data FILE")):
        if not getattr(config, name).path:
            raise UserError(f"{name}.path is missing; give {flag} or set it in --config")
    config.loss.parameters = loss_parameters(config.loss.name) | config.loss.parameters
    try:
        loss = build_loss(config.loss.name, **config.loss.parameters)
    except ValueError as error:
        raise UserError(str(error)) from None
    check_tracker(config.train.tracker)
    whole = "kl" in loss.token_inputs  # log-probs of the responses alone cannot be looked up for it
    if config.reference.mode == "auto":
        config.reference.mode = "live" if whole or loss.nonsmooth_at_reference else "cached"
    if config.reference.mode == "cached" and whole:
        raise UserError(
            f"reference.mode: {config.loss.name} compares whole distributions, which are not cached; use live"
        )
    for name in ("logp_impl", "pointwise_impl"):
        if getattr(config.model, name) == "triton" and not (find_spec("triton") and torch.cuda.is_available()):
            raise UserError(f"model.{name} triton takes a GPU and the package triton (pip install .[gpu]); use auto")
    moves, usual = config.reference, ReferenceSection()
    if moves.mode == "moving" and not loss.needs_reference:
        raise UserError(f"reference.mode moving: {config.loss.name} has no reference; leave it out")
    if moves.mode != "moving" and (moves.alpha, moves.every) != (usual.alpha, usual.every):
        raise UserError(f"reference.alpha and reference.every are for --reference.mode moving, not {moves.mode}")
    if not 0 < config.reference.alpha <= 1:
        raise UserError(f"reference.alpha must be greater than 0 and at most 1, not {config.reference.alpha}")
    at_least: dict[str, float] = {
        "train.batch_size": 1,
        "train.micro_batch_size": 1,
        "train.keep_checkpoints": 1,
        "data.max_length": 2,
    }
    at_least["reference.every"] = 1
    at_least |= dict.fromkeys(("train.steps", "train.epochs", "train.checkpoint_every", "train.eval_every"), 0)
    at_least |= dict.fromkeys(("optim.lr", "optim.warmup", "optim.weight_decay", "train.seed"), 0)
    at_least |= dict.fromkeys(("optim.beta1", "optim.beta2"), 0)
    for dotted, least in at_least.items():
        section, name = dotted.split(".")
        if (value := getattr(getattr(config, section), name)) < least or value != value:
            raise UserError(f"{dotted} must be at least {least}, not {value}")
    if max(config.optim.beta1, config.optim.beta2) >= 1:
        raise UserError("optim.beta1 and optim.beta2 must be less than 1")
    if not config.optim.max_grad_norm > 0:
        raise UserError(
            f"optim.max_grad_norm must be greater than 0, not {config.optim.max_grad_norm}; inf clips nothing"
        )


def help_text() -> str:
    """--help: every flag with its default, from the same dataclasses that check them."""
    lines = [
        "usage: torchrun [--nproc-per-node N] train.py [--config FILE.toml] --loss NAME [--model DIR] [--data FILE]",
        "                [--output DIR] [--resume] [--plan] [--SECTION.KEY VALUE ...]",
        "",
        "--config falcon-11b is configs/falcon-11b.toml, wherever that was installed.",
        "With neither --config nor --model: configs/tiny.toml, a toy world that runs on a laptop CPU.",
        "  --resume   continue from the newest checkpoint of --output",
        "  --plan     say what would be done (parameters, steps, memory, resolved configuration) and stop",
        "",
        "--loss NAME, with the parameters that --loss.KEY sets; several are added as --loss dpo+sft --loss.weights 1,0.5:",
        overview(),
    ]
    for section in SECTIONS:
        if section != "loss":
            lines += ["", f"[{section}]"]
            for f in fields(getattr(Config(), section)):
                choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
                lines.append(f"  --{section}.{f.name} {json.dumps(f.default)}: {f.metadata['help']}{choices}")
    return "\n".join(lines)
