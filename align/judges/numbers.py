"""Numbers as people and models write them, and the one that a response gives as its answer.

    numbers("$1,200.50, or -3/4")                             # [2401/2, -3/4]
    final_number("The answer is 18 (check: 18 + 6 = 24).")    # 18

Exact, as fractions: what is compared is what was written, not what a float makes of it.
"""

import re
import unicodedata
from fractions import Fraction

from align.judges.tex import LONGEST, plain_tex

# 18, 1,000, 18.00, .5, 3/4, 1 1/2, -$5. A dash between two things is no sign ("10-5", "2-year"), digits within a word
# are no number ("H2O"), and what follows is a unit ("18kg", "50%").
NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]}%])[-+])?(?:[$€£¥]\s?)?(?P<inner>(?<=[$€£¥])[-+])?(?<![A-Za-z_0-9.^])"
    r"(?P<whole>\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+|(?=\.\d))(?P<decimals>\.\d+)?"
    r"(?: ?/ ?(?P<under>-?\d+)| (?P<over>\d+)/(?P<below>\d+))?"
    r"(?:(?:[eE]| ?(?:\*|x|×|\\times|\\cdot) ?10 ?(?:\^|\*\*) ?\{?)(?P<power>[-+]?\d{1,3})\}?(?!\w))?"
    r"(?: (?P<scale>thousand|million|billion|trillion)\b)?",
    re.ASCII,
)
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

CUE = re.compile(
    r"\banswer[*_\s]*(?:\s(?:is|was|equals|comes to|(?:will|would|should|must) be)\b(?!\s+not\b)|[:=])"
    r"|\banswer[*_:# ]*\n",
    re.IGNORECASE,
)
EQUALS = re.compile(r"=|\u2248|\\approx\b")
# beside a number: what makes it a part of a calculation
OPERATION = re.compile(r"[-+*/\u00d7\u00f7^]|\\(?:times|cdot|div)\b|\b[xyz]\b")
# where the answer ends and what speaks for it begins
REASON = re.compile(
    r"[,;:]?\s+\(|[,;:]?\s+(?:because|since|given that|seeing that)\b|,\s+(?:as|for|which|that is|i\.e\.)(?!\w)"
    r"|;|\u2014"
    r"|[,.]?\s+(?:check|verification|proof)\b\s*:",
    re.IGNORECASE,
)
# sentences at the end of a response that confirm what it has said, unless they draw a new conclusion
_CHECKS = re.compile(
    r"[*_#\s]*\(?(?:(?:to |let me |let us |let's |we can |you can |i can )?(?:double[- ]?)?"
    r"(?:check|verify|confirm)(?:ing)?\b|verification\b|proof\b|sanity check\b|(?:plug|substitut)\w+\b"
    r"|this is (?:right|correct)\b|(?:that|this) is because\b|because\b)",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(r"\b(?:so|thus|therefore|hence|wait|actually|instead|wrong|not)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
# "18 (24 - 6 = 18)", "18, because 18 + 6 = 24": a remark in brackets, a reason that is an equation
_BEHIND = re.compile(
    r"\s\([^()]*\)[.!]?\s*\Z"
    r"|(?:,?\s+(?:because|since|as)\s+|,\s+for\s+)[^().,;=]*[-+*/\u00d7\u00f7][^();=]*=[^();=]*[.!]?\s*\Z",
    re.IGNORECASE,
)


def numbers(text: str) -> list[Fraction]:
    """All numbers in a text, in order."""
    return [value for match in NUMBER.finditer(_plain(text)) if (value := _value(match)) is not None]


def final_number(response: str) -> Fraction | None:
    """The number that a response gives as its answer, None if it has none.

    What counts, first to last, as in GSM8K's evaluation (arXiv 2110.14168) and those after it: what follows "####",
    the last \\boxed{...}, what follows the last "the answer is" or "Answer:", else the last number of all, a check of
    it left out. What speaks for an answer ("18, because 18 + 6 = 24") is not the answer. Where the answer is a chain of
    equals, it is the first link if that is a number alone, else the last.
    """
    response = plain_tex(response)  # whose "\\;" ends no sentence
    _, marked, rest = response.partition("####")
    spans = [_clause(rest)] if marked else []
    spans += [re.sub(r"^\s*[-\u2212\u2013]\s+", "-", _boxed(response))]
    spans += [_clause(response[cue.end() :]) for cue in reversed(list(CUE.finditer(response)))]
    for span in spans:
        if found := _answer(span):
            return found[0]
    said = _without_check(response)
    found = numbers(said) or numbers(response)
    return found[-1] if found else None


def _answer(span: str) -> list[Fraction]:
    """The numbers of the part of a span that is the answer."""
    for claim in (REASON.split(span.strip(), maxsplit=1)[0], span):
        links = [link for link in EQUALS.split(_SIGN.sub("= -", claim)) if numbers(link)]
        if links:
            alone = len(numbers(links[0])) == 1 and not OPERATION.search(NUMBER.sub("", _plain(links[0])))
            return numbers(links[0] if alone else links[-1])
    return []


def _without_check(response: str) -> str:
    """The response up to where it begins to check what it has said."""
    said = response.rstrip()
    while True:
        shorter = _BEHIND.sub("", said)
        *before, last = _SENTENCE.split(said)
        if shorter == said and before and _CHECKS.match(last) and not _CONCLUDES.search(last):
            shorter = said[: said.rindex(last)].rstrip()
        if shorter == said or not numbers(shorter):
            return said
        said = shorter


def _plain(text: str) -> str:
    """The text with one spelling of signs, fractions and thousands."""
    text = re.sub(r"\*\*|__", "", text)  # bold
    text = plain_tex(text)
    text = re.sub(_MINUS, "-", text)
    text = re.sub(r"(?<!\d )(?<![\w.,])(\d{1,3})((?: \d{3})+)(?![\d,.]*\d|/| \d)", _close, text)
    text = _SIGN.sub("= -", text)
    text = re.sub(r"(?<![\w)\]}%])-\s?\(\s*(\d+(?:/\d+)?)\s*\)", r"-\1", text)
    text = re.sub(r"\(\s*(-?\d+)\s*\)/(\d+)", r"\1/\2", text)
    # ½ and its kind
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)
    return re.sub(
        "[\u00bc-\u00be\u2150-\u215e]", lambda m: unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text
    )


_SIGN = re.compile(r"=\s*-\s+(?=[\d.])")
# "negative 3"; "minus 3" where it is no subtraction
_MINUS = re.compile(
    r"(?:\bnegative|(?:^|(?<=[=:(*$])|(?<=\b(?:is|to|at|of|by|be) )|(?<=\bwas ))\s*\bminus) (?=[$€£]?\.?\d)",
    re.IGNORECASE | re.MULTILINE,
)


def _close(match: re.Match) -> str:
    """1 000 000 as 1000000."""
    return match[0].replace(" ", "")


def _value(match: re.Match) -> Fraction | None:
    if len(match[0]) > LONGEST:
        return None
    value = Fraction((match["whole"].replace(",", "") or "0") + (match["decimals"] or ""))
    if match["below"] and int(match["below"]):
        value += Fraction(int(match["over"]), int(match["below"]))
    if match["under"] and int(match["under"]):
        value /= int(match["under"])
    value *= Fraction(10) ** int(match["power"] or 0) * SCALES.get(match["scale"] or "", 1)
    return -value if "-" in (match["sign"], match["inner"]) else value


def _clause(text: str) -> str:
    """The rest of a sentence or line."""
    text = re.sub(r"^([ \t:*_]*)[-\u2212\u2013] (?=[$\d\\])", r"\1-", text)
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
