"""Noise contrastive alignment: which responses are likelier than under the reference, decided one response at a time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses.base import Loss, LossInputs


def target(x: LossInputs, temperature: float) -> Tensor:
    """p (N, K): softmax of the rewards, or all on response 0 where there are none."""
    if x.scores is not None:
        return torch.softmax(x.scores.to(x.logps.dtype) / temperature, dim=1)
    p = torch.zeros_like(x.logps, requires_grad=False)
    p[:, 0] = 1
    return p


@dataclass
class NCA(Loss):
    """NCA, Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv 2402.05369.

    Objective, for K responses with rewards s_1..s_K
        L = - Σ_i [ p_i log σ(r_i) + 1/K log σ(-r_i) ],    p = softmax(s / temperature),    r_i = β (ℓ_i - ℓ_ref,i)
    and for a preference pair, where no rewards are known, p = (1, 0):
        L = -log σ(r_w) - 1/2 log σ(-r_w) - 1/2 log σ(-r_l)

    Derivation
        1. The target is the same as DPO's, π*(y|x) = π_ref(y|x) exp(R(x, y)/β) / Z(x): a reward-tilted reference.
        2. Noise contrastive estimation turns "be this distribution" into "tell its samples from noise". Draw y with
           equal chance from π* (call it data) or from π_ref (noise). Bayes' rule says that y was data with probability
           π* / (π* + π_ref) = σ(log π* - log π_ref), so the best classifier's logit is the log-ratio of the target.
        3. Use the policy's own log-ratio as the logit, r = β (log π - log π_ref), and maximise the classifier's
           likelihood: L = -E_{y ~ π*} log σ(r) - E_{y ~ π_ref} log σ(-r).
        4. Nobody can sample π*, but π* is π_ref reweighted. With K responses drawn from π_ref, E_{π*}[f] is the
           self-normalised importance sum Σ_i p_i f(y_i), p = softmax(s / temperature), and E_ref[f] is the plain mean
           1/K Σ_i f(y_i). That is the objective above. The authors' α is 1 / temperature; theirs is nearly 0, which
           makes p one-hot.

    Gradient, from (log σ(r))' = σ(-r) and (log σ(-r))' = -σ(r)
        dL/dℓ_i = β ( σ(r_i) / K - p_i σ(-r_i) )
        for a pair:  dL/dℓ_w = β (3/2 σ(r_w) - 1),    dL/dℓ_l = β/2 σ(r_l)

    What it does. Each response has its own target, stationary at r_i = log(K p_i). For a pair the chosen response is
    pulled up to r_w = log 2 and held there: beyond it the gradient changes sign. The rejected response is always pushed
    down, by a force that fades as it falls. At policy = reference L = 2 log 2 and the slopes are -β/4 and +β/4; on a
    pair L cannot fall below log(3/2) + log(3)/2 = 0.9548.

    Limits. It looks at absolute log-ratios, not at a margin. That keeps the chosen likelihood from falling with the
    rejected one, as it may under DPO, which is the likely reason for its better trade-off; but it is not invariant to a
    shift, so the reference must be the right one, with the same template for both and no dropout. The chosen target is
    log 2 / β nats in total: 69 at β = 0.01, 7 at β = 0.1, so β does not carry over from DPO. Label smoothing and other
    divergences have no meaning here, as log Z(x) does not cancel. The authors' code adds 0.01 to the first response's
    reward to break ties; this is the method without that.
    """

    title = "Noise contrastive alignment (NCA)"
    paper = "arXiv 2402.05369"
    summary = "tells samples of the reward-tilted reference from samples of the reference, one response at a time"
    trl = "nca_pair"
    responses = "list"
    in_paper = True
    beta: float = 0.01
    temperature: float = 1e-3

    def __call__(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios  # (N, K)
        data, noise = target(x, self.temperature) * F.logsigmoid(r), F.logsigmoid(-r) / r.shape[1]
        return -(data + noise).sum(dim=1)

    def gradient(self, x: LossInputs) -> Tensor:
        r = self.beta * x.ratios
        return self.beta * (torch.sigmoid(r) / r.shape[1] - target(x, self.temperature) * torch.sigmoid(-r))
