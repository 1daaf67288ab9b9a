"""LoRA (Hu et al., arXiv 2106.09685): beside a frozen linear map, a trained product of two thin matrices.

    y = W x + b + s B A x        A (r, in), B (out, r), s = alpha / r

B starts at zero, so that a fresh adapter changes nothing; with its adapters off a model is, at any time, the one that it
was, which makes it its own reference. With G = ∂L/∂(W + s B A), the gradients are s Bᵀ G for A and s G Aᵀ for B; G itself,
as large as W, is never formed. The dropout of the paper's code is not built: preference optimisation compares the policy
with itself.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.errors import UserError
from align.models.layers import Decoder

TARGETS = ("all", "attention", "mlp-up")
MATRICES = ("lora_A", "lora_B")


class LoraLinear(nn.Module):
    """A linear map with an adapter. Its weight and bias keep their names; its adapter computes in the dtype of x."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        # float32 whatever the weight is: the small steps of a bfloat16 parameter are lost to its rounding
        device, dtype = linear.weight.device, torch.float32
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(linear.out_features, rank, device=device, dtype=dtype))
        self.alpha, self.scale = alpha, alpha / rank
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        y = F.linear(x, self.weight, self.bias)
        if not self.enabled:
            return y
        thin = F.linear(x, self.lora_A.to(x.dtype)) * self.scale  # (..., r)
        return y + F.linear(thin, self.lora_B.to(x.dtype))

    def product(self, gather: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """s B A, (out, in), of the matrices that `gather` makes whole."""
        return self.scale * gather(self.lora_B) @ gather(self.lora_A)


def add_adapters(model: Decoder, rank: int, alpha: float, targets: str) -> Decoder:
    """Freeze a model's weights and give every linear map that `targets` names an adapter, uninitialised, in place.

    targets: "all" is every linear map of the blocks; of the head there is none. "attention" and "mlp-up" are those that
    the family's `targets` lists. A rank of 0 changes nothing. Raises UserError for a rank with which an adapter would be
    no thinner than its map.
    """
    if rank == 0:
        return model
    model.requires_grad_(False)
    for block in model.blocks:
        for name, module in list(block.named_modules()):
            parent, _, leaf = name.rpartition(".")
            if not isinstance(module, nn.Linear) or (targets != "all" and leaf not in model.targets[targets]):
                continue
            if rank > min(module.weight.shape):
                raise UserError(
                    f"lora.rank {rank}: {name} has rank {min(module.weight.shape)} itself; lower it, or leave it out to "
                    "train every weight"
                )
            setattr(block.get_submodule(parent), leaf, LoraLinear(module, rank, alpha))
    return model


def init_adapters(model: Decoder, seed: int, local: Callable[[nn.Parameter], tuple[Tensor, int]]) -> None:
    """Fresh adapters, the same for the same seed: A uniform in ±1/√in (Kaiming's bound), B zero.

    Each A is drawn from the seed and its name, whole, so that it depends neither on the others nor on who holds which
    rows. local: param -> (tensor to fill, its first row in the whole parameter).
    """
    with torch.no_grad():
        for name, param in model.named_parameters():
            target, row = local(param)
            if name.endswith("lora_A"):
                drawn = hashlib.sha256(f"{seed} {name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
                bound = 1 / math.sqrt(param.shape[1])
                whole = torch.empty(param.shape).uniform_(-bound, bound, generator=generator)  # (r, in)
                target.copy_(whole[row : row + len(target)])
            elif name.endswith("lora_B"):
                target.zero_()


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters were trained; any model without adapters as it is."""
    adapted = [module for _, module in adapters(model)]
    for module in adapted:
        module.enabled = False
    try:
        yield
    finally:
        for module in adapted:
            module.enabled = True


def adapters(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    """The maps that have an adapter, by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]


def own_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a model's folder has, by name: all but its adapters'."""
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] not in MATRICES}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers of a model train, and how many are frozen. It may be on device "meta"."""
    counts = {
        trains: sum(p.numel() for p in model.parameters() if p.requires_grad is trains) for trains in (True, False)
    }
    return counts[True], counts[False]


def merged(model: nn.Module, name: str, gather: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """The whole weight of that name; where it has an adapter W + s B A, in float32 at least."""
    module, _, leaf = name.rpartition(".")
    weight, holder = gather(model.get_parameter(name)), model.get_submodule(module)
    if leaf != "weight" or not isinstance(holder, LoraLinear):
        return weight
    return holder.product(gather).to(torch.promote_types(weight.dtype, torch.float32)).add_(weight)
