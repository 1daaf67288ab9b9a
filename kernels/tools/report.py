"""What the compiler makes of the GPU kernels, and the best time that allows: `python -m kernels.tools.report`.

Compiles every kernel for every target over a space of tiles, counts registers, spills, shared memory and instructions
(machine_code.py), predicts a time from the counts (roofline.py), and chooses. No GPU is needed and none is used: what
it prints as time is a model. Then it compiles the chosen tiles for other models and with the options that are off by
default, and chooses others for skip_mass where a kernel spills with it. --write puts both choices into tiles.py,
where the launcher reads them, and every row into a CSV file in benchmarks/; without it a choice that differs from
tiles.py makes the exit status 1.
"""

import argparse
import csv
import datetime
import os
import re
import signal
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import triton

from ..triton.tiles import KERNELS, SKIP_TILES, TILES, Tile, skip_sizes, within
from .machine_code import Facts, compile_kernel, count
from .roofline import MACHINES, Prediction, predict

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "benchmarks"  # kernels-report-triton-VERSION-DATE.csv
TILES_FILE = ROOT / "kernels" / "triton" / "tiles.py"
TOKENS = 8192
CHUNK = 16384  # columns of dL/dlogits that logp.DLOGITS_BYTES allows at 8,192 tokens in bfloat16
FALCON = "Falcon 11B"
SHAPES = {FALCON: (65024, 4096), "Falcon3 7B, 10B": (131072, 3072), "Falcon3 1B": (131072, 2048)}  # (V, D)
GROUPS = (4, 8, 16)
SKIP = "skip"  # the note of rows with skip_mass

Tiles = dict[tuple[str, str, str], Tile]


class Row(NamedTuple):
    arch: str
    element: str
    kernel: str
    tile: Tile
    facts: Facts
    prediction: Prediction
    note: str = ""


def product_shape(kernel: str, v: int, d: int) -> tuple[int, int, int]:
    """(M, N, K) of one launch of a kernel."""
    return {
        "forward": (TOKENS, v, d),
        "dlogits": (TOKENS, CHUNK, d),
        "d_hidden": (TOKENS, d, CHUNK),
        "d_weight": (CHUNK, d, TOKENS),
    }[kernel]


def space(arch: str, element: str) -> list[Tile]:
    """The tiles to try, one group for all: the group changes no instruction, only the model's memory traffic."""
    inner: tuple[int, ...]
    stages: tuple[int, ...]
    if element == "float32":
        shapes, inner, warps, stages = [(64, 128), (128, 128)], (16, 32), (4, 8), (2, 3)
    elif arch == "gfx942":
        shapes, inner, warps, stages = [(128, 128), (128, 256), (256, 128), (256, 256)], (32, 64), (4, 8), (2,)
    else:
        shapes, inner, warps, stages = [(128, 128), (128, 256), (256, 128)], (32, 64), (4, 8), (3, 4)
    tma: tuple[bool, ...] = (False, True) if element != "float32" and arch in ("sm_90", "sm_100") else (False,)
    # half-width steps make twice the barriers where a whole warpgroup waits at each
    inner = (64,) if len(tma) == 2 else inner
    tiles = [Tile(*s, i, w, n, GROUPS[1], t) for s, i, w, n, t in product(shapes, inner, warps, stages, tma)]
    # 256 float32 sums a thread cannot stay in 255 registers
    return [tile for tile in tiles if arch == "gfx942" or tile.rows * tile.columns / tile.warps / 32 <= 128]


class Job(NamedTuple):
    arch: str
    element: str
    kernel: str
    tile: Tile
    v: int
    d: int
    note: str = ""
    options: tuple[tuple[str, int], ...] = ()  # constants of the kernel that are not the default's


def examine(job: Job) -> Row:
    arch, element, kernel, tile = job[:4]
    facts = count(compile_kernel(arch, kernel, element, tile, job.d, **dict(job.options)), tile)
    return model(arch, element, kernel, tile, facts, job)


def model(arch: str, element: str, kernel: str, tile: Tile, facts: Facts, job: Job) -> Row:
    """The row of a compiled tile, with the group that leaves the least traffic to memory."""
    shape = product_shape(kernel, job.v, job.d)
    tiles = [tile._replace(group=group) for group in GROUPS]
    tile = min(tiles, key=lambda t: predict(arch, element, t, facts, shape).memory)
    return Row(arch, element, kernel, tile, facts, predict(arch, element, tile, facts, shape), job.note)


