"""What every loss says of itself: the table, and a docstring with all of its parts."""

import inspect

import pytest

from align.config import help_text
from align.losses import FITS, LOSSES, loss_parameters
from align.losses.__main__ import main
from align.losses.table import describe, overview

# issue of the paper's text unseen: inferred from what its authors could have run in mid-2024
TEN = {"dpo", "slic", "ipo", "bco", "sppo", "nca", "robust", "aot", "aot_unpaired", "exo"}


def test_the_ten_of_the_paper_are_marked():
    assert {name for name, cls in LOSSES.items() if cls.in_paper} == TEN
    marked = {line.split()[1] for line in overview().splitlines() if line.startswith("* ") and "one of" not in line}
    assert marked == TEN and "one of the ten of arXiv 2409.07772, as inferred" in overview()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_documented_whole(name):
    cls, text = LOSSES[name], inspect.getdoc(LOSSES[name])
    for part in ("Objective", "Derivation", "Gradient", "What it does", "Limits"):
        assert part in text, part
    assert cls.paper in describe(name) and cls.title in describe(name) and cls.responses in FITS
    # a table that all readers of the package can find it in, with every parameter that a flag sets
    for shown in (overview(), help_text()):
        assert f" {name} " in shown and cls.title in shown
        assert all(f"{key} " in shown for key in loss_parameters(name))


def test_one_loss_in_full(capsys):
    assert main(["nca", "kto"]) == 0
    said = capsys.readouterr().out
    assert (
        "--loss nca" in said
        and "--loss.beta 0.01" in said
        and "Objective" in said
        and "needs       reference, labels" in said
    )
    assert main(["nac"]) == 2
    assert "did you mean 'nca'" in capsys.readouterr().err
