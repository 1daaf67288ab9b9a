"""The reference policy's log-probs: computed once and kept, or by a live frozen copy. To a loss they are the same numbers.

Cached: reference log-probs of an answer never change, so they are computed before training, without gradients, for the
prompts that the run will visit, and stored in a file whose name is the hash of all that they depend on. Live: a frozen,
sharded copy of the model answers in every step; more memory and time, nothing to store.
"""

import gc
import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from align.config import Config
from align.dataset import Dataset
from align.logps import response_logps
from align.parallel import compute_dtype, load_sharded
from align.tokens import Batch, Group, fingerprint

Reference = Callable[[Batch], Tensor]  # a batch to its reference log-probs (N*K rows as (N, K)), fillers included


def build_reference(config: Config, model_folder: Path, data: Dataset) -> Reference:
    """The reference of a run, by --reference.mode."""
    world, dtype = data.world, compute_dtype(config.parallel, data.world.device)

    def load() -> nn.Module:
        # frozen, so its parameters may rest in the dtype of compute: the same numbers as the policy's at step 0
        model = load_sharded(model_folder, world, dtype=dtype, stored=dtype)
        model.lm_head.impl = config.model.logp_impl
        return model.requires_grad_(False).eval()

    if config.reference.mode == "live":
        model = load()
        return lambda batch: live_logps(model, batch)
    key = cache_key(model_folder, data.groups, dtype) if world.main else ""
    table = cached_logps(Path(config.reference.cache) / f"{key}.safetensors", load, data)
    return lambda batch: table[batch.index]


@torch.no_grad()
def live_logps(model: nn.Module, batch: Batch) -> Tensor:
    return response_logps(model, batch)[0]


def cache_key(model_folder: Path, groups: list[Group], dtype: torch.dtype) -> str:
    """A hash of everything that a reference log-prob depends on: weights, config, the exact token ids, the precision."""
    digest = hashlib.sha256(f"{dtype} {fingerprint(groups)}".encode())
    for file in sorted([model_folder / "config.json", *model_folder.glob("*.safetensors")]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def cached_logps(file: Path, load: Callable[[], nn.Module], data: Dataset) -> Tensor:
    """The table (prompts, K) of reference log-probs, NaN where never computed.

    Reads what `file` has, computes what the run will visit and the file lacks, and writes it back. Only rank 0 touches the
    file, so `file` counts on rank 0 alone.
    """
    groups, world = data.groups, data.world
    table = torch.full((len(groups), len(groups[0].response_ids)), torch.nan)
    if world.main and file.exists():
        with suppress(SafetensorError):  # a damaged cache is a missing one: it is computed again and replaced
            table = load_file(file)["logps"]
    table = table.to(world.device)
    dist.broadcast(table, 0)
    missing = [i for i in sorted(data.visited()) if table[i].isnan().any()]
    if not missing:
        return table
    if len(missing) < world.size:  # a few more prompts, so that every rank has one: the model is spread over all
        missing = [*missing, *(i for i in range(len(groups)) if i not in missing)][: world.size]
    if world.main:
        print(f"reference: log-probs of {len(missing)} prompts to compute, kept in {file}", flush=True)
    model = load()
    computed = torch.zeros_like(table)
    batches = [batch for batch, _ in data.micro_batches(missing)]
    for batch in tqdm(batches, "reference", disable=not (world.main and sys.stderr.isatty())):
        computed[batch.index[: batch.n]] = live_logps(model, batch)[: batch.n]
    del model
    gc.collect()  # a sharded model is full of reference cycles, and the policy needs the room
    world.sum(computed)
    table[missing] = computed[missing]
    if world.main:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({"logps": table.cpu()}, part)
        part.replace(file)
    return table
