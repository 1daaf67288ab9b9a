"""Batches: masks by position; and their schedule: pure, complete, balanced."""

import json
import random
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN
from tokenizer_folder import EOS, PAD

from align.data import collate, load_tokenizer
from align.data.batches import Dataset, batch_indices, split_batch
from align.data.encode import Group
from align.errors import UserError


def test_golden_batch_is_padded_alike():
    tokenizer = load_tokenizer(GOLDEN / "tokenizer")
    golden = json.loads((GOLDEN / "tokenizer" / "tokenizer_golden.json").read_text())["padded_batch"]
    # a group of one token of prompt and the rest as its response covers each recorded row
    groups = [Group(ids[:1], [ids[1:]], i) for i, ids in enumerate(tokenizer.encode_batch(golden["texts"])) if ids[1:]]
    batch = collate(groups, tokenizer.pad_id)
    assert batch.ids.tolist() == golden["right"]["input_ids"][1:]
    attended = torch.tensor(golden["right"]["attention_mask"][1:])
    assert torch.equal(batch.mask[:, 1:].long(), attended[:, 1:]) and not batch.mask[:, 0].any()


def test_collate_masks_by_position_whatever_the_ids():
    # the prompt holds the pad and EOS ids, pad is EOS, and one response holds the pad id
    groups = [Group([EOS, 5, PAD], [[7, EOS], [PAD, 8, 9, EOS]], 4), Group([6], [[EOS], [7, 7]], 2)]
    batch = collate(groups, EOS)
    P = EOS
    assert batch.ids.tolist() == [
        [EOS, 5, PAD, 7, EOS, P, P],
        [EOS, 5, PAD, PAD, 8, 9, EOS],
        [6, EOS, P, P, P, P, P],
        [6, 7, 7, P, P, P, P],
    ]
    assert batch.mask.long().tolist() == [
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
    ]
    assert batch.ids.dtype == torch.int64 and batch.mask.dtype == torch.bool
    assert batch.n_tok.tolist() == [[2, 4], [1, 2]]
    assert (batch.n, batch.K, batch.index.tolist()) == (2, 2, [4, 2])
    assert batch.scores is None and batch.labels is None
    padded = collate(groups, PAD)
    assert torch.equal(padded.mask, batch.mask), "the mask does not depend on the pad id"


def test_collate_scores_labels_fillers_and_device():
    scored = [Group([1], [[2], [3], [4]], i, scores=[0.5, 0.25, 0.1]) for i in range(2)]
    batch = collate(scored, 0, n_real=0).to("meta")
    assert batch.n == 0 and batch.scores.shape == (2, 3) and batch.scores.dtype == torch.float32
    assert {t.device.type for t in (batch.ids, batch.mask, batch.index, batch.scores)} == {"meta"}
    unpaired = [Group([1], [[2]], i, label=i == 1) for i in range(2)]
    labels = collate(unpaired, 0).labels
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
        n, world, micro = draw.randint(1, 40), draw.randint(1, 9), draw.randint(1, 6)
        lengths = [draw.randint(1, 12) for _ in range(n)]
        if n < world:
            with pytest.raises(UserError, match=r"--train\.batch_size"):
                split_batch(lengths, 0, world, micro)
            continue
        ranks = [split_batch(lengths, rank, world, micro) for rank in range(world)]
        assert {len(rank) for rank in ranks} == {-(-n // (world * micro))}
        assert all(1 <= len(chunk) <= micro for rank in ranks for chunk, _ in rank)
        assert all(real in (0, len(chunk)) for rank in ranks for chunk, real in rank)
        assert all(0 <= p < n for rank in ranks for chunk, _ in rank for p in chunk)
        real = [p for rank in ranks for chunk, n_real in rank for p in chunk[:n_real]]
        assert sorted(real) == list(range(n))
        sizes = [n_real for rank in ranks for _, n_real in rank]
        assert max(sizes) - min(sizes) <= 1
        fillers += 0 in sizes
        # read in the order the chunks run, rank beside rank, lengths never grow
        turns = [chunk[:n_real] for turn in zip(*ranks, strict=True) for chunk, n_real in turn]
        in_order = [lengths[p] for chunk in turns for p in chunk]
        assert in_order == sorted(in_order, reverse=True)
    assert fillers > 0


def test_split_by_hand():
    # longest first, ties in the batch's order
    assert split_batch([9, 5, 5, 5], 0, 1, 4) == [([0, 1, 2, 3], 4)]
    assert split_batch([5, 5, 5, 9], 0, 1, 4) == [([3, 0, 1, 2], 4)]
    # four chunks for three prompts: rank 1's second holds a filler
    assert split_batch([7, 7, 7], 0, 2, 1) == [([0], 1), ([2], 1)]
    assert split_batch([7, 7, 7], 1, 2, 1) == [([1], 1), ([2], 0)]


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
