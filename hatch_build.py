"""What lies beside align/ in a checkout goes inside it in a wheel. An editable install is the checkout as it is."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Inside(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            beside = ("train.py", "eval.py", "kernels", "configs")
            build_data["force_include"] |= {name: f"align/{name}" for name in beside}
