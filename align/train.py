"""train.py under the name that works in a checkout and in an install, `align.train`.

In a checkout this module re-exports the train.py next to this package. The wheel replaces it with that file
(pyproject.toml), so that an install has no top-level module `train`.
"""

from train import cli, complain, train

__all__ = ["cli", "complain", "train"]

if __name__ == "__main__":
    cli()
