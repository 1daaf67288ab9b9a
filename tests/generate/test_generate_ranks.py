"""Generation on several processes, with whole and with sharded weights, against that of one."""

import pytest
import torch
from conftest import GOLDEN, run_ranks
from generation_checks import random_prompts

from align.generate import Settings, generate, stream
from align.models import load_model
from align.parallel import gather, load_sharded


def on_ranks(world):
    """Replicated and sharded weights, shares of all sizes, none included: one process's responses on every rank."""
    for variant in ("falcon2_11b", "falcon2_11b_tied", "falcon_rw", "llama31"):
        whole = load_model(GOLDEN / variant)
        sharded = load_sharded(GOLDEN / variant, world, torch.float32, torch.float32)
        for count in (0, 1, 2, 7):
            prompts = random_prompts(count, 30, 100)
            free = generate(whole, prompts, 9)
            eos = [free[0][3], free[-1][5]] if count else []
            for temperature in (0.0, 0.8):
                settings = {"temperature": temperature, "eos_ids": eos, "batch_size": 2}
                expected = generate(whole, prompts, 9, **settings)
                assert generate(whole, prompts, 9, **settings, world=world) == expected, (variant, count)
                assert generate(sharded, prompts, 9, **settings, world=world) == expected, (variant, count)
            # without world, the same prompts on every rank
            assert generate(sharded, prompts, 9, batch_size=3) == free
        share = [one.index for one in stream(sharded, random_prompts(7, 30, 100), Settings(4), world=world)]
        assert len(share) == (4, 3)[world.rank]
        # the root's weights are shards again, and training goes on as if nothing had been generated
        assert all(len(p.to_local()) < len(p) for p in sharded.parameters())
        ids = torch.arange(24).view(2, 12)
        for model in (whole, sharded):
            model(ids, ids.roll(-1, 1), torch.ones_like(ids, dtype=torch.bool)).sum().backward()
        for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(
                2 * a.grad, gather(b.grad), rtol=1e-4, atol=1e-4
            )  # gradients of ranks are summed


@pytest.mark.slow
def test_ranks_share_the_prompts():
    run_ranks(on_ranks, 2)


def failing_on_a_rank(world):
    model = load_sharded(GOLDEN / "llama31", world, torch.float32, torch.float32)
    prompts = [[5] * n for n in (3, 4, 600, 6)]  # the context is 512
    with pytest.raises(ValueError, match=r"^prompt 2: the prompt fills the model's context$"):
        generate(model, prompts, 5, world=world)
    assert len(generate(model, prompts[:2], 5, world=world)) == 2


@pytest.mark.slow
def test_a_failure_on_one_rank_is_raised_on_all():
    run_ranks(failing_on_a_rank, 2)
