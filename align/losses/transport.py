"""Alignment via optimal transport: chosen responses, as a distribution, are to beat rejected ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from align.losses.base import Loss, LossInputs
from align.losses.relative import check_label_smoothing, cross_entropy, cross_entropy_slope


def partners(u: Tensor, v: Tensor) -> Tensor:
    """(N,) for each row of u, the row of v that has the same rank: the optimal transport plan between two samples.

    Stable sorts: among equal values the earlier row comes first, so that ties have one result.
    """
    order = u.argsort(stable=True)
    partner = torch.empty_like(order)
    partner[order] = v.argsort(stable=True)
    return partner


@dataclass
class AOT(Loss):
    """AOT on pairs, Melnyk et al. 2024, "Distributional Preference Alignment via Optimal Transport", arXiv 2406.05882.

    Objective, over the N pairs of a global batch, u_(k) the k-th smallest of u, ε = label_smoothing
        L = 1/N Σ_k C(β (u_(k) - v_(k)), ε),    u = ℓ_w - ℓ_l,    v = ℓ_ref,w - ℓ_ref,l
        C(z, ε) = -(1 - ε) log σ(z) - ε log σ(-z)

    Derivation
        1. DPO asks each pair for u_n > v_n. Ask it of the distributions: u is to dominate v to first order, that is, to
           have the larger quantile at every level, F_u⁻¹(t) >= F_v⁻¹(t) for all t in [0, 1].
        2. Violations cost ∫ h(F_u⁻¹(t) - F_v⁻¹(t)) dt. With h the step function that counts them; with a convex,
           falling h, here C, it can be trained on.
        3. For convex h that integral is an optimal transport cost, the minimum of E h(U - V) over all joint laws of U
           and V. In one dimension it is solved by sorting: if u1 <= u2 and v1 <= v2, then u1-v1 and u2-v2 both lie
           between u1-v2 and u2-v1 and have the same sum, so that convexity gives h(u1-v1) + h(u2-v2) <= h(u1-v2) +
           h(u2-v1): uncrossing two lines never costs. On samples, the k-th smallest goes with the k-th smallest.

    Gradient of L_n = C(z_n, ε), whose mean is L, with z_n = β (u_n - v̂_n) and v̂_n the v of the same rank as u_n. The
    ranks are piecewise constant (and the plan is optimal: where it changes, it does so at no cost)
        dL_n/dℓ_w = β C'(z_n, ε),    dL_n/dℓ_l = -β C'(z_n, ε)

    What it does. DPO, with each pair's reference margin exchanged for the one of its rank. A pair is not pushed for
    lying below its own reference if others made up for it. L is the least over all pairings, so never above DPO's batch
    mean. At policy = reference L = log 2 with slopes ∓β/2 (ε = 0); for a batch of one it is DPO.

    Limits. L depends on the batch: it must be the global one, or the result changes with ranks and accumulation, as in
    TRL, which sorts within a device's micro-batch (33 pairs at β = 0.1: 0.497 at once, 0.521 one by one). Pairs are
    compared across prompts, although u has no common scale: long responses have wide u. Ties leave L as it is, but not
    who gets which push; ours sort stably.
    """

    title = "Alignment via optimal transport, paired (AOT)"
    paper = "arXiv 2406.05882"
    summary = "the sorted margins of the policy are to beat the sorted margins of the reference, rank by rank"
    trl = "aot"
    in_paper = True
    needs_global_batch = True
    beta: float = 0.01
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)

    def margin(self, x: LossInputs) -> Tensor:
        if x.ref_logps is None:
            raise ValueError("this loss compares with a reference: LossInputs.ref_logps is None")
        u = x.logps[:, 0] - x.logps[:, 1]  # (N,)
        v = x.ref_logps[:, 0] - x.ref_logps[:, 1]  # (N,)
        return self.beta * (u - v[partners(u, v)])  # (N,) z

    def __call__(self, x: LossInputs) -> Tensor:
        return cross_entropy(self.margin(x), self.label_smoothing)

    def gradient(self, x: LossInputs) -> Tensor:
        push = self.beta * cross_entropy_slope(self.margin(x), self.label_smoothing)  # (N,)
        return torch.stack([push, -push], dim=1)


@dataclass
class AOTUnpaired(Loss):
    """AOT on unpaired responses, Melnyk et al. 2024, arXiv 2406.05882. See AOT for the derivation.

    Objective, over the N chosen and the N rejected responses of a global batch, ε = label_smoothing
        L = 1/N Σ_k C(β (u_(k) - v_(k)), ε),    u = Δ_w,    v = Δ_l

    Derivation. The same transport problem between other distributions: the log-ratios of all chosen responses are to
    dominate those of all rejected ones. Nothing says which rejected response belongs to which chosen one, nor to which
    prompt.

    Gradient of L_n = C(z_n, ε), with z_n = β (Δ_w,n - Δ_l,m(n)) and m(n) the row of the same rank among the rejected
        dL_n/dℓ_w,n = β C'(z_n, ε),    dL_n/dℓ_l,m(n) = -β C'(z_n, ε)

    What it does. At policy = reference L = log 2 with slopes ∓β/2; for a batch of one it is DPO, and otherwise at most
    DPO's batch mean. Adding a constant to all log-ratios changes nothing; to those of one prompt alone, it does, unlike
    in DPO.

    Limits. As for AOT. L_n is listed under its chosen response; the rejected one may be another prompt's. The data are
    pairs, but which rejected response shares a row with which chosen one has no meaning. TRL before 0.28 called it
    aot_pair.
    """

    title = "Alignment via optimal transport, unpaired (AOT)"
    paper = "arXiv 2406.05882"
    summary = "the sorted log-ratios of chosen responses are to beat those of rejected ones, rank by rank"
    trl = "aot_unpaired, aot_pair"
    in_paper = True
    needs_global_batch = True
    beta: float = 0.01
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)

    def match(self, x: LossInputs) -> tuple[Tensor, Tensor]:
        """The margins z (N,) and, for each chosen response, the row of its rejected one (N,)."""
        u, v = x.ratios.unbind(dim=1)  # (N,) each
        m = partners(u, v)
        return self.beta * (u - v[m]), m

    def __call__(self, x: LossInputs) -> Tensor:
        z, _ = self.match(x)
        return cross_entropy(z, self.label_smoothing)

    def gradient(self, x: LossInputs) -> Tensor:
        z, m = self.match(x)
        push = self.beta * cross_entropy_slope(z, self.label_smoothing)  # (N,)
        rejected = torch.empty_like(push)
        rejected[m] = -push
        return torch.stack([push, rejected], dim=1)
