"""What the tests of dataset formats share."""

import pytest

from align.errors import UserError
from align.evals.formats.items import FORMATS


def make(name, row, **options):
    return FORMATS[name](row, "file:1", options)


def refused(call, *needles):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message


def whole_texts(item):
    return [item["prompt"] + choice["context"] + choice["text"] for choice in item["choices"]]
