"""DPO with a look inside the responses: whole next-token distributions (TDPO, WPO), or a shared length (LD-DPO).

All three are DPO on an adjusted margin or with a weight, and are DPO again in a limit. What they need beside the sums
is in LossInputs.kl, .weights and .shared_logps. `gradient` is in x.logps, as always; `kl_gradient` and
`shared_gradient` are the closed forms in those other inputs that carry a gradient.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align.losses.base import LossInputs
from align.losses.dpo import DPO


@dataclass
class TDPO1(DPO):
    """TDPO1, Zeng et al. 2024, "Token-level Direct Preference Optimization", arXiv 2404.11999.

    Objective, with D_i = Σ_t KL(π_ref(.|y_<t) || π(.|y_<t)) along response i, the reference first
        L = -log σ(z),    z = r_w - r_l - β (D_l - D_w),    r_i = β (ℓ_i - ℓ_ref,i)

    Derivation
        1. Take every token as an action. In each state s maximise E_{a ~ π}[A(s, a)] - β KL(π(.|s) || π_ref(.|s)), A
           and Q being advantage and value of actions under the reference. The optimum is
           π(a|s) = π_ref(a|s) exp(Q(s, a)/β) / Z(s).
        2. Read that backwards, as DPO does: Q(s, a) = β log(π/π_ref)(a|s) + β log Z(s). The trick is to subtract the
           mean over a ~ π_ref, which turns Q into A and cancels Z state by state:
           A(s, a) = β log(π/π_ref)(a|s) - β E_ref[log(π/π_ref)] = β log(π/π_ref)(a|s) + β KL(π_ref(.|s) || π(.|s)).
        3. Appending a token is deterministic, so with A = reward + V(next) - V(s) the advantages of a response
           telescope to its total reward minus V(x), which both responses share. Bradley-Terry on total rewards is
           Bradley-Terry on sums of advantages, β (ℓ_i - ℓ_ref,i) + β D_i, whose difference is z.

    Gradient, with g = β σ(-z)
        dL/dℓ_w = -g,    dL/dℓ_l = +g,    dL/dD_w = -g,    dL/dD_l = +g

    What it does. DPO's push, and beside it one on whole distributions: the policy is drawn back to the reference along
    the rejected response and away from it along the chosen one. At policy = reference D and its gradient are 0, so
    value and slopes are DPO's: log 2, -β/2, +β/2. No finite fixed point.

    Limits. That second force is odd: nothing wants the chosen response's distributions far from the reference but the
    model's own bookkeeping. TDPO drops it. D needs the full distributions of both models at every position, so there is
    no cache of reference numbers to use. KL(π || π_ref), the other order, is a different method.
    """

    title = "Token-level DPO, first form (TDPO1)"
    paper = "arXiv 2404.11999"
    summary = "the form that its derivation gives, which also pays for moving them along the chosen one"
    token_inputs = ("kl",)
    beta: float = 0.1

    def kl(self, x: LossInputs) -> Tensor:
        if x.kl is None:
            raise ValueError("this loss compares whole distributions with the reference's: LossInputs.kl is None")
        return x.kl

    def excess(self, x: LossInputs) -> Tensor:
        """How much further the policy has moved along the rejected response, (N,)."""
        kl = self.kl(x)
        return kl[:, 1] - kl[:, 0]

    def margin(self, x: LossInputs) -> Tensor:
        return super().margin(x) - self.beta * self.excess(x)  # (N,) z

    def kl_gradient(self, x: LossInputs) -> Tensor:
        """d(sum of losses)/d x.kl, (N, 2). The same numbers as in x.logps: D enters z as ℓ does."""
        return self.gradient(x)


@dataclass
class TDPO(TDPO1):
    """TDPO2, the form of TDPO that its authors recommend: Zeng et al. 2024, arXiv 2404.11999.

    Objective, with D_i = Σ_t KL(π_ref(.|y_<t) || π(.|y_<t)) and sg a stopped gradient
        L = -log σ(z),    z = r_w - r_l - α β (D_l - sg D_w),    r_i = β (ℓ_i - ℓ_ref,i)

    Derivation. TDPO1's, with two changes that do not follow from it. sg stops the force that moves the policy away from
    the reference along the chosen response; what is left of D_w is an offset that says how far is far. α weighs the
    penalty on the rejected response.

    Gradient, with g = β σ(-z)
        dL/dℓ_w = -g,    dL/dℓ_l = +g,    dL/dD_w = 0,    dL/dD_l = +α g

    What it does. DPO, but to win the margin by wrecking the distributions along the rejected response costs α β D_l:
    its tokens must be made less likely without disturbing what else the model would say there. At policy = reference it
    is DPO in value and slope; at α = 0 everywhere. α = 1 has TDPO1's value, not its gradient.

    Limits. As TDPO1: full distributions of both models. Because of the stopped gradient the loss is not the integral of
    its gradient in D_w, so central differences over D_w will not agree. The authors' function has this form as its
    default (α 0.5), their configuration file TDPO1.
    """

    title = "Token-level DPO (TDPO2)"
    paper = "arXiv 2404.11999"
    summary = "DPO that charges for moving whole next-token distributions along the rejected response"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"loss.alpha must be at least 0 and finite, not {self.alpha}")

    def excess(self, x: LossInputs) -> Tensor:
        kl = self.kl(x)
        return self.alpha * (kl[:, 1] - kl[:, 0].detach())

    def kl_gradient(self, x: LossInputs) -> Tensor:
        push = self.beta * torch.sigmoid(-self.margin(x))  # (N,)
        return torch.stack([torch.zeros_like(push), self.alpha * push], dim=1)


@dataclass
class WPO(DPO):
    """WPO, Zhou et al. 2024, "Weighted Preference Optimization", arXiv 2406.11827.

    Objective, with sg a stopped gradient
        L = sg[min(1, w_w w_l)] · (-log σ(r_w - r_l)),    r_i = β (ℓ_i - ℓ_ref,i)
        w_i = exp( 1/|y_i| Σ_t [ log π(y_t|y_<t) - log Σ_v π(v|y_<t)² ] )                                      (eq. 2)

    Derivation
        1. DPO's pairs were written by some other policy, but what should be fitted is preferences between responses
           that this policy gives: E_{y_w, y_l ~ π}[-log σ]. Take the data as a uniform sample of pairs and reweight: a
           pair counts as π(y_w) π(y_l), detached, as it stands for sampling.
        2. A product over tokens spans hundreds of nats, so that one short pair would take all the weight; the geometric
           mean per token, exp(ℓ/|y|), keeps the order and tames the range.
        3. A flat distribution gives its own samples a lower likelihood than a peaked one gives its own, though both are
           equally on-policy. Divide each token's probability by its mean under the policy, E_{v ~ π}[π(v)] = Σ_v π(v)²:
           then E_{y ~ π}[π(y_t)/Σ_v π(v)²] = 1 at every position, and by Jensen the log of w is at most 0 on average
           over the policy's own responses.
        4. A weight above 1 would mean more on-policy than on-policy; the product is clamped at 1.

    Gradient, with W = min(1, w_w w_l)
        dL/dℓ_w = -β W σ(-z),    dL/dℓ_l = +β W σ(-z),    z = r_w - r_l

    What it does. DPO at a rate W of its own for each pair: full speed on what the policy might have said, next to none
    on what it never would. Its fixed points are DPO's. At policy = reference L = W log 2 with slopes -β W/2 and +β W/2.

    Limits. Off-policy data can have W of 0.01, which is a learning rate a hundred times smaller: look at the weights
    before tuning the rate. As the rejected response's likelihood falls so does W, and the pair drops out. Σ_v π(v)²
    needs the full distribution of the policy (not of the reference). The clamp is the authors'; TRL 1.16 has none, and
    weights of very confident pairs reach beyond 1 there. TRL 0.16 to 0.28 multiplied log-probs and weights that were
    one position apart.
    """

    title = "Weighted preference optimisation (WPO)"
    paper = "arXiv 2406.11827"
    summary = "DPO where a pair counts by how likely the policy itself is to write it"
    trl = "sigmoid with use_weighting"
    token_inputs = ("weights",)
    beta: float = 0.01

    def pair_weight(self, x: LossInputs) -> Tensor:
        if x.weights is None:
            raise ValueError("this loss weighs pairs by the policy's confidence: LossInputs.weights is None")
        return x.weights.detach().prod(dim=1).clamp(max=1)  # (N,) W

    def __call__(self, x: LossInputs) -> Tensor:
        return self.pair_weight(x) * super().__call__(x)

    def gradient(self, x: LossInputs) -> Tensor:
        return self.pair_weight(x)[:, None] * super().gradient(x)


@dataclass
class LDDPO(DPO):
    """LD-DPO, Liu et al. 2024, "Length Desensitization in Direct Preference Optimization", arXiv 2409.06411.

    Objective. Let n = min(|y_w|, |y_l|) be the length that both responses have, S_i the sum over the first n tokens of
    response i, and likewise for the reference. DPO on
        ℓ^LD_i = S_i + α (ℓ_i - S_i),    0 <= α <= 1,
    the log of Π_{t <= n} π(y_t|y_<t) Π_{t > n} π(y_t|y_<t)^α: the tail of the longer response counts to the power α.

    Derivation
        1. DPO's margin is a sum of token log-ratios. Let the policy raise every log-ratio by δ, whatever the token: z
           grows by β (|y_w| - |y_l|) δ. Length alone is paid for, so the policy learns it, the more the further the two
           differ.
        2. Only the first n tokens can be compared like with like. The tail of the longer response says two things: what
           it contains, and that it exists. Let α be the share of it that is taken for content.
        3. Discount the tail's log-probs by α, under policy and reference alike, and keep DPO.

    Gradient, with g = β σ(-z) on the margin of ℓ^LD - ℓ^LD_ref, and ℓ_i and S_i taken as separate inputs
        dL/dℓ_w = -α g,    dL/dS_w = -(1 - α) g,    dL/dℓ_l = +α g,    dL/dS_l = +(1 - α) g
    so that a token t <= n gets g in all and a token t > n gets α g.

    What it does. α = 1 is DPO; α = 0 ignores what the longer response says beyond the shorter one's end. For responses
    of one length it is DPO for every α. At policy = reference L = log 2.

    Limits. n counts response tokens, from the first response token. TRL 0.19 to 0.28 counted from the start of the
    prompt, dropped everything after n, and left the reference undiscounted. At α = 0 the longer response's EOS is never
    seen, so that learning to stop is left to the other pairs. The paper tunes α for each model; 0.5 here is the middle
    of its range and no recommendation.
    """

    title = "Length-desensitised DPO (LD-DPO)"
    paper = "arXiv 2409.06411"
    summary = "DPO that discounts what the longer response has beyond the length of the shorter"
    trl = "sigmoid with ld_alpha"
    token_inputs = ("shared_logps",)
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"loss.alpha must be from 0 to 1, not {self.alpha}")

    def margin(self, x: LossInputs) -> Tensor:
        if x.shared_logps is None or x.ref_shared_logps is None or x.ref_logps is None:
            raise ValueError("this loss discounts tails: LossInputs needs shared_logps, ref_logps and ref_shared_logps")
        policy = x.shared_logps + self.alpha * (x.logps - x.shared_logps)  # (N, 2) ℓ^LD
        reference = x.ref_shared_logps + self.alpha * (x.ref_logps - x.ref_shared_logps)  # (N, 2) ℓ^LD_ref
        return super().margin(replace(x, logps=policy, ref_logps=reference))

    def gradient(self, x: LossInputs) -> Tensor:
        return self.alpha * super().gradient(x)

    def shared_gradient(self, x: LossInputs) -> Tensor:
        """d(sum of losses)/d x.shared_logps, (N, 2)."""
        return (1 - self.alpha) * super().gradient(x)