def again(chosen: Tiles) -> list[Job]:
    """The chosen tiles in bfloat16 at the other models' shapes, and forward with entropy."""
    jobs = []
    for (arch, element, kernel), tile in chosen.items():
        if element != "bfloat16":
            continue
        jobs += [Job(arch, element, kernel, tile, v, d, name) for name, (v, d) in SHAPES.items() if name != FALCON]
        if kernel == "forward":
            jobs.append(Job(arch, element, kernel, tile, *SHAPES[FALCON], "entropy", (("ENTROPY", True),)))
    return jobs


def skip_job(arch: str, element: str, kernel: str, tile: Tile, z: Tile) -> Job:
    """A kernel of backward as skip_mass compiles it. z: the tile of dlogits, which is what is left out."""
    options: dict[str, bool | int] = {"SKIP": True}
    if kernel != "dlogits":
        options |= dict(zip(("SKIP_M", "SKIP_K"), skip_sizes(kernel, z), strict=True))
        tile = within(kernel, tile, z)
    return Job(arch, element, kernel, tile, *SHAPES[FALCON], SKIP, tuple(options.items()))


def issued(row: Row) -> float:
    """Instruction slots besides tensor cores, for each multiply-add of the tile."""
    work = row.tile.rows * row.tile.columns * row.tile.inner * max(row.facts.loop_steps, 1)
    return row.facts.loop_other * row.tile.warps / work


def sound(rows: list[Row], key: tuple[str, str, str]) -> list[Row]:
    """The tiles of a kernel and target that fit and do not spill, the best prediction first."""
    found = [row for row in rows if row[:3] == key and row.prediction.occupancy and not row.facts.spills]
    if not found:
        raise RuntimeError(f"no tile of {' '.join(key)} fits without spills; widen kernels.tools.report.space")
    return sorted(found, key=lambda row: -row.prediction.fraction)


def choose(rows: list[Row]) -> Tiles:
    """The best predicted tile of each kernel and target that fits and does not spill.

    Among those within 1 % of the best, which a model cannot tell apart, the one that issues the fewest instructions in
    its loop, then the one with the most registers to spare.
    """
    chosen = {}
    for key in dict.fromkeys(row[:3] for row in rows):
        best, *others = sound(rows, key)
        close = [best, *(row for row in others if row.prediction.fraction >= 0.99 * best.prediction.fraction)]
        chosen[key] = min(close, key=lambda row: (issued(row), row.facts.registers, row.facts.shared)).tile
    return chosen


def choose_to_skip(chosen: Tiles, rows: list[Row]) -> tuple[Tiles, list[Row]]:
    """What skip_mass runs with instead of the chosen tiles that spill with it: the best of `rows` that does not.

    Also every row that was compiled to find out, which it prints.
    """
    instead: Tiles = {}
    tried: list[Row] = []
    for arch, element, kernel in chosen:  # dlogits comes before the kernels that leave out what it left out
        if kernel == "forward":
            continue
        key = arch, element, kernel
        for tile in dict.fromkeys([chosen[key], *(row.tile for row in sound(rows, key))]):
            tried.append(examine(skip_job(*key, tile, (chosen | instead)[arch, element, "dlogits"])))
            print(line(tried[-1]), flush=True)
            if not tried[-1].facts.spills:
                break
        else:
            raise RuntimeError(f"every tile of {' '.join(key)} spills with skip_mass; widen kernels.tools.report.space")
        if tile != chosen[key]:
            instead[key] = tile
    return instead, tried


def line(row: Row) -> str:
    _, element, kernel, tile, facts, p, note = row
    name = (
        f"{tile.rows}x{tile.columns}x{tile.inner}/{tile.warps}/{tile.stages}/{tile.group}{' tma' if tile.tma else ''}"
    )
    limit = MACHINES[row.arch].shared
    return (
        f"{row.arch:7}{element:9}{kernel:9}{name:23}{facts.registers:5}{facts.spills:7}{facts.shared:8} {limit:6}"
        f"{facts.mma:5}{facts.wide_loads:6}/{facts.narrow_loads:<4}{p.occupancy:3}{p.tile_bytes / 2**20:7.1f}"
        f"{p.tile_flops / 1e6:8.0f}  {p.bound:12}{p.seconds * 1e3:9.2f}{p.fraction:6.0%}  {note}".rstrip()
    )


HEADER = (
    f"{'target':7}{'element':9}{'kernel':9}{'tile/warps/stages/group':23}{'regs':>5}{'spill':>7}{'shared':>8} {'limit':>6}"
    f"{'mma':>5}{'16B':>6}/{'less':4}{'occ':>3}{'MiB':>7}{'MFLOP':>8}  {'waits for':12}{'model ms':>9}{'roof':>6}"
)


