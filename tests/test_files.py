"""Files: every kind read with its line numbers, damage in one line, and no file left half-written."""

import json
import sys

import pytest
from conftest import refuse

from align.errors import one_line
from align.files import (
    BrokenRow,
    atomic,
    is_finite,
    kind_of,
    loads,
    local_file,
    read_json,
    read_records,
    read_toml,
    write_json,
    write_text,
)


def records(path, **kwargs):
    return list(read_records(path, **kwargs))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_an_object_a_line(write, name):
    path = write(name, {"a": 1}, "", "[2]") / name
    assert records(path) == [(f"{path}:1", {"a": 1}), (f"{path}:3", [2])]


def test_a_list_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\ufeff \n" + json.dumps([{"a": 1}, "b"], indent=1), encoding="utf-8")
    assert records(path) == [(f"{path}, row 1", {"a": 1}), (f"{path}, row 2", "b")]
    path.write_text('[{"a": 1},\n {]')
    assert refuse(records, path).startswith(f"{path}:2: broken JSON (")


def test_a_broken_line_is_left_to_the_caller(write):
    path = write("a.jsonl", {"a": 1}, '{"a"', {"a": 2}, "1" * 5000, "[" * 100_000) / "a.jsonl"
    rows = [row for _, row in records(path)]
    assert rows[0] == {"a": 1} and rows[2] == {"a": 2}
    assert rows[1] == BrokenRow("broken JSON (Expecting ':' delimiter: column 5 (char 4))")
    assert isinstance(rows[3], BrokenRow) and isinstance(rows[4], BrokenRow)
    path = write("a.json", '{"rows":', "[1}") / "a.json"
    assert records(path)[0][1].problem.endswith("a .json file holds a list of rows, or one object a line")


def test_tables_and_text(tmp_path):
    (tmp_path / "a.csv").write_text('x,y\r\n1,"a\nb"\r\n\r\n2,c\r\n', newline="")
    assert records(tmp_path / "a.csv") == [
        (f"{tmp_path}/a.csv:2", {"x": "1", "y": "a\nb"}),
        (f"{tmp_path}/a.csv:5", {"x": "2", "y": "c"}),
    ]
    (tmp_path / "a.tsv").write_text('1\t"a,b"\n')
    assert records(tmp_path / "a.tsv", columns=("x", "y")) == [(f"{tmp_path}/a.tsv:1", {"x": "1", "y": "a,b"})]
    (tmp_path / "a.csv").write_text("x,y\n1\n")
    assert "a.csv:2: 1 fields, but there are 2 columns" in refuse(records, tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text(" one \n\ntwo\n")
    assert [row for _, row in records(tmp_path / "a.txt")] == [{"prompt": "one"}, {"prompt": "two"}]


def test_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = [{"a": i, "b": None if i else "x"} for i in range(5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    assert [row for _, row in records(tmp_path / "a.parquet")] == rows
    assert records(tmp_path / "a.parquet")[4][0] == f"{tmp_path}/a.parquet, row 5"
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "not a readable parquet file" in refuse(records, tmp_path / "a.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install .[parquet]" in refuse(records, tmp_path / "a.parquet")


def test_what_cannot_be_read_to_its_end(write, tmp_path):
    path = write("a.jsonl.gz", *({"a": i} for i in range(500))) / "a.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-30])
    assert "a.jsonl.gz: cannot be read to its end" in refuse(records, path)
    (tmp_path / "a.csv").write_bytes(b"\xe9,b\n")
    assert "a.csv: cannot be read to its end" in refuse(records, tmp_path / "a.csv")
    assert kind_of(path) == ".jsonl"


def test_settings(tmp_path):
    file = tmp_path / "config.json"
    for text, message in [
        ("{", "not readable as JSON"),
        ("[1]", "must hold a JSON object"),
        ("[" * 10**5, "not readable"),
    ]:
        file.write_text(text)
        assert refuse(read_json, file).startswith(f"{file}: {message}")
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    assert "--suite takes a TOML file" in refuse(read_toml, tmp_path / "absent.toml", "--suite")


def test_only_a_whole_file_bears_the_name(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"b": "\ud800é", "a": 1})
    assert json.loads(file.read_text()) == {"b": "\ud800é", "a": 1}
    write_json(file, {"b": "\ud800é", "a": 1}, sort_keys=True, ensure_ascii=False)
    assert file.read_text() == '{\n  "a": 1,\n  "b": "\\ud800é"\n}\n'
    with pytest.raises(RuntimeError), atomic(file) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(file.read_text())["a"] == 1
    write_text(file, "new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_a_message_is_one_line():
    assert one_line(ValueError("a\n  b")) == "a b" and one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("a\nb"), with_type=True) == "ValueError: a b"


@pytest.mark.parametrize(
    "text", ["[" * 3000 + "]" * 3000, "[" * 200 + "]" * 200, '{"a": 1, "a": 2}', "9" * 5000, '{"a": "\\ud800"}', "{"]
)
def test_json_that_is_no_setting(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert refuse(read_json, tmp_path / "a.json").startswith(f"{tmp_path}/a.json: not readable as JSON (")
    if "ud800" not in text:  # a row is told apart from its file by the caller
        with pytest.raises(ValueError):
            loads(text)


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "9" * 5000, "{a=" * 3000 + "1" + "}" * 3000, '"\\ud800"'])
def test_toml_that_is_no_setting(tmp_path, value):
    (tmp_path / "a.toml").write_text(f"[train]\nsteps = {value}\n")
    assert refuse(read_toml, tmp_path / "a.toml").startswith(f"{tmp_path}/a.toml is not valid TOML: ")


def test_names_that_no_file_can_have(tmp_path):
    assert "File name too long" in refuse(local_file, tmp_path / ("x" * 300))
    assert "null byte" in refuse(local_file, tmp_path / "a\0b")
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refuse(local_file, tmp_path / "loop")
    assert local_file(tmp_path / "none.jsonl") == tmp_path / "none.jsonl"


@pytest.mark.parametrize("value", [True, "1", None, [1], float("inf"), float("nan"), 10**400])
def test_what_is_no_number_that_a_float_can_hold(value):
    assert not is_finite(value)
    assert is_finite(10**300) and is_finite(-0.5)
