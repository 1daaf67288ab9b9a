"""Relatives of DPO: still -log σ of a margin, with noisy labels allowed for, or with another margin."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.base import Loss, LossInputs
from align.losses.divergences import Relative


def check_label_smoothing(epsilon: float) -> None:
    """At 1/2 a label says nothing; beyond, it says the opposite."""
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"loss.label_smoothing must be at least 0 and less than 0.5, not {epsilon}")


def cross_entropy(z: Tensor, epsilon: float) -> Tensor:
    """C(z, ε): of a label that is right with probability 1 - ε, under the model's σ(z)."""
    return -(1 - epsilon) * F.logsigmoid(z) - epsilon * F.logsigmoid(-z)


def cross_entropy_slope(z: Tensor, epsilon: float) -> Tensor:
    """C'(z, ε) = σ(z) - (1 - ε), written so that its tails stay exact."""
    return epsilon * torch.sigmoid(z) - (1 - epsilon) * torch.sigmoid(-z)


def lengths(x: LossInputs) -> Tensor:
    """|y_i|, (N, K): response tokens, for the losses that look at them."""
    if x.n_tok is None:
        raise ValueError("this loss counts response tokens: LossInputs.n_tok is None")
    return x.n_tok.to(x.logps.dtype)


@dataclass
class CDPO(Relative):
    """Conservative DPO, Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".

    Objective (eq. 3), with ε = label_smoothing
        L = C(z, ε) = -(1 - ε) log σ(z) - ε log σ(-z),    z = r_w - r_l

    Derivation
        1. Suppose each label is flipped with probability ε < 1/2. Then "w is better" is true with probability 1 - ε
           only.
        2. The model says so with probability σ(z). L is the cross-entropy of the one to the other: maximum likelihood
           with a softened target. Equivalently L = KL((1-ε, ε) || (σ(z), σ(-z))) + H(ε), and EXO is that KL the other
           way round.

    Gradient, from C' = σ(z) - (1 - ε)
        dL/dℓ_w = β (σ(z) - (1 - ε)),    dL/dℓ_l = -dL/dℓ_w

    What it does. It gives DPO a finite goal: z* = log((1-ε)/ε), where the model is as sure as the labels deserve (2.2
    at ε = 0.1), and pulls back from beyond it. L cannot fall below the entropy H(ε). At policy = reference L = log 2
    and the slopes are -β (1/2 - ε) and +β (1/2 - ε). ε = 0 is DPO.

    Limits. It is biased: its minimiser is z*, not the clean data's (see robust). Like DPO it controls the margin alone.
    The note sets no ε; 0.1 is our default, 0.2 that of HALOs. TRL called this loss_type "sigmoid" with label_smoothing
    > 0; since 0.29 it ignores label_smoothing there without a word.
    """

    title = "Conservative DPO (cDPO)"
    paper = "ericmitchell.ai/cdpo.pdf"
    summary = "DPO with labels that are right with probability 1 - ε, which gives the margin a finite goal"
    trl = "sigmoid with label_smoothing (to 0.28)"
    halos = "cdpo"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)

    def __call__(self, x: LossInputs) -> Tensor:
        return cross_entropy(self.margin(x), self.label_smoothing)  # eq. 3

    def gradient(self, x: LossInputs) -> Tensor:
        return self.chain(x, cross_entropy_slope(self.margin(x), self.label_smoothing))


