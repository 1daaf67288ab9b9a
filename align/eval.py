"""eval.py under the name that works in a checkout and in an install, `align.eval`.

In a checkout this module re-exports the eval.py next to this package. The wheel replaces it with that file
(pyproject.toml), so that an install has no top-level module `eval`.
"""

from eval import cli

__all__ = ["cli"]

if __name__ == "__main__":
    cli()