def describe(chosen: Tiles, rows: list[Row]) -> str:
    """One line: each target's forward configuration in bfloat16."""
    parts = []
    for (arch, element, kernel), tile in chosen.items():
        if (element, kernel) == ("bfloat16", "forward"):
            row = next(r for r in rows if r[:4] == (arch, element, kernel, tile))
            size = "x".join(map(str, tile[:3]))
            parts.append(
                f"{arch} {size}{' tma' if tile.tma else ''}, {row.facts.spills} B spilled, {row.prediction.fraction:.0%}"
            )
    return "forward, predicted share of the compute roof (a model; nobody has run it): " + "; ".join(parts)


def write(chosen: Tiles, instead: Tiles, rows: list[Row]) -> None:
    text = TILES_FILE.read_text()
    for name, tiles in (("TILES", chosen), ("SKIP_TILES", instead)):
        body = "".join(f'    ("{a}", "{e}", "{k}"): Tile{tuple(tile)},\n' for (a, e, k), tile in tiles.items())
        text, found = re.subn(rf"^{name} = {{[^}}]*}}\n", f"{name} = {{\n{body}}}\n", text, flags=re.MULTILINE)
        assert found == 1, name
    TILES_FILE.write_text(text)
    for before in ROWS.glob("kernels-report-*.csv"):
        before.unlink()
    name = f"kernels-report-triton-{triton.__version__}-{datetime.date.today()}.csv"
    with (ROWS / name).open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["arch", "element", "kernel", *Tile._fields, *Facts._fields, *Prediction._fields, "note"])
        for row in rows:
            out.writerow([*row[:3], *row.tile, *row.facts, *row.prediction, row.note])


def read() -> list[Row]:
    """The rows that the last --write left."""
    (file,) = ROWS.glob("kernels-report-*.csv")
    rows = []
    for values in list(csv.reader(file.open()))[1:]:
        a = 3 + len(Tile._fields)
        b = a + len(Facts._fields)
        numbers = [float(x) if "." in x or x in ("inf", "nan") else int(x) for x in values[a:b]]
        tile = Tile._make([*map(int, values[3 : a - 1]), values[a - 1] == "True"])
        occupancy, bound, *rest, note = values[b:]
        prediction = Prediction._make([int(occupancy), bound, *map(float, rest)])
        rows.append(Row._make([*values[:3], tile, Facts._make(numbers), prediction, note]))
    return rows


def examine_all(jobs: list[Job], processes: int) -> list[Row]:
    """Prints each row as it comes."""
    rows = []
    with ProcessPoolExecutor(processes) as pool:
        for row in pool.map(examine, jobs):
            print(line(row), flush=True)
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the chosen tiles, in bfloat16, for sm_90")
    parser.add_argument("--write", action="store_true", help="write tiles.py and the CSV file in benchmarks/")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.quick and args.write:
        parser.error("--quick looks at too little to choose by; --write takes the whole report")
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("kernels.tools.report compiles; unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    v, d = SHAPES[FALCON]
    print(__doc__.split("\n\n")[1], f"\n\nN = {TOKENS:,}, V = {v:,}, D = {d:,}\n\n{HEADER}")
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        if args.quick:
            jobs = [Job("sm_90", "bfloat16", k, TILES["sm_90", "bfloat16", k], v, d) for k in KERNELS]
        else:
            jobs = [
                Job(arch, element, kernel, tile, v, d)
                for arch, element, kernel in product(MACHINES, ("bfloat16", "float32"), KERNELS)
                for tile in space(arch, element)
            ]
        rows = examine_all(jobs, args.processes)
        chosen = choose(rows)
        print("\nChosen; then at other models' shapes and with the options that are off by default\n\n" + HEADER)
        print("\n".join(line(row) for row in rows if chosen[row[:3]] == row.tile))
        instead = SKIP_TILES
        if not args.quick:
            others = examine_all(again(chosen), args.processes)
            instead, tried = choose_to_skip(chosen, rows)
            rows += others + tried
    if args.write:
        write(chosen, instead, rows)
    differs = {} if args.write else dict(chosen.items() - TILES.items() | instead.items() ^ SKIP_TILES.items())
    print(
        f"\nkernels/triton/tiles.py {'differs at ' + ', '.join(map(' '.join, differs)) if differs else 'holds this choice'}"
    )
    print(describe(chosen, rows))
    return bool(differs)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    sys.exit(main())
