"""Weighted sums of losses: any of them (Mixture), and the two sums with names of their own, RPO and MPO.

Values, gradients, rewards and running statistics come from the parts, each of which keeps its own file and derivation.
"""

import math
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import torch
from torch import Tensor

from align.losses.absolute import BCO
from align.losses.base import FITS, Loss, LossInputs
from align.losses.dpo import DPO
from align.losses.sft import SFT


class WeightedSum(Loss):
    """L = Σ_j c_j L_j. A subclass says in `terms` what its parts are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts: list[tuple[float, Loss]] = self.terms()  # (c_j, L_j)

    def terms(self) -> list[tuple[float, Loss]]:
        raise NotImplementedError

    def __call__(self, x: LossInputs) -> Tensor:
        return reduce(torch.add, (c * loss(x) for c, loss in self.parts))

    def gradient(self, x: LossInputs) -> Tensor:
        return reduce(torch.add, (c * loss.gradient(x) for c, loss in self.parts))

    def kl_gradient(self, x: LossInputs) -> Tensor:
        """d(sum of losses)/d x.kl, (N, K)."""
        terms = [c * loss.kl_gradient(x) for c, loss in self.parts if "kl" in loss.token_inputs]
        return sum(terms, torch.zeros_like(x.logps))

    def reverse_kl_gradient(self, x: LossInputs) -> Tensor:
        """d(sum of losses)/d x.reverse_kl, (N, K)."""
        terms = [c * loss.reverse_kl_gradient(x) for c, loss in self.parts if "reverse_kl" in loss.token_inputs]
        return sum(terms, torch.zeros_like(x.logps))

    def shared_gradient(self, x: LossInputs) -> Tensor:
        """d(sum of losses)/d x.shared_logps, (N, K)."""
        terms = [c * loss.shared_gradient(x) for c, loss in self.parts if "shared_logps" in loss.token_inputs]
        return sum(terms, torch.zeros_like(x.logps))

    def observe(self, x: LossInputs) -> None:
        for _, loss in self.parts:
            loss.observe(x)

    def state(self) -> dict[str, float]:
        """The parts' states, each key behind the number of its part: "1.desirable_sum"."""
        return {f"{j}.{key}": value for j, (_, loss) in enumerate(self.parts) for key, value in loss.state().items()}

    def load_state(self, state: dict[str, float]) -> None:
        for j, (_, loss) in enumerate(self.parts):
            own = {key.partition(".")[2]: value for key, value in state.items() if key.partition(".")[0] == str(j)}
            loss.load_state(own)

    def rewards(self, x: LossInputs) -> Tensor | None:
        """Those of the first part that compares with the reference: parts may scale theirs by different β."""
        return next((loss.rewards(x) for _, loss in self.parts if loss.needs_reference), None)


@dataclass
class Mixture(WeightedSum):
    """Any losses, added with weights: L = Σ_j c_j L_j, c_j > 0.

    Gradient. Differentiation is linear: Σ_j c_j dL_j/dℓ.

    What it does. Where one part's force fades, another may go on: DPO + SFT is the common case. Parts may hold each
    other in balance, so that a sum has fixed points that none of its parts has. Each part keeps its own parameters; the
    sum needs whatever any part needs, and the whole global batch if one of them does.

    Limits. Losses of different scale do not mix by weight alone: L of ipo is 25 where that of dpo is 0.7, and what
    counts is the ratio of slopes. Parts that need different data cannot be mixed, and are refused: pairs with single
    labelled responses, and a part that reads another prompt's response (kto) with one that would take it for the
    prompt's own. In TRL up to 0.28 parts were not separate: ipo among them averaged log-probs for all, and exo_pair
    changed the label smoothing of all. Here a part never sees the others.
    """

    losses: list[Loss]
    weights: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.title = " + ".join(f"{c:g} x {loss.title}" for c, loss in self.parts)
        self.paper = ", ".join(dict.fromkeys(loss.paper for loss in self.losses))
        self.needs_reference = any(loss.needs_reference for loss in self.losses)
        self.moves = any(loss.moves for loss in self.losses)
        self.needs_global_batch = any(loss.needs_global_batch for loss in self.losses)
        self.nonsmooth_at_reference = any(loss.nonsmooth_at_reference for loss in self.losses)
        self.uses_mismatched_responses = any(loss.uses_mismatched_responses for loss in self.losses)
        self.token_inputs = tuple(dict.fromkeys(name for loss in self.losses for name in loss.token_inputs))
        fits = set.intersection(*(FITS[loss.responses] for loss in self.losses))
        self.responses = next(kind for kind, data in FITS.items() if data == fits)

    def terms(self) -> list[tuple[float, Loss]]:
        if not self.losses:
            raise ValueError("loss.losses must name at least one loss")
        if len(self.weights) != len(self.losses):
            raise ValueError(f"loss.weights must be one for each of {len(self.losses)} losses, not {len(self.weights)}")
        for c in self.weights:
            if not (c > 0 and math.isfinite(c)):
                raise ValueError(f"loss.weights must be greater than 0 and finite, not {c}")
        for a, b in combinations(self.losses, 2):
            if not FITS[a.responses] & FITS[b.responses]:
                raise ValueError(
                    f"{a.title} and {b.title} cannot be mixed: no data fits both "
                    f"(responses: {a.responses!r} and {b.responses!r})"
                )
            if a.uses_mismatched_responses != b.uses_mismatched_responses:
                reads, takes = (a, b) if a.uses_mismatched_responses else (b, a)
                raise ValueError(
                    f"{a.title} and {b.title} cannot be mixed: response 1 is another prompt's for {reads.title}, "
                    f"and {takes.title} would take it for the prompt's own"
                )
        return list(zip(self.weights, self.losses, strict=True))


