"""The exported model: a Hugging Face folder that says what was trained.

Besides the weights that is the chat template that the prompts went through and the tokens on which a response ends, where
transformers and vLLM look for them: chat_template.jinja, and eos_token_id of generation_config.json and config.json. What
has no place there is how training put plain text to the model; a key of tokenizer_config.json, which they ignore, says it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align import stopping
from align.data.formatter import mode_of
from align.data.tokenizer import TRAINED_TEMPLATE, Tokenizer
from align.files import read_json
from align.models import Decoder, adapters, own_weights, save_model
from align.models.convert import Gather, replacing, weight_reader
from align.models.folder import ADAPTER_CONFIG
from align.models.peft import write_adapter
from align.parallel import World, gather
from align.sections import Config

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
TEMPLATE_FILES = ("chat_template*",)


def export_model(
    folder: Path,
    source: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    template: str | None,
    config: Config,
    world: World,
) -> Path:
    """Write model/: the trained weights, with the tokenizer of the folder `source` that they came from.

    template: the chat template that training put prompts through; None if none went through one.
    """
    stopping.end_at_once()  # the last checkpoint has all that is needed to do this again
    target = folder / "model"
    dtype = None if config.model.save_dtype == "auto" else getattr(torch, config.model.save_dtype)
    texts = template_files(source, tokenizer, template, config.data.template)
    patterns = TOKENIZER_FILES + (() if "chat_template.jinja" in texts else TEMPLATE_FILES)
    files = sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    eos, generation = end_tokens(source, tokenizer)
    texts["generation_config.json"] = as_json(generation)
    whole = gather_trained(model, source, world) if adapters(model) else gather
    save_model(model, target, dtype=dtype, gather=whole, write=world.main, extras=files, texts=texts, settings=eos)
    if adapters(model):
        export_adapter(folder / "adapter", source, model, world)
    world.barrier()
    return target


def gather_trained(model: Decoder, source: Path, world: World) -> Gather:
    """`gather` for what was trained; frozen weights are the folder's, which were rounded to the dtype of compute."""
    names, read = {param: name for name, param in own_weights(model).items()}, weight_reader(model, source)

    def whole(param: nn.Parameter) -> Tensor:
        if param not in names:
            return gather(param)
        if world.main:
            return read(names[param], 0, len(param)).to(param.device)
        return torch.zeros(param.shape, device=param.device)  # this rank writes nothing, and need not read it

    return whole


def export_adapter(target: Path, source: Path, model: Decoder, world: World) -> None:
    """Write adapter/ in PEFT's format, unless the base is an adapter itself, which cannot be named as one."""
    if (source / ADAPTER_CONFIG).exists():
        if world.main:
            print(f"no {target}: --model is an adapter, and PEFT takes one on top of a whole model alone", flush=True)
        return
    pairs = {name: (gather(m.lora_A), gather(m.lora_B)) for name, m in adapters(model)}  # collectives: on every rank
    if world.main:
        with replacing(target, ADAPTER_CONFIG) as folder:
            write_adapter(folder, published_name(source), pairs, adapters(model)[0][1].alpha)


def published_name(folder: Path) -> str:
    """The Hub id of a folder in the Hub's cache, models--OWNER--NAME/snapshots/REVISION; any other's whole path."""
    hub = folder.parent.parent.name
    if folder.parent.name == "snapshots" and hub.startswith("models--"):
        return hub.removeprefix("models--").replace("--", "/")
    return str(folder.absolute())


def template_files(source: Path, tokenizer: Tokenizer, template: str | None, asked: str) -> dict[str, str]:
    """Files that make `template` the folder's chat template, and `asked`, --data.template, what plain text is put by.

    None where the folder says so already.
    """
    before = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    config, texts = dict(before), {}
    has_one = (source / "chat_template.jinja").is_file() or config.get("chat_template")
    if template is not None and not (has_one and template == tokenizer.chat_template.source):
        texts["chat_template.jinja"] = template
        # the file wins over the key, and two that differ would only confuse
        config.pop("chat_template", None)
    if (mode := mode_of(asked, tokenizer.trained_template)) != tokenizer.trained_template:
        config[TRAINED_TEMPLATE] = mode
    return texts if config == before else texts | {"tokenizer_config.json": as_json(config)}


def end_tokens(source: Path, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of config.json, and the whole generation_config.json: a generation ends on each token that training ended on."""
    ids = [tokenizer.eos_id, *sorted(tokenizer.eos_ids - {tokenizer.eos_id})]
    eos = {"eos_token_id": ids if len(ids) > 1 else ids[0]}
    config, file = read_json(source / "config.json"), source / "generation_config.json"
    if file.is_file():
        generation = read_json(file)
    else:
        # without the file, these would be taken from config.json
        generation = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    return ({} if named(config) == set(ids) else eos), (
        generation if named(generation) == set(ids) else generation | eos
    )


def named(settings: dict[str, Any]) -> set[int]:
    """The ids that a file's eos_token_id, an id or a list, names."""
    ids = settings.get("eos_token_id")
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}


def as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
