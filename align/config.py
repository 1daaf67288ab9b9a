"""Configuration: typed sections with a line of help for every key, filled from a TOML file and dotted flags.

Later wins: defaults, then --config (FILE.toml, or the name of one in configs/), then flags. Unknown keys, wrong types
and missing values are refused in one line that names the key. A loss brings its own parameters: `[loss]` takes them for
whatever loss runs, `[loss.nca]` only for nca, `--loss.beta` for the one that runs. In a sum such as dpo+sft, `beta`
sets every part that has one, `dpo.beta` only dpo's. A source has its own: `[sources.NAME]`, `--sources.NAME.beta`.
"""

import hashlib
import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from align.errors import UserError, nearest
from align.files import flatten, is_unicode, reachable, read_toml
from align.losses import LOSSES, loss_classes, loss_parameters, set_parameter
from align.losses.table import overview
from align.sections import (
    FREE_KEYS,
    RETIRED,
    SECTIONS,
    SHORTHANDS,
    SWITCHES,
    TAKEN,
    Config,
    PlanSection,
    SourceSection,
)
from align.settings import check_settings

# what a flag may write a number as: int() and float() also take digits of other scripts, and 1_000
NUMBERS: dict[Any, re.Pattern[str]] = {
    int: re.compile(r"[+-]?[0-9]{1,200}"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|inf|-inf|nan"),
}
PACKAGE = Path(__file__).resolve().parent
# an install has them inside the package, a checkout beside it
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A TOML value or the text of a flag, as `kind`; UserError names the key."""
    if kind is list:  # of numbers: a TOML array, or 1,0.5 on the command line
        items = value.split(",") if where.startswith("--") and isinstance(value, str) else value
        if not isinstance(items, list):
            raise UserError(f"{where} must be a list of numbers, not {value!r}")
        return [_convert(item, float, where) for item in items]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(str(value))  # inf where float(value) overflows
    if kind is str and isinstance(value, str) and ("\0" in value or not is_unicode(value)):
        raise UserError(f"{where} must be text without NUL, in UTF-8, not {value!r}")
    if type(value) is kind:
        return value
    if where.startswith("--") and isinstance(value, str):  # flags are text; a TOML string is never taken for a number
        if kind is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind in NUMBERS and NUMBERS[kind].fullmatch(value):
            return kind(value)
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[kind]
    raise UserError(f"{where} must be {wanted}, not {value!r}")


def _set(config: Config, dotted: str, value: Any, where: str) -> None:
    """Set one `section.key`, or `output`; `where` names the flag or the file and key for error messages."""
    section_name, _, name = dotted.partition(".")
    if dotted == "output":
        config.output = _convert(value, str, where)
        return
    if section_name == "plan" and where.startswith("--"):
        config.plan = config.plan or PlanSection()  # whoever says for what machine wants a plan
    section = getattr(config, section_name) if section_name in (*SECTIONS, "plan") else None
    known = {f.name: f for f in fields(section) if f.name != "parameters"} if section else {}
    if section_name == "loss" and name not in known:
        try:
            _set_loss_parameter(config.loss.name, config.loss.parameters, name, value, where)
        except ValueError as error:
            raise UserError(str(error)) from None
        return
    if dotted in RETIRED:
        raise UserError(f"{where} has become {RETIRED[dotted]}")
    if name not in known:
        sections = config.tables | ({"plan": config.plan} if config.plan else {})
        keys = [f"{s}.{f.name}" for s, section in sections.items() for f in fields(section) if f.name != "parameters"]
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


def _set_loss_parameter(loss: str, parameters: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Set a parameter of a loss that is settled. Raises ValueError for one that it has not."""
    kinds = {key.rpartition(".")[2]: type(default) for key, default in loss_parameters(loss).items()}
    kind = kinds.get(name.rpartition(".")[2])
    set_parameter(loss, parameters, name, _convert(value, kind, where) if kind else value)


def _check_loss(name: str, where: str = "") -> str:
    """The name of a loss that there is. Raises UserError."""
    try:
        loss_classes(name)
    except ValueError as error:
        raise UserError(f"{where}{error}") from None
    return name


def _of_source(name: str) -> bool:
    return name.partition(".")[0] == "sources"


def _source_settings(tables: Any, path: str | None, flags: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """What a file's [sources.NAME] and then the flags say of sources: key, value, where it stands.

    Losses come first, since which one a source has decides what its other keys can be.
    """
    named = tables if isinstance(tables, dict) else {"": tables}
    flat = flatten({"sources": {name: table or None for name, table in named.items()}})  # an empty one, too
    settings = [(name, value, f"{path}: {name}") for name, value in flat.items()]
    settings += [(name, value, f"--{name}") for name, value in flags.items() if _of_source(name)]
    return sorted(settings, key=lambda setting: setting[0].split(".")[2:] != ["loss"])


def _set_source(config: Config, dotted: str, value: Any, where: str) -> None:
    """Set one sources.NAME.key. A source is there once a key of it is."""
    _, name, key = [*dotted.split(".", 2), "", ""][:3]
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not key:
        raise UserError(
            f"{where}: a source is a table [sources.NAME] with path = FILE, NAME being letters, digits, - and _"
        )
    if name in TAKEN:
        raise UserError(f"{where}: {name} means something else in the metrics; give the source another name")
    source = config.sources.setdefault(name, SourceSection())
    known = {f.name: f.type for f in fields(source) if f.name != "parameters"}
    if key in known:
        value = _convert(value, known[key], where)
        setattr(source, key, _check_loss(value, f"{where}: ") if key == "loss" else value)
        return
    try:
        _set_loss_parameter(source.loss, source.parameters, key, value, where)
    except ValueError as error:
        raise UserError(f"{where} is no key of a source ({', '.join(known)}), and {error}") from None


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
        if equals and not value:
            raise UserError(f"--{name} needs a value")
        if name in SWITCHES:
            if equals:
                raise UserError(f"--{name} is a switch and takes no value")
            flags[name] = "true"
        elif equals:
            flags[name] = value
        elif rest and not rest[0].startswith("--"):
            flags[name] = rest.pop(0)
        else:
            raise UserError(f"--{name} needs a value")
    return flags


def _config_file(name: str) -> Path:
    """A file, or the one of that name in configs/, which an install has, too."""
    file = reachable(name)
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
    _check_loss(config.loss.name)
    for setting in _source_settings(tables.pop("sources", {}), path, flags):
        _set_source(config, *setting)
    _set_tables(config, tables, Path(path or ""))
    config.resume = bool(flags.pop("resume", False))
    config.plan = PlanSection() if flags.pop("plan", False) else None
    config.override = tuple(filter(None, flags.pop("override", "").split(",")))
    # torchrun --max-restarts starts a dead run again with the same arguments
    config.restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    for name, value in flags.items():
        if not _of_source(name):
            _set(config, SHORTHANDS.get(name, name), value, f"--{name}")
    check_settings(config)
    if not config.output:
        name = f"{Path(path).stem if path else 'align'}-{config.loss.name}".replace(":", ".")
        config.output = _free_output(f"runs/{name}", _settings_suffix(flags), config.resume or config.restarted)
    return config


def _free_output(folder: str, suffix: str, resume: bool) -> str:
    """The folder, or where it is in use with the suffix behind it, so that a run of other settings finds a place.

    resume: the folder that these settings had then.
    """
    longer = Path(folder + suffix)
    in_use = Path(folder).is_dir() and any(Path(folder).iterdir())
    return str(longer) if (longer.exists() if resume else in_use) else folder


def _settings_suffix(flags: dict[str, str]) -> str:
    """What the flags add to the name of an output that another run has: -beta-0.5.

    Of a path it has the name; where that, or a cut, leaves something out, a hash follows.
    """
    settings = {SHORTHANDS.get(name, name): value for name, value in flags.items()}
    settings = {name: settings[name] for name in sorted(settings) if name not in FREE_KEYS}
    labels = {name: name.removesuffix(".path").rpartition(".")[2] for name in settings}
    labels |= {name: name.removeprefix("sources.") for name in settings if _of_source(name)}
    whole = "".join(f"-{labels[name]}-{value}" for name, value in settings.items())
    if re.fullmatch(r"[\w.,+-]{0,60}", whole):
        return whole
    names = "".join(f"-{labels[name]}-{Path(value).name}" for name, value in settings.items())
    names = re.sub(r"[^-\w.,+]", ".", names)[:60]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    return f"{names}-{digest}"


def help_text() -> str:
    """--help: every flag with its default, from the same dataclasses that check them."""
    lines = [
        "usage: torchrun [--nproc-per-node N] train.py [--config FILE.toml] --loss NAME [--model DIR] [--data FILE]",
        "                [--output DIR] [--resume [--override KEY]] [--plan] [--SECTION.KEY VALUE ...]",
        "",
        "--config falcon-11b is configs/falcon-11b.toml, wherever that was installed.",
        "With neither --config nor --model: configs/tiny.toml, a toy world that runs on a laptop CPU.",
        "  --resume   continue from the newest whole checkpoint of --output",
        "  --override KEY,KEY   what may differ from the run that --resume continues, such as optim.lr",
        "  --deterministic   the same bits again on the same machine (docs/determinism.md)",
        "  --plan     say what would be done (parameters, steps, memory, time, resolved configuration) and stop",
        "",
        "--loss NAME, with the parameters that --loss.KEY sets; several are added as --loss dpo+sft --loss.weights 1,0.5:",
        overview(),
    ]
    config = Config(plan=PlanSection())
    for section in (*SECTIONS, "plan"):
        if section != "loss":
            lines += ["", f"[{section}]" if section != "plan" else "[plan], flags alone; each asks for a plan:"]
            for f in fields(getattr(config, section)):
                choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
                lines.append(f"  --{section}.{f.name} {json.dumps(f.default)}: {f.metadata['help']}{choices}")
    lines += ["", "[sources.NAME], any number of them, beside data.path in every step (docs/sources.md):"]
    for f in fields(SourceSection):
        if f.name != "parameters":
            lines.append(f"  --sources.NAME.{f.name} {json.dumps(f.default)}: {f.metadata['help']}")
    return "\n".join(lines)
