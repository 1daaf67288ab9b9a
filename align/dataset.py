"""A run's prompts: those to train on, those held out, and how a global batch is dealt to ranks and micro-batches."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from align.config import Config
from align.data import Row, batch_indices, read_rows, split_batch
from align.errors import UserError
from align.losses import FITS, Loss
from align.parallel import World
from align.tokens import Batch, Group, Tokenizer, collate, encode_rows, fingerprint

# what a row of each kind of FITS holds, for people
HOLDS = {
    "single": "one answer",
    "pair": "a chosen and a rejected answer",
    "list": "three or more answers",
    "labelled": "one answer and a label",
}


@dataclass(frozen=True)
class Dataset:
    """groups[:n_train] are trained on, the rest is held out. K, the answers of a prompt, is the same for all."""

    groups: list[Group]
    n_train: int
    steps: int
    config: Config
    pad_id: int
    world: World

    @property
    def held_out(self) -> range:
        return range(self.n_train, len(self.groups))

    def global_batch(self, step: int) -> list[int]:
        """The prompts of an optimizer step, over all ranks: a function of (seed, step) alone."""
        return batch_indices(self.n_train, step, self.config.train.batch_size, self.config.train.seed)

    def visited(self) -> set[int]:
        """Every prompt that the run will look at."""
        return {i for step in range(self.steps) for i in self.global_batch(step)} | set(self.held_out)

    @property
    def id(self) -> str:
        """A hash of all that a run learns from: ids, scores and labels, and how many of the prompts are trained on."""
        judged = [(group.scores, group.label) for group in self.groups]
        return hashlib.sha256(f"{fingerprint(self.groups)} {judged} {self.n_train}".encode()).hexdigest()

    def micro_batches(self, indices: Sequence[int]) -> Iterator[tuple[Batch, Tensor]]:
        """This rank's part of a global batch: batches, each with the positions (n,) of its real prompts among `indices`."""
        lengths = [self.groups[i].length for i in indices]
        size = self.config.train.micro_batch_size
        for chunk, real in split_batch(range(len(indices)), lengths, self.world.rank, self.world.size, size):
            batch = collate([self.groups[indices[p]] for p in chunk], self.pad_id, real)
            positions = torch.tensor(chunk[:real], dtype=torch.int64)
            yield batch.to(self.world.device), positions.to(self.world.device)

    def tokens_per_prompt(self, indices: Sequence[int]) -> float:
        """Tokens of the preferred answer, averaged over a global batch. Every rank knows it without asking the others."""
        return sum(len(self.groups[i].response_ids[0]) for i in indices) / len(indices)

    def n_tokens(self, indices: Sequence[int]) -> int:
        """All tokens of a global batch, prompts counted once for each answer, padding not at all."""
        return sum(self.groups[i].n_tokens for i in indices)


def load_dataset(config: Config, loss: Loss, tokenizer: Tokenizer, world: World) -> Dataset:
    """Read --data.path and --data.eval_path, check them against the loss and the ranks. Raises UserError."""
    groups = load_groups(config, config.data.path, loss, tokenizer, world)
    n, k = len(groups), len(groups[0].response_ids)
    if config.data.eval_path:
        held_out = load_groups(config, config.data.eval_path, loss, tokenizer, world)
        if len(held_out[0].response_ids) != k:
            raise UserError(f"{config.data.eval_path}: another number of answers a prompt than in {config.data.path}")
        if (held_out[0].scores is None) != (groups[0].scores is None):
            raise UserError(f"{config.data.eval_path} and {config.data.path}: one has scores and the other none")
        if len(held_out) < world.size:
            raise UserError(f"{config.data.eval_path}: {len(held_out)} rows for {world.size} ranks; give one for each")
        groups += [replace(group, index=n + i) for i, group in enumerate(held_out)]
    steps = config.train.steps or math.ceil(config.train.epochs * n / config.train.batch_size)
    dataset = Dataset(groups, n, steps, config, tokenizer.pad_id, world)
    # sizes that cannot be are refused here, not after an hour of preparation
    next(dataset.micro_batches(dataset.global_batch(0)))
    return dataset


def load_groups(config: Config, path: str, loss: Loss, tokenizer: Tokenizer, world: World) -> list[Group]:
    """A preference file as token ids, checked against what the loss needs. Says what it read."""
    options = config.data
    rows, dropped = read_rows(path, options.bad_rows)
    if loss.responses == "unpaired" and len(rows[0].responses) == 2:
        rows = [answer for row in rows for answer in labelled(row)]
        if world.main:
            print(f"data: {path} has pairs, for --loss {config.loss.name} {len(rows)} answers labelled good or bad")
    k, has_label = len(rows[0].responses), rows[0].label is not None
    kind = "labelled" if has_label else {1: "single", 2: "pair"}.get(k, "list")
    if kind not in FITS[loss.responses]:
        takes = " or ".join(HOLDS[kind] for kind in HOLDS if kind in FITS[loss.responses])
        raise UserError(f"{path}: {HOLDS[kind]} a prompt; --loss {config.loss.name} takes {takes}")
    if loss.responses == "one":  # what a loss does not read is not computed
        rows = [replace(row, responses=row.responses[:1], scores=None) for row in rows]
    groups, report = encode_rows(
        rows, tokenizer, options.template, options.max_length, options.overlong, options.bad_rows, dropped
    )
    if loss.uses_mismatched_responses:
        groups = mismatch(groups, options.max_length, config.train.seed, path)
    if world.main:
        print(f"data: {path}\n{report}", flush=True)
    return groups


def labelled(row: Row) -> tuple[Row, Row]:
    """A pair as a desirable and an undesirable answer."""
    good, bad = row.responses
    return (
        replace(row, responses=[good], scores=None, label=True),
        replace(row, responses=[bad], scores=None, label=False),
    )


def mismatch(groups: list[Group], max_length: int, seed: int, path: str) -> list[Group]:
    """Give every prompt, as answer 1, the answer to another prompt: what KTO estimates its KL on. A function of the seed.

    The answers go round a random circle, so that each serves about once; a prompt takes the next that was given to other
    words than its own. One too long for its new prompt is cut, and then has no EOS. Raises UserError where all prompts
    are the same.
    """
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    paired = list(groups)
    for place, i in enumerate(order):
        group = groups[i]
        others = (groups[order[(place + step) % len(order)]] for step in range(1, len(order)))
        other = next((g for g in others if g.prompt_ids != group.prompt_ids), None)
        if other is None:
            raise UserError(f"{path}: all prompts are the same; kto needs answers to other prompts to compare with")
        borrowed = other.response_ids[0][: max_length - len(group.prompt_ids)]
        paired[i] = replace(group, response_ids=[group.response_ids[0], borrowed])
    return paired
