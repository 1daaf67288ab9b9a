"""What a loss is: a pure function of a few (N, K) numbers, with its gradient written out beside it.

Notation, the same in every file of this package and on every page of docs/losses. N prompts x, K responses y_i to
each, the preferred one in column 0; of a pair, y_w is the chosen response (won) and y_l the rejected one (lost).

    π(y|x), π_ref(y|x)     probability of a response under the policy and under the reference
    ℓ_i, ℓ_ref,i           its logarithm, log π(y_i|x) and log π_ref(y_i|x): a sum over the |y_i| tokens of the response
    Δ_i = ℓ_i - ℓ_ref,i    log-ratio
    r_i = β Δ_i            implicit reward;  z = r_w - r_l, the margin of a pair
    R(x, y)                the reward that the preferences come from, of which only comparisons are known
    a_i = ℓ_i / |y_i|      mean log-probability of a token;  m, the mean of |y_w| over the global batch
    σ                      the logistic function; log σ is always F.logsigmoid, and 1 - σ(r) is σ(-r)
    φ(z)                   a loss of the margin alone

A loss never sees a model, a mask or a process group. It returns one number per prompt, unreduced; only train.py sums
them and divides by the count of prompts in the global batch, so neither ranks nor gradient accumulation can change a
result.
"""

import math
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class LossInputs:
    """The numbers of a batch of prompts that a loss may look at."""

    logps: Tensor  # (N, K) ℓ, float32 (float64 in tests); the only entry with a gradient
    ref_logps: Tensor | None = None  # (N, K) ℓ_ref, or None for methods without a reference
    n_tok: Tensor | None = None  # (N, K) response tokens behind each sum, counted from the mask, never from values
    scores: Tensor | None = None  # (N, K) rewards of the responses, higher is better
    labels: Tensor | None = None  # (N, K) true where an unpaired response is desirable
    tokens_per_prompt: Tensor | float | None = None  # mean of n_tok[:, 0] over the global batch; None: over these rows
    # for token-level methods alone, (N, K) each:
    kl: Tensor | None = None  # Σ_t KL(π_ref(.|y_<t) || π(.|y_<t)) over the response's positions, with a gradient
    reverse_kl: Tensor | None = None  # Σ_t KL(π(.|y_<t) || π_ref(.|y_<t)), likewise
    weights: Tensor | None = None  # exp of the mean over t of log π(y_t|y_<t) - log Σ_v π(v|y_<t)², detached
    shared_logps: Tensor | None = None  # ℓ summed over the first min_k n_tok tokens of each response, with a gradient
    ref_shared_logps: Tensor | None = None  # the same under the reference

    @property
    def ratios(self) -> Tensor:
        """Δ = ℓ - ℓ_ref, (N, K)."""
        if self.ref_logps is None:
            raise ValueError("this loss compares with a reference: LossInputs.ref_logps is None")
        return self.logps - self.ref_logps

    @property
    def mean_tokens(self) -> Tensor | float:
        """m, of the global batch where it is known, else of these rows."""
        if self.tokens_per_prompt is not None:
            return self.tokens_per_prompt
        if self.n_tok is None:
            raise ValueError("this loss averages over tokens: LossInputs needs n_tok or tokens_per_prompt")
        return self.n_tok[:, 0].to(self.logps.dtype).mean()


# token-level inputs for which the reference's whole next-token distributions are needed
DISTRIBUTIONS = ("kl", "reverse_kl")
# what each kind of Loss.responses can be given: one response a prompt, two, more, or one with a label
FITS = {
    "one": {"single", "pair", "list"},
    "pair": {"pair"},
    "list": {"pair", "list"},
    "unpaired": {"labelled"},
    "pair or unpaired": {"pair", "labelled"},
}


@dataclass
class Loss:
    """Base of every loss. The dataclass fields of a subclass are its parameters, with defaults from its paper.

    The class attributes say what the method needs; they drive --help, the data checks and the tests.
    """

    # what it is called, of each class alone: these are not inherited
    title = ""  # the class's name where none is given
    paper = ""
    summary = ""  # in one line
    trl = ""  # the loss_type of TRL's DPOTrainer, or what TRL has for it; several names are joined by commas
    halos = ""  # the loss of ContextualAI/HALOs
    in_paper = False  # one of the ten methods of arXiv 2409.07772, as inferred

    # what it needs
    needs_reference = True
    # "one": only response 0 is read; "pair": K = 2; "list": any K >= 2; "unpaired": K = 1 and a label. See FITS
    responses = "pair"
    moves = True  # False: it has no gradient at policy = reference, where every run begins, and alone trains nothing
    needs_global_batch = False  # prompts influence each other, so micro-batches cannot be taken apart
    nonsmooth_at_reference = False  # its slope jumps at policy = reference: --reference.mode auto uses a live one
    uses_mismatched_responses = False  # response 1 is one to another prompt, to estimate a KL on
    token_inputs = tuple[str, ...]()  # token-level LossInputs that it reads: "kl", "reverse_kl", "weights", ...

    def __init_subclass__(cls) -> None:
        for name in ("title", "paper", "summary", "trl", "halos", "in_paper"):
            if name not in vars(cls):
                setattr(cls, name, cls.__name__ if name == "title" else getattr(Loss, name))

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("beta", "temperature"):
                continue
            if not value > 0:
                raise ValueError(f"loss.{field.name} must be greater than 0, not {value}")
            if math.isinf(value):
                raise ValueError(f"loss.{field.name} must be a finite number, not {value}")

    @property
    def needs_distributions(self) -> bool:
        """Whether log-probs of the reference alone, which is what a cache has, are not enough."""
        return any(name in self.token_inputs for name in DISTRIBUTIONS)

    def __call__(self, x: LossInputs) -> Tensor:
        """The loss of each prompt, (N,)."""
        raise NotImplementedError

    def gradient(self, x: LossInputs) -> Tensor:
        """The closed form of d(sum of losses)/dℓ, (N, K)."""
        raise NotImplementedError

    def kl_gradient(self, x: LossInputs) -> Tensor:
        """The closed form of d(sum of losses)/d x.kl, (N, K), of losses that read it."""
        raise NotImplementedError

    def reverse_kl_gradient(self, x: LossInputs) -> Tensor:
        """The closed form of d(sum of losses)/d x.reverse_kl, (N, K), of losses that read it."""
        raise NotImplementedError

    def shared_gradient(self, x: LossInputs) -> Tensor:
        """The closed form of d(sum of losses)/d x.shared_logps, (N, K), of losses that read them."""
        raise NotImplementedError

    def observe(self, x: LossInputs) -> None:
        """Update running statistics from the global batch: once per training step, before the loss, never in evaluation."""

    def state(self) -> dict[str, float]:
        """The running statistics, for checkpoints."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Restore what state() gave."""

    def rewards(self, x: LossInputs) -> Tensor | None:
        """The implicit rewards r = β Δ that are logged, (N, K), detached; None for methods that define none."""
        beta: float | None = getattr(self, "beta", None)
        return None if x.ref_logps is None or beta is None else beta * x.ratios.detach()
