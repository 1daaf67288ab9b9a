"""What the compiler makes of the kernels of triton/pointwise.py, for GPUs that need not be there.

`python -m kernels.tools.pointwise_report` counts registers, spills and loads; nothing is run.
"""

import signal
import sys
from collections.abc import Iterator

import triton
from triton.compiler import ASTSource, CompiledKernel

from ..triton.pointwise import (
    ELEMENTWISE,
    INTERPRET,
    norm_tile,
    rms_norm_backward_kernel,
    rms_norm_kernel,
    rotate_kernel,
    rotate_tile,
    swiglu_backward_kernel,
    swiglu_kernel,
)
from ..triton.tiles import Tile
from .machine_code import TARGETS, count


def compile_all(arch: str) -> Iterator[tuple[str, CompiledKernel, int]]:
    """Yields (label, compiled kernel, warps) of every kernel for one target, in bfloat16, as the launchers specialise."""
    norms = (rms_norm_kernel, rms_norm_backward_kernel)
    jobs = [(fn, f"D={d}{' add' * add}", {"D": d, "ADD": add, **norm_tile(d)})
            for fn in norms for d in (2048, 3072, 8192) for add in (False, True)]  # fmt: skip
    jobs += [(fn, "one row", {"N": 1, "tiles": 1, "D": 2048, "ADD": False, **norm_tile(2048)}) for fn in norms]
    jobs += [(rotate_kernel, f"d={2 * half}", {"HALF": half, "SIGN": 1, **rotate_tile(half)}) for half in (64, 128)]
    jobs += [(rotate_kernel, "one token", {"T": 1, "H": 1, "HALF": 128, "SIGN": 1, **rotate_tile(128)})]
    jobs += [(fn, "", ELEMENTWISE) for fn in (swiglu_kernel, swiglu_backward_kernel)]
    floats = dict.fromkeys(("scale", "partial", "cos", "sin"), "*fp32") | {"eps": "fp32"}
    integers = ("N", "T", "H", "tiles")
    for fn, label, constants in jobs:
        # the JIT, too, makes a constant of an integer that is 1
        constants = {**constants, "INTERPRET": False, "stride_xd": 1, "stride_od": 1}
        warps = constants.pop("num_warps")
        signature, constexprs, attributes = {}, {}, {}
        for i, name in enumerate(fn.arg_names):
            if name in constants:
                signature[name], constexprs[(i,)] = "constexpr", constants[name]
                continue
            integer = name in integers or name.startswith("stride")
            signature[name] = "i32" if integer else floats.get(name, "*bf16")
            if name not in ("eps", "H", "tiles"):
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn, signature, constexprs, attributes)
        yield f"{fn.fn.__name__} {label}", triton.compile(source, TARGETS[arch], {"num_warps": warps}), warps


def main() -> int:
    if INTERPRET:
        print("kernels.tools.pointwise_report compiles; unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    print(
        f"{'target':8}{'kernel':38}{'warps':>6}{'regs':>6}{'spilled B':>11}{'shared B':>10}{'16 B loads':>12}{'less':>6}"
    )
    spilled = 0
    for arch in ("sm_80", "sm_90", "gfx942"):
        for label, compiled, warps in compile_all(arch):
            facts = count(compiled, Tile(1, 1, 1, warps, 1, 1, False))
            spilled += facts.spills
            print(f"{arch:8}{label:38}{warps:6}{facts.registers:6}{facts.spills:11}{facts.shared:10}"
                  f"{facts.wide_loads:12}{facts.narrow_loads:6}", flush=True)  # fmt: skip
    print(f"bytes spilled, all together: {spilled}")
    return bool(spilled)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    sys.exit(main())
