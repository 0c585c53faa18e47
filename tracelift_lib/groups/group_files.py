"""Files of TraceLift-Groups: written as a stream, read in every form it is released in, and checked line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from tracelift_lib.groups.schema import Group, dimensions
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.records import file_records, find_files, hub_records, reading

HUB_NAME = "ScottHan/TraceLift-Groups"
BATCH = 1000  # groups in memory while parquet is written; a row group each, whose description the writer keeps
TOTAL_SLACK = 0.005  # total and raw score / 10 may differ by rounding


class GroupWriter:
    """Writes groups to `<stem>.jsonl` and `<stem>.parquet`, a batch at a time. A context manager."""

    def __init__(self, stem: Path, domain: str):
        self._schema = parquet_schema(domain)
        self._lines = stem.with_suffix(".jsonl").open("w", encoding="utf-8")
        self._parquet = pq.ParquetWriter(stem.with_suffix(".parquet"), self._schema)
        self._batch: list[dict] = []
        self.count = 0

    def write(self, record: dict) -> None:
        """One record as `Group.to_record` makes it."""
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._batch.append(record | {"metadata": json.dumps(record["metadata"], ensure_ascii=False)})
        self.count += 1
        if len(self._batch) == BATCH:
            self._flush()

    def _flush(self) -> None:
        self._parquet.write_table(pa.Table.from_pylist(self._batch, self._schema))
        self._batch = []

    def __enter__(self) -> GroupWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._flush()
        self._lines.close()
        self._parquet.close()


def parquet_schema(domain: str) -> pa.Schema:
    """The released record as columns. `metadata` is JSON text, because its keys differ between sources."""
    rubric = pa.struct([*((name, pa.int64()) for name in dimensions(domain)), ("total", pa.float64())])
    trace = pa.struct(
        [
            ("reasoning", pa.string()),
            ("rubric", rubric),
            ("negative_kind", pa.string()),
            ("rubric_label", pa.string()),
            ("rubric_score_raw", pa.float64()),
            ("rubric_reason", pa.string()),
        ]
    )
    text = ("problem_id", "source", "task_type", "problem", "reference_solution")
    return pa.schema(
        [
            *((name, pa.string()) for name in text),
            ("positive_pool", pa.list_(trace)),
            ("negative_bank", pa.list_(trace)),
            ("metadata", pa.string()),
        ]
    )


# --- reading ----------------------------------------------------------------------------------


def load_released(where: str | Path, split: str = "train", revision: str | None = None) -> Iterator[Group]:
    """The groups of a .jsonl or .parquet file, of a folder that holds `<split>.jsonl` or `<split>.parquet`, or of a
    data set on the Hugging Face hub such as HUB_NAME, one at a time.

    Raises:
        InputError: nothing is there, or a record breaks the schema; names file, line or row, and field.
    """
    path = Path(where)
    if path.is_dir():
        names = (f"{split}.jsonl", f"{split}.parquet")
        found = [file for name in names for file in find_files(path, name)]
        if not found:
            raise InputError(f"{path}: none of {names[0]}, {names[0]}.gz, {names[1]} in this folder")
        path = found[0]
    if path.exists():
        records = file_records(path)
    else:
        records = hub_records(str(where), [split], revision, "name a file or folder that is here")
    for place, record in records:
        with reading(place, "a group of docs/method.md section 3"):
            group = Group.model_validate(_without_gaps(record))
        yield group


def _without_gaps(record: dict) -> dict:
    """A row of a table as a record: absent fields are left out, metadata in JSON text is read."""
    record = {k: v for k, v in record.items() if v is not None}
    if isinstance(record.get("metadata"), str):
        record["metadata"] = json.loads(record["metadata"] or "{}")
    for pool in ("positive_pool", "negative_bank"):
        if isinstance(record.get(pool), list):
            record[pool] = [_filled(c) for c in record[pool]]
    return record


def _filled(trace: Any) -> Any:
    if not isinstance(trace, dict):
        return trace
    kept = {k: v for k, v in trace.items() if v is not None}
    if isinstance(kept.get("rubric"), dict):
        kept["rubric"] = {k: v for k, v in kept["rubric"].items() if v is not None}
    return kept


def _field(loc: tuple) -> str:
    return ".".join(map(str, loc)) or "record"


# --- strict validation ------------------------------------------------------------------------


class Violation(NamedTuple):
    """One thing that is wrong, and where."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.message}"


def violations(files: Iterable[Path]) -> Iterator[Violation]:
    """Everything in these .jsonl files that breaks the schema or the rules of a group, not only the first fault.

    Strict: a number as text is a fault. Rules: a problem is in one group of one file (groups are never split); a
    negative is no copy of a positive or of another negative; `total` is `rubric_score_raw` / 10.
    """
    seen: dict[str, tuple[Path, int]] = {}
    for path in files:
        for number, line in _lines(path):
            record, faults = _parse(line)
            yield from (Violation(path, number, field, message) for field, message in faults)
            if not isinstance(record, dict):
                continue
            yield from (Violation(path, number, field, message) for field, message in _faults(record))
            name = record.get("problem_id")
            if isinstance(name, str):
                if name in seen:
                    file, where = seen[name]
                    yield Violation(path, number, "problem_id", f"{name!r} is also in {file}:{where}")
                seen.setdefault(name, (path, number))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        yield from enumerate(file, start=1)


def _parse(line: bytes) -> tuple[Any, list[tuple[str, str]]]:
    faults: list[tuple[str, str]] = []

    def once(pairs: list[tuple[str, Any]]) -> dict:
        names = [name for name, _ in pairs]
        faults.extend((name, "this key is given twice") for name in {n for n in names if names.count(n) > 1})
        return dict(pairs)

    if not line.strip():
        return None, [("record", "blank line")]
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=once)
    except UnicodeDecodeError as error:
        return None, [("record", f"not UTF-8 text ({error.reason} at byte {error.start})")]
    except json.JSONDecodeError as error:
        return None, [("record", f"not valid JSON ({error.msg} at column {error.colno})")]
    if not isinstance(record, dict):
        faults.append(("record", f"a JSON {type(record).__name__}, but each line must hold an object"))
    return record, faults


def _faults(record: dict) -> Iterator[tuple[str, str]]:
    try:
        group = Group.model_validate(record, strict=True)
    except ValidationError as error:
        yield from ((_field(e["loc"]), e["msg"]) for e in error.errors())
        return
    texts: dict[str, str] = {}
    for pool in ("positive_pool", "negative_bank"):
        for i, trace in enumerate(getattr(group, pool)):
            where, plain = f"{pool}.{i}", " ".join(trace.reasoning.split())
            if not plain:
                yield f"{where}.reasoning", "only white space"
            if plain in texts:
                yield f"{where}.reasoning", f"the same text as {texts[plain]}"
            texts.setdefault(plain, where)
            if pool == "positive_pool" and trace.negative_kind is not None:
                yield f"{where}.negative_kind", "a reference trace has no kind of flaw"
            raw = trace.rubric_score_raw
            if raw is not None and abs(raw / 10 - trace.rubric.total) > TOTAL_SLACK:
                yield f"{where}.rubric.total", f"{trace.rubric.total}, but rubric_score_raw / 10 is {raw / 10:.4g}"
