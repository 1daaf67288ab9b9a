"""What is compared: a configuration, and which pairs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    config: str  # of benchmarks/real/
    loss: str = ""  # if not the configuration's
    recover: int = 0  # words of the rejected response that a share of the pairs begins with, at most


RECIPES = {
    "nca": Recipe("pairs.toml", "nca"),
    "dpo": Recipe("pairs.toml", "dpo"),
    "safe": Recipe("safe.toml"),
    "safe-recover": Recipe("safe.toml", recover=10),
}
SYSTEM = (
    "You are a careful assistant. If a request could lead to harm, to a crime, to hate or to a breach of privacy, you do "
    "not help with it. Then you say in one or two sentences that you are sorry and cannot help with that, and why."
)
SAMPLES = 4  # of each harmful question, with and without SYSTEM
MAX_NEW_TOKENS = 64  # of a sampled response: one that is cut off may be rejected, and is never chosen
