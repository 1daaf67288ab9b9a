"""Judging a response against what is expected: is it the same number, the same text, or does it contain that text?"""

from collections.abc import Callable

from align.errors import UserError
from align.judges.numbers import final_number, numbers
from align.judges.thinking import response_of


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

    Reads what record["response"] says and record["expected"], a text, or a list of texts each of which is right.
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
                self.compare(response_of(record), expected if isinstance(expected, list) else [expected], where)
            )
        return verdicts
