"""From token log-probabilities to one number per answer. The only place that shifts targets."""

from torch import Tensor, nn

from align.tokens import Batch


def response_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p(answer | prompt) of every answer of a batch, summed over its response tokens.

    Returns logps (N, K) float32 and n_tok (N, K) int64, the number of tokens in each sum. Filler prompts are included.
    """
    # position t predicts token t + 1, so targets and mask are one to the left of the ids
    logp = model(batch.ids[:, :-1], batch.ids[:, 1:], batch.mask[:, 1:])  # (N*K, T-1), 0 off the response
    n_tok = batch.mask[:, 1:].sum(dim=1)  # (N*K,)
    return logp.sum(dim=1).view(-1, batch.K), n_tok.view(-1, batch.K)
