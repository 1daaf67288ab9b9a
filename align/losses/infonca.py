"""Lists of responses with rewards, seen as distributions over the list: forward KL (InfoNCA) and reverse KL (EXO).

NCA, in nca.py, takes the same data and judges each response alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from align.losses.base import Loss, LossInputs
from align.losses.nca import target


@dataclass
class InfoNCA(Loss):
    """InfoNCA, Chen et al. 2024, "Noise Contrastive Alignment ... with Explicit Rewards", arXiv 2402.05369.

    Objective, for K responses with rewards s_1..s_K
        L = - Σ_i p_i log q_i,    p = softmax(s / temperature),    q = softmax(r)
    and for responses without rewards, the preferred one first, p = (1, 0, ..., 0): for a pair that is DPO.

    Derivation
        1. The target is DPO's and NCA's, π*(y|x) = π_ref(y|x) exp(R(x, y)/β) / Z(x).
        2. Draw K responses, one from π* and the others from π_ref, and hide which. Bayes' rule: response i is the one
           from π* with probability ∝ π*(y_i) Π_{j≠i} π_ref(y_j), that is, ∝ π*(y_i)/π_ref(y_i); over the list,
           softmax(log π* - log π_ref). The trick: Z(x), the same for all K, drops out.
        3. Put the policy's r for the logits and maximise the likelihood of the right guess. The responses at hand all
           come from π_ref; the weight p_i, π*(y_i)/π_ref(y_i) over its sum, says how likely i would have been the one.
           The temperature is the paper's 1/α.

    Gradient
        dL/dℓ_i = β (q_i - p_i)

    What it does. A cross-entropy: responses with too little of the list's probability are raised, the others lowered,
    and the forces add up to 0. Stationary where q = p, r_i = log p_i + c with c free. At policy = reference L = log K
    and the slope is β (1/K - p_i). L cannot fall below the entropy of p.

    Limits. Only differences of r count, as in DPO: all K likelihoods may fall together. NCA's fixed point, r_i = log(K
    p_i), is the one of this line with 1/K Σ e^{r_i} = 1. With the default temperature p is one-hot unless rewards
    nearly tie, and then L has no finite minimum. The authors' code takes K = 4, best first, and adds 0.01 to the first
    reward to break ties; this is the method without that. EXO's code has the same loss as dpo-rw.
    """

    title = "Noise contrastive alignment over a list (InfoNCA)"
    paper = "arXiv 2402.05369"
    summary = "cross-entropy of a list's target probabilities to softmax of its implicit rewards"
    responses = "list"
    beta: float = 0.01
    temperature: float = 1e-3

    def __call__(self, x: LossInputs) -> Tensor:
        return -(target(x, self.temperature) * torch.log_softmax(self.beta * x.ratios, dim=1)).sum(dim=1)

    def gradient(self, x: LossInputs) -> Tensor:
        return self.beta * (torch.softmax(self.beta * x.ratios, dim=1) - target(x, self.temperature))


@dataclass
class EXORewards(Loss):
    """EXO with rewards, Ji et al. 2024, arXiv 2402.00856.

    Objective, for K responses with rewards s_1..s_K
        L = KL(q || p) = Σ_i q_i (log q_i - log p_i),    q = softmax(r),    p = softmax(s / temperature)
    and for responses without rewards, the preferred one first, p = (1 - ε, ε/(K-1), ...), ε = label_smoothing: for a
    pair that is exo.

    Derivation
        1. RLHF's objective E_π[R] - β KL(π || π_ref) is -β KL(π || π*) up to a constant. The policy stands first: a
           reverse KL, which seeks the best mode that the policy can hold. DPO's likelihood is a forward KL, which
           covers them all; they share the optimum, and part where the policy cannot reach it.
        2. KL(π || π*) needs samples from π. From K responses of π_ref, the self-normalised importance weights of π,
           tempered by β, are q = softmax(r), and those of π* are p: log Z(x) drops out of both. KL(q || p) is the
           estimate.

    Gradient, f = log q - log p, from dq_i/dr_j = q_i ([i = j] - q_j)
        dL/dℓ_i = β q_i (f_i - Σ_j q_j f_j)

    What it does. A response is raised while it has less of the list than it should, relative to the q-weighted mean,
    and the forces add up to 0. Stationary at q = p, where L = 0: r_i = log p_i + c. At policy = reference
    L = -log K - 1/K Σ log p_i.

    Limits. The factor q_i: a response that the policy has all but dropped gets no gradient, however good; and once q
    has settled on one response, right or wrong, all forces vanish. InfoNCA has no such factor. log p must be finite, so
    ε = 0 is refused, and small temperatures make it huge: the defaults are the authors' for dialogue, not InfoNCA's.
    Only differences of r count. The authors' pairwise form takes log p = (0, -10), which is not normalised.
    """

    title = "Efficient exact optimisation over a list with rewards (EXO)"
    paper = "arXiv 2402.00856"
    summary = "reverse KL between the same two distributions"
    responses = "list"
    beta: float = 0.5
    temperature: float = 0.5
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must be between 0 and 1, exclusive, not {self.label_smoothing}")

    def log_target(self, x: LossInputs) -> Tensor:
        """log p (N, K)."""
        if x.scores is not None:
            return torch.log_softmax(x.scores.to(x.logps.dtype) / self.temperature, dim=1)
        others = x.logps.shape[1] - 1
        log_p = torch.full_like(x.logps, math.log(self.label_smoothing / others), requires_grad=False)
        log_p[:, 0] = math.log1p(-self.label_smoothing)
        return log_p

    def __call__(self, x: LossInputs) -> Tensor:
        log_q = torch.log_softmax(self.beta * x.ratios, dim=1)
        return (log_q.exp() * (log_q - self.log_target(x))).sum(dim=1)

    def gradient(self, x: LossInputs) -> Tensor:
        log_q = torch.log_softmax(self.beta * x.ratios, dim=1)
        q, f = log_q.exp(), log_q - self.log_target(x)
        return self.beta * q * (f - (q * f).sum(dim=1, keepdim=True))
