"""From counted facts to the time a kernel would take at best: a model, never a measurement.

A program (one tile) walks `steps` steps of its product, then runs what stands outside the loop. A step costs what the
busiest unit of a streaming multiprocessor needs for it, in clocks:

    tensor   2 · rows · columns · inner / (peak FLOP/s / units / clock)
    issue    instruction slots in the loop · warps / 4 schedulers
    shared   (bytes written to + bytes read from shared memory) / 128
    cache    (rows + columns) · inner · bytes / (the L2's bytes a clock and unit)
    fetch    LATENCY / (stages - 1) / occupancy: a load is asked for stages - 1 steps ahead

    program = steps · max(those) + (max(slots, special-function clocks outside) · warps / 4 + STARTUP) / occupancy
    compute = ceil(programs / (units · occupancy)) · occupancy · program / clock
    memory  = bytes / bandwidth,   bytes = waves · (group · rows + in_flight / group · columns) · steps · inner · bytes
    time    = max(compute, memory)

Assumed: datasheet peaks at boost clock, perfect overlap inside a step, no bank conflicts, operands of the programs in
flight fetched from memory once for all of them (they advance together) and not at all kept for the next wave.
Resident programs share a unit, so each hides the others' prologue and epilogue.
"""

from math import ceil, inf
from typing import NamedTuple

from ..triton.tiles import Tile
from .machine_code import Facts

LATENCY = 800  # clocks from asking memory to having the data
STARTUP = 2000  # clocks a program spends before its first product: launch, descriptors, first operands


class Machine(NamedTuple):
    """Datasheet figures; `l2` in bytes a clock over the whole chip."""

    name: str
    units: int  # streaming multiprocessors or compute units
    tflops: dict[str, float]  # dense peak by element
    bandwidth: float  # bytes a second
    l2: float
    clock: float  # Hz, at which the peaks hold
    shared: int  # bytes a program may take
    shared_unit: int  # bytes a unit has
    registers: int  # 32-bit registers a scheduler has for one lane
    wave: int  # lanes of a warp


# A100 and H100: NVIDIA's datasheets and whitepapers; 5,120 B a clock of L2 is A100's figure, assumed for H100. B200: 8
# TB/s and 2.25 PFLOP/s; its L2 is assumed twice A100's, one a die. MI300X: AMD's datasheet; 2,048 B a clock a die, 8 dies.
MACHINES = {
    "sm_80": Machine(
        "A100 SXM", 108, {"bfloat16": 312, "float32": 19.5}, 2.039e12, 5120, 1.41e9, 166912, 167936, 512, 32
    ),
    "sm_90": Machine(
        "H100 SXM", 132, {"bfloat16": 989.4, "float32": 66.9}, 3.35e12, 5120, 1.83e9, 232448, 233472, 512, 32
    ),
    "sm_100": Machine("B200", 148, {"bfloat16": 2250, "float32": 75}, 8e12, 10240, 1.856e9, 232448, 233472, 512, 32),
    "gfx942": Machine(
        "MI300X", 304, {"bfloat16": 1307.4, "float32": 163.4}, 5.3e12, 16384, 2.1e9, 65536, 65536, 512, 64
    ),
}
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Prediction(NamedTuple):
    occupancy: int  # programs resident on one unit, 0 if not even one fits
    bound: str  # the unit that a step waits for, or "memory"
    tile_flops: float
    tile_bytes: float  # operands a program reads, from L2 or beyond
    memory: float  # seconds that memory traffic alone would take
    seconds: float
    fraction: float  # of the compute roof


def occupancy(machine: Machine, tile: Tile, facts: Facts) -> int:
    registers = -(-facts.registers // 8) * 8
    warps = machine.registers // registers * 4 if registers else 64  # a unit has 4 schedulers
    warps = min(warps, 32 if machine.wave == 64 else 64)
    if facts.shared > machine.shared:
        return 0
    reserved = 0 if machine.wave == 64 else 1024  # CUDA keeps 1 KiB of each program's shared memory
    return min(warps // tile.warps, machine.shared_unit // max(facts.shared + reserved, 1))


def operand_bytes_shared(arch: str, tile: Tile, facts: Facts, element: str) -> float:
    """Bytes through shared memory in one step: every operand is written once and read as often as the products ask."""
    size = BYTES[element]
    written = (tile.rows + tile.columns) * tile.inner * size
    if arch == "sm_100" and facts.mma:  # tcgen05 reads both operands from shared memory, for 128 rows at a time
        return written + ceil(tile.rows / 128) * (min(tile.rows, 128) + tile.columns) * tile.inner * size
    return written + facts.loop_shared * tile.warps / max(facts.loop_steps, 1)


def predict(arch: str, element: str, tile: Tile, facts: Facts, shape: tuple[int, int, int]) -> Prediction:
    """shape: (M, N, K), the product's rows, columns and inner extent."""
    machine, size = MACHINES[arch], BYTES[element]
    m, n, k = shape
    fits = occupancy(machine, tile, facts)
    steps = ceil(k / tile.inner)
    tile_flops = 2 * tile.rows * tile.columns * steps * tile.inner
    tile_bytes = (tile.rows + tile.columns) * steps * tile.inner * size
    if fits == 0:
        return Prediction(0, "does not fit", tile_flops, tile_bytes, inf, inf, 0.0)
    peak = machine.tflops[element] * 1e12
    rate = peak / machine.units / machine.clock
    clocks = {
        "tensor": 2 * tile.rows * tile.columns * tile.inner / rate,
        "issue": facts.loop_other / max(facts.loop_steps, 1) * tile.warps / 4,
        "shared": operand_bytes_shared(arch, tile, facts, element) / 128,
        "cache": (tile.rows + tile.columns) * tile.inner * size / min(machine.l2 / machine.units, 64),
        "fetch": LATENCY / max(tile.stages - 1, 1) / fits,
    }
    bound = max(clocks, key=lambda unit: clocks[unit])
    program = steps * clocks[bound] + (max(facts.outside, facts.special) * tile.warps / 4 + STARTUP) / fits
    programs = ceil(m / tile.rows) * ceil(n / tile.columns)
    in_flight = min(machine.units * fits, programs)
    compute = ceil(programs / (machine.units * fits)) * fits * program / machine.clock
    traffic = programs / in_flight * (tile.group * tile.rows + in_flight / tile.group * tile.columns)
    memory = traffic * steps * tile.inner * size / machine.bandwidth
    seconds = max(compute, memory)
    fraction = 2 * m * n * k / peak / seconds
    return Prediction(fits, "memory" if memory > compute else bound, tile_flops, tile_bytes, memory, seconds, fraction)
