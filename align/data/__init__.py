"""From a preference file to batches of token ids: rows, templates, tokenizer, encode, batches, in this order.

Nothing here trains: there is no model, loss, configuration or process group, and rank and world size are numbers.
"""

from align.data.batches import collate
from align.data.encode import encode_prompts, encode_rows
from align.data.rows import read_rows
from align.data.tokenizer import load_tokenizer

__all__ = ["collate", "encode_prompts", "encode_rows", "load_tokenizer", "read_rows"]
