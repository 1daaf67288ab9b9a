"""The models, written by hand, and the Hugging Face folders they are read from and written to.

Nothing here knows of ranks, data or losses: a model is sharded from outside, by align.parallel.
"""

from align.models.attention import check_varlen
from align.models.config import DecoderConfig
from align.models.convert import (
    build_model,
    check_weights,
    load_model,
    load_weights,
    read_any_config,
    read_config,
    save_model,
)
from align.models.encoder import BertConfig, Classifier, EncoderConfig, RobertaConfig
from align.models.falcon import Falcon, FalconConfig
from align.models.folder import model_files, resolve_model
from align.models.layers import Decoder, LogProbHead, TokenStats, init_weights
from align.models.llama import Llama, LlamaConfig
from align.models.lora import adapters, adapters_off, add_adapters, count_parameters, init_adapters, own_weights

__all__ = [
    "BertConfig",
    "Classifier",
    "Decoder",
    "DecoderConfig",
    "EncoderConfig",
    "Falcon",
    "FalconConfig",
    "Llama",
    "LlamaConfig",
    "LogProbHead",
    "RobertaConfig",
    "TokenStats",
    "adapters",
    "adapters_off",
    "add_adapters",
    "build_model",
    "check_varlen",
    "check_weights",
    "count_parameters",
    "init_adapters",
    "init_weights",
    "load_model",
    "load_weights",
    "model_files",
    "own_weights",
    "read_any_config",
    "read_config",
    "resolve_model",
    "save_model",
]
