"""eval.py by the name that works in a checkout and in an install, `align.eval`.

In a checkout this module hands on the eval.py beside this package. The wheel leaves it out and puts that file in its place
(pyproject.toml), so that an install has no top-level module `eval`.
"""

from eval import cli

__all__ = ["cli"]

if __name__ == "__main__":
    cli()
