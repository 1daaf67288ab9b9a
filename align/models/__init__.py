"""The models, by hand, and the Hugging Face folders they are read from and written to."""

from align.models.convert import build_model, load_model, load_weights, read_config, resolve_model, save_model
from align.models.falcon import Falcon, FalconConfig
from align.models.layers import Decoder, KVCache, LogProbHead, init_weights
from align.models.llama import Llama, LlamaConfig

__all__ = [
    "Decoder",
    "Falcon",
    "FalconConfig",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "LogProbHead",
    "build_model",
    "init_weights",
    "load_model",
    "load_weights",
    "read_config",
    "resolve_model",
    "save_model",
]
