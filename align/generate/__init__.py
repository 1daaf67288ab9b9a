"""Generation: the engine, its key/value cache, sampling, packed weights, and the benchmark beside transformers.

Only what writes token ids after token ids lives here. No chat, no benchmark suite and no training.
"""

from align.generate.engine import FAILURES, Finished, Settings, generate, stream, stream_tokens

__all__ = ["FAILURES", "Finished", "Settings", "generate", "stream", "stream_tokens"]
