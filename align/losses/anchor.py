"""Staying what one was: the divergence from the reference, token by token, on responses that should not change."""

from dataclasses import dataclass

import torch
from torch import Tensor

from align.losses.base import Loss, LossInputs

DIRECTIONS = {"forward": "kl", "reverse": "reverse_kl"}  # and what each reads of LossInputs


@dataclass
class Anchor(Loss):
    """KL to the reference per token: distillation of the model that one was, Hinton et al. 2015, arXiv 1503.02531.

    Objective, with s_t the prompt and the tokens before t, over a global batch of N prompts with one response each
        L = Σ_n D_n / Σ_n |y_n|,    D_n = Σ_t KL(π_ref(.|s_t) || π(.|s_t))       direction = "forward"
                                    D_n = Σ_t KL(π(.|s_t) || π_ref(.|s_t))       direction = "reverse"
    the mean over tokens. As in sft each prompt's sum is divided by the mean length of the batch: L_n = D_n / m.

    Derivation
        1. Let the policy stay the reference on prompts x where it was right: minimise KL(π_ref(.|x) || π(.|x)) between
           distributions of whole responses.
        2. log π(y|x) is a sum over tokens, and the chain rule of the KL makes of it E_{y ~ π_ref}[Σ_t KL(π_ref(.|s_t)
           || π(.|s_t))]: exactly D on the reference's own responses, sampled at temperature 1. Nothing else is needed
           of them.
        3. sft on those responses estimates the same gradient from one token of each distribution. D has all of it, so
           it has less variance, and its gradient is 0 where policy = reference; that of sft is so only on average, and
           on greedy responses not at all: it sharpens what the reference was unsure of.
        4. The other direction is the penalty of RLHF. Its chain rule holds for responses of the policy; on those of the
           reference it is a different measure of the same distance, 0 at the same place.

    Gradient, with b the logits of a position
        dL_n/dD_n = 1/m,    0 in ℓ
        d KL(π_ref || π)/db_v = π(v) - π_ref(v)
        d KL(π || π_ref)/db_v = π(v) (log π(v) - log π_ref(v) - KL(π || π_ref))

    What it does. Nothing at policy = reference, and next to nothing near it: both divergences grow with the square of
    the distance. Forward covers: what the reference would say must stay likely, and the pull on a token that the policy
    has all but given up is π_ref(v), however unlikely it has become. Reverse is content where the policy says a part of
    what the reference would; there its pull fades with π(v).

    Limits. Alone it trains nothing, its value and its gradient being 0 from the start, and is refused. It is for
    [sources.NAME], beside a loss that moves the policy (docs/sources.md). What is not among its prompts is not held. A
    mean over tokens counts a long response more than a short one. Full distributions of both models: no cache of
    reference numbers will do.
    """

    title = "KL anchor"
    paper = "arXiv 1503.02531"
    summary = "keeps whole next-token distributions where the reference had them; for a source beside another loss"
    responses = "one"
    moves = False
    token_inputs = ("kl",)
    direction: str = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction not in DIRECTIONS:
            raise ValueError(f"loss.direction must be {' or '.join(DIRECTIONS)}, not {self.direction!r}")
        self.token_inputs = (DIRECTIONS[self.direction],)

    def divergence(self, x: LossInputs) -> Tensor:
        (name,) = self.token_inputs
        kl: Tensor | None = getattr(x, name)
        if kl is None:
            raise ValueError(f"this loss compares whole distributions with the reference's: LossInputs.{name} is None")
        return kl[:, 0]  # (N,) D

    def __call__(self, x: LossInputs) -> Tensor:
        return self.divergence(x) / x.mean_tokens

    def gradient(self, x: LossInputs) -> Tensor:
        return torch.zeros_like(x.logps)

    def kl_gradient(self, x: LossInputs) -> Tensor:
        pull = torch.zeros_like(x.logps)
        pull[:, 0] = 1 / x.mean_tokens
        return pull

    def reverse_kl_gradient(self, x: LossInputs) -> Tensor:
        return self.kl_gradient(x)
