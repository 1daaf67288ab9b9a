"""AdamW, and the learning rate as a pure function of the step: nothing of a schedule needs to be saved."""

import math

import torch
from torch import nn

from align.sections import OptimSection


def build_optimizer(model: nn.Module, optim: OptimSection) -> torch.optim.AdamW:
    """AdamW over every trainable parameter; weight decay only where it means something, on matrices."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    # fused: one pass over weights, gradients and moments
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)


def learning_rate(step: int, steps: int, optim: OptimSection) -> float:
    """The learning rate of optimizer step `step` (from 0) out of `steps`."""
    warmup = round(optim.warmup * steps)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - warmup, 1)  # 0 at the peak, just under 1 at the last step
    curve = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return optim.lr * curve[optim.schedule]
