"""Which operations of kernels/pointwise.py deserve a kernel: `python -m kernels.tools.traffic`.

The bytes that each operation moves, as plain PyTorch and in one kernel, and what that is in time relative to the block's
matrix products. It is a model of a GPU, not a measurement.
"""

import signal
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..pointwise import add_rms_norm, rms_norm, rotate, swiglu
from ..triton.pointwise import NORM_PROGRAMS


class Traffic(TorchDispatchMode):
    """bytes: what all operations together read and write, each element once an operation, views for nothing."""

    bytes = 0
    # on CUDA the weight's gradient has a launch of its own, which reads grad and x again (ATen's layer_norm_kernel.cu)
    reread = ("aten::native_layer_norm_backward",)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not func.is_view and "empty" not in name:
            tensors = tree_leaves((args, kwargs, out)) + list(args[:2] if name in self.reread else ())
            self.bytes += sum(distinct_bytes(t) for t in tensors if isinstance(t, Tensor))
        return out


def distinct_bytes(x: Tensor) -> int:
    return x.element_size() * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


def eager_bytes(fn: Callable[..., Tensor | tuple[Tensor, ...]], *shapes: tuple[int, ...]) -> int:
    """Traffic of fn on bfloat16 tensors of these shapes, forward and backward. Nothing is computed or allocated."""
    inputs = [torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True) for shape in shapes]
    with Traffic() as traffic:
        out = fn(*inputs)
        outputs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outputs, inputs, [torch.empty_like(t) for t in outputs])
    return traffic.bytes


def norm_bytes(n: int, d: int, add: bool, size: int = 2, partials: int = NORM_PROGRAMS) -> int:
    """What the kernels of [add_]rms_norm move: x (and residual) in, out (and sum) out; then sum, grads in, dx out."""
    rows = n * d * size * (8 if add else 5)
    weight = 2 * d * size + 2 * 4 * n  # read in both launches, as is the saved 1 / rms, written and read
    return rows + weight + 2 * 4 * partials * d + d * size


