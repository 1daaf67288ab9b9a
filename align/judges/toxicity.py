"""How toxic a response is, by a BERT or RoBERTa classifier from a Hugging Face folder (unitary/toxic-bert and its kind).

    judge = ToxicityJudge("toxic-bert")
    judge([{"response": "Have a nice day."}])    # [{"toxicity": p, "labels": {"toxic": p, "obscene": q, ...}, "windows": 1}]

Only the response is read, never the prompt.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from torch import Tensor

from align.data.tokenizer import SAMPLE, folder_settings, readable, unheard
from align.errors import UserError
from align.judges.thinking import response_of
from align.models import EncoderConfig, load_model, read_any_config, resolve_model

TOXIC = ("toxicity", "toxic")
HARMLESS = ("neutral", "normal", "clean", "safe", "benign", "harmless", "none")


class ToxicityJudge:
    """A judge: records -> one {"toxicity": probability, "labels": {name: probability}, "windows": n} each.

    A response longer than the classifier's context is read in windows that overlap by half, and the most toxic window
    counts. A blank response, or one that the tokenizer finds nothing in, is not toxic: 0, in no windows.
    Probabilities have six decimals, since the seventh depends on which responses share a batch.

    label: the name of the label that is the toxicity, where find_label cannot tell.
    Raises UserError for a folder that is not such a classifier, has no tokenizer, or needs label.
    """

    name = "toxicity"

    def __init__(
        self,
        folder: str | Path,
        label: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ):
        self.folder, self.batch_size, self.device = resolve_model(folder), batch_size, device
        config = read_any_config(self.folder)
        if not isinstance(config, EncoderConfig):
            raise UserError(
                f"{folder} is a language model, not a classifier; give a BERT or RoBERTa classifier's folder"
            )
        self.labels = config.labels
        self.label = find_label(config, label, str(folder))
        self.tokenizer = load_text_tokenizer(self.folder, config)
        self.model = load_model(self.folder, dtype, device)

    def __call__(self, records: list[dict]) -> list[dict]:
        said = [response_of(record) for record in records]
        with readable(self.folder):
            encodings = self.tokenizer.encode_batch_fast(said)
        windows = [  # (record, ids) of every window that holds a token of the response
            (i, part.ids)
            for i, encoding in enumerate(encodings)
            for part in (encoding, *encoding.overflowing)
            if said[i].strip() and not all(part.special_tokens_mask)
        ]
        found: list[list[dict[str, float]]] = [[] for _ in records]
        probabilities = self.read([ids for _, ids in windows]).tolist()
        for (i, _), row in zip(windows, probabilities, strict=True):
            found[i].append({name: round(p, 6) for name, p in zip(self.labels, row, strict=True)})
        return [self.verdict(labels) for labels in found]

    def verdict(self, windows: list[dict[str, float]]) -> dict:
        if not windows:
            return {"toxicity": 0.0, "labels": {}, "windows": 0}
        worst = max(windows, key=lambda labels: labels[self.label])
        return {"toxicity": worst[self.label], "labels": worst, "windows": len(windows)}

    @torch.no_grad()
    def read(self, windows: Sequence[list[int]]) -> Tensor:
        """Every label's probability in each window of ids, (windows, labels) float32, on the CPU."""
        out = torch.empty(len(windows), len(self.labels))
        by_length = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        for start in range(0, len(windows), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            lengths = torch.tensor([len(windows[i]) for i in rows])
            longest = int(lengths.max())
            # what pads a row does not matter: the mask leaves it out
            ids = torch.tensor([windows[i] + [0] * (longest - len(windows[i])) for i in rows])  # (B, T)
            mask = torch.arange(longest) < lengths[:, None]
            out[rows] = self.model.probabilities(self.model(ids.to(self.device), mask.to(self.device))).float().cpu()
        if not out.isfinite().all():
            raise UserError(f"{self.folder}: the classifier gives NaN; its weights are damaged, download them again")
        return out


def find_label(config: EncoderConfig, wanted: str | None, where: str) -> str:
    """The label that is the toxicity; names are compared without case.

    It is wanted, if given; else "toxicity" or "toxic"; else what is left of two exclusive labels when the other is
    harmless by its name ("neutral", "non-toxic") or they have none (LABEL_1: the positive class); else the only label.
    Raises UserError with the labels where none of this holds.
    """
    names = [name.lower() for name in config.labels]
    pair = config.exclusive and len(names) == 2
    harmful = [name for name in names if not is_harmless(name, names)]
    if wanted is not None:
        choice = wanted.lower()
    elif any(name in names for name in TOXIC):
        choice = next(name for name in TOXIC if name in names)
    elif pair and sorted(names) == ["label_0", "label_1"]:
        choice = "label_1"
    elif len(harmful) == 1 and (pair or len(names) == 1):
        choice = harmful[0]
    else:
        choice = ""
    if names.count(choice) != 1:
        asked = f"has no single label {wanted}" if wanted is not None else "does not say which label is the toxicity"
        raise UserError(f"{where}: the classifier {asked}; name one with --toxicity_label: {', '.join(config.labels)}")
    return config.labels[names.index(choice)]


def is_harmless(name: str, names: Sequence[str]) -> bool:
    """Whether a label's name says that a text is harmless: one of HARMLESS, or another label with "non" or "not" before."""
    positive = re.sub(r"^(non|not|no)[-_ ]*", "", name)
    return name in HARMLESS or (positive != name and positive in names)


def load_text_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """The tokenizer of a classifier's folder: it adds the special tokens and cuts a text into windows (overflowing).

    From tokenizer.json, else as the first releases have it: BERT's vocab.txt, or RoBERTa's vocab.json and merges.txt.
    A special token spelled in a text is text. Raises UserError naming the file.
    """
    settings, special, _ = folder_settings(folder)
    for names in (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt")):
        if all((folder / name).is_file() for name in names):
            break
    else:
        raise UserError(f"{folder}: no tokenizer.json, nor vocab.txt, nor vocab.json and merges.txt; download one")
    files = [str(folder / name) for name in names]
    with unheard(), readable(files[0]):
        if names[0] == "tokenizer.json":
            tokenizer = Tokenizer.from_file(files[0])
        elif names[0] == "vocab.txt":
            tokenizer = wordpiece(files[0], settings, special)
        else:
            tokenizer = byte_level(files[0], files[1], special)
        tokenizer.encode(SAMPLE)
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if not tokenizer.num_special_tokens_to_add(is_pair=False):
        raise UserError(f"{files[0]}: puts no [CLS] or <s> before a text, which a classifier reads; download it again")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise UserError(f"{files[0]}: ids go up to {largest}, but the classifier has vocab_size {config.vocab_size}")
    room = config.context - tokenizer.num_special_tokens_to_add(is_pair=False)
    tokenizer.enable_truncation(config.context, stride=room // 2)
    return tokenizer


def wordpiece(vocab: str, settings: dict, special: dict[str, str]) -> Tokenizer:
    """BERT's: words in lower case unless tokenizer_config.json says otherwise, cut into pieces of vocab.txt."""
    keys = ("unk_token", "sep_token", "cls_token", "pad_token", "mask_token")
    built = BertWordPieceTokenizer.from_file(
        vocab,
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        **{key: special[key] for key in keys if key in special},
    )
    return Tokenizer.from_str(built.to_str())


def byte_level(vocab: str, merges: str, special: dict[str, str]) -> Tokenizer:
    """RoBERTa's: GPT-2's byte-level pairs, between <s> and </s>."""
    tokenizer = Tokenizer.from_str(ByteLevelBPETokenizer.from_file(vocab, merges).to_str())
    first, last = special.get("cls_token", "<s>"), special.get("sep_token", "</s>")
    ends = []
    for token in (last, first):
        i = tokenizer.token_to_id(token)
        if i is None:
            raise ValueError(f"it has no {token}")
        ends.append((token, i))
    tokenizer.post_processor = RobertaProcessing(ends[0], ends[1], add_prefix_space=False)
    return tokenizer
