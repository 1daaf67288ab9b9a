"""A model's folder before it is read: which one a path means, whether its files are there, where its tensors are."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from align.errors import UserError, one_line
from align.files import reachable, read_json

STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# vocab.txt and merges.txt are the tokenizer of a classifier that has no tokenizer.json
DESCRIPTION = ("*.json", "*.jinja", "tokenizer*", "vocab.txt", "merges.txt")
WEIGHTS = "*.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# what an adapter's folder may have of its own; the rest is its base's
ADAPTER_FILES = (
    "adapter_*",
    "tokenizer*",
    "*tokens*.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
)
LFS_POINTER = b"version https://git-lfs"
# what torch.compile, DistributedDataParallel, FSDP and activation checkpointing put into the names of a state dict
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def resolve_model(path: Path | str, weights: bool = True, revision: str | None = None) -> Path:
    """The folder of a model: an existing one, the model/ of a run, or that of a Hub id, fetched into the Hub's cache.

    A PEFT adapter becomes a folder of links, to the files of its base and to its own. weights: False leaves the weights
    of a Hub id where they are. revision: of a Hub id. Raises UserError, also for a folder that holds something else that
    is recognised (a checkpoint of a run) and for one whose files are not all there.
    """
    folder = reachable(path)
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder}: a link that leads nowhere")
    if folder.exists():
        folder = model_folder(folder)
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
        folder = fetch(str(path), weights, revision)
    else:
        address = re.match(r"(?:hf://|https://huggingface\.co/)([\w.-]+/[\w.-]+)", str(path))
        raise UserError(f"{path}: no such folder" + (f"; give the Hub's model as {address[1]}" if address else ""))
    if folder.is_dir():
        check_files(folder)
        if any((folder / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
            folder = on_its_base(folder, weights)
    return folder


def fetch(hub_id: str, weights: bool, revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*DESCRIPTION, *([WEIGHTS] if weights else [])]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # whatever the network, the Hub, the disk or a gate raises means the same to the user
        raise UserError(f"{hub_id}: no such folder, and fetching it from the Hub failed ({one_line(error)})") from None


def model_folder(folder: Path) -> Path:
    """An existing folder, or the one inside it that is meant. Raises UserError for what belongs to a run but is no model."""
    if (folder / "config.json").exists():
        return folder
    if (folder / "model" / "config.json").exists():  # of a run
        return folder / "model"
    if (folder / "config.toml").is_file() or (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: this run has no model/ yet; finish it with train.py --resume")
    if any(folder.glob("state.json")) or any(folder.glob("step-*/state.json")):
        run = folder.parent.parent if folder.name != "checkpoints" else folder.parent
        rest = (
            f"give {run}"
            if (run / "model").is_dir()
            else f"finish the run {run} with --resume, which writes its model/"
        )
        raise UserError(f"{folder}: a checkpoint, from which train.py --resume goes on, not a model; {rest}")
    snapshots = sorted((folder / "snapshots").glob("*"))  # of a model in the Hub's cache
    return snapshots[0] if len(snapshots) == 1 else folder


def model_files(folder: Path) -> list[Path]:
    """The files that decide what the model of a folder computes, sorted."""
    return sorted(f for pattern in ("config.json", ADAPTER_CONFIG, WEIGHTS) for f in folder.glob(pattern))


def check_files(folder: Path) -> None:
    """Raise UserError for a file that is not there, though its name is."""
    for file in sorted(folder.iterdir()):
        if file.is_dir() or not any(file.match(pattern) for pattern in (*DESCRIPTION, WEIGHTS)):
            continue
        if not file.exists():
            raise UserError(f"{file}: a link that leads nowhere; download the model again")
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{file}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


@cache
def links() -> tempfile.TemporaryDirectory:
    """Where this process keeps its folders of links, until it ends."""
    return tempfile.TemporaryDirectory(prefix="align-")


def on_its_base(folder: Path, weights: bool) -> Path:
    """An adapter's folder laid over that of its base, as a folder of links. Raises UserError."""
    if Path(links().name) in folder.parents:
        return folder  # it is one already
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise UserError(f"{file}: no such file; an adapter needs it")
    if weights and not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{folder}: no {ADAPTER_WEIGHTS}; save the adapter as safetensors")
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        raise UserError(f"{folder}: holds a model and an adapter ({ADAPTER_WEIGHTS}); move one of them elsewhere")
    about = read_json(file)
    base = about.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{file}: base_model_name_or_path is missing; write the base's folder or Hub id")
    if reachable(folder / base).exists() and not reachable(base).exists():
        base = str(folder / base)
    try:
        under = resolve_model(base, weights, about.get("revision"))
    except UserError as error:
        raise UserError(f"{file}: base_model_name_or_path {error}") from None
    if (under / ADAPTER_CONFIG).exists():
        raise UserError(
            f"{file}: base_model_name_or_path {base} is an adapter itself; merge it first, and name the result"
        )
    whole = Path(tempfile.mkdtemp(dir=links().name)) / f"{folder.absolute().name}-on-{under.absolute().name}"
    whole.mkdir()
    for origin, patterns in ((under, ("*",)), (folder, ADAPTER_FILES)):
        for found in (file for pattern in patterns for file in origin.glob(pattern)):
            (whole / found.name).unlink(missing_ok=True)
            (whole / found.name).symlink_to(found.absolute())
    return whole


