"""The record of every loss on the toy world: resumed where it was, and the table in the docs made from it alone."""

import pytest
from conftest import ROOT

from align.tiny.evaluate import Evaluation
from benchmarks import records, tiny_losses

RECORDS = sorted(records.FOLDER.glob("tiny-losses-*.json"))


def test_a_record_is_resumed(tmp_path, monkeypatch, capsys):
    ran = []
    scores = dict.fromkeys(tiny_losses.COLUMNS, 50.0)

    def run(name, world):
        ran.append(name)
        return {"part": "loss", "name": name, "beta": 0.1, **scores}

    monkeypatch.setattr(tiny_losses, "run", run)
    monkeypatch.setattr(tiny_losses, "resolve_path", lambda *args: "base")
    monkeypatch.setattr(tiny_losses, "evaluate", lambda *args, **more: Evaluation(scores, {}, []))
    file = tmp_path / "record.json"
    tiny_losses.main(["--output", str(file), "dpo"])
    tiny_losses.main(["--output", str(file), "nca", "dpo"])
    assert ran == ["dpo", "nca"]
    record = records.read(file)
    assert [row["name"] for row in record["numbers"]] == [tiny_losses.BASE, "dpo", "nca"]
    lines = tiny_losses.table(record).splitlines()
    assert lines[2].startswith("| the base model |  | 50.0") and lines[3].startswith("| `nca` | 0.1 | 50.0")
    assert "`dpo`" in capsys.readouterr().out


@pytest.mark.skipif(not RECORDS, reason="no record was made")
def test_the_docs_have_the_newest_record():
    record = records.read(RECORDS[-1])
    assert {row["name"] for row in record["numbers"]} == {tiny_losses.BASE, *tiny_losses.NAMES}
    docs = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert tiny_losses.table(record) in docs
    by_name = {row["name"]: row for row in record["numbers"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for key, label in {"maths": "maths, exact match", "safety/global": "global safety score (mean of the two)"}.items():
        before, after = by_name[tiny_losses.BASE][key], by_name["nca"][key]
        (line,) = [line for line in readme.splitlines() if line.strip().startswith(label)]
        assert line.split()[-3:-1] == [f"{before:.1f}", f"{after:.1f}"]
