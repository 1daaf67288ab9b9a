"""Supervised fine-tuning on the preferred responses: where every preference method starts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from align.losses.base import Loss, LossInputs


@dataclass
class SFT(Loss):
    """Maximum likelihood of the preferred response.

    Objective, over a global batch of N prompts
        L = - Σ_n ℓ_{w,n} / Σ_n |y_{w,n}|,    |y_w| the tokens of the preferred response: the mean over tokens

    Derivation. Maximising the likelihood of the responses is minimising KL(data || π). Every token counts the same, so
    a long response weighs more than a short one. To fit the contract (one loss a prompt, averaged over prompts), each
    prompt's sum is divided by the mean length of the batch, m = Σ_n |y_{w,n}| / N: L_n = -ℓ_{w,n} / m, whose mean over
    n is L.

    Gradient
        dL_n/dℓ_{w,n} = -1/m,    0 for every other response

    What it does. The pull never fades and has no target but certainty. With no rejected response and no reference there
    is nothing to hold the policy back but the learning rate.

    Limits. m must be that of the global batch: with a micro-batch's own mean length, the result would change with
    gradient accumulation and the number of ranks. train.py supplies it (LossInputs.tokens_per_prompt).
    """

    title = "Supervised fine-tuning (SFT)"
    paper = "maximum likelihood"
    summary = "maximum likelihood of the chosen response; the rejected one is not read"
    trl = "sft"
    halos = "sft"
    needs_reference = False
    responses = "one"

    def __call__(self, x: LossInputs) -> Tensor:
        return -x.logps[:, 0] / x.mean_tokens

    def gradient(self, x: LossInputs) -> Tensor:
        grad = torch.zeros_like(x.logps)
        grad[:, 0] = -1 / x.mean_tokens
        return grad
