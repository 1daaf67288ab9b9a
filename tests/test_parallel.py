"""Sharded models against whole ones: the same weights, log-probs and gradients on any number of ranks."""

import json
import subprocess

import pytest
import torch
from conftest import GOLDEN, MODEL, read_metrics, run_ranks, run_train, start_train
from torch.distributed.tensor import DTensor

from align.models import load_model, save_model
from align.parallel import compute_dtype, distributed, gather, load_sharded, local_rows

VARIANTS = ["falcon2_11b_sharded", "falcon2_11b_tied", "falcon_7b", "falcon_rw", "llama31", "falcon2_11b_bf16"]


def sequence_logps(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 128, (3, 11), generator=g)
    mask = torch.rand(3, 11, generator=g) > 0.4
    mask[2] = False  # a row without a response token
    return model(ids, ids.roll(-1, 1), mask).sum(1)  # (B,)


def check_variants(world):
    for variant in VARIANTS:
        whole = load_model(GOLDEN / variant)
        sharded = load_sharded(GOLDEN / variant, world, torch.float32, torch.float32)
        held = sum(local_rows(p)[0].numel() for p in sharded.parameters())
        total = sum(p.numel() for p in whole.parameters())
        # rows are dealt out evenly, so a rank holds its share to within a row of each tensor
        assert held <= total / world.size + sum(p[0].numel() for p in whole.parameters())
        for (name, a), (other, b) in zip(whole.named_parameters(), sharded.named_parameters(), strict=True):
            assert name == other and isinstance(b, DTensor) == (world.size > 1) and torch.equal(a, gather(b)), (
                variant,
                name,
            )
        ours, theirs = sequence_logps(whole), sequence_logps(sharded)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)
        ours.sum().backward()
        (theirs.sum() / world.size).backward()  # every rank runs the same rows, and gradients are summed over ranks
        for (name, a), b in zip(whole.named_parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(a.grad, gather(b.grad), rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_one_process_shards_nothing_away():
    with distributed() as world:
        check_variants(world)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_sharded_models_equal_whole_ones(size):
    run_ranks(check_variants, size)


def uneven_masks(world):
    """A rank with no response token at all must still take part, and gets the gradient that the others made."""
    model = load_sharded(GOLDEN / "falcon2_11b", world, torch.float32, torch.float32)
    ids = torch.arange(24).view(2, 12)
    mask = torch.ones(2, 12, dtype=torch.bool) if world.rank == 0 else torch.zeros(2, 12, dtype=torch.bool)
    model(ids, ids, mask).sum().backward()
    whole = load_model(GOLDEN / "falcon2_11b")
    whole(ids, ids, torch.ones(2, 12, dtype=torch.bool)).sum().backward()
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, gather(b.grad), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_rank_without_response_tokens():
    run_ranks(uneven_masks, 2)


def save_and_compare(world, folder):
    model = load_sharded(GOLDEN / "falcon2_11b_tied", world, torch.float32, torch.float32)
    save_model(model, folder, gather=gather, write=world.main, max_shard_bytes=50_000)
    world.barrier()
    again = load_model(folder)
    for a, b in zip(load_model(GOLDEN / "falcon2_11b_tied").parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_sharded_model_is_exported_whole(tmp_path):
    run_ranks(save_and_compare, 2, tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1


def bfloat16_compute(world):
    """float32 parameters computed in bfloat16 are what a bfloat16 copy computes; gradients come back in float32."""
    model = load_sharded(GOLDEN / "falcon2_11b", world, torch.bfloat16, torch.float32)
    copy = load_model(GOLDEN / "falcon2_11b", dtype=torch.bfloat16)
    ours, theirs = sequence_logps(model), sequence_logps(copy)
    assert ours.dtype == torch.float32 and torch.equal(ours, theirs)
    frozen = load_sharded(GOLDEN / "falcon2_11b", world, torch.bfloat16, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(sequence_logps(frozen), theirs)
    ours.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_bfloat16_compute_keeps_float32_parameters():
    with distributed() as world:
        bfloat16_compute(world)


def test_compute_dtype_follows_the_device():
    from align.sections import ParallelSection

    assert compute_dtype(ParallelSection().dtype, torch.device("cpu")) == torch.float32
    assert compute_dtype(ParallelSection().dtype, torch.device("cuda")) == torch.bfloat16
    assert compute_dtype(ParallelSection(dtype="float32").dtype, torch.device("cuda")) == torch.float32


@pytest.mark.slow
def test_torchrun_restarts_a_dead_rank_and_the_run_goes_on(pairs_file, tmp_path, monkeypatch):
    """SIGKILL one rank: torchrun --max-restarts starts all again with the same arguments, which resume."""
    out = tmp_path / "out"
    flags = ["--loss", "nca", "--model", MODEL, "--data", pairs_file, "--output", out, "--train.steps", "40"]
    flags += ["--train.batch_size", "4", "--train.checkpoint_every", "4", "--reference.mode", "live"]
    whole = tmp_path / "whole"
    assert run_train(*[whole if f == out else f for f in flags], ranks=2).returncode == 0
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = start_train(*flags, ranks=2, torchrun=["--max-restarts=2"], **silent)
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 6:
        assert process.poll() is None
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
    workers = [int(line.split()[0]) for line in listing if line.split()[1] == str(process.pid)]
    subprocess.run(["kill", "-9", str(workers[-1])])
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    results = [[(m["step"], m["loss"], m["grad_norm"]) for m in read_metrics(o)] for o in (out, whole)]
    assert results[0] == results[1] and len(results[0]) == 40
    assert json.loads((out / "checkpoints" / "step-000040" / "state.json").read_text())["step"] == 40