@dataclass
class Robust(Relative):
    """Robust DPO, Chowdhury et al. 2024, "Provably Robust DPO", arXiv 2403.00409.

    Objective, with ε = label_smoothing
        L = [ -(1 - ε) log σ(z) + ε log σ(-z) ] / (1 - 2ε),    z = r_w - r_l

    Derivation
        1. Suppose labels are flipped with probability ε, independently of all else. A flip turns z into -z.
        2. Look for an L whose mean over the flips is the clean loss φ(z) = -log σ(z), for either true label:
           (1-ε) L(z) + ε L(-z) = φ(z)    and    (1-ε) L(-z) + ε L(z) = φ(-z)
        3. Two linear equations in L(z) and L(-z): L(z) = [ (1-ε) φ(z) - ε φ(-z) ] / (1-2ε). Noisy data give, on
           average, the loss and the gradient of clean data, at the price of a variance that 1/(1-2ε) inflates.

    Gradient
        dL/dℓ_w = -β [ (1-ε) σ(-z) + ε σ(z) ] / (1 - 2ε),    dL/dℓ_l = -dL/dℓ_w

    What it does. Where cDPO pulls less, it pushes more: to make up for the pairs that pushed the wrong way, by -β/2 /
    (1-2ε) at policy = reference, where L = log 2. The push never dies: it tends to β ε/(1-2ε) as z grows. ε = 0 is DPO.

    Limits. L is unbounded below, as L ~ -z ε/(1-2ε): training losses turn negative and go on falling on pairs long
    learned. Stop early, with a small learning rate. ε must be less than 1/2, where the labels carry no information.
    With a minus before the second term, a slip seen in ports, it is cDPO / (1-2ε), bounded and biased. Some write rDPO
    for length-regularised DPO, which is rdpo here.
    """

    title = "Robust DPO (rDPO)"
    paper = "arXiv 2403.00409"
    summary = "an unbiased estimate of DPO's clean loss from labels flipped with probability ε"
    trl = "robust"
    in_paper = True
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)

    def __call__(self, x: LossInputs) -> Tensor:
        z, epsilon = self.margin(x), self.label_smoothing
        return (-(1 - epsilon) * F.logsigmoid(z) + epsilon * F.logsigmoid(-z)) / (1 - 2 * epsilon)

    def gradient(self, x: LossInputs) -> Tensor:
        z, epsilon = self.margin(x), self.label_smoothing
        dz = -((1 - epsilon) * torch.sigmoid(-z) + epsilon * torch.sigmoid(z)) / (1 - 2 * epsilon)
        return self.chain(x, dz)


