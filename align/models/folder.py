"""A model's folder before it is read: which one a path means, whether its files are there, where its tensors are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from align.errors import UserError, one_line
from align.files import read_json

STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# vocab.txt and merges.txt are the tokenizer of a classifier that has no tokenizer.json
DESCRIPTION = ("*.json", "*.jinja", "tokenizer*", "vocab.txt", "merges.txt")
WEIGHTS = "*.safetensors"
LFS_POINTER = b"version https://git-lfs"
# what torch.compile, DistributedDataParallel, FSDP and activation checkpointing put into the names of a state dict
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def resolve_model(path: Path | str, weights: bool = True) -> Path:
    """The folder of a model: an existing one, the model/ of a run, or that of a Hub id, fetched into the Hub's cache.

    weights: False leaves the weights of a Hub id where they are. Raises UserError, also for a folder that holds
    something else that is recognised (an adapter, a checkpoint of a run) and for one whose files are not all there.
    """
    folder = Path(path)
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder}: a link that leads nowhere")
    if folder.exists():
        folder = model_folder(folder)
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
        folder = fetch(str(path), weights)
    else:
        address = re.match(r"(?:hf://|https://huggingface\.co/)([\w.-]+/[\w.-]+)", str(path))
        raise UserError(f"{path}: no such folder" + (f"; give the Hub's model as {address[1]}" if address else ""))
    if folder.is_dir():
        check_files(folder)
    return folder


def fetch(hub_id: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*DESCRIPTION, *([WEIGHTS] if weights else [])]))
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


def check_files(folder: Path) -> None:
    """Raise UserError for a file that is not there, though its name is, and for an adapter, which is not a whole model."""
    for file in sorted(folder.iterdir()):
        if file.is_dir() or not any(file.match(pattern) for pattern in (*DESCRIPTION, WEIGHTS)):
            continue
        if not file.exists():
            raise UserError(f"{file}: a link that leads nowhere; download the model again")
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{file}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
    about = folder / "adapter_config.json"
    if about.is_file() or (folder / "adapter_model.safetensors").is_file():
        base = read_json(about).get("base_model_name_or_path") if about.is_file() else "another model"
        raise UserError(
            f"{folder}: an adapter (PEFT) for {base}, not a whole model; merge the two with peft's merge_and_unload(), "
            "save the result, and give that folder"
        )


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
        if Path(shard).name != shard or not (folder / shard).is_file():
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
