"""A short `make kill`: four kills, of other moments every time."""

import random

import pytest
from conftest import MODEL

from benchmarks import kill


def test_the_whole_plan_has_every_moment_with_every_victim():
    cases = list(kill.plan(40, random.Random(0)))
    assert {(ranks, moment, victim) for ranks, moment, victim, _, _ in cases} == {
        (ranks, moment, victim) for ranks in kill.VICTIMS for victim in kill.VICTIMS[ranks] for moment in kill.MOMENTS
    }


@pytest.mark.slow
def test_four_kills(pairs_file, capsys):
    seed = random.randrange(2**32)
    status = kill.main(["--kills", "4", "--seed", str(seed), "--model", str(MODEL), "--data", str(pairs_file)])
    print(capsys.readouterr().out)
    assert status == 0, f"seed {seed}"
