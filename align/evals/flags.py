"""The command line of eval.py."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from align.config import NUMBERS
from align.errors import UserError
from align.evals.suites import suite_names


class Parser(argparse.ArgumentParser):
    """prog: the command without its interpreter, "eval.py" or "-m align.respond". Flags are written out."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
        for kind in (int, float):
            self.register("type", kind, partial(number, kind))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; python {self.prog} --help lists the flags")


def number(kind: type, text: str) -> Any:
    """As train.py's flags have numbers, and none beyond what a tensor holds. Raises ValueError."""
    if not NUMBERS[kind].fullmatch(text) or abs(kind(text)) >= 2**63:
        raise ValueError
    return kind(text)


def read_flags(argv: list[str]) -> argparse.Namespace:
    """The checked flags. output is a folder, or None with --chat. Raises UserError; --help prints and exits."""
    parser = Parser(
        prog="eval.py",
        description="Measure how safe a model is, and what that cost it: suites of benchmarks in, one page out.",
        epilog="Stopped at any moment, the same command resumes. docs/evaluation.md says what is measured, and how.",
    )
    add = parser.add_argument
    add("--model", action="append", metavar="DIR|HUB_ID", help="a checkpoint or a run's folder; the first is the base")
    add("--suite", action="append", metavar="NAME|FILE.toml", help=f"what to run: {', '.join(suite_names())}")
    add("--output", type=Path, metavar="DIR", help="where the report goes; default runs/eval-SUITE")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="where the suites' files are; default data")
    add("--guard", default="", metavar="DIR|HUB_ID", help="the Llama Guard 3 checkpoint that judges as `guard`")
    add("--toxicity", default="", metavar="DIR|HUB_ID", help="the BERT or RoBERTa classifier that judges as `toxicity`")
    add(
        "--toxicity_label", default="", metavar="NAME", help="which of its labels counts, where their names do not tell"
    )
    add("--judge", default="", metavar="NAME|MODULE:FUNCTION", help="gives the safety scores, in place of `guard`")
    add("--limit", type=int, default=0, metavar="N", help="only the first N prompts of each benchmark")
    add("--temperature", type=float, default=0.0, help="of sampling; 0, the default, takes the likeliest token")
    add("--top_p", type=float, default=1.0, help="sample from the likeliest tokens that have this probability together")
    add("--top_k", type=int, default=0, help="sample from this many of the likeliest tokens; 0: from all")
    add("--seed", type=int, default=0, help="of the samples")
    add("--max_new_tokens", type=int, default=0, metavar="N", help="of a response; default: what the suite says")
    add("--max_length", type=int, default=0, metavar="N", help="of prompt and response; default: what the model says")
    add("--batch_size", type=int, default=32, metavar="N", help="texts that a process reads or writes at a time")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on GPUs")
    add("--shard", action="store_true", help="spread the weights over all processes: for models that fit on none")
    add("--curves", nargs="+", metavar="RUN", help="training runs side by side: their curves on one page, and no more")
    add("--chat", action="store_true", help="talk to the model in the terminal, or to two side by side")
    options = parser.parse_args(argv)
    check(options)
    if options.output is None and options.suite:
        options.output = Path("runs") / f"eval-{'+'.join(Path(name).stem for name in options.suite)}"
    if options.output is None and options.curves:
        options.output = Path("runs") / "curves"
    return options


def check(options: argparse.Namespace) -> None:
    if options.curves:
        if options.model or options.suite or options.chat:
            raise UserError("--curves takes runs of train.py, and neither --model, --suite nor --chat")
        return
    if not options.model:
        raise UserError("--model is missing: which checkpoint? Give a folder, a Hub id, or several --model")
    if options.chat:
        if len(options.model) > 2:
            raise UserError(f"--chat talks to one model or two side by side, not to {len(options.model)}")
    elif not options.suite:
        raise UserError(f"--suite is missing: there are {', '.join(suite_names())}, or your own FILE.toml")
    check_sampling(options)


def check_sampling(options: argparse.Namespace) -> None:
    """Raise UserError for a number that is out of bounds, of those that are among the options."""
    at_least = {"limit": 0, "temperature": 0, "top_k": 0, "seed": 0, "max_new_tokens": 0, "max_length": 0}
    for name, least in (at_least | {"batch_size": 1, "k": 1}).items():
        value = getattr(options, name, least)
        if not least <= value < float("inf"):
            raise UserError(f"--{name} must be a number of at least {least}, not {value}")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top_p must be greater than 0 and at most 1, not {options.top_p}")
