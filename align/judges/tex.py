"""Numbers in TeX as plain text: spacing, text, braces and fractions, however they are nested.

plain_tex(r"-\\dfrac{\\,3}{4}")     # -3/4
plain_tex(r"12\\,345{,}6")         # 12345.6
"""

import re
from fractions import Fraction

PASSES = 4  # how deep braces and fractions nest, at most
LONGEST = 300  # digits; beyond, it is noise and not a number
NOISE = " root "  # what stands for a part whose numbers are none of the answer's

_COMMAND = r"(?<!\\)\\"
_GAP = rf"{_COMMAND}(?:[,;:> ]|(?:thin|med|thick)space(?![A-Za-z]))"
_SPACE = re.compile(rf"(?<! ) *(?:(?:{_GAP}|{_COMMAND}q?quad(?![A-Za-z])|{_COMMAND}hspace\*?\{{[^{{}}]*\}}) *)+")
_TEXT = re.compile(_COMMAND + r"(?:text\w*|math\w+|mbox|operatorname|underline|bm|rm)\s*\{([^{}]*)\}")
_PART = r"\s*(?:\{([^{}\\]*)\}|([-+]?\d))"
_FRACTION = re.compile(rf"(?:(\d) *)?(\s*(?<![\w)\]}}%])-\s*)?{_COMMAND}[dtc]?frac{_PART}{_PART}")
_OTHER = re.compile(_COMMAND + r"[dtc]?frac\s*(?:\{[^{}]*\}|\w)\s*(?:\{[^{}]*\}|\w)")
_BRACES = re.compile(r"(?<![A-Za-z\\^_}\]])\{([-+\d.,/ ]*)\}")
_AMOUNT = re.compile(r"([-+]?)\s*(?:(\d+) )?(\d[\d,]*(?:\.\d+)?|\.\d+)(?:/(\d+))?", re.ASCII)


def plain_tex(text: str) -> str:
    """A text with its TeX numbers as plain ones, and one sign for minus. A root, pi or a fraction of anything but numbers
    is no number, nor is what has LONGEST digits."""
    # what no number is as long as, and what would be looked through again from each of its characters
    text = re.sub(rf"[\d,]{{{LONGEST},}}", NOISE, text)
    text = re.sub(r"\s{3,}", lambda gap: "\n" * min(2, gap[0].count("\n")) or "  ", text)
    text = re.sub("[\u2010-\u2013\u207b\u2212\u2796\ufe58\ufe63\uff0d]", "-", text)
    if "\\" in text:
        text = text.replace("~", r"\ ")
    text = re.sub(r"\\([$%])", r"\1", text)
    text = re.sub(r"([\^_])\s*\{\s*([-+]?\d+)\s*\}", r"\1\2", text)
    text = re.sub(_COMMAND + r"(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?)\b|\\[()\[\]]", "", text)
    text = _TEXT.sub(lambda found: f" {found[1]} " if re.search("[A-Za-z]", found[1]) else found[1], text)
    # a comma in braces is no list's: it parts thousands, or is a decimal point
    text = re.sub(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=(?:\d\d|\d{4,})(?![\d{])|\d(?!\d))", ".", text)
    text = re.sub(r"\s*\{\s*([.,])\s*\}\s*", r"\1", text)
    text = re.sub(_COMMAND + r"(?:!|negthinspace(?![A-Za-z]))", "", text)
    text = re.sub(rf"(?<=\d)(?:{_GAP}|[\u00a0\u2009\u202f'\u2019_])+(?=\d{{3}}(?!\d))", "", text)
    text = _SPACE.sub(" ", text)
    text = re.sub(r"\\sqrt\s*(?:\[\d+\])?\s*(?:\{[^{}]*\}|\d)|√ ?\d+|\d*\\pi\b|\d*\u03c0", NOISE, text)
    for _ in range(PASSES):
        before = text
        text = _BRACES.sub(r"\1", _FRACTION.sub(_fraction, text))
        if text == before:
            break
    return _OTHER.sub(NOISE, text)


def _fraction(found: re.Match) -> str:
    """\\frac{a}{b} as a/b, its signs multiplied, with a space behind the whole of a mixed number."""
    whole, sign, *parts = found.groups()
    over, under = (_amount(parts[i] if parts[i] is not None else parts[i + 1]) for i in (0, 2))
    if over is None or not under:
        return f"{whole or ''}{NOISE}"
    value = over / under * (-1 if sign else 1)
    # as written where it can be, and a number such as 4/2 remains a fraction
    return f"{whole or ''} {value.numerator}/{value.denominator}"


def _amount(text: str) -> Fraction | None:
    """What one part of a fraction is worth, None where it is more than a number."""
    found = _AMOUNT.fullmatch(re.sub(r"\(\s*([^()]*?)\s*\)", r"\1", text).strip())
    if not found or len(text) > LONGEST or (found[4] and not int(found[4])):
        return None
    value = Fraction(found[3].replace(",", "")) / int(found[4] or 1) + int(found[2] or 0)
    return -value if found[1] == "-" else value
