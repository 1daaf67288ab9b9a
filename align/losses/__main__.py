"""Every alignment method at a glance, or some of them in full.

python -m align.losses            the table: name, method, paper, what it needs, parameters with their defaults
python -m align.losses nca dpo    objective, derivation, gradient, limits and defaults of these; dpo+sft is a sum,
                                  module:Class one of yours
"""

import sys

from align import command
from align.losses.table import describe, overview


def main(argv: list[str]) -> int:
    """Exit status: 0, or 2 for a name that does not exist."""
    if "-h" in argv or "--help" in argv:
        print(__doc__)
        return 0
    try:
        print("\n\n".join(map(describe, argv)) if argv else overview())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    command.run(main)