@dataclass
class RPO(WeightedSum):
    """RPO, DPO plus the likelihood of the preferred response: Pang et al. 2024, 2404.19733; Liu et al., 2405.16436.

    Objective
        L = -log σ(r_w - r_l) + α NLL(y_w),    r_i = β (ℓ_i - ℓ_ref,i)
    with NLL the mean over tokens of the global batch, as in sft.

    Derivation, after Liu et al.
        1. Rewards learned from few comparisons are wrong far from the data. Be pessimistic: let an adversary choose the
           reward R, paying -log σ(R_w - R_l) for contradicting the preferences, and let the policy do well against it,
           measured from a baseline distribution of responses b:
           max_π min_R  η ( E_π[R] - E_b[R] - β KL(π || π_ref) ) - log σ(R_w - R_l)
        2. Exchange max and min. For a given R the best policy is DPO's, R = β (log π - log π_ref) + β log Z, and there
           E_π[R] - β KL = β log Z. The trick: this cancels against the β log Z within E_b[R].
        3. What is left is a minimum over R, that is, over π: DPO's loss, and -η β E_b[log π - log π_ref]. With the
           preferred responses for b that is η β times their summed NLL, up to a constant: α = η β m for a mean over
           tokens, m being the mean of |y_w| over the global batch. Maximum likelihood is what pessimism amounts to.

    Gradient
        dL/dℓ_w = -β σ(-z) - α/m,    dL/dℓ_l = +β σ(-z),    z = r_w - r_l

    What it does. DPO's push fades as the margin is won; the pull on the preferred response stays, so that its
    likelihood does not follow the rejected one's down. It takes over where σ(-z) < α / (β m), and from the start if α
    >= β m / 2. At policy = reference L = log 2 + α NLL, the slopes are -β/2 - α/m and +β/2. There is no fixed point.

    Limits. Which term α multiplies is disputed: here, in TRL from 0.10 on, and in version 3 of Pang et al. according to
    TRL, the NLL; in TRL 0.9.6 it was DPO's term, which is this with 1/α, at a learning rate α times as large. At α = 1,
    the default, they agree. So is the mean: per response in OpenRLHF, over the tokens of the micro-batch in TRL, where
    it changes with accumulation, over those of the global batch here. Liu et al. use η = 0.005 on sums.
    """

    title = "Regularised preference optimisation (RPO)"
    paper = "arXiv 2404.19733"
    summary = "DPO plus the likelihood of the chosen response"
    trl = "sigmoid + sft"
    beta: float = 0.1
    alpha: float = 1.0

    def terms(self) -> list[tuple[float, Loss]]:
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise ValueError(f"loss.alpha must be at least 0 and finite, not {self.alpha}")
        return [(1.0, DPO(beta=self.beta)), (self.alpha, SFT())]


@dataclass
class MPO(WeightedSum):
    """MPO, Wang et al. 2024, "Mixed Preference Optimization", arXiv 2411.10442.

    Objective
        L = preference_weight · L_dpo + quality_weight · L_bco + sft_weight · NLL(y_w)
    with L_bco for a pair -log σ(r_w - δ) - log σ(δ - r_l), and NLL the mean over tokens of the global batch, as in sft.

    Derivation. Three questions about a pair, one part for each: which response is better (the margin z = r_w - r_l,
    DPO), is each good or bad in itself (r against δ, BCO), and how is a good one written (maximum likelihood). DPO
    fixes only the difference of the rewards; BCO adds their common level, the direction in which DPO is free to drift.

    Gradient, with c the weights and m the mean of |y_w| over the global batch
        dL/dℓ_w = -β ( c_dpo σ(-z) + c_bco σ(δ - r_w) ) - c_sft / m
        dL/dℓ_l = +β ( c_dpo σ(-z) + c_bco σ(r_l - δ) )

    What it does. At policy = reference, where δ = 0, L = (c_dpo + 2 c_bco) log 2 + c_sft NLL, and β (c_dpo + c_bco) / 2
    is the push on either response. Both fade as the responses part; the pull of the NLL does not. No fixed point.

    Limits. δ is BCO's: a running statistic of the global batch, in checkpoints. TRL from 0.29 on has none, which is
    shift = 0 here. Weights are the ones TRL gives for the paper: 0.8, 0.2, 1.
    """

    title = "Mixed preference optimisation (MPO)"
    paper = "arXiv 2411.10442"
    summary = "DPO plus BCO plus the likelihood of the chosen response"
    trl = "sigmoid + bco_pair + sft"
    needs_global_batch = True
    beta: float = 0.1
    preference_weight: float = 0.8
    quality_weight: float = 0.2
    sft_weight: float = 1.0
    shift: float = 1.0

    def terms(self) -> list[tuple[float, Loss]]:
        for name in ("preference_weight", "quality_weight", "sft_weight"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"loss.{name} must be at least 0 and finite, not {getattr(self, name)}")
        parts = DPO(beta=self.beta), BCO(beta=self.beta, shift=self.shift), SFT()
        return list(zip((self.preference_weight, self.quality_weight, self.sft_weight), parts, strict=True))
