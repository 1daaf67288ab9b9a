"""The reference policy's log-probs, cached or computed by a copy of the model. A loss cannot tell which.

Cached: reference log-probs of a response never change, so they are computed before training, without gradients, for the
prompts that the run will visit, and stored in a file whose name is the hash of all that they depend on. Live: a frozen,
sharded copy of the model computes them in every step; more memory and time, nothing to store, and whole distributions
for the methods that compare them. Moving: a live copy that follows the policy, TR-DPO (arXiv 2404.09656).
"""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from align import stopping
from align.data.batches import Batch, Dataset
from align.data.encode import fingerprint
from align.files import writing
from align.kernels import resolve_impls
from align.logps import response_sums
from align.models import Decoder, adapters, adapters_off
from align.parallel import World, compute_dtype, gather, load_sharded, reshard
from align.sections import Config
from align.stopping import Stopped

KEPT = ("logps", "shared_logps")  # what a cache has of every response
SAVED_TOGETHER = 1024  # prompts after which the file is written: what a kill costs at most


@dataclass
class ReferenceNumbers:
    """What the reference says of a batch, fillers included."""

    ref_logps: Tensor  # (N, K)
    ref_shared_logps: Tensor  # (N, K), of each response's tokens up to the length of the prompt's shortest
    distributions: tuple[Tensor, Tensor | None] | None = None  # states (M, D), head weight (V, D) or None: the policy's


class CachedReference:
    """A table of numbers. It holds no model."""

    def __init__(self, table: Tensor):
        self.table = table  # (prompts, K, 2): KEPT

    def __call__(self, batch: Batch) -> ReferenceNumbers:
        logps, shared_logps = self.table[batch.index].unbind(dim=-1)  # (N, K) each
        return ReferenceNumbers(logps, shared_logps)


class LiveReference:
    """A frozen, sharded model, or the policy itself, whose adapters are off here and whose head is never trained.

    With `distributions` every rank also keeps the weight of a model's own head whole.
    """

    def __init__(self, model: Decoder, distributions: bool):
        self.model, self.distributions = model, distributions
        self.has_head = distributions and not adapters(model)
        self.refresh()

    def refresh(self) -> None:
        """Call after the weights have changed."""
        reshard(self.model)
        self.head: Tensor | None = gather(self.model.lm_head.weight) if self.has_head else None  # (V, D)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ReferenceNumbers:
        with adapters_off(self.model):
            sums = response_sums(self.model, batch, KEPT, states=self.distributions)
        numbers = ReferenceNumbers(sums["logps"], sums["shared_logps"])
        if self.head is not None:
            self.head = self.head.to(sums["states"].dtype)  # once, in the dtype of compute
        if self.distributions:
            numbers.distributions = (sums["states"], self.head)
        reshard(self.model)
        return numbers

    @torch.no_grad()
    def follow(self, policy: nn.Module, alpha: float) -> None:
        """ρ ← α π + (1 - α) ρ, parameter by parameter: TR-DPO's soft update; α = 1 is its hard one."""
        reshard(policy)
        for ours, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            ours.lerp_(theirs.detach(), alpha)
        self.refresh()


Reference = CachedReference | LiveReference


def load_frozen(config: Config, model_folder: Path, world: World) -> Decoder:
    """A copy of the model that is not trained."""
    dtype = compute_dtype(config.parallel.dtype, world.device)
    # it can be stored in the compute dtype, with the policy's numbers at step 0; the small moves of a moving one would
    # be lost to its rounding
    stored = torch.float32 if config.reference.mode == "moving" else dtype
    model = load_sharded(model_folder, world, dtype, stored, config.parallel)
    model.set_kernels(config.model.logp_impl, config.model.pointwise_impl, config.model.attention_impl)
    return model.requires_grad_(False).eval()


def cache_file(config: Config, model_id: str, data: Dataset, world: World) -> Path:
    """Named by a hash of what a reference log-prob depends on: model, the exact token ids, and how it is computed."""
    dtype = compute_dtype(config.parallel.dtype, world.device)
    kernels = resolve_impls(config.model.logp_impl, config.model.pointwise_impl, dtype, world.device)
    parts = (
        *KEPT,
        model_id,
        fingerprint(data.groups),
        str(dtype),
        world.device.type,
        *kernels,
        config.model.attention_impl,
    )
    return Path(config.reference.cache) / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.safetensors"


def packed(table: Tensor) -> bytes:
    """The bytes of a cache file: the table, and a digest of it."""
    table = table.cpu().contiguous()
    return save({"sums": table}, {"sha256": hashlib.sha256(table.numpy().tobytes()).hexdigest()})


def read_cache(file: Path, empty: Tensor) -> Tensor:
    """The table of a cache file, or `empty` where there is none, or one with damage, which is said."""
    if not file.exists():
        return empty
    try:
        found = load(content := file.read_bytes())["sums"]
        if found.shape == empty.shape and found.dtype == empty.dtype and packed(found) == content:
            return found
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    print(f"reference: {file} is damaged, or of an older version; its log-probs are computed again", flush=True)
    return empty


def write_cache(file: Path, table: Tensor) -> None:
    # under a name of its own: two runs may compute the same
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with writing(file, "give another --reference.cache, or --reference.mode live"):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(packed(table))
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def cached_sums(file: Path, model: Decoder, data: Dataset, world: World) -> Tensor:
    """The table (prompts, K, 2) of what KEPT names, NaN where never computed.

    Reads what `file` has, computes what the run will visit and the file lacks, and writes it back. Only rank 0 touches the
    file. Raises Stopped where a signal asked for it, having kept what was computed.
    """
    groups = data.groups
    table = torch.full((len(groups), len(groups[0].response_ids), len(KEPT)), torch.nan)
    if world.main:
        table = read_cache(file, table)
    table = table.to(world.device)
    dist.broadcast(table, 0)
    missing = [i for i in sorted(data.visited()) if table[i].isnan().any()]
    if not missing:
        return table
    if world.main:
        print(f"reference: log-probs of {len(missing)} prompts to compute, kept in {file}", flush=True)
    reference, stop, done = LiveReference(model, distributions=False), False, 0
    stopping.finish_first()
    for start in tqdm(
        range(0, len(missing), SAVED_TOGETHER), "reference", disable=not (world.main and sys.stderr.isatty())
    ):
        part = wanted = missing[start : start + SAVED_TOGETHER]
        if len(part) < world.size:  # a few more, so that every rank has one: the model is sharded over all
            part = [*part, *(i for i in range(len(groups)) if i not in part)][: world.size]
        computed, seen = torch.zeros_like(table), torch.zeros(len(groups), device=world.device)
        for batch, _ in data.micro_batches(part):
            numbers = reference(batch)
            sums = torch.stack([numbers.ref_logps, numbers.ref_shared_logps], dim=-1)  # (N, K, 2)
            computed[batch.index[: batch.n]] = sums[: batch.n]
            seen[batch.index[: batch.n]] = 1
            if stop := world.any(stopping.asked()):
                break
        world.sum(computed)
        world.sum(seen)
        new = [i for i in wanted if seen[i]]
        table[new] = computed[new]  # what was known stays as it was, to the bit
        done += len(new)
        if world.main:
            write_cache(file, table)
        if stop:
            raise Stopped(
                f"stopped: the reference log-probs of {done} of {len(missing)} prompts are kept; the same command goes on"
            )
    stopping.end_at_once()
    return table
