"""What kernels/tools/bench.py runs: cases, their inputs, and a step of every implementation on each.

liger-kernel and cut-cross-entropy take part when they are installed; nothing here depends on them.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import IMPLEMENTATIONS

BETA = 0.1
BASELINE = "reference"
HAS_TORCH_OP = hasattr(F, "linear_cross_entropy")  # torch 2.13 and newer
NOTHING = -100  # the label that liger-kernel skips


@dataclass(frozen=True)
class Case:
    """What a step is. pairs = 0: log-probabilities of `tokens` positions, each with its own upstream gradient.

    Otherwise DPO on that many pairs of `tokens` positions, of which the first half is prompt, with a frozen reference:
    the policy's and the reference's log-probabilities, loss and gradients.
    """

    pairs: int
    tokens: int
    hidden: int
    vocab: int

    @property
    def rows(self) -> int:
        return 2 * self.pairs or 1


CASES = {
    "logp": Case(pairs=0, tokens=512, hidden=512, vocab=65024),
    "dpo": Case(pairs=4, tokens=64, hidden=512, vocab=65024),
    "falcon-11b": Case(pairs=0, tokens=8192, hidden=4096, vocab=65024),
}
QUICK = {
    "logp": Case(pairs=0, tokens=24, hidden=16, vocab=500),
    "dpo": Case(pairs=2, tokens=8, hidden=16, vocab=500),
    "falcon-11b": Case(pairs=0, tokens=64, hidden=32, vocab=1000),
}


@dataclass
class Inputs:
    hidden: Tensor  # (B, T, D) the first half of the rows preferred, the other half not
    weight: Tensor  # (V, D)
    targets: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool, true on responses
    ref_hidden: Tensor  # (B, T, D)
    ref_weight: Tensor  # (V, D)
    upstream: Tensor  # (T,), or () for DPO: dL/d of what a step returns

    def to(self, dtype: torch.dtype) -> "Inputs":
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in vars(self).items()}
        tensors["upstream"] = self.upstream
        return Inputs(**tensors).require_grad()

    def require_grad(self) -> "Inputs":
        for name in ("hidden", "weight"):
            setattr(self, name, getattr(self, name).detach().requires_grad_())
        return self

    def drop_gradients(self) -> None:
        self.hidden.grad = self.weight.grad = None


Step = Callable[[Inputs], Tensor]
Logp = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_inputs(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    def positions() -> Tensor:
        return normal(case.rows, case.tokens, case.hidden)

    def head() -> Tensor:
        return normal(case.vocab, case.hidden, scale=1.5 * case.hidden**-0.5)  # logits of deviation 1.5

    targets = torch.randint(case.vocab, (case.rows, case.tokens), generator=generator, device=device)
    mask = (torch.arange(case.tokens, device=device) >= (case.tokens // 2 if case.pairs else 0)).expand_as(targets)
    hidden, weight = positions(), head()
    if not case.pairs:
        upstream = torch.randn(case.tokens, generator=generator, device=device)
        return Inputs(hidden, weight, targets, mask, hidden[:, :0], weight[:0], upstream).require_grad()
    upstream = torch.ones((), device=device)
    # a reference near the policy, as it is in training
    ref_hidden, ref_weight = (0.9 * x + 0.1 * y for x, y in ((hidden, positions()), (weight, head())))
    return Inputs(hidden, weight, targets, mask, ref_hidden, ref_weight, upstream).require_grad()


def logp_step(fn: Logp) -> Step:
    return lambda x: fn(x.hidden[0], x.weight, x.targets[0])


@dataclass(frozen=True)
class DPOStep:
    """Mean DPO loss, from the responses' log-probabilities alone, or from all, the prompts' then being masked."""

    fn: Logp
    all_tokens: bool = False

    def __call__(self, x: Inputs) -> Tensor:
        return -F.logsigmoid(BETA * self.margins(x)).mean()

    def margins(self, x: Inputs) -> Tensor:
        """Each pair's difference of log-ratios, in nats and in the dtype of the log-probabilities. # (B / 2,)"""
        with torch.no_grad():
            ref = self.sums(x.ref_hidden, x.ref_weight, x)  # (B,)
        chosen, rejected = (self.sums(x.hidden, x.weight, x) - ref).chunk(2)
        return chosen - rejected

    def sums(self, hidden: Tensor, weight: Tensor, x: Inputs) -> Tensor:
        chosen = torch.ones_like(x.mask) if self.all_tokens else x.mask
        logp = self.fn(hidden[chosen], weight, x.targets[chosen])
        logp = logp.new_zeros(x.mask.shape).index_put(chosen.nonzero(as_tuple=True), logp)  # (B, T)
        return (logp * x.mask).sum(dim=1)


def liger_step() -> Step:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(ignore_index=NOTHING, beta=BETA, compiled=True)

    def step(x: Inputs) -> Tensor:
        labels = x.targets.masked_fill(~x.mask, NOTHING)
        return loss(x.weight, x.hidden, labels, ref_input=x.ref_hidden, ref_weight=x.ref_weight)[0]

    return step


def plain_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """reference_logp as it is mostly written: the product in the dtype of the model, float32 from its logits on."""
    return F.log_softmax((hidden @ weight.T).float(), dim=1).gather(1, targets[:, None])[:, 0]


def torch_op(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's own, since 2.13; what it returns is in the dtype of its inputs."""
    options = torch.nn.LinearCrossEntropyOptions()
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)


def cce(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, targets, reduction="none", **({"impl": "torch_compile"} | options))


def liger_scaled(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return -LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets)


def steps(case: Case, compiled: bool = True) -> dict[str, Step]:
    """Everything that can be tried, the baseline first. Whether it runs here shows when it does.

    compiled: with torch.compile and the competitors, which use it too: from seconds to a minute each before they start.
    """
    functions = {name: fn for name, fn in IMPLEMENTATIONS.items() if name != "triton" or torch.cuda.is_available()}
    functions["log_softmax"] = plain_logp
    if HAS_TORCH_OP:
        functions["F.linear_cross_entropy"] = torch_op
    if compiled:
        functions["torch.compile"] = torch.compile(plain_logp)
    if compiled and importlib.util.find_spec("cut_cross_entropy"):
        functions["cut-cross-entropy"] = cce
    if compiled and importlib.util.find_spec("liger_kernel"):
        functions["liger scaled cross entropy"] = liger_scaled
    if not case.pairs:
        return {name: logp_step(fn) for name, fn in functions.items()}
    found: dict[str, Step] = {BASELINE: DPOStep(functions["reference"], all_tokens=True)}
    found |= {f"{name}, responses": DPOStep(fn) for name, fn in functions.items()}
    if compiled and importlib.util.find_spec("liger_kernel"):
        found["liger-kernel"] = liger_step()
    return found


def run_step(step: Step, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """What the step returns, dL/dhidden (B, T, D), dL/dweight (V, D)."""
    x.drop_gradients()
    out = step(x)
    out.backward(x.upstream.to(out.dtype))
    assert x.hidden.grad is not None and x.weight.grad is not None
    return out.detach(), x.hidden.grad, x.weight.grad
