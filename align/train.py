"""train.py by the name that works in a checkout and in an install, `align.train`.

In a checkout this module hands on the train.py beside this package. The wheel leaves it out and puts that file in its place
(pyproject.toml), so that an install has no top-level module `train`.
"""

from train import cli, complain, train

__all__ = ["cli", "complain", "train"]

if __name__ == "__main__":
    cli()
