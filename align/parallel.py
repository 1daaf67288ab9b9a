"""Processes and shards: who we are, how a model is sharded over ranks, how numbers are summed over them.

One path for every size. A single process is a group of one, so that laptop and cluster run the same code.
"""

import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from align.blocks import checkpoint_blocks, compile_blocks
from align.errors import UserError
from align.models import Decoder, add_adapters, build_model, init_adapters, load_weights, own_weights, read_config
from align.sections import LoraSection, ParallelSection


@dataclass(frozen=True)
class World:
    """This process among all ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank."""
        return self.sum(torch.tensor(float(flag))).item() > 0

    def barrier(self) -> None:
        dist.barrier()

    def gather_texts(self, text: str) -> list[str]:
        """The text of every rank, on every rank. dist.all_gather_object would pickle it, and unpickle the others'."""
        if self.size == 1:
            return [text]
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        texts = torch.zeros(self.size, int(self.sum(sizes).max()), dtype=torch.uint8)
        texts[self.rank, : len(data)] = data
        self.sum(texts)  # of zeros, but for one
        return [bytes(row[:size].numpy()).decode() for row, size in zip(texts, sizes.tolist(), strict=True)]


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of a run find each other."""

    store: dist.Store
    rank: int
    size: int
    job: str  # the same for every attempt of a torchrun --max-restarts, and for nothing else
    launcher: int = 0  # the process of the torchrun that started this one, 0 where none did

    def first(self) -> bool:
        """True for the first rank that asks, so that an error on many ranks is printed once."""
        return self.store.add("asked", 1) == 1

    def agree(self, key: str, value: str) -> str:
        """The first rank's value, on every rank: what each found on a disk may have changed since."""
        if self.rank == 0:
            self.store.set(key, value)
        return self.store.get(key).decode()


# how long ranks wait for each other; and for a torchrun's store, which was there before they were
PATIENCE, FOUND = timedelta(minutes=5), timedelta(seconds=30)


def rendezvous() -> Rendezvous:
    """The Rendezvous of torchrun's environment, or of a single process. Raises UserError where no process serves it."""
    if "WORLD_SIZE" not in os.environ:
        return Rendezvous(dist.HashStore(), 0, 1, token_hex(8))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # before the store answers, which shows that this still is the one that started us
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=rank == 0 and not served, timeout=FOUND if served else PATIENCE)
    except dist.DistError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"rank {rank} cannot meet the others at {address}:{port}: torchrun is gone, or the port is taken ({reason})"
        ) from None
    store.set_timeout(PATIENCE)
    # torchrun's store outlives an attempt: under its bare keys a restarted rank would find the addresses of the dead ones
    attempt = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return Rendezvous(attempt, rank, size, store.compare_set("job", "", token_hex(8)).decode(), launcher)


@contextmanager
def distributed(meeting: Rendezvous | None = None) -> Iterator[World]:
    """The process group of a rendezvous: torchrun's, or a group of one."""
    meeting = meeting or rendezvous()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
    # a confident model's probabilities fall below 1e-38, where a CPU is ten times slower; before any worker thread starts
    torch.set_flush_denormal(True)
    dist.init_process_group(backend, store=meeting.store, rank=meeting.rank, world_size=meeting.size)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    except BaseException:
        # leaving the group could hang where other ranks are gone or elsewhere: the process is about to end
        if dist.get_world_size() == 1:
            dist.destroy_process_group()
        raise
    # gloo's threads must drop their last tensors before the interpreter goes, or one exit in four aborts
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """What a dtype's name in a configuration or flag means on a device; auto: bfloat16 on GPUs, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def check_ranks(parallel: ParallelSection, world: World) -> None:
    """Raise UserError where the ranks cannot be split into that many replicas."""
    if world.size % parallel.replicate:
        raise UserError(
            f"parallel.replicate {parallel.replicate} does not divide the number of processes, {world.size}; give a "
            "divisor, or start torchrun with another --nnodes or --nproc-per-node"
        )


def shard(model: Decoder, world: World, dtype: torch.dtype, parallel: ParallelSection) -> Decoder:
    """Shard a model's parameters over the ranks, in place: one group per block, one for the head, one for the rest.

    The head's forward is the log-prob itself, so its weight is whole exactly while it is needed. A tied head stays with
    the embedding in the root group. `dtype` is that of compute; parameters keep theirs, and the gradients of bfloat16
    compute are summed in float32. With --parallel.replicate R every R-th part of the ranks holds the whole model, and
    gradients are summed over its parts and then over the replicas.

    A single rank whose weights are in the dtype of compute has nothing to gather or to cast: its model stays plain.
    """
    if parallel.checkpointing != "none":
        checkpoint_blocks(model, parallel.checkpointing == "selective")
    if parallel.compile == "on":
        compile_blocks(model)
    if world.size == 1 and all(p.dtype == dtype for p in own_weights(model).values()):
        return model
    # neighbouring ranks, which torchrun puts on one node, hold a replica together
    shape = (parallel.replicate, world.size // parallel.replicate)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard")) if shape[0] > 1 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype == torch.bfloat16 else None)
    groups = [fully_shard(block, mesh=mesh, mp_policy=policy) for block in model.blocks]
    if model.lm_head.weight is not model.embedding.weight:
        # backward begins with it, so it stays gathered until then
        groups.append(fully_shard(model.lm_head, mesh=mesh, mp_policy=policy, reshard_after_forward=False))
    for before, after in itertools.pairwise(groups):
        before.set_modules_to_forward_prefetch([after])  # in backward FSDP does so by itself
    groups.append(fully_shard(model, mesh=mesh, mp_policy=policy))
    for module in groups if world.size > 1 else ():  # a single rank has nothing to sum
        # the loss is already divided by the global count of prompts: gradients are summed, not averaged
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled reduction
    return model


def local_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """This rank's part of a parameter, and the row of the whole at which it starts."""
    if not isinstance(parameter, DTensor):
        return parameter.data, 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local().data, offset[0]


def reshard(model: nn.Module) -> None:
    """Reshard the root's and the head's parameters, which FSDP leaves to a backward pass that may never come."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather(parameter: Tensor) -> Tensor:
    """The full tensor of a sharded parameter, on every rank; all must call."""
    return cast(DTensor, parameter.detach()).full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def load_sharded(
    folder: Path,
    world: World,
    dtype: torch.dtype,
    stored: torch.dtype,
    parallel: ParallelSection | None = None,
    lora: LoraSection | None = None,
    seed: int = 0,
) -> Decoder:
    """A model whose parameters are sharded from the start: every rank reads only its rows from the checkpoint.

    dtype: of compute. stored: of the parameters, float32 for what trains, the compute dtype for what is frozen.
    lora, seed: adapters, where its rank is not 0, fresh ones from the seed; everything else is then frozen.
    """
    lora = lora or LoraSection()
    model = build_model(read_config(folder), "meta", dtype if lora.rank else stored)
    add_adapters(model, **vars(lora))
    shard(model, world, dtype, parallel or ParallelSection())
    model.to_empty(device=world.device)
    model.tie()  # to_empty gives every module its own parameter
    load_weights(model, folder, local=local_rows)
    init_adapters(model, seed, local_rows)
    return model
