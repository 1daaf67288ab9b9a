"""The compiler's report: it compiles without a GPU, its choice is what the launcher reads, its counts can be repeated."""

import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def written():
    """What `python -m kernels.tools.report --write` last wrote; the kernels are not touched."""
    from kernels.tools import report

    return report.read()


@pytest.fixture(scope="module")
def rows(written):
    """Those of the space of tiles, as they run by default."""
    return [row for row in written if not row.note]


def test_the_launcher_runs_with_the_tiles_that_the_report_chose(rows):
    from kernels.tools import report
    from kernels.triton.tiles import KERNELS, TILES, tiles_for

    assert report.choose(rows) == TILES
    for arch in report.MACHINES:
        for element in ("bfloat16", "float16", "float32"):
            assert set(tiles_for(arch, element)) == set(KERNELS)


def test_no_chosen_tile_spills_and_every_one_fits(rows):
    from kernels.tools.roofline import MACHINES
    from kernels.triton.tiles import TILES

    chosen = [row for row in rows if TILES[row[:3]] == row.tile]
    assert len(chosen) == len(TILES) == 4 * 2 * 4
    for row in chosen:
        assert row.facts.spills == 0 and row.facts.shared <= MACHINES[row.arch].shared and row.prediction.occupancy >= 1
        if row.element == "bfloat16":
            assert row.facts.mma > 0 and row.facts.wide_loads > 0


def test_no_tile_spills_with_an_option_or_another_model(written):
    from kernels.tools import report
    from kernels.triton.tiles import SKIP_TILES, TILES, tiles_for

    def shape(arch, element, kernel, tile, *_):
        return arch, element, kernel, tile._replace(group=0)  # the group changes no instruction

    spills = {(shape(*row), row.note): row.facts.spills for row in written if row.note}
    for key, tile in TILES.items():
        arch, element, kernel = key
        if element == "bfloat16":
            notes = [name for name in report.SHAPES if name != report.FALCON] + ["entropy"] * (kernel == "forward")
            assert [spills[shape(*key, tile), note] for note in notes] == [0] * len(notes)
        if kernel != "forward":
            tiles = tiles_for(arch, element, skip=True)
            job = report.skip_job(*key, tiles[kernel], tiles["dlogits"])
            assert spills[shape(*job), report.SKIP] == 0
    assert SKIP_TILES, "or the second table is of no use"
    for (arch, element, kernel), tile in SKIP_TILES.items():
        plain = report.skip_job(
            arch, element, kernel, TILES[arch, element, kernel], tiles_for(arch, element)["dlogits"]
        )
        assert spills[shape(*plain), report.SKIP] > 0 and tile != TILES[arch, element, kernel]


def test_forward_on_sm_90_is_predicted_at_three_quarters_of_the_roof(rows):
    from kernels.triton.tiles import TILES

    key = ("sm_90", "bfloat16", "forward")
    row = next(row for row in rows if row[:4] == (*key, TILES[key]))
    assert row.prediction.fraction >= 0.75 and row.facts.loop_mma > 0


def test_predictions_follow_from_the_counts(rows):
    from kernels.tools import report

    for row in rows[::17]:
        shape = report.product_shape(row.kernel, *report.SHAPES[report.FALCON])
        assert report.predict(row.arch, row.element, row.tile, row.facts, shape) == row.prediction


def test_a_prediction_never_beats_the_roof(rows):
    from kernels.tools.roofline import MACHINES

    for row in rows:
        p = row.prediction
        assert p.fraction <= 1
        if p.occupancy:
            flops = p.fraction * p.seconds * MACHINES[row.arch].tflops[row.element] * 1e12
            assert p.seconds > 0 and flops > 0


def test_the_counter_reads_loops_spills_and_widths():
    from kernels.tools.machine_code import instructions, local_bytes, shared_bytes, slots

    sass = """
        /*0000*/                   LDG.E.128 R4, [R2.64] ;
        /*0010*/                   STL.64 [R1], R4 ;
        /*0020*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24 ;
        /*0030*/              @!P1 BRA 0x20 ;
        /*0040*/                   LDL R4, [R1] ;
        /*0050*/                   EXIT ;
    """
    listing, loops = instructions(sass)
    assert [opcode.split(".")[0] for opcode, _ in listing] == ["LDG", "STL", "HGMMA", "BRA", "LDL", "EXIT"]
    assert loops == [(2, 3)]
    assert sum(local_bytes(opcode) for opcode, _ in listing) == 8 + 4
    # a warpgroup of four reads A (64 x 16) and B (256 x 16), 2 bytes each
    assert shared_bytes(*listing[2]) * 4 == (64 + 256) * 16 * 2
    gcn = (
        ".LBB0_1:\n\tv_mfma_f32_32x32x8_bf16 v[0:15], v[0:1], v[2:3], 0\n"
        "\tds_read_b128 v[0:3], v4\n\ts_cbranch_scc1 .LBB0_1\n"
    )
    listing, loops = instructions(gcn)
    assert loops == [(0, 2)] and shared_bytes(*listing[1]) == 64 * 16 and slots(listing[2][0]) == 1


def test_quick_report_compiles_here_and_counts_what_the_table_says(rows):
    """In a process of its own: the interpreter's variable must not be set where kernels are compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.tools.report", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "nobody has run it" in done.stdout.splitlines()[-1]
    import triton

    if f"triton=={triton.__version__}" not in (ROOT / "constraints.txt").read_text().splitlines():
        pytest.skip(f"Triton {triton.__version__} counts otherwise than the release in constraints.txt, the table's")
    from kernels.tools import report
    from kernels.triton.tiles import TILES

    for row in rows:
        if row[:2] == ("sm_90", "bfloat16") and TILES[row[:3]] == row.tile:
            assert report.line(row) in done.stdout, "the compiler counts otherwise: run kernels.tools.report --write"


def test_the_report_refuses_the_interpreter():
    command = [sys.executable, "-m", "kernels.tools.report", "--quick"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 2 and "TRITON_INTERPRET" in done.stderr
