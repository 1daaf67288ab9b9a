"""align.evals.run: the text of a response that was begun goes on from there, whatever the tokenizer does about spaces."""

import pytest
from dialogue_families import FAMILIES, write_family

from align.data import encode_prompts, load_tokenizer
from align.data.messages import begin
from align.evals.run import said


@pytest.mark.parametrize("name", FAMILIES)
def test_the_space_between_what_was_begun_and_what_is_written_is_kept(tmp_path, name):
    tokenizer = load_tokenizer(write_family(name, tmp_path))
    prompt = [{"role": "user", "content": "How do bees dance?"}]
    begun = begin(prompt, "In")
    (ids,), (whole,) = (encode_prompts([begin(begun, text)], tokenizer) for text in ("", " eights."))
    assert whole[: len(ids)] == ids, "what the model is given, and what it may write"
    new = whole[len(ids) :]
    done = {"ids": new, "text": tokenizer.decode(new)}
    assert said(begun, ids, done, tokenizer) == " eights."
    assert said(prompt, ids, done, tokenizer) == "eights."
    assert said(begun, ids, {"ids": new, "text": tokenizer.decode(new)[:-2]}, tokenizer) == " eight", "at a stop text"
