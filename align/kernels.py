"""What align uses of kernels/, under the name that works in a checkout and in an install.

In a checkout this module re-exports the package `kernels` next to this one. The wheel replaces it with that package, as
align.kernels (pyproject.toml): PyPI has another package called `kernels`, which transformers imports.
"""

from kernels import (
    IMPLEMENTATIONS,
    evidence,
    hardware,
    kept_columns,
    linear_collision,
    linear_kl,
    linear_logp,
    pointwise,
    resolve_impls,
    tile_columns,
)

__all__ = [
    "IMPLEMENTATIONS",
    "evidence",
    "hardware",
    "kept_columns",
    "linear_collision",
    "linear_kl",
    "linear_logp",
    "pointwise",
    "resolve_impls",
    "tile_columns",
]
