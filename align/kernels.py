"""What align takes from kernels/, by the name that works in a checkout and in an install.

In a checkout this module hands on the package `kernels` beside this one. The wheel leaves it out and puts that package in
its place, as align.kernels (pyproject.toml): PyPI has a package `kernels` of its own, which transformers imports.
"""

from kernels import (
    IMPLEMENTATIONS,
    evidence,
    hardware,
    linear_collision,
    linear_kl,
    linear_logp,
    pointwise,
    resolve_impls,
)

__all__ = [
    "IMPLEMENTATIONS",
    "evidence",
    "hardware",
    "linear_collision",
    "linear_kl",
    "linear_logp",
    "pointwise",
    "resolve_impls",
]
