"""Sums over responses, against log_softmax of the whole logits."""

import pytest
import torch
from conftest import MODEL, run_ranks

from align.data import collate
from align.data.encode import Group
from align.logps import response_logps, response_sums
from align.models import load_model
from align.parallel import load_sharded
from align.reference import LiveReference


def test_response_logps_match_the_definition():
    model = load_model(MODEL, dtype=torch.float64)
    groups = [Group([3, 4, 5], [[6, 7, 11], [8, 11]], 0), Group([9, 9, 9, 9, 2], [[1], [5, 4, 3, 2, 11]], 1)]
    logps, n_tok = response_logps(model, collate(groups))
    assert n_tok.tolist() == [[3, 2], [1, 5]]
    for i, group in enumerate(groups):
        for j, response in enumerate(group.response_ids):
            ids = torch.tensor([group.prompt_ids + response])
            by_hand = torch.log_softmax(model.logits(ids)[0], -1)
            start = len(group.prompt_ids)
            expected = sum(by_hand[start - 1 + t, token] for t, token in enumerate(response))
            torch.testing.assert_close(logps[i, j], expected, rtol=1e-12, atol=1e-12)


def test_neighbours_do_not_matter():
    model = load_model(MODEL)
    short, long = Group([3, 4], [[6, 11], [7, 11]], 0), Group([9] * 40, [[1] * 30, [2] * 30], 1)
    alone, _ = response_logps(model, collate([short]))
    together, _ = response_logps(model, collate([short, long]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-6, atol=1e-5)


GROUPS = [Group([3, 4, 5], [[6, 7, 11], [8, 11]], 0), Group([9, 9, 9, 9, 2], [[1], [5, 4, 3, 2, 11]], 1)]


def distributions(model, group, response):
    """The log-probabilities of the whole vocabulary at every response position, (tokens, V)."""
    ids = torch.tensor([group.prompt_ids + response])
    return torch.log_softmax(model.logits(ids)[0], -1)[len(group.prompt_ids) - 1 : -1]


def two_models(dtype=torch.float64):
    """A policy and a reference that are not the same."""
    policy, reference = load_model(MODEL, dtype=dtype), load_model(MODEL, dtype=dtype)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(1.1)
    return policy, reference.requires_grad_(False)


def test_token_level_sums_match_the_definition():
    """KL, WPO's weights and LD-DPO's shared sums from whole distributions written out, with their gradients."""
    policy, frozen = two_models()
    batch = collate(GROUPS)
    known = LiveReference(frozen, distributions=True)(batch)
    tokens = ("kl", "reverse_kl", "weights", "shared_logps")
    sums = response_sums(policy, batch, tokens, known.distributions)
    expected = {name: torch.empty(2, 2, dtype=torch.float64) for name in (*tokens, "ref")}
    for i, group in enumerate(GROUPS):
        shared = min(map(len, group.response_ids))
        for j, response in enumerate(group.response_ids):
            log_p, log_q = (distributions(model, group, response) for model in (policy, frozen))
            of_tokens = log_p[range(len(response)), response]
            expected["kl"][i, j] = (log_q.exp() * (log_q - log_p)).sum()
            expected["reverse_kl"][i, j] = (log_p.exp() * (log_p - log_q)).sum()
            expected["weights"][i, j] = (of_tokens - log_p.exp().square().sum(-1).log()).mean().exp()
            expected["shared_logps"][i, j] = of_tokens[:shared].sum()
            expected["ref"][i, j] = log_q[range(shared), response[:shared]].sum()
    for name in tokens:
        torch.testing.assert_close(sums[name], expected[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(known.ref_shared_logps, expected["ref"], rtol=1e-9, atol=1e-9)
    assert not sums["weights"].requires_grad
    for name in ("kl", "reverse_kl"):
        ours, theirs = (
            torch.autograd.grad(x[name].sum(), [*policy.parameters()], retain_graph=True) for x in (sums, expected)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_divergence_does_not_read_the_last_token():
    """Which is why an anchor may be a response that was cut off (align/pairs.py)."""
    policy, frozen = two_models()
    found = []
    for last in (11, 4):
        batch = collate([Group([3, 4, 5], [[6, 7, last]], 0)])
        known = LiveReference(frozen, distributions=True)(batch)
        found.append(response_sums(policy, batch, ("kl", "reverse_kl"), known.distributions))
    for name in ("kl", "reverse_kl"):
        assert found[0][name] > 0
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-12, atol=0)


def sharded_token_level_sums(world):
    policy, frozen = (load_sharded(MODEL, world, torch.float32, torch.float32) for _ in "pr")
    with torch.no_grad():
        for p in frozen.parameters():
            p.mul_(1.1)
    reference = LiveReference(frozen.requires_grad_(False), distributions=True)
    batch = collate(GROUPS)
    tokens = ("kl", "reverse_kl", "weights", "shared_logps")
    whole, whole_frozen = two_models(torch.float32)
    ours = response_sums(policy, batch, tokens, reference(batch).distributions)
    theirs = response_sums(whole, batch, tokens, LiveReference(whole_frozen, distributions=True)(batch).distributions)
    for name in tokens:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    reference.follow(policy, alpha=1.0)
    torch.testing.assert_close(
        response_sums(policy, batch, tokens, reference(batch).distributions)["kl"].sum().item(), 0.0
    )


@pytest.mark.slow
def test_token_level_sums_of_sharded_models():
    run_ranks(sharded_token_level_sums, 2)
