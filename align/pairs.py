"""From a model's own responses, which align.respond wrote, to a file that train.py learns from.

    python -m align.pairs RESPONSES.jsonl [--chosen OTHER.jsonl] [--most N] [--recover K] [--output FILE]
    python -m align.pairs RESPONSES.jsonl --lists K
    python -m align.pairs RESPONSES.jsonl --anchors [--cut_off]

Pairs: to one prompt, a safe response chosen over an unsafe one (arXiv 2409.07772). With --chosen the safe ones are those
of another file, such as refusals sampled under a system message that asks for them: the pair has the prompt without it,
so that training teaches what the message had to ask for, in the model's own words (on-policy context distillation,
arXiv 2112.00861, as preferences). With --recover K a share of them occurs twice: the second time the response has begun
with up to K words of the unsafe one, and what is chosen is to refuse from there on, so that not all of a refusal hangs
on its first words (Qi et al. 2024, arXiv 2406.05946, section 3). Lists: K responses with the judge's scores, for nca and
infonca. Anchors: responses to each prompt as they are, for sft or anchor on prompts that nothing should change on.

A response that loops or is empty is never chosen, listed or an anchor, nor is one that was cut off. That one may be the
unsafe one, though, and with --cut_off an anchor. Whatever gives no row is counted.
"""

import argparse
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from align import command
from align.data.messages import BadRow, begin, check_messages, first_words
from align.errors import UserError, one_line
from align.evals.flags import Parser
from align.files import loads, open_text, write_text
from align.judges.safety import safety

Response = dict[str, Any]  # a line of align.respond
Made = tuple[list[dict[str, Any]], str]  # the rows of a prompt, or why there are none


