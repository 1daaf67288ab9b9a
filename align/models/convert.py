"""Hugging Face folders: config.json and safetensors, read into a model and written back under the same names.

Nothing here knows of ranks. A sharded model is read through `local` and written through `gather`, hooks that default to
the whole parameter.
"""

import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from align.errors import UserError, one_line
from align.files import read_json, write_json
from align.models.config import DecoderConfig
from align.models.encoder import BertClassifier, BertConfig, Classifier, EncoderConfig, RobertaClassifier, RobertaConfig
from align.models.falcon import Falcon, FalconConfig
from align.models.layers import Decoder
from align.models.llama import Llama, LlamaConfig

# model_type -> what reads its config, and the model; the first releases of Falcon called themselves RefinedWeb
FAMILIES: dict[str, tuple[Any, Any]] = {  # the classes of config and model
    "falcon": (FalconConfig, Falcon),
    "RefinedWeb": (FalconConfig, Falcon),
    "RefinedWebModel": (FalconConfig, Falcon),
    "llama": (LlamaConfig, Llama),
    "bert": (BertConfig, BertClassifier),
    "roberta": (RobertaConfig, RobertaClassifier),
}
STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# in old checkpoints, and not needed: buffers that are recomputed, a pooler that RoBERTa's head does not use
IGNORED = (
    *(".inv_freq", ".attn.bias", ".attn.masked_bias", ".position_ids", ".token_type_ids"),
    *("roberta.pooler.dense.weight", "roberta.pooler.dense.bias"),
)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

Local = Callable[[nn.Parameter], tuple[Tensor, int]]
Gather = Callable[[nn.Parameter], Tensor]


def load_model(path: Path | str, dtype: torch.dtype | None = torch.float32, device: torch.device | str = "cpu") -> Any:
    """The model of a Hugging Face folder or Hub id, in dtype (None: as stored): a Decoder, or a Classifier for one.

    Raises UserError.
    """
    folder = resolve_model(path)
    config = read_any_config(folder)
    if dtype is None:
        # an ignored buffer may be of integers
        name, where = next(item for item in find_tensors(folder).items() if not item[0].endswith(IGNORED))
        with opened(where) as file:
            dtype = stored_dtype(file, name, where)
    model = build_model(config, device, dtype)
    load_weights(model, folder)
    return model


@overload
def build_model(config: DecoderConfig, device: torch.device | str = ..., dtype: torch.dtype = ...) -> Decoder: ...


@overload
def build_model(config: EncoderConfig, device: torch.device | str = ..., dtype: torch.dtype = ...) -> Classifier: ...


def build_model(
    config: DecoderConfig | EncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Decoder | Classifier:
    """The model that config describes, its weights uninitialised: call init_weights or load_weights next.

    On device "meta" nothing is allocated; `model.to_empty(device=...)`, then `model.tie()`, does that later.
    """
    family = next(model for kind, model in FAMILIES.values() if kind is type(config))
    with torch.device("meta"):
        model = family(config).to(dtype)
    model.to_empty(device=device)
    if isinstance(model, Decoder):
        model.tie()
    return model


def read_config(path: Path | str) -> DecoderConfig:
    """The config of a language model's folder. Raises UserError, as read_any_config does, and for a classifier."""
    config = read_any_config(path)
    if isinstance(config, EncoderConfig):
        raise UserError(f"{path} is a classifier, not a language model; give a Falcon or Llama folder")
    return config


def read_any_config(path: Path | str) -> DecoderConfig | EncoderConfig:
    """The config of a checkpoint folder. Raises UserError.

    A tied config with a head that differs from the embedding is read as untied, as transformers 5 does.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file; give its folder' if folder.exists() else 'no such folder'}")
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no config.json")
    raw = read_json(file)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{file}: model_type {kind!r} is not supported; it can be {', '.join(FAMILIES)}")
    config = FAMILIES[kind][0].from_dict(raw, str(file))
    if isinstance(config, DecoderConfig) and config.tied and head_differs(config, find_tensors(folder)):
        warnings.warn(
            f"{folder}: lm_head.weight differs from the embedding it is tied to; read as untied", stacklevel=2
        )
        config = dataclasses.replace(config, tied=False, raw=config.raw | {"tie_word_embeddings": False})
    return config


def whole(param: nn.Parameter) -> tuple[Tensor, int]:
    return param.data, 0


def load_weights(model: nn.Module, path: Path | str, local: Local = whole) -> None:
    """Fill the parameters from a folder's safetensors, one tensor at a time, whatever the dtypes of the two.

    local: param -> (tensor to fill, its first row in the whole parameter); a sharded parameter reads only its rows.
    Raises UserError naming the file and tensor for anything missing, unexpected, of another shape, or unreadable.
    """
    folder = Path(path)
    params = dict(model.named_parameters())
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - params.keys()
    where = find_tensors(folder)
    if missing := [name for name in params if name not in where]:
        raise UserError(f"{folder}: tensor {missing[0]} is missing{and_more(missing)}")
    known = params.keys() | aliases
    if extra := [name for name in where if name not in known and not name.endswith(IGNORED)]:
        raise UserError(f"{where[extra[0]]}: unexpected tensor {extra[0]}{and_more(extra)}; see config.json")
    for path in dict.fromkeys(where.values()):
        with opened(path) as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118
                if name not in params or where[name] != path:
                    continue
                stored, shape = file.get_slice(name), list(params[name].shape)
                if stored.get_shape() != shape:
                    raise UserError(
                        f"{path}: tensor {name} is {stored.get_shape()}, where config.json makes it {shape}"
                    )
                stored_dtype(file, name, path)
                target, row = local(params[name])
                if target.numel():
                    target.copy_(stored[row : row + len(target)])


def find_tensors(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file of the folder that holds it. Raises UserError."""
    if (folder / SINGLE).is_file():
        with opened(folder / SINGLE) as file:
            return dict.fromkeys(file.keys(), folder / SINGLE)
    index = folder / INDEX
    if not index.is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"{folder}: its weights are pickled (.bin), which can run code; convert them to safetensors"
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


def head_differs(config: DecoderConfig, where: dict[str, Path]) -> bool:
    """Whether a tied checkpoint also stores a head that is not the embedding."""
    if "lm_head.weight" not in where:
        return False
    model = build_model(config, "meta")
    embedding = next(name for name, param in model.named_parameters() if param is model.embedding.weight)
    if embedding not in where:
        return False  # which load_weights reports
    with opened(where[embedding]) as one, opened(where["lm_head.weight"]) as other:
        a, b = one.get_slice(embedding), other.get_slice("lm_head.weight")
        rows = range(0, config.vocab_size, 4096)
        return a.get_shape() != b.get_shape() or any(not (a[r : r + 4096] == b[r : r + 4096]).all() for r in rows)


def resolve_model(path: Path | str) -> Path:
    """An existing folder as it is; a Hub id ("tiiuae/falcon-11B") fetched into the Hub's cache. Raises UserError."""
    if Path(path).exists():
        return Path(path)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
        raise UserError(f"{path}: no such folder")
    from huggingface_hub import snapshot_download

    # vocab.txt and merges.txt are the tokenizer of a classifier that has no tokenizer.json
    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "vocab.txt", "merges.txt"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=wanted))
    except Exception as error:  # whatever the network, the Hub, the disk or a gate raises means the same to the user
        raise UserError(f"{path}: no such folder, and fetching it from the Hub failed ({one_line(error)})") from None


