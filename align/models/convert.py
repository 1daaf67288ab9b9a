"""Hugging Face folders: config.json and safetensors, read into a model and written back under the same names.

Nothing here knows of ranks. A sharded model is read through `local` and written through `gather`, hooks that default to
the whole parameter.
"""

import dataclasses
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from align.errors import UserError, one_line, tidy
from align.files import read_json, write_json, write_text
from align.models.config import DecoderConfig
from align.models.encoder import BertClassifier, BertConfig, Classifier, EncoderConfig, RobertaClassifier, RobertaConfig
from align.models.falcon import Falcon, FalconConfig
from align.models.folder import (
    ADAPTER_CONFIG,
    INDEX,
    SINGLE,
    Stored,
    and_more,
    find_tensors,
    opened,
    resolve_model,
    stored_dtype,
)
from align.models.layers import Decoder
from align.models.llama import Llama, LlamaConfig
from align.models.lora import merged, own_weights
from align.models.peft import read_adapter

# model_type -> what reads its config, and the model; the first releases of Falcon called themselves RefinedWeb
FAMILIES: dict[str, tuple[Any, Any]] = {  # the classes of config and model
    "falcon": (FalconConfig, Falcon),
    "RefinedWeb": (FalconConfig, Falcon),
    "RefinedWebModel": (FalconConfig, Falcon),
    "llama": (LlamaConfig, Llama),
    "bert": (BertConfig, BertClassifier),
    "roberta": (RobertaConfig, RobertaClassifier),
}
# in old checkpoints, and not needed: buffers that are recomputed, a pooler that RoBERTa's head does not use
IGNORED = (
    *(".inv_freq", ".attn.bias", ".attn.masked_bias", ".position_ids", ".token_type_ids"),
    *("roberta.pooler.dense.weight", "roberta.pooler.dense.bias"),
)
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
        where = next(where for name, where in find_tensors(folder).items() if not name.endswith(IGNORED))
        with opened(where.file) as file:
            dtype = stored_dtype(file, where.name, where.file)
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


def read_config(path: Path | str, weights: bool = True) -> DecoderConfig:
    """The config of a language model's folder. Raises UserError, as read_any_config does, and for a classifier."""
    config = read_any_config(path, weights)
    if isinstance(config, EncoderConfig):
        raise UserError(f"{path} is a classifier, not a language model; give a Falcon or Llama folder")
    return config


