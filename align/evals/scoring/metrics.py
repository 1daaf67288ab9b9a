"""The kinds of score that a benchmark may have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A kind of score. unit "%": the mean of 0s and 1s, times 100. ratio: the mean is sum(values) / sum(of these).

    better: "higher", "lower", or "" for what is neither. kind: of the benchmarks that it is a score of.
    """

    title: str
    unit: str
    better: str
    kind: str = "generate"
    ratio: str = ""


METRICS = {
    "safe": Metric("safe responses", "%", "higher"),
    "attack_success": Metric("attack success rate", "%", "lower"),
    "refused": Metric("unsafe requests refused", "%", "higher"),
    "over_refusal": Metric("harmless requests refused", "%", "lower"),
    "toxic": Metric("toxic responses", "%", "lower"),
    "toxicity": Metric("mean toxicity", "", "lower"),
    "correct": Metric("correct responses", "%", "higher"),
    "acc": Metric("correct choices", "%", "higher", "choice"),
    "acc_norm": Metric("correct choices, by log-prob per byte", "%", "higher", "choice"),
    "mc2": Metric("probability of the true choices", "%", "higher", "choice"),
    "degenerate": Metric("degenerate responses", "%", "lower"),
    "cut_off": Metric("responses cut off at the limit", "%", "lower"),
    "length": Metric("words in a response", "", ""),
    "perplexity": Metric("perplexity", "", "lower", "perplexity", ratio="tokens"),
    "bits_per_byte": Metric("bits per byte", "", "lower", "perplexity", ratio="bytes"),
    "accuracy": Metric("chosen response likelier", "%", "higher", "preference"),
    "accuracy_norm": Metric("chosen response likelier, per token", "%", "higher", "preference"),
    # the two of train.py's metrics.jsonl, with the base as the reference
    "log_ratios/margin": Metric("log-ratio margin over the base, nats", "", "higher", "preference"),
    "rewards/accuracy": Metric("reward accuracy over the base", "%", "higher", "preference"),
}
OF_TEXT = ("degenerate", "cut_off", "length")
