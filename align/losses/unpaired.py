"""Losses of single responses with a thumb up or down. BCO, which takes pairs as well, is in absolute.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from align.losses.absolute import bell
from align.losses.base import Loss, LossInputs


@dataclass
class KTO(Loss):
    """KTO, Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306.

    Objective, s = +1 for desirable responses and -1 for undesirable ones, λ = desirable_weight or undesirable_weight
        L = λ (1 - σ(u)),    u = s β (Δ - z0),    z0 = KL(π || π_ref), estimated and detached

    Derivation
        1. Prospect theory: people value an outcome by its gain or loss from a reference point, and ever less of it the
           further off it is. Take the logistic σ for that value function, and maximise the value of what is known to be
           good or bad. That needs a label for each response, not pairs.
        2. The reference point is what the policy itself would fetch, E_{y' ~ π} R(x, y'). With R = β Δ + β log Z(x), as
           in DPO (eq. 5 there), R(x, y) - E_π R = β (Δ - E_π Δ), and E_π Δ is KL(π || π_ref). The trick: log Z(x)
           cancels against an average, where DPO cancels it against a second response.
        3. Sampling from π is costly. The KL is estimated on the responses at hand, put under the wrong prompts so that
           they are no longer good or bad for them: z0 = max(0, 1/N Σ_n Δ(x_n, y'_n)), one number for the whole batch,
           the maximum because no KL is negative. It is a reference point, not a goal: no gradient flows into it.

    LossInputs: response 0 is the labelled one, response 1 another prompt's response under this prompt, labels (N, 1).
    Without response 1, z0 = 0.

    Gradient, σ'(t) = σ(t) σ(-t)
        dL/dℓ_0 = -λ s β σ'(u),    dL/dℓ_1 = 0

    What it does. A desirable response is raised and an undesirable one lowered, most where Δ = z0, fading within a few
    1/β nats on both sides: what is learnt is left alone, and so is what looks hopeless, such as wrong labels. As the
    policy leaves the reference z0 grows, and the desirable must rise with it. 0 <= L <= λ, no finite fixed point. At
    policy = reference L = λ/2 and the slope is -s λ β/4.

    Limits. z0 is biased (the y' are not π's own) and shared by all prompts; it must be averaged over the global batch,
    and only then cut at 0. TRL rotates responses within a device's micro-batch, fixed in advance, so it may not
    shuffle; TRL's first version reversed the batch, which left the middle of an odd one matched (#1911). HALOs takes
    the next response, and counts only non-zero log-ratios. A single prompt a batch leaves them nothing to mismatch;
    here response 1 comes from anywhere in the data. Uneven classes: keep λ_D n_D / (λ_U n_U) between 1 and 4/3. Batches
    of one class are fine.
    """

    title = "Kahneman-Tversky optimisation (KTO)"
    paper = "arXiv 2402.01306"
    summary = "value of a labelled response from a reference point, the KL, with diminishing returns on both sides"
    trl = "kto"
    halos = "kto"
    responses = "unpaired"
    needs_global_batch = True
    uses_mismatched_responses = True
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("desirable_weight", "undesirable_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} must be at least 0, not {getattr(self, name)}")

    def signs(self, x: LossInputs) -> Tensor:
        """s (N,)"""
        if x.labels is None:
            raise ValueError("kto needs to know which responses are desirable: LossInputs.labels is None")
        return 2 * x.labels[:, 0].to(x.logps.dtype) - 1

    def weights(self, s: Tensor) -> Tensor:
        """λ (N,)"""
        # a table in the dtype of s: Python floats times a bool tensor would be float32
        return s.new_tensor([self.undesirable_weight, self.desirable_weight])[(s > 0).long()]

    def baseline(self, x: LossInputs) -> Tensor | float:
        """z0 in nats."""
        return x.ratios[:, 1].detach().mean().clamp(min=0) if x.logps.shape[1] > 1 else 0.0

    def utility(self, x: LossInputs) -> Tensor:
        """u (N,): how far a response is on its own side of the reference point."""
        return self.signs(x) * self.beta * (x.ratios[:, 0] - self.baseline(x))

    def __call__(self, x: LossInputs) -> Tensor:
        return self.weights(self.signs(x)) * torch.sigmoid(-self.utility(x))

    def gradient(self, x: LossInputs) -> Tensor:
        s = self.signs(x)
        grad = torch.zeros_like(x.logps)
        grad[:, 0] = -self.weights(s) * s * self.beta * bell(self.utility(x))
        return grad


@dataclass
class KTOPair(Loss):
    """KTO on pairs, as libraries first had it, after arXiv 2402.01306. Kept for comparison: use kto.

    Objective, over the N pairs of a global batch
        L = 1/2 [ 1 - σ(u) + 1 - σ(v) ],    u = β (Δ_w - z_l),    v = β (z_w - Δ_l)
        z_w = max(0, 1/N Σ Δ_w),    z_l = max(0, 1/N Σ Δ_l),    neither detached

    Derivation. KTO's, with the reference point of the chosen responses estimated on the rejected ones of the batch and
    the other way round: each half of the data serves as "other responses" for the other half.

    Gradient, of the sum over the batch: each response's own term, and its share in the other side's reference point
        dL/dℓ_w = -β/2 ( σ'(u) + [Σ Δ_w >= 0] 1/N Σ_m σ'(v_m) )
        dL/dℓ_l = +β/2 ( σ'(v) + [Σ Δ_l >= 0] 1/N Σ_m σ'(u_m) )

    What it does. Raises the chosen and lowers the rejected. The second term is not KTO's: whoever raises z_w makes
    every rejected response look better placed, so all chosen responses are raised in common, whatever their own Δ,
    while their mean is not negative. At policy = reference L = 1/2 and the slopes are -β/4 and +β/4, half of them from
    that term. With both means below 0 it is half of APO-zero.

    Limits. The batch's mean log-ratio of chosen responses is no estimate of KL(π || π_ref), and the gradient through it
    makes the result depend on how the batch is cut. TRL refuses it since 0.9.6 in favour of its unpaired trainer, and
    OpenRLHF has removed it; while they had it, they agreed. At a mean of exactly 0 the gradient passes, as through
    torch.clamp: the first step is at that kink, exactly with a live reference, and up to rounding with a cached one.
    """

    title = "KTO on pairs, with gradients through its KL (old form)"
    paper = "arXiv 2402.01306"
    summary = "KTO's first form on pairs, with gradients through its KL; kept for comparison"
    trl = "kto_pair (to 0.9.4)"
    needs_global_batch = True
    nonsmooth_at_reference = True
    beta: float = 0.1

    def utilities(self, x: LossInputs) -> tuple[Tensor, Tensor]:
        """u and v, (N,) each."""
        z = x.ratios.mean(dim=0).clamp(min=0)  # (2,) z_w, z_l
        return self.beta * (x.ratios[:, 0] - z[1]), self.beta * (z[0] - x.ratios[:, 1])

    def __call__(self, x: LossInputs) -> Tensor:
        u, v = self.utilities(x)
        return (torch.sigmoid(-u) + torch.sigmoid(-v)) / 2

    def gradient(self, x: LossInputs) -> Tensor:
        u, v = (bell(t) for t in self.utilities(x))
        passes = (x.ratios.mean(dim=0) >= 0).to(u.dtype)  # (2,) where the clamp lets gradients through
        push = torch.stack([-u - passes[0] * v.mean(), v + passes[1] * u.mean()], dim=1)
        return self.beta / 2 * push