@dataclass
class DPONorm(Loss):
    """Length-normalised DPO, as in Lambert et al. 2024, "Tülu 3", arXiv 2411.15124.

    Objective
        L = -log σ(z),    z = β (Δ_w/|y_w| - Δ_l/|y_l|)

    Derivation. DPO's steps with the log-ratio per token as the implicit reward, R(x, y) = β Δ/|y| + const. It is a
    choice, not a consequence: no KL-held objective over whole responses has this optimum, since log Z(x) would carry
    1/|y| and not cancel. Its reason is that a sum grows with length, so that DPO can win a margin by length alone.

    Gradient
        dL/dℓ_w = -β σ(-z) / |y_w|,    dL/dℓ_l = +β σ(-z) / |y_l|

    What it does. Every response has the same say, whatever its length; every token of a response has 1/|y| of it. At
    policy = reference L = log 2. With |y_w| = |y_l| = T it is DPO at β/T. It is SimPO with a reference and without a
    target margin.

    Limits. β is per token: 5, where DPO has 0.1. At β = 0.1 it hardly trains. |y| counts the response tokens of the
    mask, the closing EOS included; the logged reward is β Δ/|y|.
    """

    title = "Length-normalised DPO"
    paper = "arXiv 2411.15124"
    summary = "DPO on log-ratios per token"
    trl = "sigmoid_norm"
    beta: float = 5.0

    def margin(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios / lengths(x)  # (N, 2)
        return r[:, 0] - r[:, 1]  # (N,) z

    def __call__(self, x: LossInputs) -> Tensor:
        return -F.logsigmoid(self.margin(x))

    def gradient(self, x: LossInputs) -> Tensor:
        push = self.beta * torch.sigmoid(-self.margin(x))  # (N,)
        return torch.stack([-push, push], dim=1) / lengths(x)

    def rewards(self, x: LossInputs) -> Tensor:
        return self.beta * x.ratios.detach() / lengths(x)


@dataclass
class RDPO(Loss):
    """Length-regularised DPO, Park et al. 2024, "Disentangling Length from Quality in DPO", arXiv 2403.19159.

    Objective (eq. 9)
        L = -log σ(z),    z = r_w - r_l + α (|y_w| - |y_l|)

    Derivation, which settles the sign
        1. Charge α a token: maximise E_π[R(x, y) - α |y|] - β KL(π || π_ref). It is RLHF with the reward R - α |y|, so
           π*(y|x) = π_ref(y|x) exp((R(x, y) - α |y|) / β) / Z(x).
        2. Read backwards: R(x, y) = β log(π/π_ref) + α |y| + β log Z(x) = r + α |y| + const.
        3. The labels compare R, quality with length left in. Bradley-Terry on R: the lengths enter with a plus.

    Gradient
        dL/dℓ_w = -β σ(-z),    dL/dℓ_l = +β σ(-z)

    What it does. The lengths are constants: they only weigh the pairs. If the chosen response is the longer one, its
    length already explains part of the preference, z starts higher and the pair teaches less; if the shorter one won,
    it teaches more. At policy = reference L = -log σ(α (|y_w| - |y_l|)). α = 0 is DPO; so is |y_w| = |y_l|.

    Limits. α is per token: at 0.05 a hundred tokens are 5 units of z, and a pair may start with its weight σ(-z) at 1 %
    or 99 %. The paper scans α and sets no default. Signs differ: sail-sg/oat adds α (|y_w| - |y_l|) as here; the rDPO
    branch of junkangwu/alpha-DPO computes β (Δ_w - Δ_l - c (|y_w| - |y_l|)), that is α = -β c, where a positive c
    rewards length. A negative α gives theirs. rDPO is robust DPO to most people, which is robust here.
    """

    title = "Length-regularised DPO (R-DPO)"
    paper = "arXiv 2403.19159"
    summary = "DPO with a charge for each token of length"
    beta: float = 0.1
    alpha: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.alpha):
            raise ValueError(f"loss.alpha must be a finite number, not {self.alpha}")

    def margin(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios + self.alpha * lengths(x)  # (N, 2) the reward that the labels compare
        return r[:, 0] - r[:, 1]  # (N,) z

    def __call__(self, x: LossInputs) -> Tensor:
        return -F.logsigmoid(self.margin(x))  # eq. 9

    def gradient(self, x: LossInputs) -> Tensor:
        push = self.beta * torch.sigmoid(-self.margin(x))  # (N,)
        return torch.stack([-push, push], dim=1)


@dataclass
class DPOP(Loss):
    """DPO-Positive, Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation", arXiv 2402.13228.

    Objective (eq. 3), with λ = penalty
        L = -log σ(z),    z = β (Δ_w - Δ_l - λ max(0, -Δ_w))

    Derivation. A repair, not a consequence of a model. DPO is content when both responses lose likelihood, the rejected
    one more. On pairs that differ in few tokens that is what happens: what follows the difference is common to both,
    and pushing it down in the rejected response pushes it down in the chosen. So the margin is charged λ for every nat
    that the chosen response has fallen below the reference. Where Δ_w < 0 it reads z = β ((1 + λ) Δ_w - Δ_l).

    Gradient
        dL/dℓ_w = -β σ(-z) (1 + λ [Δ_w < 0]),    dL/dℓ_l = +β σ(-z)

    What it does. Above the reference it is DPO. Below, the pull on the chosen response is 1 + λ times the push on the
    rejected one. At policy = reference, where the max has its kink, L = log 2 and the slopes are DPO's (max' taken as 0
    there, as torch.relu does), but any step down meets the steeper side: a wall at the reference. λ = 0 is DPO.

    Limits. A wall, not a floor: Δ_w < 0 still wins if Δ_l falls 1 + λ times as far. At the paper's λ = 50, β = 0.3 a
    chosen response 1 nat down costs 15 and pulls with slope 15, a hundred times DPO's 0.15 at the start; gradient
    clipping decides the step. The wall stands where training starts: with a cached reference, which is the policy's up
    to rounding, rounding decides on which side each pair begins, with a live one none has left. Its authors saw little
    change for λ from 5 to 500. Its first version had the brackets wrong: the penalty belongs inside log σ, times β.
    Public code also has it outside, as + λ max(0, -Δ_w), which never fades, and with the sign that rewards the fall
    (the snippet in LlamaFactory #2587).
    """

    title = "DPO-Positive (DPOP)"
    paper = "arXiv 2402.13228"
    summary = "DPO with a wall against a falling chosen response"
    nonsmooth_at_reference = True
    beta: float = 0.3
    penalty: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"loss.penalty must be at least 0, not {self.penalty}")

    def margin(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios  # (N, 2)
        return r[:, 0] - r[:, 1] - self.penalty * torch.relu(-r[:, 0])  # (N,) z

    def __call__(self, x: LossInputs) -> Tensor:
        return -F.logsigmoid(self.margin(x))  # eq. 3

    def gradient(self, x: LossInputs) -> Tensor:
        push = self.beta * torch.sigmoid(-self.margin(x))  # (N,)
        below = (x.ratios[:, 0] < 0).to(push.dtype)
        return torch.stack([-push * (1 + self.penalty * below), push], dim=1)
