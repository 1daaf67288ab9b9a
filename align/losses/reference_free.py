"""Preference losses without a reference: the likelihoods of the two responses are compared with each other alone.

They load no second model, and pay with the anchor: nothing here says how far the policy may move. SimPO and AlphaPO
rely on a margin and a small learning rate, CPO and ORPO add the likelihood of the preferred response.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.base import Loss, LossInputs
from align.losses.relative import check_label_smoothing, cross_entropy, cross_entropy_slope, lengths
from align.losses.sft import SFT

NLL = SFT()  # the token mean over the global batch, as a term of other losses
EDGE = 1e-6  # 1 - p below which log-odds are continued by their tangent
STEEPEST = 60.0  # exponent beyond which AlphaPO's reward is continued by its tangent; exp(88) overflows float32


def mean_logps(x: LossInputs) -> Tensor:
    """a = ℓ / |y|, the mean log-probability of a response's tokens, (N, K)."""
    return x.logps / lengths(x)


def check_finite(name: str, value: float, least: float = -math.inf) -> None:
    if not (value >= least and math.isfinite(value)):
        wanted = "finite" if least == -math.inf else f"at least {least:g} and finite"
        raise ValueError(f"loss.{name} must be {wanted}, not {value}")


@dataclass
class SimPO(Loss):
    """SimPO, Meng, Xia and Chen 2024, arXiv 2405.14734, eq. 6.

    Objective, with a_i = ℓ_i / |y_i| the mean log-probability of its tokens
        L = -log σ(z),    z = β (a_w - a_l) - γ
    and with label smoothing ε:  L = -(1 - ε) log σ(z) - ε log σ(-z)

    Derivation
        1. DPO's reward β (ℓ - ℓ_ref) ranks responses relative to a reference, but decoding ranks them by the policy
           alone, and summed log-probs fall with every token. Take what decoding maximises: r = β a.           (eq. 4)
        2. Bradley-Terry on r says p(y_w > y_l) = σ(r_w - r_l). Ask for a win by a margin: count y_w as preferred only
           where r_w - r_l exceeds γ, σ(r_w - r_l - γ).                                                        (eq. 5)
        3. Maximum likelihood is L. The margin is an assumption, as in a support vector machine, not a consequence: with
           no reference there is no KL to derive one from.

    Gradient, with g = σ(-z) - ε
        dL/dℓ_w = -β g / |y_w|,    dL/dℓ_l = +β g / |y_l|

    What it does. Each response is pushed per token, so a long response gets no larger update in total than a short one.
    The push is β/2 at a_w - a_l = γ/β nats a token, the margin to be won, and fades beyond. Without smoothing there is
    no fixed point; with it z stops at log((1 - ε)/ε). Equal likelihoods cost log(1 + e^γ), 1.31 at the defaults.

    Limits. γ is the margin after β, as in TRL; the authors' code and HALOs take the ratio γ/β. TRL also adds the NLL of
    CPO unless cpo_alpha is 0. Nothing anchors the policy: the likelihood of both responses may fall, and only the
    learning rate holds it. Both responses must end in EOS, or length is learned from the one that lacks it. β is on the
    scale of a token, so DPO's 0.1 hardly trains. Defaults: β 2 and γ/β 0.5, the authors' setting for a base model
    (Llama-3-Base) and the ratio they advise to start from; theirs range over β 2 to 10 and γ/β 0.1 to 0.8.
    """

    title = "Simple preference optimisation (SimPO)"
    paper = "arXiv 2405.14734"
    summary = "logistic loss of log-probabilities per token, with a margin to be won"
    trl = "simpo of CPOTrainer"
    halos = "simpo"
    needs_reference = False
    beta: float = 2.0
    gamma: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("gamma", self.gamma)
        check_label_smoothing(self.label_smoothing)

    def shape(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reward of a mean log-probability, before β, and its slope; (N, K) each."""
        return x, torch.ones_like(x)

    def margin(self, x: LossInputs) -> Tensor:
        reward, _ = self.shape(mean_logps(x))
        return self.beta * (reward[:, 0] - reward[:, 1]) - self.gamma  # (N,) z

    def __call__(self, x: LossInputs) -> Tensor:
        return cross_entropy(self.margin(x), self.label_smoothing)  # eq. 6

    def gradient(self, x: LossInputs) -> Tensor:
        _, slope = self.shape(mean_logps(x))
        pull = self.beta * cross_entropy_slope(self.margin(x), self.label_smoothing)  # (N,)
        return torch.stack([pull, -pull], dim=1) * slope / lengths(x)


@dataclass
class AlphaPO(SimPO):
    """AlphaPO, Gupta et al. 2025, arXiv 2501.03884: SimPO with a reward of another shape.

    Objective, with a_i = ℓ_i / |y_i| and p_i = e^{a_i}, the geometric mean of a response's token probabilities
        L = -log σ(z),    z = β (R(a_w) - R(a_l)) - γ,    R(a) = (1 - e^{-α a}) / α = (1 - p^{-α}) / α

    Derivation. R is the power transform of p that has slope 1 at p = 1 and tends to a = log p as α -> 0: SimPO. Any
    increasing R ranks two responses alike; what α chooses is where the slope R'(a) = e^{-α a} = p^{-α}, and so the
    update, is spent. For α > 0 improbable responses get more of it, for α < 0 less.

    Gradient, with g = σ(-z) - ε
        dL/dℓ_w = -β g e^{-α a_w} / |y_w|,    dL/dℓ_l = +β g e^{-α a_l} / |y_l|

    What it does. Per token, the push down on the rejected response is e^{α (a_w - a_l)} times the push up on the chosen
    one: as the margin opens, α > 0 spends the update on the rejected response and spares the chosen one. α < 0 turns
    this round: the chosen response gets the larger share, and both pushes fade where p is small.

    Limits. R grows exponentially as likelihood falls, so only per-token means make sense in it. Beyond -α a = 60 it is
    continued by its tangent, to be finite in float32; TRL's exp(a) to the power -α is NaN on sums of -80. All of
    SimPO's limits hold. Defaults: α 0.25, β 2.5, γ 0.1, as TRL gives the paper's setting for Mistral-7B-Instruct;
    whether that margin is γ or γ/β we could not check. α must be tuned with γ, as it changes the scale of z.
    """

    title = "Alpha preference optimisation (AlphaPO)"
    paper = "arXiv 2501.03884"
    summary = "SimPO with a power transform of the probabilities, which chooses where the update is spent"
    trl = "alphapo of CPOTrainer"
    beta: float = 2.5
    gamma: float = 0.1
    alpha: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("alpha", self.alpha)

    def shape(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.alpha == 0:  # the limit: SimPO
            return super().shape(x)
        edge = (-self.alpha * x).clamp(max=STEEPEST)  # (N, K)
        slope = torch.exp(edge)
        beyond = -self.alpha * x - edge  # 0, and more where the tangent takes over
        return -(torch.expm1(edge) + beyond * slope.detach()) / self.alpha, slope


@dataclass
class CPO(Loss):
    """CPO, Xu et al. 2024, "Contrastive Preference Optimization", arXiv 2401.08417.

    Objective
        L = -log σ(z) + nll_weight · NLL(y_w),    z = β (ℓ_w - ℓ_l)
    with NLL the mean over tokens of the global batch, as in sft; with label smoothing ε the first term becomes
        -(1 - ε) log σ(z) - ε log σ(-z)

    Derivation
        1. Under any fixed reference DPO's margin is z - c, c = β (ℓ_ref,w - ℓ_ref,l). As -log σ falls with a slope of
           at most 1, -log σ(z - c) <= -log σ(z) + max(0, c). The last term does not depend on the policy, so to
           minimise -log σ(z) is to minimise an upper bound of DPO that knows no reference: DPO with a uniform one.
        2. What the reference also did, to keep the policy near good responses, is put back as a constraint: the policy
           must stay within some KL of the distribution of preferred responses. KL(data || π) is the NLL of y_w plus a
           constant, and nll_weight its Lagrange multiplier.

    Gradient, with g = σ(-z) - ε and m the mean of |y_w| over the global batch
        dL/dℓ_w = -β g - nll_weight / m,    dL/dℓ_l = +β g

    What it does. DPO's push, weighted by how likely the policy itself ranks the pair wrongly, plus a constant pull on
    the preferred response. Without smoothing there is no fixed point. Where both responses are equally likely the first
    term is log 2 with slopes -β/2 and +β/2.

    Limits. Sums, not means: if the preferred response is the longer one, z starts far below 0 and the push at its
    largest, and the cheapest way to win the margin is to prefer short responses. The bound is loose by as much as the
    reference tells the responses apart. Peers agree on the preference term: TRL sums, and so does Liger by default,
    whose docstring says averages; the NLL is a mean over tokens of the micro-batch in TRL, so that there it changes
    with accumulation.
    """

    title = "Contrastive preference optimisation (CPO)"
    paper = "arXiv 2401.08417"
    summary = "DPO under a uniform reference, plus the likelihood of the chosen response"
    trl = "sigmoid of CPOTrainer"
    needs_reference = False
    beta: float = 0.1
    nll_weight: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("nll_weight", self.nll_weight, least=0)
        check_label_smoothing(self.label_smoothing)

    def margin(self, x: LossInputs) -> Tensor:
        return self.beta * (x.logps[:, 0] - x.logps[:, 1])  # (N,) z

    def __call__(self, x: LossInputs) -> Tensor:
        return cross_entropy(self.margin(x), self.label_smoothing) + self.nll_weight * NLL(x)

    def gradient(self, x: LossInputs) -> Tensor:
        pull = self.beta * cross_entropy_slope(self.margin(x), self.label_smoothing)  # (N,)
        return torch.stack([pull, -pull], dim=1) + self.nll_weight * NLL.gradient(x)


@dataclass
class ORPO(Loss):
    """ORPO, Hong, Lee and Thorne 2024, arXiv 2403.07691, eqs. 6 and 7.

    Objective, with a_i = ℓ_i / |y_i|, p_i = e^{a_i} and λ = beta
        L = nll_weight · NLL(y_w) - λ log σ(s),    s = log odds_w - log odds_l,    odds_i = p_i / (1 - p_i)
    with NLL the mean over tokens of the global batch, as in sft.

    Derivation
        1. Maximum likelihood of y_w alone also raises y_l, which shares its style: a term must tell the two apart while
           the policy is fine-tuned, so that no reference and no second stage are needed.
        2. Let it be logistic in a contrast of the two, -log σ(contrast), and the contrast one of log-odds instead of
           log-probabilities: log odds = a - log(1 - e^a).
        3. The slope of that in a is 1 + e^a / (1 - e^a) = 1 / (1 - p): 1 where p is small, and the larger the surer the
           policy is. A response near certainty is pushed harder than a difference of log-probabilities would push it.

    Gradient, with m the mean of |y_w| over the global batch
        dL/dℓ_w = -λ σ(-s) / ((1 - p_w) |y_w|) - nll_weight / m,    dL/dℓ_l = +λ σ(-s) / ((1 - p_l) |y_l|)
    As σ(-s) = p_l (1 - p_w) / D with D = p_w (1 - p_l) + p_l (1 - p_w), the first is -λ (p_l / D) / |y_w|: finite at
    p_w = 1. The second is λ p_l (1 - p_w) / (D (1 - p_l) |y_l|) and grows as 1 / (1 - p_l): y_l must never be certain.

    What it does. At p_w = p_l the second term is λ log 2. Where both p are small 1 - p = 1, and it is SimPO with β = 1
    and γ = 0. Its push fades as the odds part; the pull of the NLL never does, so there is no fixed point.

    Limits. p is per token: with summed log-probs 1 - p = 1 and nothing of the odds is left. log(1 - e^a) is
    log(-expm1(a)), exact for every a < 0 in one expression; TRL and Liger choose between two with torch.where, whose
    unused branch makes the gradient NaN near p = 1 (a = -1e-9 in float32). Here the log-odds are continued by their
    tangent from 1 - p = 1e-6, so that value and slope stay finite and the push on a certain y_l does not vanish. TRL's
    NLL also runs over the prompt, as does the authors' by default; ours does not. The default λ is TRL's.
    """

    title = "Odds ratio preference optimisation (ORPO)"
    paper = "arXiv 2403.07691"
    summary = "likelihood of the chosen response, plus a logistic loss of the two responses' odds"
    trl = "ORPOTrainer"
    needs_reference = False
    beta: float = 0.1
    nll_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("nll_weight", self.nll_weight, least=0)

    @staticmethod
    def log_odds(x: LossInputs) -> tuple[Tensor, Tensor]:
        """log(p / (1 - p)) of each response's mean log-probability, and its slope 1 / (1 - p); (N, K) each."""
        mean = mean_logps(x)
        edge = mean.clamp(max=-EDGE)
        slope = -1 / torch.expm1(edge)
        return edge - torch.log(-torch.expm1(edge)) + (mean - edge) * slope.detach(), slope

    def __call__(self, x: LossInputs) -> Tensor:
        odds, _ = self.log_odds(x)
        return self.nll_weight * NLL(x) - self.beta * F.logsigmoid(odds[:, 0] - odds[:, 1])  # eqs. 6, 7

    def gradient(self, x: LossInputs) -> Tensor:
        odds, slope = self.log_odds(x)
        push = self.beta * torch.sigmoid(odds[:, 1] - odds[:, 0])  # (N,)
        return torch.stack([-push, push], dim=1) * slope / lengths(x) + self.nll_weight * NLL.gradient(x)
