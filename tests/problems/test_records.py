"""Records of files and of the hub: each comes with its place, and what is missing or damaged is named."""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracelift_lib.problems.files import DATA_VARIABLE, InputError
from tracelift_lib.problems.records import DataSet, MissingSet, file_records, find_files, hub_records

ROWS = [{"x": 1}, {"x": 2}]


def write(path, rows=ROWS):
    """`rows` in the form that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = json.dumps(rows) if ".json" in path.suffixes else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines_come_with_their_numbers(tmp_path, name):
    path = write(tmp_path / name)
    assert list(file_records(path)) == [(f"{path}:1", {"x": 1}), (f"{path}:2", {"x": 2})]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.parquet"])
def test_rows_come_with_their_numbers(tmp_path, name):
    path = write(tmp_path / name)
    assert list(file_records(path)) == [(f"{path}: row 0", {"x": 1}), (f"{path}: row 1", {"x": 2})]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.json", b'[{"x": 1},\n{"x"', "a.json:2: not valid JSON.*cut off"),
        ("a.json", b'{"x": 1}', "a.json: a JSON dict"),
        ("a.json", b'[{"x": 1}, 2]', "a.json: row 1: a JSON int"),
        ("a.json.gz", b"plain", "a.json.gz: damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"x": "abc"}\n' * 99, mtime=0)[:15] + b"\xff" * 20, "a.jsonl.gz: damaged"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: damaged or not a parquet file"),
        ("a.jsonl", b'{"x": ' + b"[" * 100_000, "a.jsonl:1: .*nested too deeply"),
        ("a.json", b"[" * 100_000, "a.json: .*nested too deeply"),
        ("a.jsonl", b'{"x": ' + b"9" * 5000 + b"}", "a.jsonl:1: .*digits"),
        ("a.json", b'[{"x": ' + b"9" * 5000 + b"}]", "a.json: .*digits"),
        ("a.jsonl", b'{"x": 1}\n{"x": 1, "y": 2, "x": 3}', "a.jsonl:2: .*'x' is given twice"),
        ("a.jsonl", "{'x': 'für'}".encode("latin-1"), "a.jsonl: damaged or not UTF-8"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        list(file_records(tmp_path / name))


@pytest.mark.parametrize("cut", range(4, 400, 9))
def test_a_parquet_file_with_a_damaged_page_or_footer_is_named(tmp_path, cut):
    """Whatever of Arrow's errors it is that comes of it; some places do no harm."""
    path = write(tmp_path / "a.parquet", [{"x": i, "text": "word " * i} for i in range(40)])
    data = bytearray(path.read_bytes())
    data[cut : cut + 40] = b"\xff" * 40
    path.write_bytes(data)
    try:
        list(file_records(path))
    except InputError as error:
        assert f"{path}: damaged or not a parquet file" in str(error)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_folder_where_a_file_is_meant_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: a folder, but a file is meant"):
        list(file_records(tmp_path / name))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: no such file"):
        list(file_records(tmp_path / name))


def test_a_file_that_is_there_twice_counts_once(tmp_path):
    for name in ("b.jsonl.gz", "a.jsonl", "a.jsonl.gz", "c.json"):
        write(tmp_path / name)
    assert [path.name for path in find_files(tmp_path, "*.jsonl")] == ["a.jsonl", "b.jsonl.gz"]
    assert find_files(tmp_path / "none", "*.jsonl") == []


def test_all_files_of_a_set_are_read_and_a_missing_one_says_what_to_do(tmp_path):
    write(tmp_path / "s" / "a.jsonl")
    write(tmp_path / "s" / "b.jsonl.gz", [{"x": 3}])
    assert [row["x"] for _, row in DataSet("s/*.jsonl", "owner/name").records(tmp_path)] == [1, 2, 3]
    with pytest.raises(MissingSet, match=rf"{tmp_path}: no t\.jsonl .*owner/name.*{DATA_VARIABLE}"):
        list(DataSet("t.jsonl", "owner/name").records(tmp_path))
    for folder in (tmp_path, None):  # a set that is not on the hub
        with pytest.raises(MissingSet, match=rf"t\.jsonl.*https://example\.com.*{DATA_VARIABLE}"):
            list(DataSet("t.jsonl", home="https://example.com").records(folder))


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_the_hub_come_with_name_split_and_number(tmp_path, monkeypatch, streaming):
    """datasets takes a folder for a name of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name = str(tmp_path / "set")
    write(tmp_path / "set" / "train.jsonl")
    write(tmp_path / "set" / "test.jsonl", [{"x": 3}])
    found = list(hub_records(DataSet("", name, splits=("test", "train")), "do without", streaming))
    assert found == [(f"{name} test row 0", {"x": 3}), *((f"{name} train row {i}", row) for i, row in enumerate(ROWS))]
    with pytest.raises(MissingSet, match=f"{re.escape(name)}.*dev.*do without"):
        list(hub_records(DataSet("", name, splits=("dev",)), "do without", streaming))


def test_a_name_that_no_data_set_can_have_is_named():
    with pytest.raises(MissingSet, match="no/such/name.*do without"):
        list(hub_records(DataSet("", "no/such/name"), "do without"))
