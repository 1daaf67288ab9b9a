"""The margin of a pair under four f-divergences: how far apart two log-ratios are depends on what holds the policy."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.base import Loss, LossInputs

DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")

# e^-αΔ leaves float32 at αΔ = -88.7. From αΔ = -30 on its slope is held: e^30 = 1.07e13 is far below a float32's 3.4e38,
# so values, sums over a batch and the squares in a gradient norm stay finite. Above -30 nothing is changed.
LARGEST_EXPONENT = 30.0


def score(ratios: Tensor, divergence: str, alpha: float = 0.5) -> Tensor:
    """s(Δ) = f'(e^Δ) - f'(1), elementwise: increasing, and 0 at policy = reference."""
    if divergence == "reverse_kl":
        return ratios
    if divergence == "js":
        return F.logsigmoid(ratios) + math.log(2)
    alpha = 1.0 if divergence == "forward_kl" else alpha
    exponent = -alpha * ratios
    held = exponent.clamp(max=LARGEST_EXPONENT)
    # e^held - 1, continued along its tangent
    return -(torch.expm1(held) + torch.exp(held) * (exponent - held)) / alpha


def slope(ratios: Tensor, divergence: str, alpha: float = 0.5) -> Tensor:
    """s'(Δ), elementwise: at most 1 where a response became likelier than under the reference."""
    if divergence == "reverse_kl":
        return torch.ones_like(ratios)
    if divergence == "js":
        return torch.sigmoid(-ratios)
    alpha = 1.0 if divergence == "forward_kl" else alpha
    return torch.exp((-alpha * ratios).clamp(max=LARGEST_EXPONENT))


@dataclass
class Relative(Loss):
    """A loss of the margin z of a pair alone, under any f-divergence: f-DPO, Wang et al. 2023, arXiv 2309.16240.

    Objective
        L = φ(z),    z = β (s(Δ_w) - s(Δ_l)),    s(Δ) = f'(e^Δ) - f'(1)
    where a subclass gives φ (for DPO, -log σ) and `divergence` gives f:
        reverse_kl   f(u) = u log u                            s = Δ                       s' = 1
        forward_kl   f(u) = -log u                             s = 1 - e^-Δ                s' = e^-Δ
        js           f(u) = u log u - (u+1) log((u+1)/2)       s = log 2 + log σ(Δ)        s' = σ(-Δ)
        alpha        f(u) = (u^(1-α) - (1-α)u - α) / (α(α-1))  s = (1 - e^-αΔ) / α         s' = e^-αΔ
    alpha lies between the two KLs: reverse_kl is its limit α -> 0, forward_kl is α = 1.

    Derivation
        1. Hold the policy by any f-divergence: maximise Σ_y π R - β Σ_y π_ref f(π/π_ref) over distributions π. With a
           multiplier λ(x) for Σ_y π = 1, each y with π > 0 has R(x, y) = β f'(π/π_ref) + λ(x).
        2. All four have f'(u) -> -∞ as u -> 0. That is the condition: no response is given up entirely, so that 1.
           holds for every y and no multiplier of π >= 0 is left.
        3. Any policy thus names the reward for which it is optimal, β f'(π/π_ref) up to a function of x, and that
           function (where reverse KL has β log Z(x)) cancels in any loss of the difference of two rewards. Subtracting
           f'(1) cancels, too.

    Gradient
        dL/dℓ_w = φ'(z) β s'(Δ_w),    dL/dℓ_l = -φ'(z) β s'(Δ_l)

    What it does. s' says who is pushed. Under reverse KL both responses are pushed alike. Under the others s' falls
    with Δ, so a response that the policy has all but given up moves z most: a chosen response below the reference is
    pulled back hard, and a rejected one that is already far below it still pays. Under JS s' is at most 1 and the push
    on a chosen response dies once it is likelier than under the reference, so z cannot exceed β (log 2 - s(Δ_l)). At
    policy = reference s = 0 and s' = 1, but 1/2 under JS.

    Limits. A shift of both log-ratios changes nothing under reverse KL only. For log-ratios of whole responses e^-Δ is
    violent: at Δ_w = -30 the slope is 1e13. Beyond αΔ = -30 we hold the slope s' at e^30 and integrate it: s goes on as
    its tangent. Loss and gradient are exactly f-DPO's wherever αΔ >= -30; elsewhere they are those of this s, finite,
    and still the gradient of the loss. TRL's forward_kl overflows in float32 from Δ = -88 on; its alpha clamps the
    exponent at 80, where the gradient vanishes, and TRL since 0.29 counts it as 1 - α. TRL logs β Δ as the reward; we
    log β s(Δ), so that the rewards' difference is z. Losses that look at each response alone (nca, bco, sppo, kto) do
    not cancel λ(x).
    """

    beta: float = 0.1
    divergence: str = "reverse_kl"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"loss.divergence must be one of {', '.join(DIVERGENCES)}, not {self.divergence}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"loss.alpha must be greater than 0 and less than 1, not {self.alpha}")

    def margin(self, x: LossInputs) -> Tensor:
        r = self.beta * score(x.ratios, self.divergence, self.alpha)  # (N, 2)
        return r[:, 0] - r[:, 1]  # (N,) z

    def chain(self, x: LossInputs, dz: Tensor) -> Tensor:
        """dL/dℓ (N, 2) from dL/dz (N,)."""
        push = dz[:, None] * self.beta * slope(x.ratios, self.divergence, self.alpha)  # (N, 2)
        return torch.stack([push[:, 0], -push[:, 1]], dim=1)

    def rewards(self, x: LossInputs) -> Tensor:
        """The implicit rewards β s(Δ) that are logged, (N, 2), detached: their difference is z."""
        return self.beta * score(x.ratios.detach(), self.divergence, self.alpha)


@dataclass
class FDPO(Relative):
    """f-DPO, Wang et al. 2023, "Beyond Reverse KL", arXiv 2309.16240: DPO under the divergence of your choice.

    Objective
        L = -log σ(z),    z = β (s(Δ_w) - s(Δ_l))
    with s as Relative has it. Under reverse_kl it is DPO, bit by bit.

    Derivation. Relative's: any policy names a reward, β f'(π/π_ref), up to a function of the prompt that a difference
    cancels. Bradley-Terry on that difference is L.

    Gradient, from (log σ(z))' = σ(-z)
        dL/dℓ_w = -β σ(-z) s'(Δ_w),    dL/dℓ_l = +β σ(-z) s'(Δ_l)

    What it does. DPO's weight σ(-z) for the pair, Relative's s' for each response. At policy = reference L = log 2 and
    the slopes are -β/2 and +β/2, half of that under js. Only js bounds the margin from above by where the rejected
    response stands; under the others there is no finite fixed point.

    Limits. Relative's: other divergences see the level of both log-ratios, and forward_kl is violent below the
    reference.
    """

    title = "DPO under another divergence (f-DPO)"
    paper = "arXiv 2309.16240"
    summary = "DPO where another f-divergence than the reverse KL holds the policy near the reference"
    trl = "sigmoid with f_divergence_type"
    divergence: str = "js"

    def __call__(self, x: LossInputs) -> Tensor:
        return -F.logsigmoid(self.margin(x))

    def gradient(self, x: LossInputs) -> Tensor:
        return self.chain(x, -torch.sigmoid(-self.margin(x)))
