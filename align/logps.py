"""From token log-probabilities to one number per response. The only place that shifts targets."""

from collections.abc import Sequence

from torch import Tensor, nn

from align.data.batches import Batch
from align.models import TokenStats


def response_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p(response | prompt) of every response of a batch, summed over its tokens.

    Returns logps (N, K) float32 and n_tok (N, K) int64, the number of tokens in each sum. Filler prompts are included.
    """
    sums = response_sums(model, batch)
    return sums["logps"], sums["n_tok"]


def response_sums(
    model: nn.Module,
    batch: Batch,
    tokens: Sequence[str] = (),
    other: tuple[Tensor, Tensor] | None = None,
    states: bool = False,
) -> dict[str, Tensor]:
    """What losses read about each response, under the names of LossInputs, (N, K) each: logps, n_tok and those in `tokens`.

    tokens: "shared_logps", "weights", "kl", which are costlier in this order: a mask, a second look at the policy's
    logits, the logits of two models. other, for kl: the reference's `states` (N*K, T-1, D') and head weight (V, D').
    states: also return this model's.
    """
    # position t predicts token t + 1, so targets and mask are one to the left of the ids
    ids, targets, mask = batch.ids[:, :-1], batch.ids[:, 1:], batch.mask[:, 1:]
    if states or "kl" in tokens or "weights" in tokens:
        found = model(ids, targets, mask, states=states, collision="weights" in tokens, other=other)
    else:
        found = TokenStats(model(ids, targets, mask))
    logp = found.logp  # (N*K, T-1), 0 off the response
    n_tok = mask.sum(dim=1)  # (N*K,)
    sums = {"logps": logp.sum(dim=1), "n_tok": n_tok}
    if "shared_logps" in tokens:
        # both responses to the length of the shorter one, counted from the first token
        shared = n_tok.view(-1, batch.K).amin(dim=1).repeat_interleave(batch.K)  # (N*K,)
        sums["shared_logps"] = logp.masked_fill(mask.cumsum(dim=1) > shared[:, None], 0).sum(dim=1)
    if "weights" in tokens:
        sums["weights"] = ((logp.detach() - found.collision).sum(dim=1) / n_tok).exp()
    if "kl" in tokens:
        sums["kl"] = found.kl.sum(dim=1)
    sums = {name: value.view(-1, batch.K) for name, value in sums.items()}
    return {**sums, "states": found.states} if states else sums
