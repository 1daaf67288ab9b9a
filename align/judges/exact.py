"""Judging a response against what is expected: is it the same number, the same text, or does it contain that text?"""

import re
from collections.abc import Callable
from fractions import Fraction

from align.errors import UserError

# A number as people write it: 18, 1,000, 18.00, .5, 3/4, 1 1/2, -$5. A dash between two things is no sign ("10-5",
# "2-year"), digits within a word are no number ("H2O"), and what follows is a unit ("18kg", "50%").
NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]}%])[-+])?(?:[$€£]\s?)?(?P<inner>(?<=[$€£])[-+])?(?<![A-Za-z_0-9.])"
    r"(?P<whole>\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+|(?=\.\d))(?P<decimals>\.\d+)?"
    r"(?: ?/ ?(?P<under>\d+)| (?P<over>\d+)/(?P<below>\d+))?",
    re.ASCII,
)
CUE = re.compile(
    r"\banswer[*_\s]*(?:\s(?:is|was|equals|comes to|(?:will|would|should|must) be)\b(?!\s+not\b)|[:=])", re.IGNORECASE
)
LONGEST = 300  # digits; beyond, it is noise and not a number


def numbers(text: str) -> list[Fraction]:
    """All numbers in a text, in order."""
    text = re.sub("[\u2212\ufe63\uff0d]", "-", text)
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r" \1/\2", text)
    # TeX's escapes and its spacing, and the thin spaces that group digits elsewhere
    text = re.sub(r"\\([$%])", r"\1", text).replace("{,}", ",")
    text = re.sub(r"(?<=\d)(?:\\[,!]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", "", text)
    return [value for match in NUMBER.finditer(text) if (value := _value(match)) is not None]


def _value(match: re.Match) -> Fraction | None:
    if len(match[0]) > LONGEST:
        return None
    value = Fraction((match["whole"].replace(",", "") or "0") + (match["decimals"] or ""))
    if match["below"] and int(match["below"]):
        value += Fraction(int(match["over"]), int(match["below"]))
    if match["under"] and int(match["under"]):
        value /= int(match["under"])
    return -value if "-" in (match["sign"], match["inner"]) else value


def final_number(response: str) -> Fraction | None:
    """The number that a response concludes with, None if it has none.

    What counts, first to last, as in GSM8K's evaluation (arXiv 2110.14168) and those after it: what follows "####",
    the last \\boxed{...}, what follows the last "the answer is" or "Answer:", else the last number of all. Where that
    is a calculation, what counts comes after its last "=".
    """
    _, marked, rest = response.partition("####")
    spans = [_clause(rest)] if marked else []
    spans += [_boxed(response)]
    spans += [_clause(response[cue.end() :]) for cue in reversed(list(CUE.finditer(response)))]
    for span in spans:
        if found := numbers(span.rpartition("=")[2]) or numbers(span):
            return found[0]
    found = numbers(response)
    return found[-1] if found else None


def _clause(text: str) -> str:
    """The rest of a sentence or line."""
    return re.split(r"\n|\.(?:\s|\Z)", text.lstrip(" \t\n:*_"), maxsplit=1)[0]


def _boxed(text: str) -> str:
    """What stands in the last \\boxed{...}, braces within it included."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for i, letter in enumerate(rest if found else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if not depth:
            return rest[:i]
    return ""


def _same_number(response: str, expected: list[str], where: str) -> dict:
    known = [written[0] for text in expected if (written := numbers(text))]
    if not known:
        raise UserError(f"{where}: expected {expected[0]!r} has no number; the judge number needs one")
    found = final_number(response)
    return {"correct": found in known, "found": None if found is None else str(found)}


def _equal(response: str, expected: list[str], where: str) -> dict:
    return {"correct": response.strip() in [text.strip() for text in expected]}


def _contains(response: str, expected: list[str], where: str) -> dict:
    return {"correct": any(text.strip() in response for text in expected)}


EXACT_JUDGES: dict[str, Callable[[str, list[str], str], dict]] = {
    "number": _same_number,
    "equals": _equal,
    "contains": _contains,
}


class ExactJudge:
    """A judge by comparison, one of EXACT_JUDGES: verdicts {"correct": bool}, and "found" where it looks for a number.

    Reads record["response"] and record["expected"], a text, or a list of texts each of which is right.
    """

    def __init__(self, name: str):
        self.name, self.compare = name, EXACT_JUDGES[name]

    def __call__(self, records: list[dict]) -> list[dict]:
        """One verdict per record. Raises UserError naming a record without "expected"."""
        verdicts = []
        for record in records:
            where, expected = f"prompt {record.get('id')}", record.get("expected")
            if expected is None:
                raise UserError(f"{where}: the judge {self.name} compares with expected, and the row has none")
            verdicts.append(
                self.compare(record["response"], expected if isinstance(expected, list) else [expected], where)
            )
        return verdicts
