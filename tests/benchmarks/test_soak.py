"""A short `make soak`, and that it finds what grows."""

import pytest
from conftest import MODEL

from benchmarks.soak import Look, growth, main


def test_what_grows_is_found():
    flat = [Look(i, i, 300 + i % 3, 9 + (i % 7 == 0), 4) for i in range(20)]
    assert growth(flat) == []
    assert growth([Look(i, i, 300 + 2 * i, 9, 4) for i in range(20)]) == ["memory, by 20.0 MiB"]
    assert growth([Look(i, i, 300, 9 + i, 4 + i // 3) for i in range(20)]) == ["files, by 6", "threads, by 2"]


@pytest.mark.slow
def test_forty_steps_are_flat(pairs_file, capsys):
    flags = ["--steps", "40", "--every", "4", "--model", str(MODEL), "--data", str(pairs_file)]
    assert main(flags) == 0
    assert "flat over 40 steps" in capsys.readouterr().out
