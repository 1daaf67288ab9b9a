"""A preference file, made to fit the loss that learns from it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from align.data.batches import Dataset, sharing_saves
from align.data.encode import Group, Groups, encode_rows
from align.data.rows import BadRow, Row, count_or_raise, describe, read_rows
from align.data.tokenizer import Tokenizer
from align.errors import UserError
from align.losses import FITS, Loss
from align.parallel import World
from align.sections import MAX_STEPS, Config

# of the tokens: less does not pay for looking up a prompt's keys again
WORTH_SHARING = 0.05
# what a row of each kind of FITS holds, in words
HOLDS = {
    "single": "one response",
    "pair": "a chosen and a rejected response",
    "list": "three or more responses",
    "labelled": "one response and a label",
}


def load_dataset(config: Config, loss: Loss, tokenizer: Tokenizer, world: World) -> Dataset:
    """Read data.path and data.eval_path, check them against the loss and the ranks. Raises UserError."""
    groups, template = load_groups(config, config.data.path, loss, tokenizer, world)
    n, k = len(groups), len(groups[0].response_ids)
    if config.data.eval_path:
        held_out, _ = load_groups(config, config.data.eval_path, loss, tokenizer, world)
        if len(held_out[0].response_ids) != k:
            raise UserError(f"{config.data.eval_path}: another number of responses a prompt than in {config.data.path}")
        if (held_out[0].scores is None) != (groups[0].scores is None):
            raise UserError(f"{config.data.eval_path} and {config.data.path}: one has scores and the other none")
        if len(held_out) < world.size:
            raise UserError(f"{config.data.eval_path}: {len(held_out)} rows for {world.size} ranks; give one for each")
        groups.extend(held_out)
    epochs = config.train.epochs
    if not config.train.steps and epochs * n / config.train.batch_size > MAX_STEPS:
        raise UserError(f"train.epochs {epochs:g}: of {n} prompts they are more than {MAX_STEPS:,} steps; lower it")
    steps = config.train.steps or math.ceil(epochs * n / config.train.batch_size)
    if config.reference.mode == "moving" and config.reference.every >= steps:
        raise UserError(
            f"reference.every {config.reference.every}: in {steps} steps the reference would never move; lower it"
        )
    dataset = Dataset(
        groups=groups,
        n_train=n,
        steps=steps,
        batch_size=config.train.batch_size,
        batch_flag=config.flag("batch_size"),
        micro_batch_size=config.train.micro_batch_size,
        micro_batch_tokens=config.train.micro_batch_tokens,
        seed=config.train.seed,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        template=template,
        share=(saved := sharing_saves(groups)) >= WORTH_SHARING,
    )
    if world.main and k > 1:
        shared = "computed once for all its responses" if dataset.share else "computed again for each response"
        print(f"prompts: each is {shared}; once leaves out {saved:.0%} of the tokens", flush=True)
    # impossible sizes are refused here, not after an hour of preparation
    next(dataset.micro_batches(dataset.global_batch(0)))
    return dataset


def load_groups(config: Config, path: str, loss: Loss, tokenizer: Tokenizer, world: World) -> tuple[Groups, str | None]:
    """A preference file as token ids, checked against what the loss needs, and Dataset.template. Says what it read."""
    options, loss_flag = config.data, f"{config.flag('loss')} {config.loss.name}"
    rows, dropped = read_rows(path, options.bad_rows)
    if loss.responses not in ("one", "list"):
        rows = without_ties(rows, loss_flag, options.bad_rows, dropped)
        if not rows:
            raise UserError(f"{path}: no row is left to train on, {describe(dropped)}")
    if loss.responses == "unpaired" and len(rows[0].responses) == 2:
        rows = [half for row in rows for half in labelled(row)]
        if world.main:
            print(f"data: {path} has pairs, for {loss_flag} {len(rows)} responses labelled good or bad")
    k, has_label = len(rows[0].responses), rows[0].label is not None
    kind = "labelled" if has_label else {1: "single", 2: "pair"}.get(k, "list")
    if kind not in FITS[loss.responses]:
        takes = " or ".join(HOLDS[kind] for kind in HOLDS if kind in FITS[loss.responses])
        raise UserError(f"{path}: {HOLDS[kind]} a prompt; {loss_flag} takes {takes}")
    if loss.responses == "one":  # what a loss does not read is not computed
        rows = [replace(row, responses=row.responses[:1], scores=None) for row in rows]
    groups, report = encode_rows(
        rows,
        tokenizer,
        options.template,
        options.max_length,
        options.overlong,
        options.bad_rows,
        dropped,
        progress=world.main,
    )
    formatter = tokenizer.formatter(options.template)
    chats = any(formatter.messages(row.prompt) is not None for row in rows)
    if loss.uses_mismatched_responses:
        groups = mismatch(groups, options.max_length, config.train.seed, path)
    if world.main:
        print(f"{f'sources.{config.source}' if config.source else 'data'}: {path}\n{report}", flush=True)
    return groups, formatter.chat.source if chats else None


def without_ties(rows: list[Row], loss_flag: str, bad_rows: str, dropped: Counter) -> list[Row]:
    """The rows but for pairs with equal scores, which are no preference: an error, or a counted drop, as bad_rows says."""
    kept = []
    for row in rows:
        if row.scores and len(row.scores) == 2 and row.scores[0] == row.scores[1]:
            tie = f"both responses have the score {row.scores[0]:g}, and {loss_flag} needs one that is better"
            count_or_raise(BadRow("equal scores", tie), row.where, bad_rows, dropped)
        else:
            kept.append(row)
    return kept


def labelled(row: Row) -> tuple[Row, Row]:
    """A pair as a desirable and an undesirable response."""
    good, bad = row.responses
    return (
        replace(row, responses=[good], scores=None, label=True),
        replace(row, responses=[bad], scores=None, label=False),
    )


def mismatch(groups: Sequence[Group], max_length: int, seed: int, path: str) -> Groups:
    """Give every prompt a response to another prompt, as response 1: on these KTO estimates its KL. A function of the seed.

    The prompts stand on a random circle, and each takes the response of the next one that differs from it, so that every
    response is used about once. One too long for its new prompt is cut, and then has no EOS. Raises UserError where
    all prompts are the same.
    """
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    lenders = [0] * len(groups)
    for position, i in enumerate(order):
        others = (order[(position + step) % len(order)] for step in range(1, len(order)))
        lender = next((j for j in others if groups[j].prompt_ids != groups[i].prompt_ids), None)
        if lender is None:
            raise UserError(f"{path}: all prompts are the same; kto needs responses to other prompts to compare with")
        lenders[i] = lender

    def paired(group: Group, lender: Group) -> Group:
        borrowed = lender.response_ids[0][: max_length - group.prompt_length]
        return replace(group, response_ids=[group.response_ids[0], borrowed])

    return Groups(paired(group, groups[j]) for group, j in zip(groups, lenders, strict=True))