def detached(param: nn.Parameter) -> Tensor:
    return param.detach()


def save_model(
    model: Decoder,
    path: Path | str,
    dtype: torch.dtype | None = None,
    gather: Gather = detached,
    write: bool = True,
    max_shard_bytes: int = 5 * 10**9,
    extras: Iterable[Path] = (),
) -> None:
    """Write a folder that transformers and load_model read: config.json, model.safetensors or shards with their index.

    dtype: of the weights on disk; None: the dtype that the config names, float32 if none.
    gather: param -> the whole tensor. It is called once per parameter, in the same order on every rank, since under
    sharding it is a collective; the ranks with write=False write nothing. One shard at a time is in memory.
    extras: files to copy (a tokenizer's). The folder appears, or replaces the checkpoint at path, once complete.
    Raises UserError if path cannot be written or holds something that is not a checkpoint.
    """
    target = Path(path)
    if dtype is None:
        dtype = getattr(torch, model.config.raw.get("dtype") or model.config.raw.get("torch_dtype") or "float32")
    params = dict(model.named_parameters())  # a tied head is the embedding, and not written again
    shards = plan_shards(params, dtype, max_shard_bytes)
    with replacing(target) if write else nullcontext(target) as folder:
        for file, names in shards.items():
            tensors = {}
            for name in names:
                tensor = gather(params[name])
                if write:
                    tensors[name] = tensor.to("cpu", dtype).contiguous()
            if write:
                save_file(tensors, folder / file, metadata={"format": "pt"})
        if not write:
            return
        if SINGLE not in shards:
            index = {
                "metadata": {"total_size": sum(p.numel() for p in params.values()) * dtype.itemsize},
                "weight_map": {name: file for file, names in shards.items() for name in names},
            }
            write_json(folder / INDEX, index, sort_keys=True)
        write_json(folder / "config.json", published_config(model, dtype), sort_keys=True)
        for extra in extras:
            shutil.copy(extra, folder / Path(extra).name)


def plan_shards(params: dict[str, nn.Parameter], dtype: torch.dtype, max_bytes: int) -> dict[str, list[str]]:
    """File name -> the tensors it holds, in the model's order, at most max_bytes a file unless one tensor is larger."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, param in params.items():
        added = param.numel() * dtype.itemsize
        if shards[-1] and size + added > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}


def published_config(model: Decoder, dtype: torch.dtype) -> dict[str, Any]:
    """The keys as they were read, updated to describe what is written."""
    raw = dict(model.config.raw)
    # it names Python files of the source repository, which are not in this folder
    raw.pop("auto_map", None)
    raw.setdefault("model_type", type(model).__name__.lower())
    raw.setdefault("architectures", [f"{type(model).__name__}ForCausalLM"])
    styles: list[str] = [key for key in ("dtype", "torch_dtype") if key in raw]
    default = "dtype" if "rope_parameters" in raw else "torch_dtype"
    return raw | dict.fromkeys(styles or [default], str(dtype).removeprefix("torch."))


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder to fill: renamed to target if the block succeeds, removed if it does not."""
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if target.is_file() or (target.exists() and any(target.iterdir()) and not (target / "config.json").is_file()):
        raise UserError(f"{target}: exists and is not a checkpoint; name another folder")
    try:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target}: cannot be written ({one_line(error)})") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
