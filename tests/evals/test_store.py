"""records.jsonl: what was written is read again, a half-written line is not, and keys tell everything apart."""

import json

import pytest

from align.errors import UserError
from align.evals.store import CHUNK, Store, chunks, digest, folder_digest


def test_chunks_cover_everything_once():
    for count in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7):
        covered = [i for part in chunks(count) for i in range(part.start, part.stop)]
        assert covered == list(range(count))
        assert all(part.start % CHUNK == 0 for part in chunks(count))


def test_what_is_added_is_found_again(tmp_path):
    file = tmp_path / "out" / "records.jsonl"
    store = Store(file, writes=True)
    assert not store.has("a", 0)
    store.add("a", 0, [{"id": "1", "response": "ü\u2028\ud83d"}])
    store.add("a", 1, [{"id": "2", "logps": [0.1, -1e-300]}])
    again = Store(file, writes=False)
    assert (
        again.all("a", 2)
        == store.all("a", 2)
        == [{"id": "1", "response": "ü\u2028\ud83d"}, {"id": "2", "logps": [0.1, -1e-300]}]
    )
    assert again.has("a", 1) and not again.has("b", 0)
    again.all("a", 2)[0]["response"] = "changed"
    assert again.all("a", 2)[0]["response"] == "ü\u2028\ud83d"


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_half_written_line_is_written_again(tmp_path, kept):
    file = tmp_path / "records.jsonl"
    store = Store(file, writes=True)
    store.add("a", 0, [{"id": "1"}])
    whole = file.read_bytes()
    store.add("a", 1, [{"id": "2", "response": "x" * 100}])
    complete = file.read_bytes()
    file.write_bytes(complete[: len(whole) + kept] if kept > 0 else complete[:-1])  # as a kill leaves it
    again = Store(file, writes=True)
    assert again.has("a", 0) and not again.has("a", 1)
    again.add("a", 1, [{"id": "2", "response": "x" * 100}])
    assert file.read_bytes() == complete


def test_a_reader_changes_nothing(tmp_path):
    file = tmp_path / "records.jsonl"
    Store(file, writes=True).add("a", 0, [])
    with file.open("a") as out:
        out.write('{"ke')
    before = file.read_bytes()
    assert Store(file, writes=False).has("a", 0)
    assert file.read_bytes() == before
    Store(tmp_path / "none" / "records.jsonl", writes=False)
    assert not (tmp_path / "none").exists()


def test_a_line_of_something_else_is_named(tmp_path):
    file = tmp_path / "records.jsonl"
    Store(file, writes=True).add("a", 0, [])
    with file.open("a") as out:
        out.write("[1, 2]\n")
    with pytest.raises(UserError, match=r"records\.jsonl:2 is not a line of an evaluation"):
        Store(file, writes=True)
    assert file.read_text().endswith("[1, 2]\n")


def test_digests_tell_apart(tmp_path):
    assert digest(1, "a") == digest(1, "a") != digest("a", 1)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(["a", "b"]) != digest(["ab"]) != digest("ab")
    (tmp_path / "config.json").write_text(json.dumps({"x": 1}))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = folder_digest(tmp_path)
    (tmp_path / "notes.md").write_text("what computes nothing")
    assert folder_digest(tmp_path) == first
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"2"), ("chat_template.jinja", b"")):
        before = folder_digest(tmp_path)
        (tmp_path / name).write_bytes(content)
        assert folder_digest(tmp_path) != before, name


def test_an_edited_line_is_refused(tmp_path):
    file = tmp_path / "records.jsonl"
    changes = [("no", "yes"), ('"chunk": 0', '"chunk": 1'), ('"k"', '"l"'), ("}]", ', "x": 1}]'), ('"hash"', '"hush"')]
    for old, new in changes:
        file.unlink(missing_ok=True)
        Store(file, writes=True).add("k", 0, [{"id": "1", "response": "no", "finish": "eos"}])
        file.write_text(file.read_text().replace(old, new))
        with pytest.raises(UserError, match=r"records\.jsonl:1 .* has changed since it was written"):
            Store(file, writes=True)
    file.write_text('{"key": "a", "chunk": 0, "found": ["r"]}\n')
    with pytest.raises(UserError, match=r"records\.jsonl:1 "):
        Store(file, writes=True)
