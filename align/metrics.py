"""What a step reports: sums over the global batch, reduced once, divided at the end. Never a mean of means."""

import resource

import torch
from torch import Tensor

from align.data.batches import Dataset
from align.losses import Loss, LossInputs
from align.parallel import World

SUMS = (
    *("loss", "prompts", "stop", "log_ratio", "responses", "accuracy", "pairs"),
    *("logp_chosen", "ratio_chosen", "reward_chosen", "n_chosen"),
    *("logp_rejected", "ratio_rejected", "reward_rejected", "n_rejected"),
)


class StepSums:
    """Sums of one optimizer step, kept on the device until one all-reduce.

    at_reference: the policy has not been trained yet, so rewards differ from 0 by rounding alone, and all are tied.
    """

    def __init__(self, device: torch.device, at_reference: bool = False):
        self.values = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.at_reference = at_reference
        self.losses: list[Tensor] = []  # of each micro-batch's prompts

    def add(self, **sums: Tensor | float) -> None:
        for name, value in sums.items():
            self.values[SUMS.index(name)] += value

    @torch.no_grad()
    def add_batch(self, loss: Loss, x: LossInputs, losses: Tensor, rows: Tensor | slice) -> None:
        """Add these rows of a loss's inputs and of its losses (N,)."""
        self.losses.append(losses[rows].detach())
        logps, labels = x.logps[rows].double(), None if x.labels is None else x.labels[rows]
        chosen, rejected = sides(logps, labels)
        self.add(loss=losses[rows].double().sum(), prompts=len(logps), n_chosen=len(chosen), n_rejected=len(rejected))
        self.add(logp_chosen=chosen.sum(), logp_rejected=rejected.sum())
        rewards = loss.rewards(x)
        if rewards is None:
            return
        ratios = x.ratios[rows] if labels is None else x.ratios[rows, :1]
        self.add(log_ratio=ratios.double().sum(), responses=ratios.numel())
        chosen, rejected = sides(x.ratios[rows].double(), labels)
        self.add(ratio_chosen=chosen.sum(), ratio_rejected=rejected.sum())
        chosen, rejected = sides(rewards[rows].double(), labels)
        self.add(reward_chosen=chosen.sum(), reward_rejected=rejected.sum())
        if labels is None and logps.shape[1] > 1:
            tied = torch.ones_like(chosen) if self.at_reference else chosen == rejected
            self.add(accuracy=torch.where(tied.bool(), 0.5, (chosen > rejected).double()).sum(), pairs=len(chosen))

    def reduce(self, world: World) -> dict[str, float]:
        """The sums over all ranks."""
        return dict(zip(SUMS, world.sum(self.values).tolist(), strict=True))


def sides(values: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The chosen and rejected entries of (N, K) values: the first and last response, or the desirable and undesirable."""
    if labels is not None:
        return values[:, 0][labels[:, 0]], values[:, 0][~labels[:, 0]]
    return values[:, 0], values[:, -1] if values.shape[1] > 1 else values[:0, 0]


def step_metrics(sums: dict[str, float]) -> dict[str, float]:
    """The means of a step, by the names of metrics.jsonl. Those that a method or its data do not define are left out.

    Log-probs are sums over a response's tokens, in nats; chosen is the preferred (or desirable) response, rejected the last
    (or undesirable) one. A response's log-ratio is log π - log ρ, its reward what the loss makes of it: β times it for
    most. log_ratios/margin, chosen - rejected, is in nats whatever the loss and its β, so it compares runs; rewards/margin
    is in the loss's own unit. rewards/accuracy: the share of pairs whose chosen reward is higher; a tie counts half. kl is
    the mean log-ratio of all responses, in nats a response. The responses are the data's, not the policy's, so it can be
    negative: it says how far, and which way, the policy has moved on this data.
    """

    def mean(name: str, count: str) -> float | None:
        return sums[name] / sums[count] if sums[count] else None

    rewarded = sums["responses"] > 0
    metrics = {
        "loss": mean("loss", "prompts"),
        "rewards/chosen": mean("reward_chosen", "n_chosen") if rewarded else None,
        "rewards/rejected": mean("reward_rejected", "n_rejected") if rewarded else None,
        "rewards/accuracy": mean("accuracy", "pairs"),
        "logps/chosen": mean("logp_chosen", "n_chosen"),
        "logps/rejected": mean("logp_rejected", "n_rejected"),
        "kl": mean("log_ratio", "responses"),
    }
    if rewarded and sums["n_chosen"] and sums["n_rejected"]:
        for name, key in (("rewards/margin", "reward"), ("log_ratios/margin", "ratio")):
            metrics[name] = sums[f"{key}_chosen"] / sums["n_chosen"] - sums[f"{key}_rejected"] / sums["n_rejected"]
    return {name: value for name, value in metrics.items() if value is not None}


def metric_names(loss: Loss, data: Dataset) -> list[str]:
    """What step_metrics will have of this loss on this data, found out on two prompts that are all alike."""
    first = data.groups[0]
    alike = torch.zeros(2, len(first.response_lengths))  # (2, K)
    labels = None if first.label is None else torch.tensor([[True], [False]])
    ref_logps = alike if loss.needs_reference else None
    x = LossInputs(alike, ref_logps, n_tok=torch.ones_like(alike), tokens_per_prompt=1.0, labels=labels)
    sums = StepSums(torch.device("cpu"))
    sums.add_batch(loss, x, alike[:, 0], slice(None))
    return list(step_metrics(dict(zip(SUMS, sums.values.tolist(), strict=True))))


def peak_memory_mib(device: torch.device) -> float:
    """The most memory this process has held: on its GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
