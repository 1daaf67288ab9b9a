"""The models under evaluation: from what --model says to a name for the report and a model in memory."""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from align.data import load_tokenizer
from align.data.tokenizer import Tokenizer, check_fits
from align.errors import UserError
from align.evals.store import folder_digest
from align.models import Decoder, build_model, check_weights, load_model, read_config, resolve_model
from align.parallel import World, compute_dtype, load_sharded


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate. id is a hash of all that its responses depend on."""

    name: str
    path: str  # as the user gave it
    folder: Path
    id: str
    parameters: int
    metrics: Path | None  # metrics.jsonl of the run that made it
    max_length: int  # tokens of context, prompt and response together
    tokenizer: Tokenizer


def find_models(paths: list[str], max_length: int = 0) -> list[Candidate]:
    """What --model names: checkpoints, folders of runs, Hub ids. Raises UserError.

    max_length: tokens of context; 0 for what each model says.
    """
    found = [find_model(path, max_length) for path in paths]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise UserError(f"--model {twice[0]} is given twice")
    names = Counter(candidate.name for candidate in found)
    return [
        candidate if names[candidate.name] == 1 else Candidate(**{**vars(candidate), "name": candidate.path})
        for candidate in found
    ]


def find_model(path: str, max_length: int = 0) -> Candidate:
    folder = resolve_model(path)
    run = folder.absolute().parent if folder.name == "model" else None
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    model = build_model(config, "meta")
    check_weights(model, folder)
    check_fits(tokenizer, config.vocab_size, str(folder))
    if max_length > config.context_length:
        raise UserError(f"--max_length {max_length}: {path} was made for {config.context_length} tokens")
    return Candidate(
        name=run.name if run else Path(path).absolute().name,
        path=path,
        folder=folder,
        id=folder_digest(folder),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        metrics=run / "metrics.jsonl" if run and (run / "metrics.jsonl").is_file() else None,
        max_length=max_length or config.context_length,
        tokenizer=tokenizer,
    )


def load_candidate(candidate: Candidate, options: argparse.Namespace, world: World) -> Decoder:
    """The model in memory: whole on every process, or with --shard spread over all."""
    dtype = compute_dtype(options.dtype, world.device)
    if options.shard:
        model = load_sharded(candidate.folder, world, dtype=dtype, stored=dtype)
    else:
        model = load_model(candidate.folder, dtype, world.device)
    return model.requires_grad_(False).eval()
