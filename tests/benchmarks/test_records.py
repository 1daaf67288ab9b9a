"""benchmarks.records and benchmarks.compare: one schema, no run overwrites another, what moved is named."""

import json

import pytest

from benchmarks import compare, records


def record(*numbers, **changes):
    empty = {"what": "gpu", "machine": {}, "date": "2026-11-26", "commit": "abc", "settings": {}}
    return empty | changes | {"numbers": list(numbers)}


def row(name, **values):
    return {"part": "head", "name": name, **values}


def test_a_record_is_read_as_it_was_written_a_row_a_line(tmp_path):
    file = tmp_path / "folder" / "gpu.json"
    written = record(row("a", ms=1.5), row("b", failed="no memory"))
    records.write(file, written)
    assert records.read(file) == written
    assert sum(line.strip().startswith('{"part"') for line in file.read_text().splitlines()) == 2
    assert [path.name for path in file.parent.iterdir()] == ["gpu.json"], "nothing is left beside it"


def test_a_second_run_of_a_day_has_a_file_of_its_own(tmp_path):
    first = records.new_file(tmp_path, "gpu", "NVIDIA H100 80GB HBM3")
    assert first.name.startswith("gpu-nvidia-h100-80gb-hbm3-20")
    records.write(first, record())
    second = records.new_file(tmp_path, "gpu", "NVIDIA H100 80GB HBM3")
    assert second.name == first.stem + "-2.json"


@pytest.mark.parametrize("text", ["{", "[]", '{"what": "gpu"}'])
def test_what_is_no_record_is_refused_by_name(tmp_path, text, capsys):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json: not a"):
        records.read(file)
    assert compare.main([str(file), str(file)]) == 2
    assert "bad.json" in capsys.readouterr().err


def test_every_committed_record_has_the_schema():
    for file in records.FOLDER.glob("*.json"):
        found = records.read(file)
        assert tuple(found) == records.KEYS, file
        assert all({"part", "name"} <= row.keys() for row in found["numbers"]), file


def test_what_moved_by_more_than_a_share_is_named():
    before = [row("a", ms=100.0, tflops=500.0), row("b", ms=100.0), row("c", ms=1.0), row("d", failed="x"), row("e")]
    after = [row("a", ms=106.0, tflops=530.0), row("b", ms=104.0), row("d", ms=1.0), row("e", failed="y"), row("f")]
    assert list(compare.moved(before, after, 0.05)) == [
        "head: a: ms 100 -> 106, +6.0%, worse",
        "head: a: tflops 500 -> 530, +6.0%, better",
        "head: c: only before",
        "head: d: failed before",
        "head: e: fails now: y",
        "head: f: only after",
    ]
    assert not list(compare.moved(before, before, 0.0))


def test_the_comparison_says_so_and_its_status_is_whether_anything_moved(tmp_path, capsys):
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file, ms in zip(files, (10.0, 10.4), strict=True):
        file.write_text(json.dumps(record(row("a", ms=ms), commit=file.stem)))
    assert compare.main(list(map(str, files))) == 0
    assert capsys.readouterr().out == "commit differs: a | b\nnothing moved by more than 5 %: 1 rows\n"
    assert compare.main([*map(str, files), "--percent", "3"]) == 1
    assert "head: a: ms 10 -> 10.4, +4.0%, worse" in capsys.readouterr().out
