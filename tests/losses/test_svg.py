"""Figures in fewer bytes: the picture stays what it was."""

import re
from itertools import pairwise

import pytest

from align.losses.svg import relative, small

DRAWN = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
 <defs><style type="text/css">*{stroke-linejoin: round}</style></defs>
 <metadata>made today</metadata>
 <g id="figure_1"><!-- a comment -->
  <g clip-path="url(#p0123)">
   <path d="M 1.2345 2 
L 3 4.4567 
" style="fill: none; stroke: #ffffff"/>
  </g>
  <g id="text_1">
   <text style="font-size: 8px; font-family: 'DejaVu Sans', sans-serif" x="5.678" transform="rotate(-0 1 2)">dpo</text></g>
 </g>
 <defs><clipPath id="p0123"><rect x="0" y="0" width="9.87654" height="9"/></clipPath></defs>
</svg>"""


def points(path):
    """Where a path of M, L and z, absolute or relative, goes: a list of subpaths of points."""
    subpaths, x, y, command = [], 0.0, 0.0, ""
    numbers = []
    for token in re.findall(r"[MLmlz]|-?\d*\.?\d+", path):
        if token == "z":
            x, y = subpaths[-1][0]
        elif token.isalpha():
            command = token
        else:
            numbers.append(float(token))
        if len(numbers) == 2:
            move = command in "mM"
            first = not subpaths
            x, y = (numbers[0] + x, numbers[1] + y) if command.islower() and not first else (numbers[0], numbers[1])
            subpaths = [*subpaths, [(x, y)]] if move else [*subpaths[:-1], [*subpaths[-1], (x, y)]]
            numbers = []
            command = {"m": "l", "M": "L"}.get(command, command)
    return subpaths


@pytest.mark.parametrize(
    "path",
    [
        "M 0 374.4 L 648.04 374.4 L 648.04 0 L 0 0 z",
        "M 1.26 2.31 L 3.19 2.31 M 7 -8.05 L 7.02 -8.44",
        "M 5 5 L 6 5 L 6 6 z M 1 1 L 2 2",
        "M " + " L ".join(f"{k * 1.04:.3f} {(k * k) % 7 * 0.973:.3f}" for k in range(200)),
    ],
)
def test_a_path_in_steps_goes_where_it_went(path):
    before, after = points(path), points(relative(path))
    assert [len(subpath) for subpath in before] == [len(subpath) for subpath in after]
    flat = [(a, b) for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True)]
    assert (
        max(abs(p - q) for a, b in flat for p, q in zip(a, b, strict=True)) < 0.051
    )  # rounding, which does not add up
    assert len(relative(path)) < len(path) and any(a != b for a, b in pairwise(before[0]))


def test_curves_are_left_as_they_are():
    curve = "M 0 1.1 C 0.29 1.1 0.57 0.98 0.77 0.77 z"
    assert relative(curve) == curve


def test_a_small_picture_has_all_that_is_seen_and_nothing_else():
    made = small(DRAWN)
    assert "dpo</text>" in made and "stroke:#ffffff" in made and 'd="m1.2 2 1.8 2.5"' in made and 'x="5.7"' not in made
    assert 'x="5.6"' in made  # cut to a tenth of a point
    (name,) = re.findall(r'clip-path="url\(#(\w+)\)"', made)
    assert f'id="{name}"' in made
    for gone in ("comment", "metadata", "made today", "text_1", "figure_1", "DejaVu Sans'", "rotate(-0"):
        assert gone not in made, gone
