"""Other shapes of the margin than -log σ: a hinge, a square, a reverse KL, and one that a language model found."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.base import Loss, LossInputs
from align.losses.divergences import Relative
from align.losses.relative import lengths


@dataclass
class SLiC(Relative):
    """SLiC, Zhao et al. 2023, arXiv 2305.10425, with the reference that RSO, Liu et al. 2023, arXiv 2309.06657, gave
    it.

    Objective
        L = max(0, 1 - z),    z = r_w - r_l

    Derivation. RSO's reading of DPO: a classifier with score z says which response won, and -log σ(z) is logistic
    regression. The hinge is the other convex surrogate of the error [z < 0]: a support vector machine on the same
    score.

    Gradient
        dL/dℓ_w = -β [z < 1],    dL/dℓ_l = +β [z < 1]

    What it does. It pushes with full force until the margin is won by 1/β nats, and then lets go. All z >= 1 are fixed
    points, where L = 0; at the kink itself the slope is taken as 0, as torch.relu does. At policy = reference L = 1 and
    the slopes are -β and +β, twice DPO's. A badly ordered pair counts no more than a nearly ordered one.

    Limits. 1/β is the goal, in nats: 20 at RSO's 0.05. SLiC-HF itself has no reference in the hinge, max(0, δ - ℓ_w +
    ℓ_l), and adds a likelihood term to hold the policy; HALOs has that form, TRL this one. label_smoothing has no
    effect in TRL's, and no place here.
    """

    title = "Sequence likelihood calibration, normalised hinge (SLiC)"
    paper = "arXiv 2305.10425, 2309.06657"
    summary = "a hinge: full force until the margin is won, then none"
    trl = "hinge"
    halos = "slic without a reference"
    in_paper = True
    beta: float = 0.05

    def __call__(self, x: LossInputs) -> Tensor:
        return torch.relu(1 - self.margin(x))

    def gradient(self, x: LossInputs) -> Tensor:
        z = self.margin(x)
        return self.chain(x, -(z < 1).to(z.dtype))


@dataclass
class IPO(Loss):
    """IPO, Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Preferences", arXiv
    2310.12036.

    Objective (eq. 17), with the paper's τ = beta, on log-ratios per token
        L = (h - 1/(2β))²,    h = Δ_w/|y_w| - Δ_l/|y_l|

    Derivation
        1. Drop Bradley-Terry. Maximise the chance of being preferred itself, E_π[p(y > μ)] - τ KL(π || π_ref), where
           p(y > μ) is that chance against responses y' of the data's μ. A reward in [0, 1] cannot run away as log-odds
           do.
        2. Its optimum π* ∝ π_ref exp(p(y > μ)/τ) has h*(y, y') = Δ - Δ' = (p(y > μ) - p(y' > μ)) / τ, log Z cancelled.
           So fit h to that by least squares, over y, y' drawn from μ.
        3. The trick: p(y > μ) - p(y' > μ) may be replaced by one label I = [y > y']. As h = g(y) - g(y'), only E[h I]
           matters, and E[h I] = E[g(y) p(y > μ)] - E[g(y') (1 - p(y' > μ))] = 2 Cov(g, p) = E[h (p(y > μ) - p(y' >
           μ))].
        4. Each pair counts in both orders, (h - 1/τ)² with I = 1 and (-h - 0)² with I = 0. Their mean is (h - 1/(2τ))²
           + 1/(4τ²): L and a constant.

    Gradient
        dL/dℓ_w = 2 (h - 1/(2β)) / |y_w|,    dL/dℓ_l = -2 (h - 1/(2β)) / |y_l|

    What it does. A finite goal, h* = 1/(2β), held from both sides; pairs far from it, either way, pull hardest. At
    policy = reference L = 1/(4β²) and the slopes are -1/(β|y_w|) and +1/(β|y_l|). Small β means a far goal and a big
    slope.

    Limits. The derivation gives sums (ipo_sum). The mean per token is what the authors told TRL they used, and so TRL
    (since 0.7.11) and HALOs; eric-mitchell, OpenRLHF and TRL before sum. β does not carry over: at 0.1 the goal is 5
    nats a response with sums, and an unreachable 5 nats a token with means, so that L stays near 25. HALOs counts the
    tokens whose log-prob differs from the reference's, 0/0 at the first step; |y| must come from the mask. The logged
    reward is β Δ/|y|, where TRL's is β Δ.
    """

    title = "Identity preference optimisation (IPO), per-token mean"
    paper = "arXiv 2310.12036"
    summary = "regresses the margin of log-ratios per token on a finite goal, 1/(2β)"
    trl = "ipo"
    halos = "ipo"
    in_paper = True
    beta: float = 0.1

    def lengths(self, x: LossInputs) -> Tensor | float:
        """What a log-ratio is divided by."""
        return lengths(x)

    def excess(self, x: LossInputs) -> Tensor:
        h = x.ratios / self.lengths(x)  # (N, 2)
        return h[:, 0] - h[:, 1] - 1 / (2 * self.beta)  # (N,)

    def __call__(self, x: LossInputs) -> Tensor:
        return self.excess(x).square()  # eq. 17

    def gradient(self, x: LossInputs) -> Tensor:
        push = 2 * self.excess(x)  # (N,)
        return torch.stack([push, -push], dim=1) / self.lengths(x)

    def rewards(self, x: LossInputs) -> Tensor:
        return self.beta * x.ratios.detach() / self.lengths(x)


@dataclass
class IPOSum(IPO):
    """IPO on the log-ratios of whole responses, arXiv 2310.12036, eq. 17.

    Objective
        L = (h - 1/(2β))²,    h = Δ_w - Δ_l

    Derivation. IPO's, taken at its word: it is about responses, and knows no tokens. Means per token are a choice
    beside it.

    Gradient
        dL/dℓ_w = 2 (h - 1/(2β)),    dL/dℓ_l = -2 (h - 1/(2β))

    What it does. It holds the log-ratios of a pair 1/(2β) nats apart: 5 at β = 0.1, whatever their lengths. At policy =
    reference L = 1/(4β²) and the slopes are -1/β and +1/β: 10 at β = 0.1, where DPO's are 0.05.

    Limits. A square has no bounded slope: a pair 100 nats off pulls with 200. At equal lengths T it is T² times IPO at
    β T. eric-mitchell, OpenRLHF and TRL up to 0.7.10 have this form under the name of ipo.
    """

    title = "Identity preference optimisation (IPO), summed"
    paper = "arXiv 2310.12036"
    summary = "the same on whole responses, as its derivation gives it"
    trl = "ipo (to 0.7.10)"

    def lengths(self, x: LossInputs) -> Tensor | float:
        return 1.0


@dataclass
class EXO(Relative):
    """EXO, Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv 2402.00856.

    Objective (eq. 16, on a pair), with ε = label_smoothing
        L = KL( (σ(z), σ(-z)) || (1 - ε, ε) ) = σ(z) log(σ(z) / (1-ε)) + σ(-z) log(σ(-z) / ε),    z = r_w - r_l

    Derivation
        1. E_π[R] - β KL(π || π_ref) = -β KL(π || π*) + const, with π* = π_ref exp(R/β) / Z: RLHF minimises the reverse
           KL to π*.
        2. DPO fits the same π* by maximum likelihood, the forward KL. The two agree only if the policy can be π*
           exactly; if not, the forward one spreads over all that π* does and the reverse one settles on what it does
           best.
        3. To have the reverse KL without sampling from π, restrict both sides to K responses drawn from π_ref and weigh
           them by their ratios to π_ref: q_i ∝ (π/π_ref)(y_i)^β on one side, p_i ∝ exp(R_i) on the other. Z cancels.
           Minimise KL(q || p).
        4. For a pair q = (σ(z), σ(-z)). A preference gives no rewards but a winner: p = (1 - ε, ε), with ε > 0, or the
           KL would be infinite.

    Gradient, from log σ(z) - log σ(-z) = z: φ'(z) = σ(z) σ(-z) (z - z*),    z* = log((1-ε)/ε)
        dL/dℓ_w = β φ'(z),    dL/dℓ_l = -β φ'(z)

    What it does. The minimum is 0, at z*: 6.9 at ε = 0.001, the same goal as cDPO's. At policy = reference L = -log 2 -
    1/2 log(ε(1-ε)) and the slopes are ∓β/4 z*. L is bounded: -log ε as z -> -∞, -log(1-ε) as z -> +∞. The push dies on
    both sides by the factor σ(z) σ(-z). So a pair that is badly out of order is let go, where DPO pushes hardest.

    Limits. ε decides the size of everything: for ε -> 0, L / z* tends to σ(-z), the error rate itself. ε = 0 is
    infinite (TRL returns inf, or silently takes 0.001 before 0.29). TRL since 0.29 rounds log ε to float32. The
    authors' code has the unnormalised log-targets (0, -10), z* = 10, and its own β for each side.
    """

    title = "Efficient exact optimisation (EXO), on pairs"
    paper = "arXiv 2402.00856"
    summary = "reverse KL of the pair's probabilities to softened labels, where cDPO has the forward KL"
    trl = "exo_pair"
    in_paper = True
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.label_smoothing < 0.5:
            raise ValueError(
                f"loss.label_smoothing must be greater than 0 and less than 0.5, not {self.label_smoothing}"
            )

    @property
    def log_target(self) -> tuple[float, float]:
        return math.log1p(-self.label_smoothing), math.log(self.label_smoothing)

    def __call__(self, x: LossInputs) -> Tensor:
        z = self.margin(x)
        won, lost = self.log_target
        return torch.sigmoid(z) * (F.logsigmoid(z) - won) + torch.sigmoid(-z) * (F.logsigmoid(-z) - lost)

    def gradient(self, x: LossInputs) -> Tensor:
        z = self.margin(x)
        won, lost = self.log_target
        return self.chain(x, torch.sigmoid(z) * torch.sigmoid(-z) * (z - (won - lost)))


@dataclass
class DiscoPOP(Relative):
    """DiscoPOP, Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for LLMs", arXiv 2406.08414.

    Objective
        L = (1 - m) (-log σ(z)) + m e^-z,    m = σ(z/τ),    z = r_w - r_l

    Derivation. There is none. A language model proposed losses as code, each was trained and scored, and this one won:
    a gate m that hands over from DPO's logistic loss (z < 0) to the exponential loss of boosting (z > 0), within a few
    τ.

    Gradient, from m' = m (1 - m) / τ
        φ'(z) = -(1 - m) σ(-z) - m e^-z + m (1 - m)/τ (e^-z + log σ(z))
        dL/dℓ_w = β φ'(z),    dL/dℓ_l = -β φ'(z)

    What it does. Far from 0 it pushes as its two parts do, by -σ(-z) and by -e^-z. Near 0 it does not: e^-z lies above
    -log σ(z) there, by 1 - log 2 at z = 0, and the gate climbs that step. At policy = reference L = (1 + log 2)/2 and
    φ' = -3/4 + (1 - log 2)/(4τ), which is +0.784 at τ = 0.05: the first steps move the chosen response DOWN. Between a
    minimum at z = -0.119 (L = 0.786) and a barrier at z = +0.072 (L = 0.878), descent goes the wrong way; only the
    noise of minibatches carries a pair across.

    Limits. Not convex, see above. Written as m times e^-z it is 0 times infinity, NaN, for z < -88 in float32, as in
    TRL; we take exp(log σ(z/τ) - z), which for τ <= 1 cannot overflow. τ > 1, where the exponential outgrows its gate,
    is refused.
    """

    title = "Discovered preference optimisation (DiscoPOP)"
    paper = "arXiv 2406.08414"
    summary = "a gate from the logistic to the exponential loss, found by a language model"
    trl = "discopop"
    beta: float = 0.05
    tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau <= 1:
            raise ValueError(f"loss.tau must be greater than 0 and at most 1, not {self.tau}")

    def __call__(self, x: LossInputs) -> Tensor:
        z = self.margin(x)
        logistic = -torch.sigmoid(-z / self.tau) * F.logsigmoid(z)
        return logistic + torch.exp(F.logsigmoid(z / self.tau) - z)

    def gradient(self, x: LossInputs) -> Tensor:
        z = self.margin(x)
        gate, ungate = torch.sigmoid(z / self.tau), torch.sigmoid(-z / self.tau)  # m, 1 - m
        exponential = torch.exp(F.logsigmoid(z / self.tau) - z)  # m e^-z
        modulation = (ungate * exponential + gate * ungate * F.logsigmoid(z)) / self.tau
        return self.chain(x, modulation - ungate * torch.sigmoid(-z) - exponential)
