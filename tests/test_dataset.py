"""What a run learns from: pairs as labelled responses, and responses of other prompts."""

import pytest

from align.data.encode import Group
from align.data.rows import Row
from align.dataset import labelled, mismatch
from align.errors import UserError


def test_a_pair_is_two_labelled_responses():
    good, bad = labelled(Row("p", ["a", "b"], scores=[2.0, 1.0], extra={"category": "c"}, where="f:1"))
    assert good == Row("p", ["a"], label=True, extra={"category": "c"}, where="f:1")
    assert bad == Row("p", ["b"], label=False, extra={"category": "c"}, where="f:1")


def test_mismatched_responses_are_other_prompts_and_fit():
    groups = [Group([1, 2, i % 4], [[10 + i] * (1 + i % 5)], index=i, label=True) for i in range(20)]
    paired = mismatch(groups, max_length=6, seed=3, path="f")
    prompts = {tuple(g.response_ids[0]): g.prompt_ids for g in groups}
    for before, after in zip(groups, paired, strict=True):
        assert after.response_ids[0] == before.response_ids[0] and after.index == before.index and after.label
        (borrowed,) = after.response_ids[1:]
        assert 1 <= len(borrowed) <= 3
        source = next(prompt for response, prompt in prompts.items() if response[0] == borrowed[0])
        assert source != after.prompt_ids
    again, other = mismatch(groups, max_length=6, seed=3, path="f"), mismatch(groups, 6, 4, "f")
    assert list(paired) == list(again) != list(other)
    with pytest.raises(UserError, match="all prompts are the same"):
        mismatch([g for g in groups if g.prompt_ids[2] == 0], 6, 0, "f")