def linked(file: Path) -> Path:
    """The user's name of a file in a folder of links, of which each is absolute; the Hub's are not."""
    return file.readlink() if file.is_symlink() and file.readlink().is_absolute() else file


class Stored(NamedTuple):
    """Where a tensor is: the file, and its name there."""

    file: Path
    name: str


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Where each tensor of the folder is, by its name without WRAPPERS. Raises UserError."""
    found: dict[str, Stored] = {}
    for stored, file in listed_tensors(folder).items():
        name = ".".join(part for part in stored.split(".") if part not in WRAPPERS)
        if name in found:
            raise UserError(
                f"{file}: tensors {found[name].name} and {stored} are the same one, {name}; keep one of them"
            )
        found[name] = Stored(file, stored)
    return found


def listed_tensors(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file of the folder that holds it. Raises UserError."""
    if (folder / SINGLE).is_file():
        with opened(folder / SINGLE) as file:
            return dict.fromkeys(file.keys(), folder / SINGLE)
    index = folder / INDEX
    if not index.is_file():
        if any(any(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth")):
            raise UserError(
                f"{folder}: its weights are pickled (.bin), which can run code; convert them to safetensors"
            )
        if any(folder.glob("*.gguf")):
            raise UserError(
                f"{folder}: its weights are GGUF, llama.cpp's format; give the safetensors they were made from"
            )
        raise UserError(f"{folder} is not a checkpoint: it has no {SINGLE} and no {INDEX}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UserError(f"{index}: weight_map must map each tensor to its file")
    for shard in sorted(set(weight_map.values())):
        # a shard is a file of this folder: an index cannot send us elsewhere
        if Path(shard).name != shard or not reachable(folder / shard).is_file():
            raise UserError(f"{index}: names {shard}, which is not in the folder; download it again")
        with opened(folder / shard) as file:
            held = set(file.keys())
        if absent := [name for name, where in weight_map.items() if where == shard and name not in held]:
            raise UserError(
                f"{folder / shard}: tensor {absent[0]} is missing{and_more(absent)}, though {INDEX} lists it"
            )
    return {name: folder / shard for name, shard in weight_map.items()}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped; damage becomes one UserError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: truncated, damaged or not safetensors ({one_line(error)}); download it again"
        ) from None


def stored_dtype(file: Any, name: str, path: Path) -> torch.dtype:
    kind = file.get_slice(name).get_dtype()
    if kind not in STORED:
        raise UserError(f"{path}: tensor {name} is stored as {kind}; it can be {', '.join(STORED)}")
    return STORED[kind]


def and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
