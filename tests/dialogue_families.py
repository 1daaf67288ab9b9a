"""Chat templates and tokenizers in the style of eight published families, all written here.

`python tests/dialogue_families.py` needs transformers, and writes tests/golden/dialogues.json: for every family the ids
of its dialogues, and of their prompts, as apply_chat_template gives them.
"""

import json
import sys
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

GOLDEN = Path(__file__).parent / "golden"
WORDS = ("▁How", "▁do", "▁bees", "▁dance", "▁In", "▁eights", "▁Be", "▁brief", "user", "▁▁", "[/", "INST", "]▁")


def byte_level(specials, bos=None):
    """The vocabulary of tests/golden/tokenizer, with these special tokens; bos: one put before every text."""
    tokenizer = Tokenizer.from_file(str(GOLDEN / "tokenizer" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def sentencepiece(specials, prefix, bos="<s>"):
    """BPE over characters with byte fallback; prefix: "▁" before every text, "always" or after special tokens "never"."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = []
    for letter in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ[]/?.:<>|":
        vocab[letter] = len(vocab)
    for word in WORDS:
        done = word[0]
        for letter in word[1:]:
            if (done, letter) not in merges:
                merges.append((done, letter))
            done += letter
            vocab.setdefault(done, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    if prefix == "always":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = replace
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix != "never" else parts)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    specials = ["<unk>", "<s>", "</s>", *specials]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return tokenizer


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% set ns = namespace(sys='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.sys = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}{% elif m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.sys + m.content | trim + ' [/INST]' }}{% set ns.sys = '' %}{% else %}"
    "{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}"
    "{% endif %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') "
    "+ m.content | trim + '<end>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set sys = messages[0].content if messages[0].role == 'system' else '' %}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (sys + '\n\n' if sys and ns.n == 0 else '') + m.content + '[/INST]' }}{% set ns.n = 1 %}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% if tools %}{{ '<|im_start|>tools\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set why = m.reasoning_content or '' %}"
    "{% set said = m.content or '' %}"
    "{% if '</think>' in said %}{% set why = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + why.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ said }}"
    "{% for c in m.tool_calls or [] %}{{ '\n<call>' + c.function.name + c.function.arguments | tojson + '</call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IM = ["<|im_start|>", "<|im_end|>"]
# name: tokenizer, template, EOS, BOS
FAMILIES = {
    "chatml": (lambda: byte_level(IM), CHATML, "<|im_end|>", None),
    "llama2": (lambda: sentencepiece([], "always"), LLAMA2, "</s>", "<s>"),
    "llama3": (lambda: byte_level(["<s>", "<|head|>", "<|/head|>", "<|eot|>"], "<s>"), LLAMA3, "<|eot|>", "<s>"),
    "gemma": (lambda: sentencepiece(["<turn>", "<end>"], "never"), GEMMA, "<end>", "<s>"),
    "mistral": (lambda: sentencepiece([], "first"), MISTRAL, "</s>", "<s>"),
    "phi": (
        lambda: sentencepiece(["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "always"),
        PHI,
        "<|end|>",
        "<s>",
    ),
    "zephyr": (lambda: sentencepiece([], "always"), ZEPHYR, "</s>", "<s>"),
    "thinking": (lambda: byte_level(IM), THINKING, "<|im_end|>", None),
}


def write_family(name, folder):
    make, template, eos, bos = FAMILIES[name]
    make().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "chat_template": template}
    config |= {"bos_token": bos} if bos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def turns(*texts, system=None):
    roles = ("user", "assistant")
    spoken = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [*([{"role": "system", "content": system}] if system else []), *spoken]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 3}}}
DIALOGUES = [
    {"messages": turns("How do bees dance?", "In eights.")},
    {"messages": turns("How do bees dance?", "In eights.", system="Be brief.")},
    {"messages": turns("Hi", "Yes?", "How?\n\n  So:\n", "In\neights: é ▁ 蜂.", "Do", "dance   brief")},
]
REASONED = [
    {
        "messages": turns(
            "Is 7 prime?", "<think>\nOnly 1 and 7.\n</think>\n\nYes.", "And 9?", "<think>\n3\n</think>\n\nNo."
        )
    },
    {
        "messages": [
            *turns("Weather?"),
            {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Ask."},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    },
]


def dialogues(name):
    return DIALOGUES + (REASONED if name == "thinking" else [])


def main():
    from transformers import AutoTokenizer, __version__

    golden = {"transformers": __version__, "families": {}}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = AutoTokenizer.from_pretrained(write_family(name, Path(folder)))
        cases = []
        for dialogue in dialogues(name):
            options = {"tools": dialogue.get("tools"), "tokenize": True, "return_dict": False}
            messages = dialogue["messages"]
            prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
            cases.append({"prompt": prompt, "whole": tokenizer.apply_chat_template(messages, **options)})
        golden["families"][name] = cases
    text = (
        json.dumps(golden, separators=(",", ":"))
        .replace('[{"prompt"', '[\n {"prompt"')
        .replace('},{"pro', '},\n {"pro')
    )
    (GOLDEN / "dialogues.json").write_text(text.replace('],"', '],\n  "') + "\n")


if __name__ == "__main__":
    sys.exit(main())
