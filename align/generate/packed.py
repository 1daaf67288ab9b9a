"""Linear layers on a CPU with their weights laid out once, instead of in every product."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x (..., K), weight: packed (N, K) -> (..., N)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Packed:
    """Inside `with`, a model's float32 linear layers on a CPU multiply copies of their weights in oneDNN's layout.

    A product of few rows otherwise spends much of its time on copying the weight into such a layout. The copies are as
    large as the weights and do not follow their updates: for generation, not for training. Other layers stay as they
    are. The operators are those PyTorch has for compiled models, without a public name; where they are missing nothing
    is packed.
    """

    def __init__(self, model: nn.Module):
        self.forwards: dict[nn.Module, Any] = {}
        if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return
        for module in model.modules():
            if isinstance(module, nn.Linear) and packable(module.weight):
                weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
                self.forwards[module] = partial(linear, weight, module.bias)

    def __enter__(self) -> None:
        for module, forward in self.forwards.items():
            module.forward = forward

    def __exit__(self, *_: object) -> None:
        for module in self.forwards:
            del module.forward


def packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not isinstance(weight, DTensor)
