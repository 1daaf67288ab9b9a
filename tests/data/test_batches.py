"""Batches: masks by position; and their schedule: pure, complete, balanced."""

import random
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from tokenizer_folder import EOS, PAD

from align.data import collate
from align.data.batches import Dataset, batch_indices, sharing_saves, split_batch, stream_tokens
from align.data.encode import Group
from align.errors import UserError


def test_collate_takes_tokens_by_place_whatever_the_ids():
    # the prompt holds the pad and EOS ids, and one response holds the pad id
    groups = [Group([EOS, 5, PAD], [[7, EOS], [PAD, 8, 9, EOS]], 4), Group([6], [[EOS], [7, 7]], 2)]
    batch = collate(groups)
    assert batch.stream.ids.tolist() == [EOS, 5, PAD, 7, PAD, 8, 9, 6, 7]
    assert batch.stream.target.tolist() == [7, EOS, PAD, 8, 9, EOS, EOS, 7, 7]
    assert batch.stream.owner.tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3]
    assert batch.place.tolist() == [0, 1, 0, 1, 2, 3, 0, 0, 1]
    assert batch.n_tok.tolist() == [[2, 4], [1, 2]]
    assert (batch.n, batch.K, batch.index.tolist()) == (2, 2, [4, 2])
    assert batch.scores is None and batch.labels is None
    apart = collate(groups, share=False)
    assert apart.stream.ids.tolist() == [EOS, 5, PAD, 7, EOS, 5, PAD, PAD, 8, 9, 6, 6, 7]
    for name in ("target", "owner"):
        assert torch.equal(getattr(apart.stream, name), getattr(batch.stream, name))


def test_collate_scores_labels_fillers_and_device():
    scored = [Group([1], [[2], [3], [4]], i, scores=[0.5, 0.25, 0.1]) for i in range(2)]
    batch = collate(scored, n_real=0).to("meta")
    assert batch.n == 0 and batch.scores.shape == (2, 3) and batch.scores.dtype == torch.float32
    assert {t.device.type for t in (batch.stream.ids, batch.stream.owner, batch.index, batch.scores)} == {"meta"}
    unpaired = [Group([1], [[2]], i, label=i == 1) for i in range(2)]
    labels = collate(unpaired).labels
    assert labels.tolist() == [False, True] and labels.dtype == torch.bool


