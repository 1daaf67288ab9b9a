"""Align a language model with preference optimisation.

    torchrun [--nproc-per-node N] train.py --loss nca --model DIR --data FILE

Preference file -> token ids -> batches of whole prompt groups -> token log-probs -> one number per response -> loss -> step.
`python train.py ...` is the same with one process. With no arguments it builds a tiny Falcon and a toy world,
and shows the effect in about a minute.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from align import command, stopping
from align.average import Average
from align.checkpoint import Run, find_checkpoint, leave_out, load_checkpoint, save_checkpoint
from align.config import help_text, load_config
from align.coupled import global_inputs, with_rows
from align.data import load_tokenizer
from align.data.batches import Batch
from align.data.tokenizer import check_fits
from align.determinism import make_deterministic
from align.export import export_model
from align.fingerprint import model_id
from align.log import Log
from align.logps import response_sums
from align.losses import LossInputs
from align.metrics import StepSums, step_metrics
from align.models import add_adapters, build_model, check_varlen, check_weights, read_config, resolve_model
from align.optim import build_optimizer, learning_rate
from align.output import check_output, check_start, claim_output, held_output
from align.parallel import Rendezvous, World, check_ranks, distributed, gather, load_sharded, rendezvous
from align.plan.describe import describe_length, describe_plan
from align.plan.devices import device_memory
from align.plan.memory import settle_tokens
from align.plan.setup import setups_of
from align.profile import profiled
from align.projection import add_projected, take_gradients
from align.reference import Reference
from align.sections import Config, settle_length
from align.sources import Source, build_references, load_sources
from align.speed import Speed
from align.stop_rule import read_rule
from align.stopping import Stopped
from align.tiny.paths import report_tiny, resolve_tiny
from align.tracker import open_tracker


def train(config: Config, world: World) -> Path | None:
    """Run the alignment that `config` describes and return the folder of the aligned model; None for --plan.

    Raises UserError for what the user can fix, Stopped when a signal ended the run early.
    """
    if config.plan:
        if world.main:
            print(describe_plan(config, world))
        return None
    check_ranks(config.parallel, world)
    make_deterministic(config.train.deterministic)
    folder = resolve_model(config.model.path)
    architecture = read_config(folder)
    check_weights(add_adapters(build_model(architecture, "meta"), **vars(config.lora)), folder)
    tokenizer = load_tokenizer(folder)
    check_fits(tokenizer, architecture.vocab_size, str(folder))
    settle_length(config.data, architecture.context_length)
    setups = setups_of(config, architecture, world)
    if config.model.attention_impl == "varlen":
        check_varlen(architecture, setups[0].dtype, world.device)
    settle_tokens(config, setups, device_memory(world.device))
    check_output(config)
    if world.main:
        print(describe_length(config.data.max_length, architecture), flush=True)
    sources = load_sources(config, tokenizer, world)
    own, steps = sources[0], sources[0].data.steps
    made_of = {"model": (base := model_id(folder, world)), "data": sources.id}
    checkpoint = find_checkpoint(Path(config.output), made_of, world) if config.resume else None
    model = load_sharded(folder, world, setups[0].dtype, torch.float32, config.parallel, config.lora, config.train.seed)
    model.set_kernels(config.model.logp_impl, config.model.pointwise_impl, config.model.attention_impl)
    check_start(config, model, folder, steps, world)
    live = build_references(sources, folder, base, model, world)
    moving = live if config.reference.mode == "moving" else None
    optimizer = build_optimizer(model, config.optim)
    average = Average(model, config.optim.ema)
    run = Run(model, optimizer, sources, moving, made_of, average.means, config.train.stop_when)
    start = load_checkpoint(checkpoint, run, world) if checkpoint else 0
    output = claim_output(config, start, world)
    tracker = open_tracker(config.train.tracker, output, config.to_dict(), start) if world.main else None
    log = Log(output / "metrics.jsonl", start, steps, active=world.main, tracker=tracker)
    speed = Speed(setups, [source.data for source in sources], world)
    rule = read_rule(config.train, config.data)
    done, todo = start, range(start, start if run.ended else steps)

    for step in profiled(todo, config.train.profile if world.main else 0, output / "profile"):
        began = time.perf_counter()
        # random draws, if a model or loss makes any, are a function of (seed, step), like the data
        torch.manual_seed(config.train.seed * 1_000_003 + step)
        lr = learning_rate(step, steps, config.optim)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr

        for source in sources:
            others = take_gradients(model) if source.projects else None  # by the last one
            source.begin(step, world.device)
            for x, losses, rows in losses_of(source, source.indices, model, world, training=True):
                # the sum over all ranks and micro-batches, divided once by the prompts of the global batch
                (source.weight * losses.sum() / len(source.indices)).backward()
                source.sums.add_batch(source.loss, x, losses, rows)
        if others:
            add_projected(model, others, world)

        grad_norm = gather(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)).item()
        done, metrics = step + 1, {"step": step + 1, **sources.end(world), "lr": lr, "grad_norm": grad_norm}
        taken = math.isfinite(grad_norm + sum(source.totals["loss"] for source in sources))
        if taken:
            optimizer.step()
            average.follow()
        else:
            leave_out(done, run, sources, config.train.max_bad_steps, world)
        optimizer.zero_grad()
        if moving and is_due(done, config.reference.every):
            moving.follow(model, config.reference.alpha)
        metrics |= speed([source.indices for source in sources], time.perf_counter() - began)

        last, measured = done == steps or own.totals["stop"] > 0, is_due(done, config.train.eval_every)
        if own.data.held_out and (last or measured):
            with torch.no_grad(), average.in_place():
                sums = StepSums(world.device)
                for x, losses, rows in losses_of(own, own.data.held_out, model, world, training=False):
                    sums.add_batch(own.loss, x, losses, rows)
            metrics |= {f"eval/{name}": value for name, value in step_metrics(sums.reduce(world)).items()}
        if rule and measured and rule.met(metrics):
            run.ended = last = True
        if taken:
            log.step(metrics)
        if last or is_due(done, config.train.checkpoint_every):
            save_checkpoint(output, done, run, config.train.keep_checkpoints, world)
        if last and done < steps:
            break

    log.close()
    if done < steps and not run.ended:
        raise Stopped(f"stopped: step {done} of {steps} is in {output}; the same command with --resume goes on")
    if run.ended and world.main:
        print(f"finished after step {done} of {steps}: {run.stop_when} (train.stop_when)", flush=True)
    with average.in_place():
        return export_model(output, folder, model, tokenizer, sources.template, config, world)


def losses_of(
    source: Source, indices: Sequence[int], model: nn.Module, world: World, training: bool
) -> Iterator[tuple[LossInputs, Tensor, Tensor | slice]]:
    """For each of this rank's micro-batches of a global batch: the loss's inputs, its losses, and which rows it adds.

    A loss that needs the global batch is given all of it each time; only the micro-batch's rows carry gradients.
    """
    loss, data = source.loss, source.data
    tokens_per_prompt = data.tokens_per_prompt(indices)

    def inputs() -> Iterator[tuple[LossInputs, Tensor]]:
        for batch, positions in data.micro_batches(indices):
            yield loss_inputs(model, source.reference, batch, loss.token_inputs, tokens_per_prompt), positions

    if not loss.needs_global_batch:
        for x, _ in inputs():
            yield x, loss(x), slice(None)
        return
    with torch.no_grad():
        parts = list(inputs())
        whole = global_inputs(parts, len(indices), world)
    if not training:
        yield whole, loss(whole), torch.cat([positions for _, positions in parts])
        return
    loss.observe(whole)
    for x, positions in inputs():
        x = with_rows(whole, x, positions)
        yield x, loss(x), positions


def loss_inputs(
    model: nn.Module, reference: Reference | None, batch: Batch, tokens: Sequence[str], tokens_per_prompt: float
) -> LossInputs:
    """What the loss sees of a micro-batch: the (N, K) numbers of its real prompts. Fillers run, and end here."""
    known = reference(batch) if reference else None
    sums = response_sums(model, batch, tokens, known.distributions if known else None)  # (N, K) each
    if known:
        sums |= {"ref_logps": known.ref_logps, "ref_shared_logps": known.ref_shared_logps}
    if batch.scores is not None:
        sums["scores"] = batch.scores
    if batch.labels is not None:
        sums["labels"] = batch.labels[:, None]
    return LossInputs(**{name: rows[: batch.n] for name, rows in sums.items()}, tokens_per_prompt=tokens_per_prompt)


def is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def main(argv: list[str]) -> int:
    """Exit status: 0 done; 2 for what the user can fix, in one line; 1 for a bug, with its traceback.

    128 + the signal's number for a run that a signal stopped.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    meeting = rendezvous()
    try:
        with held_output(), distributed(meeting) as world:
            stopping.catch_signals("stopped; the same command with --resume goes on", meeting.launcher)
            config = load_config(argv)
            config.job, config.output = meeting.job, meeting.agree("output", config.output)
            is_tiny = resolve_tiny(config, world, train)
            folder = train(config, world)
            if folder and world.main:
                print(f"the aligned model is in {folder}", flush=True)
                if is_tiny:
                    print(report_tiny(Path(config.model.path), folder, Path(config.output)), flush=True)
    except Stopped as stopped:
        return complain(str(stopped), 128 + (stopping.signalled or signal.SIGTERM), meeting)
    except BrokenPipeError:
        raise
    except Exception as error:
        return complain(*command.failure(error), meeting)
    return 0


def complain(text: str, status: int, meeting: Rendezvous) -> int:
    """Say why we fail, if no other rank has: the rest fail of the same, or because the first has left them."""
    if meeting.first():
        print(text, file=sys.stderr, flush=True)
    return status


def cli() -> NoReturn:
    """The command: of this file, and align-train of an install."""
    command.run(main)


if __name__ == "__main__":
    cli()