def read_any_config(path: Path | str, weights: bool = True) -> DecoderConfig | EncoderConfig:
    """The config of a checkpoint folder. Raises UserError.

    A tied config with a head that differs from the embedding is read as untied, as transformers 5 does; weights=False
    does not look at the weights for that.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file; give its folder' if folder.exists() else 'no such folder'}")
    file = folder / "config.json"
    if not file.is_file():
        below = sorted([*folder.glob("*/config.json"), *folder.glob(f"*/{ADAPTER_CONFIG}")])
        inside = f"; give {below[0].parent}" if below else ""
        raise UserError(f"{folder} is not a checkpoint: it has no config.json{inside}")
    raw = read_json(file)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{file}: model_type {kind!r} is not supported; it can be {', '.join(FAMILIES)}")
    config = FAMILIES[kind][0].from_dict(raw, str(file))
    if weights and isinstance(config, DecoderConfig) and config.tied and head_differs(config, find_tensors(folder)):
        warnings.warn(
            tidy(f"{folder}: lm_head.weight differs from the embedding it is tied to; read as untied"), stacklevel=2
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
    read = weight_reader(model, path)
    with torch.no_grad():
        for name, param in own_weights(model).items():
            target, row = local(param)
            if target.numel():
                target.copy_(read(name, row, row + len(target)))


def weight_reader(model: nn.Module, path: Path | str) -> Callable[[str, int, int], Tensor]:
    """read(name, start, stop): these rows of a weight of the folder, with what an adapter there adds to them."""
    where = check_weights(model, path)
    pairs = read_adapter(Path(path), shapes_of(model))

    def read(name: str, start: int, stop: int) -> Tensor:
        with opened(where[name].file) as file:
            rows = file.get_slice(where[name].name)[start:stop]
        return pairs[name].add_to(rows, start) if name in pairs else rows

    return read


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(param.shape) for name, param in own_weights(model).items()}


def check_weights(model: nn.Module, path: Path | str) -> dict[str, Stored]:
    """Where each weight is stored, of a folder whose headers promise what the model needs; no tensor is read.

    The model may be on device "meta". Its config learns the dtype that most of the weights are stored in.
    Raises UserError naming the file and tensor for anything missing, unexpected, of another shape, or unreadable.
    """
    folder = Path(path)
    params = own_weights(model)
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - params.keys()
    where = find_tensors(folder)
    known = params.keys() | aliases
    extra = [name for name in where if name not in known and not name.endswith(IGNORED)]
    if missing := [name for name in params if name not in where]:
        instead = f"; it has {extra[0]}{and_more(extra)}, which config.json does not ask for" if extra else ""
        raise UserError(f"{folder}: tensor {missing[0]} is missing{and_more(missing)}{instead}")
    if extra:
        raise UserError(f"{where[extra[0]].file}: unexpected tensor {extra[0]}{and_more(extra)}; see config.json")
    where = {name: stored for name, stored in where.items() if name in params}
    dtypes: Counter[torch.dtype] = Counter()
    for path in dict.fromkeys(stored.file for stored in where.values()):
        with opened(path) as file:
            for name, stored in where.items():
                if stored.file != path:
                    continue
                found, shape = file.get_slice(stored.name).get_shape(), list(params[name].shape)
                if found != shape:
                    raise UserError(f"{path}: tensor {name} is {found}, where config.json makes it {shape}")
                dtypes[stored_dtype(file, stored.name, path)] += params[name].numel()
    read_adapter(folder, shapes_of(model))
    if isinstance(model, Decoder):
        model.config.stored_dtype = dtypes.most_common(1)[0][0]
    return where


def head_differs(config: DecoderConfig, where: dict[str, Stored]) -> bool:
    """Whether a tied checkpoint also stores a head that is not the embedding."""
    if "lm_head.weight" not in where:
        return False
    model = build_model(config, "meta")
    embedding = next(name for name, param in model.named_parameters() if param is model.embedding.weight)
    if embedding not in where:
        return False  # which load_weights reports
    input, head = where[embedding], where["lm_head.weight"]
    with opened(input.file) as one, opened(head.file) as other:
        a, b = one.get_slice(input.name), other.get_slice(head.name)
        rows = range(0, config.vocab_size, 4096)
        return a.get_shape() != b.get_shape() or any(not (a[r : r + 4096] == b[r : r + 4096]).all() for r in rows)


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
    texts: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that transformers and load_model read: config.json, model.safetensors or shards with their index.

    dtype: of the weights on disk; None: the dtype that the config names, else that in which they were stored, else float32.
    gather: param -> the whole tensor. It is called once per parameter, in the same order on every rank, since under
    sharding it is a collective; the ranks with write=False write nothing. One shard at a time is in memory.
    extras: files to copy (a tokenizer's). texts: other files, by name. settings: keys of config.json that change.
    The folder appears, or replaces the checkpoint at path, once complete.
    Raises UserError if path cannot be written or holds something that is not a checkpoint, and for a weight that is
    non-finite, or would be in this dtype.
    """
    target = Path(path)
    if dtype is None:
        named = model.config.raw.get("dtype") or model.config.raw.get("torch_dtype")
        dtype = getattr(torch, named) if named else model.config.stored_dtype or torch.float32
    params = own_weights(model)  # a tied head is the embedding, and not written again
    shards = plan_shards(params, dtype, max_shard_bytes)
    with replacing(target) if write else nullcontext(target) as folder:
        for file, names in shards.items():
            tensors = {}
            for name in names:
                tensor = converted(merged(model, name, gather), dtype, f"{target}: tensor {name}")
                if write:
                    tensors[name] = tensor.to("cpu").contiguous()
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
        write_json(folder / "config.json", published_config(model, dtype) | dict(settings or {}), sort_keys=True)
        for extra in extras:
            shutil.copy(extra, folder / Path(extra).name)
        for name, text in (texts or {}).items():
            write_text(folder / name, text)


def converted(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """The tensor in dtype. Raises UserError for values that are non-finite, before or after."""
    out = tensor.to(dtype)
    if out.isfinite().all():
        return out
    if not tensor.isfinite().all():
        raise UserError(f"{what} holds non-finite values, and is not written: the training diverged")
    raise UserError(
        f"{what} holds {tensor.abs().max().item():.6g}, and {str(dtype).removeprefix('torch.')} only up to "
        f"{torch.finfo(dtype).max:.6g}; write another dtype: --model.save_dtype bfloat16, with --resume after a run"
    )


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
def replacing(target: Path, described_by: str = "config.json") -> Iterator[Path]:
    """A new folder to fill: renamed to target if the block succeeds, removed if it does not."""
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if target.is_file() or (target.exists() and any(target.iterdir()) and not (target / described_by).is_file()):
        raise UserError(f"{target}: exists and is not a checkpoint; name another folder")
    try:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        # safetensors writes files that only their owner can read, and copies have the modes of what they copy
        (probe := new / ".mode").touch()
        mode = probe.stat().st_mode & 0o777
        probe.unlink()
        for file in new.iterdir():
            file.chmod(mode)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target}: cannot be written ({one_line(error)})") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