def test_batches_are_epochs_of_permutations():
    n, batch, seed = 37, 8, 5
    stream = [i for step in range(5 * n) for i in batch_indices(n, step, batch, seed)]
    epochs = [stream[e * n : (e + 1) * n] for e in range(5 * batch)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert batch_indices(n, 123, batch, seed) == stream[123 * batch : 124 * batch], "a pure function of the step"
    assert batch_indices(n, 0, batch, seed) != batch_indices(n, 0, batch, seed + 1)


def test_the_stream_does_not_depend_on_the_batch_size():
    def stream(batch):
        return [i for s in range(60 // batch) for i in batch_indices(11, s, batch, 0)]

    assert stream(2) == stream(5) == stream(10)


def test_batch_larger_than_the_data():
    assert sorted(batch_indices(4, 0, 4, 0)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"--train\.batch_size 5 .* 4 prompts"):
        batch_indices(4, 0, 5, 0)


def test_split_covers_the_batch_once_on_any_number_of_ranks():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    fillers = 0
    for _ in range(400):
        n, world = draw.randint(1, 40), draw.randint(1, 9)
        prompts, tokens = draw.choice([0, 1, 2, 6]), draw.choice([0, 1, 12, 30])
        sizes = [draw.randint(1, 12) for _ in range(n)]
        if n < world:
            with pytest.raises(UserError, match=r"--train\.batch_size"):
                split_batch(sizes, 0, world, prompts, tokens)
            continue
        ranks = [split_batch(sizes, rank, world, prompts, tokens) for rank in range(world)]
        assert len({len(rank) for rank in ranks}) == 1
        chunks = [chunk for rank in ranks for chunk in rank]
        assert all(real in (0, len(chunk)) and chunk for chunk, real in chunks)
        assert all(len(chunk) <= prompts for chunk, _ in chunks if prompts)
        weights = [sum(sizes[p] for p in chunk) for chunk, _ in chunks]
        assert all(
            weight <= tokens or len(chunk) == 1 for weight, (chunk, _) in zip(weights, chunks, strict=True) if tokens
        )
        assert sorted(p for chunk, real in chunks for p in chunk[:real]) == list(range(n))
        # no filler where a chunk of several prompts could be dealt
        empty = sum(real == 0 for _, real in chunks)
        assert not empty or all(len(chunk) == 1 for chunk, _ in chunks)
        # read in the order the chunks run, rank beside rank, sizes never grow
        turns = [chunk[:real] for turn in zip(*ranks, strict=True) for chunk, real in turn]
        in_order = [sizes[p] for chunk in turns for p in chunk]
        assert in_order == sorted(in_order, reverse=True)
        fillers += empty > 0
    assert fillers > 0


def test_no_other_cut_in_order_has_a_smaller_largest_micro_batch():
    """Against every way to cut the sorted batch into as many micro-batches."""
    draw = random.Random(5)
    for _ in range(60):
        sizes = sorted((draw.randint(1, 30) for _ in range(draw.randint(3, 8))), reverse=True)
        chunks = split_batch(sizes, 0, 1, 0, draw.randint(30, 90))
        largest = max(sum(sizes[p] for p in chunk) for chunk, _ in chunks)
        cuts = combinations(range(1, len(sizes)), len(chunks) - 1)
        best = min(max(sum(sizes[a:b]) for a, b in pairwise((0, *cut, len(sizes)))) for cut in cuts)
        assert largest == best


def test_split_by_hand():
    # longest first, ties in the batch's order
    assert split_batch([9, 5, 5, 5], 0, 1) == [([0, 1, 2, 3], 4)]
    assert split_batch([5, 5, 5, 9], 0, 1, max_prompts=4) == [([3, 0, 1, 2], 4)]
    # near-equal tokens, not near-equal numbers of prompts
    assert split_batch([9, 3, 3, 3], 0, 1, max_tokens=12) == [([0], 1), ([1, 2, 3], 3)]
    # a prompt beyond the budget runs alone
    assert split_batch([9, 2, 2], 0, 1, max_tokens=5) == [([0], 1), ([1, 2], 2)]
    # two ranks without a budget share the prompts
    assert [split_batch([4, 4, 4, 4], rank, 2) for rank in (0, 1)] == [[([0, 1], 2)], [([2, 3], 2)]]
    # four chunks for three prompts: rank 1's second holds a filler
    assert split_batch([7, 7, 7], 0, 2, 1) == [([0], 1), ([2], 1)]
    assert split_batch([7, 7, 7], 1, 2, 1) == [([1], 1), ([2], 0)]


def test_what_sharing_saves():
    groups = [Group([1] * 10, [[2] * 4, [3] * 6], 0), Group([1] * 2, [[2] * 5, [3] * 5], 1)]
    assert [stream_tokens(group, True) for group in groups] == [18, 10]
    assert [stream_tokens(group, False) for group in groups] == [28, 12]
    assert [len(collate(groups, share=share).stream.ids) for share in (True, False)] == [28, 40]
    assert sharing_saves(groups) == pytest.approx(12 / 40)
    single = [Group([1] * 10, [[2] * 4], 0)]
    assert sharing_saves(single) == 0 and stream_tokens(single[0], True) == 13


def test_a_dataset_deals_every_batch_to_its_ranks():
    groups = [Group([1] * (1 + i % 4), [[5] * (1 + i % 3), [6] * (1 + i % 5)], i) for i in range(13)]
    one = Dataset(groups, 11, 3, 6, 2, 0, 0, 0, 1, torch.device("cpu"))
    assert one.held_out == range(11, 13) and one.visited() == {*range(13)}, "18 positions go round the 11 prompts"
    batch = one.global_batch(1)
    assert batch == batch_indices(11, 1, 6, 0)
    for world_size in (1, 2, 3):
        dealt = {}
        for rank in range(world_size):
            for part, positions in replace(one, rank=rank, world_size=world_size).micro_batches(batch):
                assert len(part.index) <= 2 and part.n == len(positions)
                dealt |= zip(positions.tolist(), part.index[: part.n].tolist(), strict=True)
        assert [dealt[position] for position in range(6)] == batch
    assert one.n_tokens([0, 1]) == (2 * 1 + 1 + 1) + (2 * 2 + 2 + 2)
    assert one.tokens_per_prompt([0, 1]) == 1.5


def test_a_datasets_id_is_that_of_all_it_learns_from():
    groups = [Group([1], [[2], [3]], i, scores=[1.0, 0.0]) for i in range(3)]
    data = Dataset(groups, 2, 1, 1, 1, 0, 0, 0, 1, torch.device("cpu"))
    others = [
        replace(data, n_train=3),
        replace(data, groups=[replace(groups[0], scores=[2.0, 0.0]), *groups[1:]]),
        replace(data, groups=[replace(groups[0], prompt_ids=[7]), *groups[1:]]),
    ]
    assert len({d.id for d in [data, *others]}) == 4
    assert replace(data, steps=9, batch_size=2, seed=5, rank=1, world_size=2).id == data.id
