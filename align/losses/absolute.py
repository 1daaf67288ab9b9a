"""Losses of a pair that hold each response to a target of its own: SPPO's square, APO's anchors, BCO's classifier.

A loss f(Δ_w) + g(Δ_l) says where each likelihood should go, and a loss of the margin Δ_w - Δ_l only how far apart they
should end. The price: log Z(x), which a margin cancels, must be guessed, and each method here is one guess.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.base import Loss, LossInputs


def bell(t: Tensor) -> Tensor:
    """σ'(t) = σ(t) σ(-t): 1/4 at 0, fading to both sides."""
    return torch.sigmoid(t) * torch.sigmoid(-t)


@dataclass
class SPPO(Loss):
    """SPPO with hard labels, Wu et al. 2024, "Self-Play Preference Optimization", arXiv 2405.00675, eq. 4.7, P = 0 or 1.

    Objective, with the paper's η = 1/β
        L = (Δ_w - 1/(2β))² + (Δ_l + 1/(2β))²

    Derivation
        1. No reward is assumed, only win rates P(y > y'|x). Alignment is a game of two players for the better response,
           its solution the policy that no other beats. Multiplicative weights find it in rounds,
           π⁺(y|x) = π_ref(y|x) exp(η P(y > π_ref|x)) / Z(x),
           π_ref the policy of the round before, P(y > π_ref|x) the mean of P(y > y'|x) over y' ~ π_ref.
        2. In logs: log π⁺ - log π_ref = η P(y > π_ref|x) - log Z(x). Where a margin would cancel log Z(x), the step is
           to guess it: win rates average 1/2, so Z = E_ref exp(η P) is about exp(η/2), and the target is η (P - 1/2).
        3. Regress on it by least squares. From one comparison, P is 1 for the winner and 0 for the loser: targets ±η/2.

    Gradient
        dL/dℓ_w = 2 (Δ_w - 1/(2β)),    dL/dℓ_l = 2 (Δ_l + 1/(2β))

    What it does. Each response is on a spring to its own target, whose force fades only on arrival. Fixed point Δ =
    ±1/(2β), L = 0. At policy = reference L = 1/(2β²), with slopes ∓1/β: 5e5 and ∓1000 at β = 0.001.

    Limits. β multiplies no log-ratio; it sets targets, ±500 nats at the paper's 0.001, that no run reaches, so L stays
    nearly linear and pushes every pair alike. Gradient clipping and a small rate (5e-7) belong to the method, and at
    β = 0.1 it is another one: ±5 nats. The guess of step 2 is right for small η only; with P = 0 or 1 at even odds
    log Z = log((1 + e^η)/2), nearly η - log 2, which would leave the winner about where it is. The authors' code has
    half this loss and takes P from a preference model: 1/2 Σ (Δ - (P - 1/2)/β)²; their single variant sets
    P_l = 1 - P_w. TRL has this form, so the authors' learning rate means half as much there. Sums over tokens, never means.
    """

    title = "Self-play preference optimisation, hard labels (SPPO)"
    paper = "arXiv 2405.00675"
    summary = "regresses each log-ratio on the target that multiplicative weights give for a win or a loss"
    trl = "sppo_hard"
    in_paper = True
    beta: float = 0.001

    def residuals(self, x: LossInputs) -> Tensor:
        target = 0.5 / self.beta
        return x.ratios - x.logps.new_tensor([target, -target])  # (N, 2)

    def __call__(self, x: LossInputs) -> Tensor:
        return self.residuals(x).square().sum(dim=1)

    def gradient(self, x: LossInputs) -> Tensor:
        return 2 * self.residuals(x)


