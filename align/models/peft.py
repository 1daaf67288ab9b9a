"""PEFT's adapter folders, read and written: adapter_config.json and adapter_model.safetensors.

Two tensors a map, base_model.model.NAME.lora_A.weight (r, in) and lora_B.weight (out, r), with the scale in the config:
lora_alpha / r, or lora_alpha / √r with use_rslora. An adapter is read as what it adds to the weights, s B A, whichever maps
it is for. What PEFT can say beyond that (DoRA, trained biases, modules beside) is refused by its key.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from align.errors import UserError
from align.files import is_finite, read_json, write_json
from align.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, WRAPPERS, Stored, linked, opened

PREFIX, PARTS = "base_model.model.", ("lora_A", "lora_B")
# keys that do not change what an adapter computes, or whose meaning the tensors have already
SILENT = {
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"),
    *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "eva_config"),
}
# of the others everything but null, false and empty is refused, with these exceptions
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # the ways that leave the base's weights as they are
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva", "mica"),
}


class Pair(NamedTuple):
    """Where the two matrices of a map's adapter are, and the scale of their product."""

    A: Stored
    B: Stored
    scale: float

    def add_to(self, rows: Tensor, start: int) -> Tensor:
        """Rows from `start` on of W, (n, in), with those of s B A added, in float32 at least."""
        with opened(self.A.file) as file:
            dtype = torch.promote_types(rows.dtype, torch.float32)
            a = file.get_tensor(self.A.name).to(dtype)  # (r, in)
            b = file.get_slice(self.B.name)[start : start + len(rows)].to(dtype)  # (n, r)
        return rows.to(dtype).addmm_(b, a, alpha=self.scale)


def read_adapter(folder: Path, shapes: dict[str, list[int]]) -> dict[str, Pair]:
    """The pair of each weight that an adapter adds to, by the weight's name; empty for a folder without an adapter.

    shapes: of the model's weights. Reads headers alone. Raises UserError naming the key or tensor.
    """
    if not (folder / ADAPTER_CONFIG).exists():
        return {}
    file, about_file = linked(folder / ADAPTER_WEIGHTS), linked(folder / ADAPTER_CONFIG)
    about = read_json(about_file)
    check_plain(about, about_file)
    found: dict[str, dict[str, str]] = {}
    with opened(file) as tensors:
        for stored in tensors.keys():  # noqa: SIM118  # not a dictionary
            name = ".".join(part for part in stored.split(".") if part not in WRAPPERS)
            match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.(lora_[AB])(?:\.default)?\.weight", name)
            if match is None or f"{match[1]}.weight" not in shapes or len(shapes[f"{match[1]}.weight"]) != 2:
                raise UserError(f"{file}: tensor {stored} belongs to no linear map of the base model")
            found.setdefault(match[1], {})[match[2]] = stored
        pairs = {}
        for name, matrices in found.items():
            if len(matrices) < 2:
                raise UserError(f"{file}: {name} has {next(iter(matrices))} alone, of a pair")
            (r, columns), (rows, r_b) = (tensors.get_slice(matrices[part]).get_shape() for part in PARTS)
            if r != r_b or [rows, columns] != shapes[f"{name}.weight"]:
                raise UserError(
                    f"{file}: the adapter of {name} is ({rows}, {r_b}) times ({r}, {columns}), where the base's weight is "
                    f"{shapes[f'{name}.weight']}; give the base that it was trained on"
                )
            scale = alpha_of(name, about, about_file) / (math.sqrt(r) if about.get("use_rslora") else r)
            pairs[f"{name}.weight"] = Pair(Stored(file, matrices["lora_A"]), Stored(file, matrices["lora_B"]), scale)
    if not pairs:
        raise UserError(f"{file}: holds no tensor")
    return pairs


def check_plain(about: dict[str, Any], file: Path) -> None:
    """Raise UserError for an adapter that is more than s B A."""
    if not about.get("peft_type"):
        raise UserError(f"{file}: peft_type is missing; it can be LORA")
    for key, value in about.items():
        if key not in SILENT and value and value not in PLAIN.get(key, ()):
            raise UserError(
                f"{file}: {key} {value!r} is not supported, plain LoRA alone is; merge the adapter with peft's "
                "merge_and_unload(), save the result, and give that folder"
            )


def alpha_of(module: str, about: dict[str, Any], file: Path) -> float:
    """lora_alpha of a map: that of the first name in alpha_pattern on which its own ends, else the general one."""
    alpha, patterns = about.get("lora_alpha"), about.get("alpha_pattern") or {}
    for pattern in patterns if isinstance(patterns, dict) else [str(patterns)]:
        if not re.fullmatch(r"\^?[\w.]+", pattern):  # PEFT's are regular expressions, which can take for ever
            raise UserError(f"{file}: alpha_pattern {pattern!r} is not the name of a module; write each one's out")
        if module == pattern.removeprefix("^") or module.endswith(f".{pattern}"):
            alpha = patterns[pattern]
            break
    if not is_finite(alpha):
        raise UserError(f"{file}: lora_alpha of {module} must be a number, not {alpha!r}")
    return alpha


def write_adapter(folder: Path, base: str, tensors: dict[str, tuple[Tensor, Tensor]], alpha: float) -> None:
    """An adapter's files. base: the model's folder or Hub id. tensors: A (r, in) and B (out, r) of each map, by its name."""
    names = {
        f"{PREFIX}{name}.{part}.weight": t
        for name, pair in tensors.items()
        for part, t in zip(PARTS, pair, strict=True)
    }
    save_file({name: t.cpu().contiguous() for name, t in names.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": len(next(iter(tensors.values()))[0]),
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG, about)
