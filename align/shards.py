"""Tensors that are spread over ranks, in safetensors files that any number of ranks reads back.

Every rank writes the rows that it holds into a file of its own, hashed while it is written, and rank 0 is told what is
where. A reader takes the rows that it needs from whichever files have them.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from align.parallel import World, local_rows

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# bytes that are hashed while they are written, and so are in memory twice where they come from a GPU
BLOCK = 2**26


def write_shards(folder: Path, tensors: Mapping[str, Tensor], world: World) -> dict[str, Any]:
    """Write this rank's rows of the tensors into `folder`; every rank must call it. On every rank, what is where:

        {"files": {file: {"bytes", "sha256"}}, "tensors": {name: {"dtype", "shape", "rows": {file: first row}}}}

    Raises OSError, having removed this rank's file.
    """
    file = folder / f"rank-{world.rank:03d}.safetensors"
    mine = {name: tensor for name, tensor in tensors.items() if holds(tensor, world)}
    size, digest = write_safetensors(file, {name: local_rows(tensor)[0] for name, tensor in mine.items()})
    rows = {name: local_rows(tensor)[1] for name, tensor in mine.items()}
    shares = map(json.loads, world.gather_texts(json.dumps([file.name, size, digest, rows])))
    files: dict[str, Any] = {}
    where: dict[str, Any] = {}
    for name, tensor in tensors.items():
        where[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "rows": {}}
    for shard, size, digest, rows in shares:
        files[shard] = {"bytes": size, "sha256": digest}
        for name, row in rows.items():
            where[name]["rows"][shard] = row
    return {"files": files, "tensors": where}


def holds(tensor: Tensor, world: World) -> bool:
    """Whether this rank is the one that writes its rows: of several replicas the first does, of whole tensors rank 0."""
    if not isinstance(tensor, DTensor):
        return world.main
    where: Sequence[int] = tensor.device_mesh.get_coordinate() or []
    first = all(i == 0 for i, placed in zip(where, tensor.placements, strict=True) if placed.is_replicate())
    return first and tensor.to_local().numel() > 0


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write a safetensors file to the disk itself; its size in bytes, and its SHA-256 in hex.

    safetensors' own save_file would have to be read again to be hashed. Raises OSError, having removed the file.
    """
    ordered = sorted(tensors, key=lambda name: -tensors[name].element_size())  # so that each begins aligned
    header, end = {}, 0
    for name in ordered:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blocks = chain([len(text).to_bytes(8, "little") + text], *(blocks_of(tensors[name]) for name in ordered))
    digest = hashlib.sha256()
    try:
        with file.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as other:
            for block in blocks:
                hashed = other.submit(digest.update, block)
                rest = memoryview(block)
                while rest:  # a write may be cut short where the disk fills up
                    rest = rest[stream.write(rest) :]
                hashed.result()
            os.fsync(stream.fileno())
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return 8 + len(text) + end, digest.hexdigest()


def blocks_of(tensor: Tensor) -> Iterable[Any]:
    """The bytes of a tensor, BLOCK at a time."""
    flat = tensor.detach().reshape(-1)
    step = max(1, BLOCK // tensor.element_size())
    return (flat[i : i + step].cpu().view(torch.uint8).numpy() for i in range(0, len(flat), step))


def read_shards(folder: Path, where: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Fill this rank's rows of the tensors, in place. where: the "tensors" that write_shards gave.

    Raises ValueError naming a tensor that is missing, too many, of another shape or dtype, or not there in all its rows,
    and whatever safetensors raises.
    """
    if difference := tensors.keys() ^ where.keys():
        name = min(difference)
        raise ValueError(f"tensor {name} is {'missing' if name in tensors else 'not one of this run'}")
    with ExitStack() as stack:
        files = {name: None for tensor in where.values() for name in tensor["rows"]}
        opened = {name: stack.enter_context(safe_open(folder / name, framework="pt")) for name in files}
        for name, tensor in tensors.items():
            kind, found = where[name]["dtype"], where[name]["shape"]
            if DTYPES.get(kind) != tensor.dtype or found != list(tensor.shape):
                raise ValueError(f"tensor {name} is {kind} {found}, not {NAMES[tensor.dtype]} {list(tensor.shape)}")
            target, start = local_rows(tensor)
            needed = len(target) if target.ndim else 1
            if target.numel() and read_rows(name, opened, where[name]["rows"], target, start) < needed:
                raise ValueError(f"tensor {name} is not there in all its rows")


def read_rows(name: str, files: Mapping[str, Any], rows: Mapping[str, int], target: Tensor, start: int) -> int:
    """Copy rows start, start + 1, ... of a tensor into target from the files that have them; how many were found."""
    found = 0
    for file, first in rows.items():
        if target.ndim == 0:
            target.copy_(files[file].get_tensor(name))
            return 1
        stored = files[file].get_slice(name)
        begin, end = max(start, first), min(start + len(target), first + stored.get_shape()[0])
        if begin < end:
            target[begin - start : end - start].copy_(stored[begin - first : end - first])
            found += end - begin
    return found