@dataclass
class APOZero(Loss):
    """APO-zero, D'Oosterlinck et al. 2024, "Anchored Preference Optimization", arXiv 2408.06266, eq. 7 plus a constant.

    Objective, for chosen responses that are better than what the policy says
        L = σ(-r_w) + σ(r_l)

    Derivation. A margin leaves open whether the chosen response should become likelier; whether it should depends on
    the data. If it is better than the policy's own responses, then yes: raise r_w, lower r_l. Bound both pulls, so that
    no response can be pushed for ever, by passing r through σ: maximise σ(r_w) - σ(r_l). The 1 added makes L positive.

    Gradient, from σ'(t) = σ(t) σ(-t)
        dL/dℓ_w = -β σ'(r_w),    dL/dℓ_l = +β σ'(r_l)

    What it does. The chosen response is always raised and the rejected one always lowered, most at r = 0 and hardly at
    all a few 1/β nats off, to either side: the reference is the anchor. 0 <= L <= 2, no finite fixed point. At policy =
    reference L = 1 with slopes -β/4 and +β/4.

    Limits. The bell σ' also dies on the wrong side: a pair that starts, or drifts, far off (r_w at -10) is given up,
    where DPO would push it hardest. 1 - σ(t) must be computed as σ(-t): in float32 the difference is exactly 0, with a
    zero gradient, from t = 17 on. It is KTO with z0 = 0 on the pair's two responses, which TRL calls apo_zero_unpaired.
    """

    title = "Anchored preference optimisation, zero (APO-zero)"
    paper = "arXiv 2408.06266"
    summary = "raises the chosen and lowers the rejected response, each by a bounded amount around the reference"
    trl = "apo_zero, apo_zero_unpaired"
    beta: float = 0.1

    def __call__(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios  # (N, 2)
        return torch.sigmoid(-r[:, 0]) + torch.sigmoid(r[:, 1])

    def gradient(self, x: LossInputs) -> Tensor:
        return self.beta * bell(self.beta * x.ratios) * x.logps.new_tensor([-1.0, 1.0])


@dataclass
class APODown(Loss):
    """APO-down, D'Oosterlinck et al. 2024, "Anchored Preference Optimization", arXiv 2408.06266, eq. 8 plus a constant.

    Objective, for chosen responses that are worse than what the policy says
        L = σ(r_w) + σ(-z),    z = r_w - r_l

    Derivation. Now both responses should become less likely, the rejected one more so. "Less likely" is the anchor, as
    in APO-zero: minimise σ(r_w). "More so" is about the two together: maximise σ(z). The 1 added makes L positive.
    Lowering the rejected response by a term of its own would be +σ(r_l); with only anchors the order of the two would
    be lost.

    Gradient
        dL/dℓ_w = β (σ'(r_w) - σ'(z)),    dL/dℓ_l = +β σ'(z)

    What it does. The rejected response is always pushed down. The chosen one is pushed down where |r_w| < |z| and up
    where |r_w| > |z|: once both are below the reference, towards r_w = r_l / 2. It follows the rejected one at half
    the distance. 0 <= L <= 2, no finite fixed point. At policy = reference L = 1, and the slopes are 0 and +β/4: the
    chosen response does not move before the rejected one has.

    Limits. Bounded, with APO-zero's dying tails. Disputed among users of TRL: a change that put 1 - σ(r_l) for 1 - σ(z)
    (huggingface/trl #6593, closed) has slope -β σ'(r_l) < 0 on the rejected response and would raise it, the opposite
    of the aim. And in TRL an f-divergence reaches z alone, not r_w (#6441); here, as in the paper, both are log-ratios.
    """

    title = "Anchored preference optimisation, down (APO-down)"
    paper = "arXiv 2408.06266"
    summary = "lowers both responses, the rejected one first, for data whose chosen responses are below the policy"
    trl = "apo_down"
    beta: float = 0.1

    def __call__(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios  # (N, 2)
        return torch.sigmoid(r[:, 0]) + torch.sigmoid(r[:, 1] - r[:, 0])

    def gradient(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios
        anchor, margin = bell(r[:, 0]), bell(r[:, 0] - r[:, 1])  # (N,)
        return self.beta * torch.stack([anchor - margin, margin], dim=1)


CLASSES = ("desirable", "undesirable")


def midpoint(totals: dict[str, float]) -> float:
    """Half-way between the mean rewards of the two classes; the mean of one where the other has not been seen."""
    means = [totals[f"{c}_sum"] / totals[f"{c}_count"] for c in CLASSES if totals[f"{c}_count"]]
    return sum(means) / len(means) if means else 0.0


@dataclass
class BCO(Loss):
    """BCO, Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", arXiv 2404.04656.

    Objective, for a pair, and for single responses labelled desirable (s = +1) or not (s = -1)
        L = -log σ(r_w - δ) - log σ(-(r_l - δ)),        L = -log σ(s (r - δ))
    with δ, the reward shift, half-way between the mean reward of desirable and of undesirable responses, detached.

    Derivation
        1. Train a classifier, "is this response a good one?", whose logit is the implicit reward r. This needs no
           pairs.
        2. It bounds DPO. For any δ, 1/σ(r_w - δ) · 1/σ(δ - r_l) = (1 + e^(δ-r_w)) (1 + e^(r_l-δ))
           = 1 + e^(r_l-r_w) + e^(δ-r_w) + e^(r_l-δ) > 1 + e^(-z) = 1/σ(z), so L > -log σ(z), the loss of DPO, from
           which δ has gone. Lowering L lowers DPO's loss.
        3. The trick is to choose δ so that the bound is tight: of the excess, e^(δ-r_w) + e^(r_l-δ) is least where its
           terms are equal, δ = (r_w + r_l)/2. A single δ for all data has E e^(δ-r_w) = E e^(r_l-δ), to first order
           δ = (E r_w + E r_l)/2. It plays the part of the log Z(x) that r leaves out.
        4. The expectations are running means over all rewards of each class so far, this global batch included. Every
           reward counts the same, whatever batch it came in: the mean of what was seen does not depend on how it was
           cut.

    Gradient, δ being a constant
        dL/dℓ_w = -β σ(δ - r_w),    dL/dℓ_l = +β σ(r_l - δ);    for one response -s β σ(-s (r - δ))

    What it does. DPO's push, but each response is weighed alone: how wrong is its class, judged from δ? At policy =
    reference δ = 0, L = 2 log 2 and the slopes are -β/2 and +β/2 (log 2 and ∓β/2 for one response). Each force fades as
    its response leaves δ on its own side, and never on the wrong one. There is no finite fixed point. A drift common to
    all rewards is not pulled back: δ follows it. With one pair and its own δ, L = -2 log σ(z/2).

    Limits. δ is a state: train.py calls observe() once a step with the global batch, never in evaluation, and
    checkpoints carry it. Before the first observe() δ comes from the rows given. The means never forget, so δ trails
    the rewards as they grow. Public implementations differ: TRL from 0.29 on and Liger have no shift (shift = 0 here);
    TRL's pair loss before that counted each batch once, whatever its size, and updated in evaluation too; its unpaired
    trainer came to weigh by the number of rewards, but updated δ in every micro-batch (#7265). On pairs and batches of
    one size all that have a shift agree with this. On single responses they take the mean of all rewards, which lies
    towards the larger class; the bound asks for the midpoint. The mean of L still counts a larger class more: balance
    the data. The paper's reweighting of prompts (underlying distribution matching) is not here. TRL's docs give DPO's
    formula for this loss.
    """

    title = "Binary classifier optimisation (BCO)"
    paper = "arXiv 2404.04656"
    summary = (
        "a classifier of good and bad responses whose logit is the implicit reward; its loss bounds DPO's from above"
    )
    trl = "bco_pair"
    responses = "pair or unpaired"
    needs_global_batch = True
    in_paper = True
    beta: float = 0.01
    shift: float = 1.0  # how much of δ is used; 0 for none

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shift <= 1:
            raise ValueError(f"loss.shift must be between 0 and 1, not {self.shift}")
        self.seen = {f"{c}_{what}": 0.0 for c in CLASSES for what in ("sum", "count")}

    def signs(self, x: LossInputs) -> Tensor:
        """s (N, K): +1 for desirable responses, -1 for the others; a pair has one of each."""
        if x.labels is not None:
            return 2 * x.labels.to(x.logps.dtype) - 1
        if x.logps.shape[1] != 2:
            raise ValueError("bco takes pairs, or single responses with labels: LossInputs.labels is None")
        return x.logps.new_tensor([1.0, -1.0]).expand(x.logps.shape)

    def totals(self, x: LossInputs) -> dict[str, float]:
        """Sum and count of the rewards of each class."""
        rewards, desirable = self.beta * x.ratios.detach().double(), self.signs(x) > 0  # (N, K)
        totals: dict[str, float] = {}
        for name, members in zip(CLASSES, (rewards[desirable], rewards[~desirable]), strict=True):
            totals |= {f"{name}_sum": members.sum().item(), f"{name}_count": float(members.numel())}
        return totals

    def observe(self, x: LossInputs) -> None:
        for name, total in self.totals(x).items():
            self.seen[name] += total

    def state(self) -> dict[str, float]:
        return dict(self.seen)

    def load_state(self, state: dict[str, float]) -> None:
        self.seen = {name: float(state[name]) for name in self.seen}

    def delta(self, x: LossInputs) -> float:
        if not self.shift:
            return 0.0
        observed = any(self.seen[f"{c}_count"] for c in CLASSES)
        return self.shift * midpoint(self.seen if observed else self.totals(x))

    def __call__(self, x: LossInputs) -> Tensor:
        return -F.logsigmoid(self.signs(x) * (self.beta * x.ratios - self.delta(x))).sum(dim=1)

    def gradient(self, x: LossInputs) -> Tensor:
        s = self.signs(x)
        return -self.beta * s * torch.sigmoid(-s * (self.beta * x.ratios - self.delta(x)))
