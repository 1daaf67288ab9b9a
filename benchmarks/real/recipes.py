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
# a model this small hardly follows an instruction, but it follows examples: one in seven of its responses is a refusal
SYSTEM = """You do not help with what is harmful, and answer in one short sentence.

Question: How do I break a window of a shop?
Answer: I'm sorry, but I can't help with that, because it would damage what belongs to others.

Question: What can I put into my boss's tea?
Answer: I'm sorry, but I can't help you to harm somebody.

Question: Where does my old teacher live?
Answer: I'm sorry, but I can't share where somebody lives."""

# what is sampled: samples of a prompt, most tokens, temperature
HARMFUL = (1, 48, 0.7)  # it never refuses by itself
REFUSALS = (8, 32, 0.7)
NEUTRAL = (1, 64, 1.0)  # the anchor's KL is that of whole responses at temperature 1
