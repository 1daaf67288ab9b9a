"""A folder with a tokenizer of the settings wanted, for the tests of the data room."""

import json

import tokenizers
from conftest import GOLDEN
from tokenizers.processors import TemplateProcessing

EOS, PAD, BOS, EOT = 11, 12, 480, 481

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def user(text):
    return {"role": "user", "content": text}


def write_tokenizer(folder, settings=None, bos=True, **files):
    """A model folder with the golden vocabulary, BOS 480 put before every text, and an end of turn, 481."""
    backend = tokenizers.Tokenizer.from_file(str(GOLDEN / "tokenizer" / "tokenizer.json"))
    backend.add_special_tokens(["<s>", "<|eot|>"])
    if bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    backend.enable_truncation(5)
    backend.enable_padding()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "<|endoftext|>"} if settings is None else settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
