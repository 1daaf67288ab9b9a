"""What lies beside align/ in a checkout goes inside it in a wheel. An editable install is the checkout as it is."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Inside(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            beside = ["train.py", "eval.py", "configs"]
            # what looks at the kernels is for a checkout, where its records are
            left_out = ("tools", "__pycache__")
            beside += [
                f"kernels/{path.name}" for path in Path(self.root, "kernels").iterdir() if path.name not in left_out
            ]
            build_data["force_include"] |= {name: f"align/{name}" for name in beside}
