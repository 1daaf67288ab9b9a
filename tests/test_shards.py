"""State that some ranks wrote and others read: every row once, and the same numbers for any number of ranks."""

import json

import pytest
import torch
from conftest import GOLDEN, refuse, run_ranks
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from align.checkpoint import Run, find_checkpoint, load_checkpoint, save_checkpoint
from align.losses import build_loss
from align.models import load_model
from align.parallel import distributed, gather, load_sharded, local_rows
from align.shards import read_shards, write_safetensors, write_shards

MADE_OF = {"model": "m", "data": "d"}


def tensors():
    g = torch.Generator().manual_seed(0)
    shapes = {"matrix": (7, 3), "row": (1, 5), "vector": (4,), "step": ()}
    found = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return found | {"half": torch.randn(5, 2, generator=g).bfloat16(), "count": torch.tensor([3, 4])}


def test_a_file_of_ours_is_safetensors(tmp_path):
    size, digest = write_safetensors(tmp_path / "x.safetensors", tensors())
    content = (tmp_path / "x.safetensors").read_bytes()
    import hashlib

    assert size == len(content) and digest == hashlib.sha256(content).hexdigest()
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors().keys() and all(torch.equal(found[name], t) for name, t in tensors().items())


def write(world, folder, replicas):
    """Sharded by rows over all ranks, or over those of each replica; step stays a plain tensor."""
    mesh = init_device_mesh("cpu", (replicas, world.size // replicas))
    spread = {
        name: t if t.ndim == 0 else distribute_tensor(t, mesh, [Replicate(), Shard(0)]) for name, t in tensors().items()
    }
    where = write_shards(folder, spread, world)
    if world.main:
        (folder / "where.json").write_text(json.dumps(where))


def read(world, folder):
    mesh = init_device_mesh("cpu", (world.size,))
    where = json.loads((folder / "where.json").read_text())
    wanted = {
        name: torch.zeros_like(t) if t.ndim == 0 else distribute_tensor(torch.zeros_like(t), mesh, [Shard(0)])
        for name, t in tensors().items()
    }
    read_shards(folder, where["tensors"], wanted)
    for name, t in tensors().items():
        assert torch.equal(gather(wanted[name]), t), name


@pytest.mark.slow
def test_any_number_of_ranks_reads_what_another_wrote(tmp_path):
    run_ranks(write, 4, tmp_path, 2)
    where = json.loads((tmp_path / "where.json").read_text())
    held = [load_file(tmp_path / name) for name in where["files"]]
    for name, t in tensors().items():
        assert sum(part[name].numel() for part in held if name in part) == t.numel(), f"{name}: not each row once"
    run_ranks(read, 3, tmp_path)


def run_of(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    return Run(model, optimizer, build_loss("bco"), None, MADE_OF)


def step(run):
    for i, p in enumerate(run.optimizer.param_groups[0]["params"]):
        p.grad = torch.full_like(p, 0.1 + i)
    run.optimizer.step()


def sharded_step(world, folder):
    run = run_of(load_sharded(GOLDEN / "falcon2_11b", world, torch.float32, torch.float32))
    step(run)
    (folder / "checkpoints").mkdir(exist_ok=True)
    save_checkpoint(folder, 1, run, 1, world)


def check_resumed(world, folder):
    """Here, and on a plain model, the second step is what two steps on one process are, to the bit."""
    truth = run_of(load_model(GOLDEN / "falcon2_11b"))
    step(truth)
    step(truth)
    models = [load_sharded(GOLDEN / "falcon2_11b", world, torch.float32, torch.float32)]
    models += [load_model(GOLDEN / "falcon2_11b")] if world.size == 1 else []
    for model in models:
        run = run_of(model)
        path = find_checkpoint(folder, MADE_OF, world)
        assert load_checkpoint(path, run, world) == 1
        step(run)
        for a, b in zip(truth.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, gather(b))


def test_a_plain_model_and_a_sharded_one_read_the_same_checkpoint(tmp_path):
    with distributed() as world:
        sharded_step(world, tmp_path)
        check_resumed(world, tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks(tmp_path):
    run_ranks(sharded_step, 2, tmp_path)
    assert len(list((tmp_path / "checkpoints" / "step-000001").glob("rank-*"))) == 2
    run_ranks(check_resumed, 3, tmp_path)


def test_what_is_frozen_is_not_in_a_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with distributed() as world:
        model = nn.ModuleDict({"frozen": nn.Linear(2, 2).requires_grad_(False), "adapter": nn.Linear(2, 1, bias=False)})
        run = run_of(model)
        step(run)
        save_checkpoint(tmp_path, 1, run, 1, world)
        kept = load_file(tmp_path / "checkpoints" / "step-000001" / "rank-000.safetensors")
        names = [
            "model.adapter.weight",
            *(f"optimizer.adapter.weight.{key}" for key in ("exp_avg", "exp_avg_sq", "step")),
        ]
        assert sorted(kept) == sorted(names)
        assert torch.equal(kept["model.adapter.weight"], local_rows(model["adapter"].weight)[0])


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with distributed() as world:
        run = run_of(nn.Linear(2, 2))
        step(run)
        save_checkpoint(tmp_path, 1, run, 1, world)
        run.optimizer.state[run.model.bias]["exp_avg_sq"][1] = torch.inf
        said = refuse(save_checkpoint, tmp_path, 2, run, 1, world)
        assert "step 2 has left optimizer.bias.exp_avg_sq with numbers that are not finite" in said
        assert "--override optim.lr" in said
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
