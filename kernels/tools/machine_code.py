"""Compile a kernel for a GPU that is not here, and count what the compiler made of it.

Triton compiles for any target without a driver; the wheel brings the assembler and the disassembler. Nothing is run.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ..triton.logp_kernels import dlogits_kernel, forward_kernel, product_kernel
from ..triton.tiles import Tile

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {
    "forward": forward_kernel,
    "dlogits": dlogits_kernel,
    "d_hidden": product_kernel,
    "d_weight": product_kernel,
}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

POINTERS = {"targets": "*i64", "keep": "*u8", "steps": "*i32", "order": "*i32"} | dict.fromkeys(
    ("lse", "entropy", "target_logit", "grad"), "*fp32"
)
# the JIT, too, makes a constant of an argument that is 1: unit strides, one vocabulary tile a split
ONES = ("stride_hd", "stride_wd", "stride_bd", "tiles")
NOT_MULTIPLES_OF_16 = ("blocks", "columns", "stride_order")
MMA = re.compile(r"HMMA|HGMMA|UTC\w*MMA|v_mfma")
FMA = re.compile(r"FFMA|v_(pk_)?fmac?_f32")


class Facts(NamedTuple):
    """Counts of one compiled kernel. "loop" is the innermost loop that holds the products, once through, per warp."""

    registers: int
    spills: int  # bytes a thread stores to and loads from local memory
    shared: int  # bytes of shared memory a program
    mma: int  # tensor-core instructions, all
    wide_loads: int  # global loads of 16 bytes a thread, or whole tiles by TMA
    narrow_loads: int
    loop_mma: int
    loop_other: int  # issue slots in the loop besides tensor cores, in clocks of one scheduler
    loop_shared: int  # bytes of shared memory a warp reads in the loop to feed its tensor cores
    loop_steps: float  # steps of the product once through the loop
    outside: int  # issue slots outside the loop: prologue, softmax, stores
    special: int  # clocks of the special-function unit outside the loop: the exponentials


def block_shapes(kernel: str, tile: Tile) -> dict[str, tuple[int, int]]:
    """The operand blocks that a descriptor fetches, by argument."""
    rows, columns, inner = tile[:3]
    if kernel in ("forward", "dlogits"):
        return {"hidden": (rows, inner), "weight": (columns, inner)}
    return {"dz": (inner, rows) if kernel == "d_weight" else (rows, inner), "b": (inner, columns)}


def compile_kernel(arch: str, kernel: str, element: str, tile: Tile, d: int, **options: bool | int) -> CompiledKernel:
    """One kernel for one target, hidden size d, as the launcher would specialise it.

    options: constants of the kernel that are not the default's, such as ENTROPY=True.
    """
    fn, short = KERNELS[kernel], SHORT[element]
    logits = kernel in ("forward", "dlogits")
    constants = {
        "D": d, "GROUP": tile.group, "TMA": tile.tma, "PRECISION": "ieee", "INTERPRET": False,
        "ENTROPY": False, "SKIP": False, "SKIP_M": 1, "SKIP_K": 1,
        "TRANSPOSE": kernel == "d_weight", "ACCUMULATE": kernel == "d_hidden",
        **dict.fromkeys(ONES, 1),
        **dict(zip(("BN", "BV", "BD") if logits else ("BM", "BD", "BK"), tile[:3], strict=True)),
        **options,
    }  # fmt: skip
    elements = dict.fromkeys(("hidden", "weight", "dz", "b"), f"*{short}")
    elements["out"] = "*fp32" if kernel == "d_hidden" else f"*{short}"
    if tile.tma:
        elements |= {name: f"tensordesc<{short}[{r},{c}]>" for name, (r, c) in block_shapes(kernel, tile).items()}
    signature, constexprs, attributes = {}, {}, {}
    for i, name in enumerate(fn.arg_names):
        if name in constants:
            signature[name], constexprs[(i,)] = "constexpr", constants[name]
            continue
        signature[name] = elements.get(name) or POINTERS.get(name, "i32")
        # the JIT finds this out from the arguments; without it no load is wider than one element
        if name not in NOT_MULTIPLES_OF_16:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature, constexprs, attributes)
    return triton.compile(source, target=TARGETS[arch], options={"num_warps": tile.warps, "num_stages": tile.stages})


def disassemble(compiled: CompiledKernel) -> tuple[str, str]:
    """-> (instructions, resources) as text: SASS and cuobjdump's resource line, or AMD's assembly twice."""
    if "amdgcn" in compiled.asm:
        return compiled.asm["amdgcn"], compiled.asm["amdgcn"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        dump = [
            subprocess.run([DISASSEMBLER, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-sass", "--dump-resource-usage")
        ]
    return dump[0], dump[1]


def instructions(text: str) -> tuple[list[tuple[str, str]], list[tuple[int, int]]]:
    """-> [(opcode, operands)] and the backward branches as (first, last) instruction of a loop."""
    listing: list[tuple[str, str]] = []
    place: dict[int | str, int] = {}  # of an address or a label: the number of its instruction
    branches: list[tuple[int | str, int]] = []
    for line in text.splitlines():
        sass = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line)
        gcn = re.match(r"\t([vs]_\w+|ds_\w+|global_\w+|buffer_\w+|scratch_\w+)\s*(.*)", line)
        label = re.match(r"(\.LBB\w+):", line)
        if label:
            place[label[1]] = len(listing)
        elif sass:
            place[int(sass[1], 16)] = len(listing)
            target = re.search(r"0x([0-9a-f]+)", sass[3]) if sass[2].startswith("BRA") else None
            branches += [(int(target[1], 16), len(listing))] if target else []
            listing.append((sass[2], sass[3]))
        elif gcn:
            branches += [(gcn[2].split()[0], len(listing))] if gcn[1].startswith(("s_cbranch", "s_branch")) else []
            listing.append((gcn[1], gcn[2]))
    loops = [(place[to], at) for to, at in branches if to in place and place[to] < at]
    return listing, loops


def slots(opcode: str) -> int:
    """Clocks that one warp's instruction keeps its scheduler busy."""
    if opcode.startswith(("v_exp", "v_log", "v_rcp")):
        return 16  # a wave of 64 on 4 lanes
    return 4 if opcode.startswith(("v_", "ds_", "global_", "buffer_", "scratch_")) else 1  # 64 lanes on 16


