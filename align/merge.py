"""Models between two others: folders whose weights are (1 - w) A + w B.

    python -m align.merge A B --weights 0,0.1,...,1 --output DIR        # DIR/0, DIR/0.1, ..., DIR/1

Between a base model A and B, the same after alignment, that is a path of ever more alignment, which eval.py measures as
it does any models (WiSE-FT, arXiv 2109.01903; for preference optimisation arXiv 2404.16792, where w is beyond 1). A
tensor at a time is read, combined in float32 and written in the dtype in which the two have their weights, the wider
one where they differ. At 0 and 1 the weights are those of A and of B to the bit.
"""

import math
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from align import command
from align.data import load_tokenizer
from align.data.tokenizer import check_fits
from align.errors import UserError
from align.evals.flags import Parser
from align.export import TEMPLATE_FILES, TOKENIZER_FILES
from align.models import DecoderConfig, build_model, check_weights, read_config, resolve_model, save_model
from align.models.folder import Stored, opened

ELLIPSIS = "..."


def merge(a: Path, b: Path, weights: list[float], output: Path) -> list[Path]:
    """Write output/W for every weight W, each with the description, tokenizer and template of B. Raises UserError."""
    configs = read_config(a), read_config(b)
    check_alike(a, b, *configs)
    model, other = (build_model(config, "meta") for config in reversed(configs))
    where_a, where_b = check_weights(other, a), check_weights(model, b)
    stored = [config.stored_dtype or torch.float32 for config in (other.config, model.config)]
    names = {param: name for name, param in model.named_parameters()}
    patterns = (*TOKENIZER_FILES, *TEMPLATE_FILES, "generation_config.json")
    files = sorted({file for pattern in patterns for file in b.glob(pattern) if file.is_file()})
    folders = []
    for weight in weights:

        def between(param: nn.Parameter, weight: float = weight) -> Tensor:
            x, y = (read(where[names[param]]) for where in (where_a, where_b))
            return x.lerp(y, weight)

        folders.append(output / f"{weight:g}")
        save_model(model, folders[-1], torch.promote_types(*stored), between, extras=files)
    return folders


def read(stored: Stored) -> Tensor:
    """A tensor of a folder, in float32 or what is wider."""
    with opened(stored.file) as file:
        tensor = file.get_tensor(stored.name)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_alike(a: Path, b: Path, config_a: DecoderConfig, config_b: DecoderConfig) -> None:
    """Raise UserError unless the two are one architecture with one vocabulary."""
    if type(config_a) is not type(config_b):
        kinds = [config.raw.get("model_type") for config in (config_a, config_b)]
        raise UserError(f"{a} is a {kinds[0]} and {b} a {kinds[1]}; only models of one architecture can be merged")
    for name, value in vars(config_a).items():
        if name not in ("raw", "stored_dtype") and value != getattr(config_b, name):
            raise UserError(
                f"{a} has {name} {value} and {b} {getattr(config_b, name)}; only models of one architecture can be merged"
            )
    tokenizers = [load_tokenizer(folder) for folder in (a, b)]
    for tokenizer in tokenizers:
        check_fits(tokenizer, config_a.vocab_size, tokenizer.folder)
    if tokenizers[0].backend.to_str() != tokenizers[1].backend.to_str():
        raise UserError(f"{a} and {b} have different tokenizers, so that their embeddings mean different tokens")


def read_weights(text: str) -> list[float]:
    """Numbers with commas between; "0,0.1,...,1" goes on in even steps. Raises UserError."""
    words = [word.strip() for word in text.split(",")]
    weights: list[float] = []
    for i, word in enumerate(words):
        try:
            if word != ELLIPSIS:
                weights.append(float(word))
                continue
            end = float(words[i + 1])
            steps = (end - weights[-1]) / (weights[-1] - weights[-2])
        except (ValueError, IndexError, ZeroDivisionError):
            raise UserError(f"--weights {text}: must be numbers such as 0.5, or 0,0.1,...,1") from None
        # half a step more, so that rounding leaves out no end
        if not (0 < steps < 1000 and abs(steps - round(steps)) < 1e-6):
            raise UserError(f"--weights {text}: no even steps lead from {weights[-1]:g} to {end:g}")
        start, step = weights[-1], (end - weights[-1]) / round(steps)
        weights += [round(start + step * k, 12) for k in range(1, round(steps))]
    if not all(map(math.isfinite, weights)):
        raise UserError(f"--weights {text}: must be finite numbers")
    if len({f"{weight:g}" for weight in weights}) < len(weights):
        raise UserError(f"--weights {text}: names a weight twice")
    return weights


def main(argv: list[str]) -> int:
    def work() -> None:
        parser = Parser(
            prog="-m align.merge",
            description="Models between two others: folders whose weights are (1 - w) A + w B.",
            epilog="docs/pairs.md shows the path from a base model to an aligned one.",
        )
        parser.add_argument("a", metavar="A", help="the model at weight 0: a folder, a run's folder or a Hub id")
        parser.add_argument("b", metavar="B", help="the model at weight 1, whose description and template are kept")
        parser.add_argument("--weights", default="0.5", metavar="W,W,...", help="of B; default 0.5")
        parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="holds a folder for each weight")
        options = parser.parse_args(argv)
        weights = read_weights(options.weights)
        folders = merge(resolve_model(options.a), resolve_model(options.b), weights, options.output)
        print("\n".join(map(str, folders)), flush=True)

    return command.attempt(work)


def cli() -> NoReturn:
    command.run(main)


if __name__ == "__main__":
    cli()
