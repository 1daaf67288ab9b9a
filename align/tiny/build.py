"""Writes the toy world's files: a tokenizer, an untrained tiny Falcon, dialogues, preference pairs, held-out requests."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from align.data.templates import ChatTemplate
from align.files import write_json
from align.models import FalconConfig, build_model, init_weights, save_model
from align.tiny.requests import SETS, requests
from align.tiny.world import ToyWorld

VOCAB_SIZE = 2048  # at most; every word of the dialogues then is one token, and so is every number
DIALOGUES, PAIRS, PROMPTS = 20_000, 2_000, 2_000
HELD_OUT = 240  # pairs
# GPT-2's and Falcon's way to cut text, but long numbers two digits at a time
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END, PAD = "<|endoftext|>", "<|pad|>"

# Falcon2-11B's architecture: one norm in front of parallel attention and MLP, grouped queries, rotary positions
ARCHITECTURE = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "activation": "gelu",
    "alibi": False,
    "attention_dropout": 0.0,
    "bias": False,
    "ffn_hidden_size": 512,
    "hidden_dropout": 0.0,
    "hidden_size": 128,
    "initializer_range": 0.1,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 256,
    "multi_query": True,
    "new_decoder_architecture": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_kv_heads": 2,
    "num_ln_in_parallel_attn": 1,
    "parallel_attn": True,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' + message['content'] + eos_token + '\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Falcon:' }}{% endif %}"
)
TOKENIZER_CONFIG = {
    "add_prefix_space": False,
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "eos_token": END,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": ARCHITECTURE["max_position_embeddings"],
    "pad_token": PAD,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def toy_world_id(seed: int = 0) -> str:
    """A short name for what write_toy_world writes: it changes with the seed and with the text of these modules."""
    digest = hashlib.sha256(str(seed).encode())
    for module in ("words.py", "world.py", "requests.py", "build.py"):
        digest.update((Path(__file__).parent / module).read_bytes())
    return digest.hexdigest()[:12]


def write_toy_world(folder: str | Path, seed: int = 0) -> None:
    """Write the toy world of a seed, the same bytes each time. The folder appears, or replaces the last one, once complete.

    init/                 an untrained tiny Falcon with its tokenizer, an ordinary Hugging Face folder
    dialogues.jsonl       {"prompt", "completion"}: what the base model is trained on
    pairs.jsonl           {"prompt", "chosen", "rejected", "category"}: safety preferences
    harmless-pairs.jsonl  the same, but what is preferred is help with a harmless request
    prompts.jsonl         {"prompt", "category"}: neutral ones
    held-out-pairs.jsonl  safety preferences on pranks that are in none of the files above but the first
    final.json, dev.json  held-out requests, as align/tiny/requests.py gives them
    """
    folder, world = Path(folder), ToyWorld(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        dialogues = list(world.dialogues(DIALOGUES))
        write_lines(new / "dialogues.jsonl", dialogues)
        write_lines(new / "pairs.jsonl", world.pairs(PAIRS))
        write_lines(new / "harmless-pairs.jsonl", world.harmless_pairs(PAIRS))
        write_lines(new / "prompts.jsonl", world.prompts(PROMPTS))
        write_lines(new / "held-out-pairs.jsonl", world.held_out_pairs(HELD_OUT))
        for which in SETS:
            write_json(new / f"{which}.json", list(requests(seed, which)))
        write_model(new / "init", dialogues, seed)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)


def write_model(folder: Path, dialogues: Iterable[dict], seed: int) -> None:
    """A tokenizer trained on the dialogues, and a Falcon with random weights."""
    template = ChatTemplate(CHAT_TEMPLATE, "the toy world's chat template", {"eos_token": ""})
    tokenizer = train_tokenizer(
        template.render([*row["prompt"], {"role": "assistant", "content": row["completion"]}]) for row in dialogues
    )
    end = tokenizer.token_to_id(END)
    config = ARCHITECTURE | {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": end, "eos_token_id": end}
    model = build_model(FalconConfig.from_dict(config))
    init_weights(model, seed)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)


def train_tokenizer(texts: Iterable[str], special_tokens: Sequence[str] = (END, PAD)) -> Tokenizer:
    """Byte-level BPE; a number up to 99 that occurs is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_lines(file: Path, rows: Iterable[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
