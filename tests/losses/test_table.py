"""What every loss says of itself: the table, and a docstring with all of its parts."""

import inspect

import pytest

from align.config import help_text
from align.losses import FITS, LOSSES, build_loss, loss_parameters
from align.losses.__main__ import main
from align.losses.names import RDPO
from align.losses.pages import page
from align.losses.table import describe, overview

# issue of the paper's text unseen: inferred from what its authors could have run in mid-2024
TEN = {"dpo", "slic", "ipo", "bco", "sppo", "nca", "robust", "aot", "aot_unpaired", "exo"}


def test_the_ten_of_the_paper_are_marked():
    assert {name for name, cls in LOSSES.items() if cls.in_paper} == TEN
    marked = {line.split()[1] for line in overview().splitlines() if line.startswith("* ") and "one of" not in line}
    assert marked == TEN and "one of the ten of arXiv 2409.07772, as inferred" in overview()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_in_the_tables_that_readers_find(name):
    cls = LOSSES[name]
    assert cls.paper in describe(name) and cls.title in describe(name) and cls.responses in FITS
    for shown in (overview(), help_text()):
        assert f" {name} " in shown and cls.title in shown
        assert all(f"{key} " in shown for key in loss_parameters(name))
        assert not cls.trl or f"TRL: {cls.trl}\n" in shown


@pytest.mark.parametrize("name", [name for name in LOSSES if page(name)])
def test_a_loss_with_a_page_is_documented_whole(name):
    cls, text = LOSSES[name], inspect.getdoc(LOSSES[name])
    for part in ("Objective", "Derivation", "Gradient", "What it does", "Limits"):
        assert part in text, part
    assert cls.summary and cls.title != cls.__name__


# loss_type of TRL's DPOTrainer, now and before; of its CPOTrainer and KTOTrainer; config/loss of HALOs; names in papers
ELSEWHERE = {
    "sigmoid": "dpo",
    "hinge": "slic",
    "ipo": "ipo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust",
    "bco_pair": "bco",
    "sppo_hard": "sppo",
    "aot": "aot",
    "aot_pair": "aot_unpaired",
    "aot_unpaired": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sft": "sft",
    "sigmoid_norm": "dpo_norm",
    "kto_pair": "kto_pair",
    "simpo": "simpo",
    "alphapo": "alphapo",
    "apo_zero_unpaired": "apo_zero",
    "kto": "kto",
    "dpo": "dpo",
    "cdpo": "cdpo",
    "slic": "slic",
    "NCA": "nca",
    "TDPO2": "tdpo",
    "LD-DPO": "ld_dpo",
    "DiscoPOP": "discopop",
    "APO-zero": "apo_zero",
}


@pytest.mark.parametrize("theirs", ELSEWHERE)
def test_another_name_answers_with_the_right_one(theirs):
    ours = ELSEWHERE[theirs]
    assert ours in LOSSES
    if theirs == ours:
        assert isinstance(build_loss(theirs), LOSSES[ours])
        return
    with pytest.raises(ValueError, match=f"unknown loss '{theirs}'; .* {ours} here: --loss {ours}$"):
        build_loss(theirs)


def test_names_that_nobody_uses_are_answered_with_all_there_are():
    for name in ("", "dpo+", "something_else_entirely"):
        with pytest.raises(
            ValueError, match=r"unknown loss '.*'; There are: nca, .*, and module:Class for one of your own$"
        ):
            build_loss(name)


def test_rdpo_is_two_methods_and_all_say_so():
    for name in ("rDPO", "RDPO", "r-dpo", "r_dpo"):
        with pytest.raises(
            ValueError, match=r"rDPO is robust DPO to most people \(--loss robust\), .* to some \(--loss rdpo\)"
        ):
            build_loss(name)
    assert RDPO in help_text()


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
