"""Generation: the engine, its key/value cache, sampling, packed weights, and a benchmark against transformers.

Only what continues token ids lives here: no chat, no benchmark suites and no training.
"""

from align.generate.engine import FAILURES, Finished, Settings, generate, stream, stream_tokens

__all__ = ["FAILURES", "Finished", "Settings", "generate", "stream", "stream_tokens"]
