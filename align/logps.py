"""From token log-probabilities to one number per response."""

from collections.abc import Sequence

from torch import Tensor, nn

from align.data.batches import Batch
from align.losses.base import DISTRIBUTIONS


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
    other: tuple[Tensor, Tensor | None] | None = None,
    states: bool = False,
) -> dict[str, Tensor]:
    """What losses read about each response, under the names of LossInputs, (N, K) each: logps, n_tok and those in `tokens`.

    tokens: "shared_logps", "weights", "kl", "reverse_kl", which are costlier in this order: a mask, a second look at the
    policy's logits, the logits of two models. other, for the last two: the reference's `states` (M, D') and head weight
    (V, D'). states: also return this model's.
    """
    divergences = [name for name in DISTRIBUTIONS if name in tokens]
    # TokenStats, (M,) each
    found = model(batch.stream, states=states, collision="weights" in tokens, other=other, divergences=divergences)
    owner, n_tok = batch.stream.owner, batch.n_tok

    def sum_per_response(values: Tensor) -> Tensor:  # (M,) -> (N, K)
        return values.new_zeros(n_tok.numel()).index_add(0, owner, values).view_as(n_tok)

    sums = {"logps": sum_per_response(found.logp), "n_tok": n_tok}
    if "shared_logps" in tokens:
        # all responses to the length of the prompt's shortest one, counted from the first token
        shared = n_tok.amin(dim=1, keepdim=True).expand_as(n_tok).flatten()  # (N*K,)
        sums["shared_logps"] = sum_per_response(found.logp.masked_fill(batch.place >= shared[owner], 0))
    if "weights" in tokens:
        sums["weights"] = (sum_per_response(found.logp.detach() - found.collision) / n_tok).exp()
    for name in divergences:
        sums[name] = sum_per_response(getattr(found, name))
    return {**sums, "states": found.states} if states else sums