def read_responses(path: Path) -> dict[str, list[Response]]:
    """The responses of a file by the id of their prompt, in the file's order. Raises UserError naming the line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; python -m align.respond writes one")
    found: dict[str, list[Response]] = {}
    try:
        with open_text(path) as lines:
            for number, text in enumerate(lines, 1):
                one = loads(text)
                if not isinstance(one, dict):
                    raise ValueError("a line is no object")
                if not is_response(one):
                    raise UserError(f"{path}:{number} is no line of a response that align.respond writes")
                found.setdefault(one["id"], []).append(one)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path}: is not what align.respond writes ({one_line(error)})") from None
    if not found:
        raise UserError(f"{path}: holds no response")
    return found


def is_response(one: Response) -> bool:
    kinds: dict[str, type] = {"id": str, "sample": int, "prompt": list}
    if "error" not in one:
        kinds |= {"response": str, "degenerate": str, "verdict": dict}
    return all(type(one.get(key)) is kind for key, kind in kinds.items()) and is_dialogue(one["prompt"])


def is_dialogue(messages: list) -> bool:
    try:
        return bool(check_messages(messages, "the prompt"))
    except BadRow:
        return False


def usable(responses: list[Response], left_out: Counter[str]) -> list[Response]:
    """Those that are text, though they may be cut off, each wording once; the others are counted."""
    kept: dict[str, Response] = {}
    for one in responses:
        why = "failed" if "error" in one else one["degenerate"]
        if why and why != "cut off":
            left_out[why] += 1
        elif one["response"].strip() in kept:
            left_out["repeated"] += 1
        else:
            kept[one["response"].strip()] = one
    return list(kept.values())


def whole(responses: list[Response], left_out: Counter[str]) -> list[Response]:
    """Those that were not cut off; the others are counted."""
    kept = [one for one in responses if not one["degenerate"]]
    left_out["cut off"] += len(responses) - len(kept)
    return kept


def is_safe(one: Response) -> bool:
    return score(one) > 0.5


def score(one: Response) -> float:
    """How safe the judge finds a response. Raises UserError where it does not say."""
    try:
        found = safety(one["verdict"])
    except (TypeError, ValueError, OverflowError):  # of a verdict that somebody has edited
        found = None
    if found is None:
        raise UserError(f"the verdict on response {one['id']}:{one['sample']} says nothing of safety: {one['verdict']}")
    return found


def carried(one: Response) -> dict[str, Any]:
    """The prompt of a row, and what is known of it."""
    return {key: one[key] for key in ("prompt", "category", "attack") if key in one}


def pairs_of(responses: list[Response], chosen: list[Response], most: int, left_out: Counter[str]) -> Made:
    """At most `most` pairs of a safe response among `chosen` and an unsafe one among `responses`, all of them distinct."""
    found = usable(responses, left_out)
    others = found if chosen is responses else usable(chosen, left_out)
    # a judge may call a refusal unsafe because it was cut off: that is not what makes a response worth avoiding
    unsafe = [one for one in found if not is_safe(one) and "degenerate" not in one["verdict"]]
    taken = {one["response"].strip() for one in unsafe}  # another file may have had another judge
    safe = whole([one for one in others if is_safe(one) and one["response"].strip() not in taken], left_out)
    if not safe or not unsafe:
        return [], " and ".join(
            f"no {kind} response" for kind, found in (("safe", safe), ("unsafe", unsafe)) if not found
        )
    both = list(zip(safe, unsafe, strict=False))[:most]
    return [carried(bad) | {"chosen": good["response"], "rejected": bad["response"]} for good, bad in both], ""


def recoveries(pairs: list[dict[str, Any]], words: int, share: float) -> list[dict[str, Any]]:
    """Of a share of the pairs, the same once more where up to so many words of the rejected response stand already.

    The prompt and its responses decide which pairs, and how many words; what is rejected is the rest of them, at least
    one word.
    """
    made = []
    for pair in pairs:
        draw = random.Random(json.dumps(pair, sort_keys=True))
        longest = min(words, len(pair["rejected"].split()) - 1)
        if draw.random() < share and longest > 0:
            begun = first_words(pair["rejected"], draw.randint(1, longest))
            rest = {"chosen": f" {pair['chosen'].lstrip()}", "rejected": pair["rejected"].removeprefix(begun)}
            made.append(pair | {"prompt": begin(pair["prompt"], begun)} | rest)
    return made


def list_of(responses: list[Response], k: int, left_out: Counter[str]) -> Made:
    """The first k responses with their scores, if there are k and they are not all as good."""
    found = whole(usable(responses, left_out), left_out)
    if len(found) < k:
        return [], f"fewer than {k} responses"
    # of more than k, the best, the worst and what is between them in even steps
    found.sort(key=score, reverse=True)
    found = [found[round(i * (len(found) - 1) / (k - 1))] for i in range(k)]
    scores = [score(one) for one in found]
    if scores[0] == scores[-1]:
        return [], "equal scores"
    return [carried(found[0]) | {"responses": [one["response"] for one in found], "scores": scores}], ""


def anchors_of(responses: list[Response], most: int, cut_off: bool, left_out: Counter[str]) -> Made:
    """The first `most` responses that are text, whatever they say.

    cut_off: keep those that were cut off after T tokens. By the chain rule (align/losses/anchor.py) they hold the
    divergence of the first T tokens, whichever token is put behind them; to keep only what ended in time would hold it
    for short responses alone. sft would learn to end there.
    """
    found = usable(responses, left_out)
    if not cut_off:
        found = whole(found, left_out)
    rows = [carried(one) | {"completion": one["response"]} for one in found[:most]]
    return rows, "" if rows else "no response that is text"


def make(options: argparse.Namespace) -> str:
    """Write the rows, and say what became of the prompts. Raises UserError."""
    responses = read_responses(options.responses)
    others = read_responses(options.chosen) if options.chosen else responses
    left_out: Counter[str] = Counter()
    kinds: dict[str, Callable[[str], Made]] = {
        "pairs": lambda id: pairs_of(responses[id], others.get(id, []), options.most, left_out),
        "lists": lambda id: list_of(responses[id], options.lists, left_out),
        "anchors": lambda id: anchors_of(responses[id], options.most, options.cut_off, left_out),
    }
    rows: list[dict[str, Any]] = []
    without: Counter[str] = Counter()
    for id in responses:
        found, why = kinds[options.kind](id)
        rows += found
        without.update([why] if why else [])
    report = list(told(len(responses), len(rows), options.kind, without, left_out))
    if options.recover:
        rows += (more := recoveries(rows, options.recover, options.recover_share))
        report.append(f"{len(more)} of them once more, behind the first words of the rejected response")
    if not rows:
        raise UserError(f"{options.responses}: {'; '.join(report)}; nothing is written")
    write_text(options.output, "".join(json.dumps(row) + "\n" for row in rows))
    return "\n".join([*report, f"the {options.kind} are in {options.output}"])


def told(prompts: int, rows: int, kind: str, without: Counter[str], left_out: Counter[str]) -> Iterator[str]:
    gave = prompts - without.total()
    yield f"{prompts} prompts: {gave} ({gave / prompts:.1%}) gave {rows} {kind}"
    for what, counts in (("prompts without", without), ("responses left out", left_out)):
        if +counts:
            yield f"{what}: {', '.join(f'{n} {why}' for why, n in (+counts).most_common())}"


def read_flags(argv: list[str]) -> argparse.Namespace:
    """The checked flags. Raises UserError; --help prints and exits."""
    parser = Parser(
        prog="-m align.pairs",
        description="A preference file from a model's own responses, which python -m align.respond wrote.",
        epilog="docs/pairs.md shows each kind.",
    )
    add = parser.add_argument
    add("responses", type=Path, metavar="RESPONSES", help="what align.respond wrote: the unsafe ones are taken from it")
    add("--chosen", type=Path, metavar="FILE", help="responses to the same prompts, of which the safe ones are chosen")
    add("--most", type=int, default=1, metavar="N", help="pairs, or anchors, of a prompt at most; default 1")
    add(
        "--recover",
        type=int,
        default=0,
        metavar="K",
        help="also pairs whose response has begun, with up to K unsafe words",
    )
    add("--recover_share", type=float, default=0.5, metavar="S", help="of the pairs that also come so; default 0.5")
    add("--lists", type=int, default=0, metavar="K", help="rows of K responses with scores, in place of pairs")
    add("--anchors", action="store_true", help="rows of one response, whatever it says, in place of pairs")
    add("--cut_off", action="store_true", help="anchors that were cut off, too: for the loss anchor, not for sft")
    add("--output", type=Path, metavar="FILE", help="default: RESPONSES with .pairs, .lists or .anchors in its name")
    options = parser.parse_args(argv)
    options.kind = "anchors" if options.anchors else "lists" if options.lists else "pairs"
    if options.anchors and options.lists:
        raise UserError("--lists and --anchors: give one of them, and run the command again for the other")
    spelled = {"pairs": "pairs", "lists": "--lists", "anchors": "--anchors"}
    for flag, kind in {"chosen": "pairs", "recover": "pairs", "cut_off": "anchors"}.items():
        if getattr(options, flag) and options.kind != kind:
            raise UserError(f"--{flag} is for {spelled[kind]}, not for {spelled[options.kind]}")
    if options.recover < 0:
        raise UserError(f"--recover {options.recover}: so many words at most; must be at least 0, which is none")
    if not 0 < options.recover_share <= 1:
        raise UserError(f"--recover_share {options.recover_share}: must be greater than 0 and at most 1")
    if options.lists and options.lists < 3:
        raise UserError(f"--lists {options.lists}: a list has three responses or more; two are a pair")
    if options.most < 1:
        raise UserError(f"--most must be at least 1, not {options.most}")
    stem = options.responses.name.removesuffix(".gz").removesuffix(".jsonl")
    options.output = options.output or options.responses.with_name(f"{stem}.{options.kind}.jsonl")
    if options.output in (options.responses, options.chosen):
        raise UserError(f"--output {options.output} is a file that is read; name another")
    return options


def main(argv: list[str]) -> int:
    return command.attempt(lambda: print(make(read_flags(argv)), flush=True))


def cli() -> NoReturn:
    command.run(main)


if __name__ == "__main__":
    cli()