def rotate_bytes(batch: int, heads: int, tokens: int, d: int, size: int = 2) -> int:
    """x in, out out, and the same for the gradients; half of either table each time."""
    return 2 * (2 * batch * heads * tokens * d * size + 2 * 4 * tokens * d // 2)


def swiglu_bytes(n: int, size: int = 2) -> int:
    """gate, up in, out out; gate, up, grad in, two gradients out."""
    return 8 * n * size


BATCH, TOKENS = 8, 1024
FLOPS, BANDWIDTH = 989e12, 3.35e12  # H100 SXM by its datasheet: dense bfloat16, bytes a second
WORTHWHILE = 0.01  # of the products' time, in some model: below that a kernel is not worth its upkeep


class Shape(NamedTuple):
    """A decoder's block."""

    name: str
    d: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool  # SwiGLU and RMSNorm, as in Llama; GELU, one LayerNorm and parallel attention, as in Falcon, if not

    @property
    def product_seconds(self) -> float:
        """Forward and backward through the block's matrix products at the datasheet's peak, attention causal."""
        projections = 2 * self.d * self.head_dim * (self.heads + self.kv_heads) + self.d * self.ffn * (2 + self.gated)
        attention = TOKENS * self.heads * self.head_dim  # half of two products over TOKENS keys
        return 6 * BATCH * TOKENS * (projections + attention) / FLOPS


SHAPES = (
    Shape("Falcon 11B", 4096, 16384, 32, 8, 128, False),
    Shape("Falcon3 7B", 3072, 23040, 12, 4, 256, True),
    Shape("Falcon3 1B", 2048, 8192, 8, 4, 256, True),
)


class Row(NamedTuple):
    operation: str  # of one block, all its occurrences
    eager: int  # bytes
    fused: int
    inside: bool = True  # one block holds all of it

    @property
    def seconds(self) -> float:
        return (self.eager - self.fused) / BANDWIDTH


def rows(shape: Shape) -> Iterator[Row]:
    """Every candidate of a block. F. before a name: from what PyTorch has ready, the others from the definitions."""
    cos, sin = (torch.empty(TOKENS, shape.head_dim, device="meta") for _ in range(2))
    eager = fused = 0
    for heads in (shape.heads, shape.kv_heads):
        q = (BATCH, TOKENS, heads, shape.head_dim)  # as projections leave it
        eager += eager_bytes(lambda q: rotate(q.transpose(1, 2), cos, sin), q)
        fused += rotate_bytes(BATCH, heads, TOKENS, shape.head_dim)
    yield Row("rotary of q and k", eager, fused)
    n, d = BATCH * TOKENS, shape.d
    x, weight, unit = (n, d), (d,), n * d * 2  # unit: bytes of x

    def ready(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, (d,), w, b)

    if shape.gated:

        def add_ready(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            total = x + y
            return ready(total, w), total

        fused = norm_bytes(n, d, False) + norm_bytes(n, d, True)
        eager = eager_bytes(lambda x, w: rms_norm(x, w, 1e-6), x, weight)
        eager += eager_bytes(lambda x, y, w: add_rms_norm(x, y, w, 1e-6), x, x, weight)
        yield Row("rms_norm and add_rms_norm", eager, fused)
        # F.rms_norm shares the CUDA kernel of F.layer_norm; without CUDA it is many operations
        eager = eager_bytes(ready, x, weight) + eager_bytes(add_ready, x, x, weight)
        yield Row("both against F.rms_norm", eager, fused)
        yield Row("SwiGLU", eager_bytes(swiglu, (n, shape.ffn), (n, shape.ffn)), swiglu_bytes(n * shape.ffn))
        return

    def add_three(x: Tensor, y: Tensor, z: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        total = x + (y + z)
        return ready(total, w, b), total

    # fused at its best: what goes in and what comes out, without the weights
    yield Row("F.layer_norm", eager_bytes(ready, x, weight, weight), 5 * unit)
    yield Row("x + (mlp + attention)", eager_bytes(lambda x, y, z: x + (y + z), x, x, x), 4 * unit)
    yield Row("the sum, then F.layer_norm", eager_bytes(add_three, x, x, x, weight, weight), 9 * unit, inside=False)
    yield Row("F.gelu", eager_bytes(F.gelu, (n, shape.ffn)), 5 * n * shape.ffn * 2)


def main() -> None:
    print(
        f"One block, forward and backward, {BATCH} x {TOKENS} tokens, bfloat16. A model of an H100 by its datasheet "
        f"({FLOPS / 1e12:.0f} TFLOP/s,\n{BANDWIDTH / 1e12:.2f} TB/s): every operation at full bandwidth, no cache, no "
        f"launch time, products at peak. Not a measurement.\n\n"
        f"{'model':12}{'operation':28}{'eager MB':>9}{'fused MB':>9}{'saved us':>9}{'of products':>13}"
    )
    best: dict[tuple[str, bool], float] = {}
    for shape in SHAPES:
        products = shape.product_seconds
        print(f"{shape.name:12}{'matrix products':28}{products * 1e6:18,.0f} us")
        for row in rows(shape):
            share = row.seconds / products
            key = (row.operation, row.inside)
            best[key] = max(best.get(key, 0.0), share)
            print(
                f"{'':12}{row.operation:28}{row.eager / 1e6:9,.0f}{row.fused / 1e6:9,.0f}"
                f"{row.seconds * 1e6:9,.0f}{share:13.1%}"
            )
    verdicts: dict[str, list[str]] = {
        "worth a kernel": [],
        "worth one, but between two blocks": [],
        "not worth one": [],
    }
    for (operation, inside), share in best.items():
        verdict = "worth a kernel" if inside else "worth one, but between two blocks"
        verdicts[verdict if share >= WORTHWHILE else "not worth one"].append(operation)
    print(f"\nat {WORTHWHILE:.0%} of the time of the products in some model,")
    for verdict, operations in verdicts.items():
        print(f"{verdict}: {', '.join(operations)}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    main()
