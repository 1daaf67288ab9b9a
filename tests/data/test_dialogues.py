"""Ids of whole dialogues are those of apply_chat_template, for eight families of templates and tokenizers."""

import json

import pytest
from conftest import GOLDEN
from dialogue_families import FAMILIES, dialogues, write_family

from align.data import encode_prompts, encode_rows, load_tokenizer
from align.data.rows import Row

GOLDEN_IDS = json.loads((GOLDEN / "dialogues.json").read_text())["families"]


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_apply_chat_template(tmp_path, name):
    tokenizer = load_tokenizer(write_family(name, tmp_path))
    assert len(GOLDEN_IDS[name]) == len(dialogues(name)) >= 3
    for dialogue, golden in zip(dialogues(name), GOLDEN_IDS[name], strict=True):
        *prompt, response = dialogue["messages"]
        said = response if "tool_calls" in response else response["content"]
        ((group,), _) = encode_rows([Row(prompt, [said], tools=dialogue.get("tools"))], tokenizer)
        assert group.prompt_ids == golden["prompt"], name
        if "tools" not in dialogue:
            assert encode_prompts([prompt], tokenizer) == [golden["prompt"]], "what eval.py and --chat ask"
        ids = [*group.prompt_ids, *group.response_ids[0]]
        assert ids == golden["whole"][: len(ids)] and ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(golden["whole"][len(ids) :], skip_special=False).strip() == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_response_that_is_begun_goes_on_to_the_ids_of_the_whole_dialogue(tmp_path, name):
    tokenizer = load_tokenizer(write_family(name, tmp_path))
    for dialogue, golden in zip(dialogues(name)[:2], GOLDEN_IDS[name], strict=False):
        *asked, response = dialogue["messages"]
        begun, rest = response["content"][:2], response["content"][2:]
        assert (begun, rest) == ("In", " eights.")
        prompt = [*asked, {"role": "assistant", "content": begun, "prefix": True}]
        ((group,), _) = encode_rows([Row(prompt, [rest])], tokenizer)
        ids = [*group.prompt_ids, *group.response_ids[0]]
        assert ids == golden["whole"][: len(ids)] and ids[-1] == tokenizer.eos_id
        assert len(group.prompt_ids) > len(golden["prompt"]), "the loss is on the rest alone"
        assert encode_prompts([prompt], tokenizer) == [group.prompt_ids]
