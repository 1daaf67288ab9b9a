"""Direct preference optimisation: the reward model is the policy itself."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.base import Loss, LossInputs


@dataclass
class DPO(Loss):
    """DPO, Rafailov et al. 2023, arXiv 2305.18290, eq. 7.

    Objective
        L = -log σ(z),    z = r_w - r_l = β ((ℓ_w - ℓ_ref,w) - (ℓ_l - ℓ_ref,l))

    Derivation
        1. RLHF maximises E_π[R(x, y)] - β KL(π || π_ref). For a fixed reward R its optimum is known in closed form:
           π*(y|x) = π_ref(y|x) exp(R(x, y)/β) / Z(x)                                                          (eq. 4)
        2. The trick is to read that backwards, so that any policy names the reward for which it is optimal:
           R(x, y) = β (log π(y|x) - log π_ref(y|x)) + β log Z(x) = r + β log Z(x)                             (eq. 5)
        3. Under the Bradley-Terry model p(y_w > y_l) = σ(R(x, y_w) - R(x, y_l)), and the intractable log Z(x), the same
           for both responses, cancels. Maximum likelihood of the observed preferences is L.               (eqs. 6, 7)

    Gradient, from (log σ(z))' = σ(-z)
        dL/dℓ_w = -β σ(-z),    dL/dℓ_l = +β σ(-z)

    What it does. The pair is weighted by σ(-z), the probability that the implicit rewards order it wrongly: 1/2 at
    policy = reference, where L = log 2 and the slopes are -β/2 and +β/2, and fading once the margin is won. There is no
    finite fixed point: z grows without bound on separable pairs.

    Limits. Only the margin z is controlled. Both responses' likelihoods may fall, as long as the rejected one falls
    faster, and the mass that they lose goes wherever the network sends it; this is the drift that costs unrelated
    abilities. L depends on the log-probabilities through z alone, so adding a constant to both log-ratios of a prompt
    changes nothing.
    """

    title = "Direct preference optimisation (DPO)"
    paper = "arXiv 2305.18290"
    summary = "logistic regression of the preference on the difference of implicit rewards"
    trl = "sigmoid"
    halos = "dpo"
    in_paper = True
    beta: float = 0.1

    def margin(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios  # (N, 2)
        return r[:, 0] - r[:, 1]  # (N,) z

    def __call__(self, x: LossInputs) -> Tensor:
        return -F.logsigmoid(self.margin(x))  # eq. 7

    def gradient(self, x: LossInputs) -> Tensor:
        push = self.beta * torch.sigmoid(-self.margin(x))  # (N,)
        return torch.stack([-push, push], dim=1)
