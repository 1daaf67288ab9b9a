"""Which tiles each kernel runs with on each GPU: chosen, and written here, by `python -m kernels.tools.report --write`."""

from typing import NamedTuple


class Tile(NamedTuple):
    """One kernel's launch: rows x columns is the tile that a program owns, `inner` one step of its product.

    forward and dlogits own (BN, BV) and walk D; d_hidden owns (BN, BD) and walks V; d_weight owns (BV, BD) and walks N.
    group: how many rows of tiles advance together (grid_tile); tma: operands through tensor descriptors.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    group: int
    tma: bool


KERNELS = ("forward", "dlogits", "d_hidden", "d_weight")

# (architecture, element, kernel): rows, columns, inner, warps, stages, group, tma
TILES = {
    ("sm_80", "bfloat16", "forward"): Tile(128, 128, 64, 4, 3, 16, False),
    ("sm_80", "bfloat16", "dlogits"): Tile(128, 128, 64, 4, 3, 16, False),
    ("sm_80", "bfloat16", "d_hidden"): Tile(128, 128, 64, 4, 4, 8, False),
    ("sm_80", "bfloat16", "d_weight"): Tile(128, 256, 32, 8, 3, 16, False),
    ("sm_80", "float32", "forward"): Tile(128, 128, 32, 8, 2, 8, False),
    ("sm_80", "float32", "dlogits"): Tile(128, 128, 32, 8, 2, 8, False),
    ("sm_80", "float32", "d_hidden"): Tile(128, 128, 32, 8, 2, 8, False),
    ("sm_80", "float32", "d_weight"): Tile(128, 128, 32, 4, 2, 16, False),
    ("sm_90", "bfloat16", "forward"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_90", "bfloat16", "dlogits"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_90", "bfloat16", "d_hidden"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_90", "bfloat16", "d_weight"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_90", "float32", "forward"): Tile(128, 128, 16, 8, 2, 16, False),
    ("sm_90", "float32", "dlogits"): Tile(128, 128, 32, 8, 2, 16, False),
    ("sm_90", "float32", "d_hidden"): Tile(128, 128, 32, 8, 2, 16, False),
    ("sm_90", "float32", "d_weight"): Tile(128, 128, 32, 4, 2, 16, False),
    ("sm_100", "bfloat16", "forward"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_100", "bfloat16", "dlogits"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_100", "bfloat16", "d_hidden"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_100", "bfloat16", "d_weight"): Tile(128, 256, 64, 8, 3, 16, True),
    ("sm_100", "float32", "forward"): Tile(64, 128, 32, 4, 2, 16, False),
    ("sm_100", "float32", "dlogits"): Tile(64, 128, 32, 4, 2, 16, False),
    ("sm_100", "float32", "d_hidden"): Tile(128, 128, 32, 8, 2, 16, False),
    ("sm_100", "float32", "d_weight"): Tile(128, 128, 32, 4, 2, 16, False),
    ("gfx942", "bfloat16", "forward"): Tile(128, 128, 32, 4, 2, 16, False),
    ("gfx942", "bfloat16", "dlogits"): Tile(128, 128, 32, 4, 2, 16, False),
    ("gfx942", "bfloat16", "d_hidden"): Tile(256, 256, 32, 8, 2, 16, False),
    ("gfx942", "bfloat16", "d_weight"): Tile(128, 256, 32, 4, 2, 16, False),
    ("gfx942", "float32", "forward"): Tile(128, 128, 16, 4, 2, 16, False),
    ("gfx942", "float32", "dlogits"): Tile(128, 128, 16, 4, 2, 16, False),
    ("gfx942", "float32", "d_hidden"): Tile(128, 128, 32, 8, 2, 16, False),
    ("gfx942", "float32", "d_weight"): Tile(64, 128, 32, 4, 3, 16, False),
}

# instead of those above with skip_mass, where the kernel would spill with them
SKIP_TILES = {
    ("sm_80", "bfloat16", "d_hidden"): Tile(128, 128, 64, 8, 3, 8, False),
    ("sm_80", "float32", "d_hidden"): Tile(64, 128, 16, 8, 2, 16, False),
    ("sm_90", "float32", "d_hidden"): Tile(128, 128, 16, 8, 2, 16, False),
    ("sm_100", "float32", "d_weight"): Tile(128, 128, 16, 4, 2, 16, False),
}

# few, large tiles: there a step takes about as long whatever its size
INTERPRETER = {
    "forward": Tile(32, 128, 64, 1, 1, 2, False),
    "dlogits": Tile(32, 128, 64, 1, 1, 2, False),
    "d_hidden": Tile(32, 64, 64, 1, 1, 2, False),
    "d_weight": Tile(64, 64, 32, 1, 1, 2, False),
}


def tiles_for(architecture: str, element: str, skip: bool = False) -> dict[str, Tile]:
    """architecture: "sm_80", "sm_90", "sm_100", "gfx942" or "interpreter"; element: "bfloat16", "float16", "float32".

    skip: for kernels that leave tiles out (skip_mass).
    """
    if architecture == "interpreter":
        tiles = INTERPRETER
    else:
        element = "float32" if element == "float32" else "bfloat16"  # float16 takes the same room and the same units
        table = TILES | SKIP_TILES if skip else TILES
        tiles = {kernel: table[architecture, element, kernel] for kernel in KERNELS}
    if skip:
        tiles = tiles | {kernel: within(kernel, tiles[kernel], tiles["dlogits"]) for kernel in ("d_hidden", "d_weight")}
    return tiles


def skip_sizes(kernel: str, z: Tile) -> tuple[int, int]:
    """What skip_mass keeps or leaves out, the tiles z of dlogits, as (rows, steps) of the product that reads them."""
    return (z.columns, z.rows) if kernel == "d_weight" else (z.rows, z.columns)


def within(kernel: str, tile: Tile, z: Tile) -> Tile:
    """The tile of a product, cut so that no step of it spans two of those that are kept or left out."""
    rows, inner = skip_sizes(kernel, z)
    return tile._replace(rows=min(tile.rows, rows), inner=min(tile.inner, inner))
