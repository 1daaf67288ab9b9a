"""Sums over responses, against log_softmax of the whole logits."""

import torch
from conftest import MODEL

from align.logps import response_logps
from align.models import load_model
from align.tokens import Group, collate


def test_response_logps_match_the_definition():
    model = load_model(MODEL, dtype=torch.float64)
    groups = [Group([3, 4, 5], [[6, 7, 11], [8, 11]], 0), Group([9, 9, 9, 9, 2], [[1], [5, 4, 3, 2, 11]], 1)]
    logps, n_tok = response_logps(model, collate(groups, pad_id=11))
    assert n_tok.tolist() == [[3, 2], [1, 5]]
    for i, group in enumerate(groups):
        for j, response in enumerate(group.response_ids):
            ids = torch.tensor([group.prompt_ids + response])
            by_hand = torch.log_softmax(model.logits(ids)[0], -1)
            start = len(group.prompt_ids)
            expected = sum(by_hand[start - 1 + t, token] for t, token in enumerate(response))
            torch.testing.assert_close(logps[i, j], expected, rtol=1e-12, atol=1e-12)


def test_padding_and_neighbours_do_not_matter():
    model = load_model(MODEL)
    short, long = Group([3, 4], [[6, 11], [7, 11]], 0), Group([9] * 40, [[1] * 30, [2] * 30], 1)
    alone, _ = response_logps(model, collate([short], pad_id=11))
    for pad in (0, 11, 12):
        together, _ = response_logps(model, collate([short, long], pad_id=pad))
        torch.testing.assert_close(together[:1], alone, rtol=1e-6, atol=1e-5)
