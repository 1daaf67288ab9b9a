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
    "safe": Recipe("safe.toml", recover=10),
}
# examples of refusals: a model this small hardly follows an instruction, but one in five of its responses follows these
SYSTEM = "benchmarks/real/safety.txt"

# what is sampled: samples of a prompt, most tokens, temperature
HARMFUL = (1, 48, 0.7)  # it never refuses by itself
REFUSALS = (8, 32, 0.7)
NEUTRAL = (1, 64, 1.0)  # at temperature 1 the anchor's KL is that of their first tokens