def shared_bytes(opcode: str, operands: str) -> int:
    """Bytes that one warp reads from shared memory for its products, by an explicit load or as a wgmma operand."""
    if opcode.startswith("LDSM"):
        return 128 * int(opcode[-1])
    if wgmma := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, wgmma.groups())
        bytes_each = 4 if "TF32" in opcode else 2
        from_shared = m if re.match(r"R\d+, gdesc", operands) else 0  # A from registers: R, R, gdesc
        return (from_shared + n) * k * bytes_each // 4  # a warpgroup of four warps reads it once
    if opcode.startswith("LDS"):
        return 32 * (int(w[1]) // 8 if (w := re.search(r"\.(64|128)", opcode)) else 4)
    if read := re.match(r"ds_read(?:2(?:st64)?)?_b(\d+)", opcode):
        return 64 * int(read[1]) // 8 * (2 if "read2" in opcode else 1)
    if opcode.startswith(("ds_read_u", "ds_read_i")):
        return 64 * 4  # each lane takes a whole bank for its 1 or 2 bytes
    return 0


def local_bytes(opcode: str) -> int:
    if opcode.startswith(("STL", "LDL")):
        return int(w[1]) // 8 if (w := re.search(r"\.(64|128)", opcode)) else 4
    if scratch := re.match(r"scratch_(?:load|store)_dword(?:x(\d))?", opcode):
        return 4 * int(scratch[1] or 1)
    return 0


def flops(opcode: str, tile: Tile) -> int:
    """Floating-point operations that one warp's instruction does; tcgen05 is issued once for the whole program."""
    if shape := re.search(r"HMMA\.(?:16)(\d)(\d+)", opcode):
        return 2 * 16 * int(shape[1]) * int(shape[2])
    if shape := re.search(r"(?:HGMMA\.|mfma_f32_)(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, shape.groups())
        return 2 * m * n * k // (4 if opcode.startswith("HGMMA") else 1)
    if opcode.startswith("UTC"):
        return 2 * 128 * min(tile.columns, 256) * 16 // tile.warps
    return 2 * (2 if "pk" in opcode else 1) * (64 if opcode.startswith("v_") else 32) if FMA.match(opcode) else 0


def count(compiled: CompiledKernel, tile: Tile) -> Facts:
    text, resources = disassemble(compiled)
    listing, loops = instructions(text)
    while listing and listing[-1][0] == "NOP":
        listing.pop()
    kind = MMA if any(MMA.match(opcode) for opcode, _ in listing) else FMA
    products = [i for i, (opcode, _) in enumerate(listing) if kind.match(opcode)]
    holding = [(a, b) for a, b in loops if 5 * sum(a <= i <= b for i in products) >= len(products)]
    # the compiler peels steps off the loop, so it may hold fewer than half; the loops around it are longer
    first, last = min(holding, key=lambda loop: loop[1] - loop[0], default=(0, len(listing) - 1))
    loop = listing[first : last + 1]
    if "amdgcn" in compiled.asm:
        vgpr, agpr = (int(re.findall(rf"\.{name}_count:\s+(\d+)", resources)[0]) for name in ("vgpr", "agpr"))
        registers = max(vgpr, agpr)  # .vgpr_count is of the unified file
    else:
        registers = int(re.findall(r"REG:(\d+)", resources)[0])
    wide = sum(
        bool(re.match(r"(LDG\S*\.128|LDGSTS\S*\.128|UTMALDG|(global|buffer)_load_dwordx4)", o)) for o, _ in listing
    )
    loads = sum(bool(re.match(r"(LDG|UTMALDG|(global|buffer)_load)", opcode)) for opcode, _ in listing)
    return Facts(
        registers=registers,
        spills=sum(local_bytes(opcode) for opcode, _ in listing),
        shared=compiled.metadata.shared,
        mma=sum(bool(MMA.match(opcode)) for opcode, _ in listing),
        wide_loads=wide,
        narrow_loads=loads - wide,
        loop_mma=sum(bool(MMA.match(opcode)) for opcode, _ in loop),
        loop_other=sum(slots(opcode) for opcode, _ in loop if not MMA.match(opcode)),
        loop_shared=sum(shared_bytes(*instruction) for instruction in loop),
        loop_steps=sum(flops(o, tile) for o, _ in loop if kind.match(o))
        * tile.warps / (2 * tile.rows * tile.columns * tile.inner),
        outside=sum(slots(opcode) for opcode, _ in listing) - sum(slots(opcode) for opcode, _ in loop),
        special=8 * sum(opcode.startswith("MUFU") for opcode, _ in listing),  # 4 lanes a scheduler
    )  # fmt: skip
