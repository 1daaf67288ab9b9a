"""Sharded models against whole ones: the same weights, log-probs and gradients on any number of ranks."""

import json
import shutil
import subprocess

import pytest
import torch
from conftest import GOLDEN, MODEL, read_metrics, refuse, run_ranks, run_train, start_train
from torch.distributed.tensor import DTensor

from align.generate import generate
from align.models import load_model, save_model
from align.optim import build_optimizer
from align.parallel import World, check_ranks, compute_dtype, distributed, gather, load_sharded, local_rows
from align.sections import OptimSection, ParallelSection

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


def replicas(world):
    """Two replicas of two shards: numbers, gradients, their norm, updates and responses of a whole model."""
    for variant in ("falcon2_11b_tied", "llama31"):
        whole = load_model(GOLDEN / variant)
        parallel = ParallelSection(replicate=2, checkpointing="selective")
        sharded = load_sharded(GOLDEN / variant, world, torch.float32, torch.float32, parallel)
        prompts = [[5, 6, 7], [9], [11, 12]]
        assert generate(sharded, prompts, 6, world=world) == generate(whole, prompts, 6)
        assert all(2 * len(p.to_local()) == len(p) for p in sharded.parameters())
        optimizers = [build_optimizer(each, OptimSection(lr=1e-3)) for each in (whole, sharded)]
        for step in range(2):
            ours, theirs = sequence_logps(whole, step), sequence_logps(sharded, step)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            ours.sum().backward()
            # each rank runs the same rows, so the sum over ranks is the size of the world times a rank's
            (theirs.sum() / world.size).backward()
            norms = [torch.nn.utils.clip_grad_norm_(each.parameters(), 0.1) for each in (whole, sharded)]
            torch.testing.assert_close(norms[0], gather(norms[1]), rtol=1e-5, atol=0)
            for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
                torch.testing.assert_close(a.grad, gather(b.grad), rtol=1e-4, atol=1e-6)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(a.detach(), gather(b), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_replicas_of_shards_equal_a_whole_model():
    run_ranks(replicas, 4)


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_replicas(pairs_file, tmp_path):
    """One curve for a process and for two replicas of two shards, and for each resumed as something else at step 3."""
    base = ["--loss", "nca", "--loss.beta", "0.1", "--model", MODEL, "--data", pairs_file, "--optim.lr", "1e-3"]
    base += ["--train.steps", "6", "--train.batch_size", "7", "--train.checkpoint_every", "3"]
    base += ["--reference.mode", "moving", "--reference.every", "2"]
    one, four = tmp_path / "one", tmp_path / "four"
    replicated = ["--parallel.replicate", "2"]
    assert run_train(*base, "--output", one).returncode == 0
    done = run_train(*base, "--output", four, *replicated, "--parallel.checkpointing", "selective", ranks=4)
    assert done.returncode == 0, done.stderr

    def curve(output):
        return [value for line in read_metrics(output) for value in (line["loss"], line["grad_norm"])]

    whole = curve(one)
    assert len(whole) == 12 and curve(four) == pytest.approx(whole, rel=1e-5)
    for output, ranks, more in ((one, 2, replicated), (four, 1, [])):
        shutil.rmtree(output / "checkpoints" / "step-000006")
        done = run_train(*base, "--output", output, "--resume", *more, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert "the same run up to rounding" in done.stdout
        assert curve(output) == pytest.approx(whole, rel=1e-5)


def test_ranks_that_do_not_divide_into_replicas():
    world = World(0, 6, torch.device("cpu"))
    said = refuse(check_ranks, ParallelSection(replicate=4), world)
    assert "parallel.replicate 4" in said and "processes, 6;" in said
    check_ranks(ParallelSection(replicate=3), world)


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


@pytest.mark.parametrize("variant", ["falcon2_11b", "falcon_rw", "llama31"])
def test_bfloat16_compute_is_near_float32(variant):
    """Log-probs of a token within 0.05 nats on average and 0.3 at most, and gradients that point the same way."""
    with distributed() as world:
        whole = load_sharded(GOLDEN / variant, world, torch.float32, torch.float32)
        rounded = load_sharded(GOLDEN / variant, world, torch.bfloat16, torch.float32)
        ids = torch.randint(0, 128, (3, 40), generator=torch.Generator().manual_seed(0))
        found = [model(ids, ids.roll(-1, 1), torch.ones_like(ids, dtype=torch.bool)) for model in (whole, rounded)]
        apart = (found[0] - found[1]).abs()
        assert apart.mean() < 0.05 and apart.max() < 0.3
        for logps in found:
            logps.sum().backward()
        a, b = (torch.cat([gather(p.grad).flatten() for p in model.parameters()]) for model in (whole, rounded))
        assert torch.cosine_similarity(a, b, dim=0) > 0.998


def test_compute_dtype_follows_the_device():
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
