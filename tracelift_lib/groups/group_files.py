"""Files of TraceLift-Groups: written as a stream, read in every form they are released in, and checked line by line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from tracelift_lib.groups.schema import Group, dimensions
from tracelift_lib.problems.files import InputError, parse_json, require_file
from tracelift_lib.problems.records import DataSet, file_records, find_files, hub_records, reading

HUB_NAME = "ScottHan/TraceLift-Groups"
BATCH = 1000  # groups in memory while parquet is written; a row group each, whose description the writer keeps
TOTAL_SLACK = 0.005  # total and raw score / 10 may differ by rounding
Fault = tuple[str, str]  # the field, and what is wrong with it


def write_parquet(path: Path, domain: str) -> None:
    """Writes the groups of a .jsonl file also to a .parquet file beside it, a batch at a time."""
    schema = parquet_schema(domain)
    with path.open(encoding="utf-8") as lines, pq.ParquetWriter(path.with_suffix(".parquet"), schema) as writer:
        records = map(json.loads, lines)
        while batch := list(islice(records, BATCH)):
            rows = [row | {"metadata": json.dumps(row["metadata"], ensure_ascii=False)} for row in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def parquet_schema(domain: str) -> pa.Schema:
    """The released record as columns. `metadata` is JSON text, because its keys differ between sources."""
    text, number = pa.string(), pa.float64()
    trace = {
        "reasoning": text,
        "rubric": pa.struct(dict.fromkeys(dimensions(domain), pa.int64()) | {"total": number}),
        "negative_kind": text,
        "rubric_label": text,
        "rubric_score_raw": number,
        "rubric_reason": text,
    }
    pools = dict.fromkeys(("positive_pool", "negative_bank"), pa.list_(pa.struct(trace)))
    texts = dict.fromkeys(("problem_id", "source", "task_type", "problem", "reference_solution"), text)
    return pa.schema(texts | pools | {"metadata": text})


# --- reading ----------------------------------------------------------------------------------


def load_groups(where: str | Path, split: str = "train", revision: str | None = None) -> Iterator[Group]:
    """The groups of a .jsonl[.gz] or .parquet file, of a folder that holds one of `split`, or of a data set on the
    Hugging Face hub such as HUB_NAME, one at a time. None stands for an absent field, as in tables.

    In a folder the file is `<split>.jsonl[.gz]`, `<split>.parquet`, or as the released scripts name theirs,
    `<split>_groups*.jsonl[.gz]`.

    Raises:
        InputError: nothing is there, a record breaks the schema, has no flawed trace, or is of a problem that was there
            before; names file, line or row, and field.
    """
    path = Path(where)
    if path.is_dir():
        path = _file_of(path, split)
    if path.exists() or path.suffix in (".json", ".jsonl", ".gz", ".parquet"):
        records = file_records(path)
    else:
        data_set = DataSet(f"{split}.jsonl", str(where), revision=revision, splits=(split,))
        records = hub_records(data_set, "name a file or folder that is here")
    seen: dict[str, str] = {}
    for place, record in records:
        with reading(place, "the schema of TraceLift-Groups (docs/method.md section 3)"):
            record = _without_gaps(record)
            if isinstance(record.get("metadata"), str):
                record["metadata"] = parse_json(record["metadata"] or "{}", f"{place}: field metadata")
            group = Group.model_validate(record)
            group.as_problem()
        if not group.negative_bank:
            raise InputError(f"{place}: field negative_bank: no flawed trace, so nothing to rank; leave this group out")
        if group.problem_id in seen:
            raise InputError(f"{place}: field problem_id: {group.problem_id!r} is also in {seen[group.problem_id]}")
        seen[group.problem_id] = place
        yield group


def _file_of(folder: Path, split: str) -> Path:
    """The file of a split in a folder of groups."""
    names = (f"{split}.jsonl", f"{split}.parquet", f"{split}_groups*.jsonl")
    found = next(filter(None, (find_files(folder, name) for name in names)), [])
    if not found:
        raise InputError(f"{folder}: none of {', '.join(names)} (or .gz) in this folder")
    if len(found) > 1:
        raise InputError(f"{folder}: several files of {split}: {', '.join(f.name for f in found)}; name one of them")
    return found[0]


def _without_gaps(value: Any) -> Any:
    """A row of a table as a record: fields that a record leaves out are None there. Metadata stays as it is."""
    if isinstance(value, list):
        return [_without_gaps(item) for item in value]
    if isinstance(value, dict):
        return {k: v if k == "metadata" else _without_gaps(v) for k, v in value.items() if v is not None}
    return value


# --- strict validation ------------------------------------------------------------------------


def violations(files: Iterable[Path]) -> Iterator[str]:
    """Everything in these .jsonl files that breaks the schema or the rules of a group, as `file:line: field: fault`.

    Strict: a number as text is a fault. Rules: a problem is in one group of one file (groups are never split); a
    negative is no copy of a positive or of another negative; `total` is `rubric_score_raw` / 10.

    Raises:
        InputError: a file is missing.
    """
    seen: dict[str, str] = {}
    for path in files:
        require_file(path)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                place, (record, faults) = f"{path}:{number}", _strictly_read(line)
                name = record.get("problem_id") if isinstance(record, dict) else None
                if isinstance(name, str):
                    if name in seen:
                        faults.append(("problem_id", f"{name!r} is also in {seen[name]}"))
                    seen.setdefault(name, place)
                yield from (f"{place}: {field}: {message}" for field, message in faults)


def _strictly_read(line: bytes) -> tuple[Any, list[Fault]]:
    """What a line holds, and everything that is wrong with it."""
    repeated: list[Fault] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        counts = Counter(name for name, _ in pairs)
        repeated.extend((name, "this key is given twice") for name, n in counts.items() if n > 1)
        return dict(pairs)

    if not line.strip():
        return None, [("record", "blank line")]
    try:
        record = json.loads(line.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        return None, [("record", f"not valid JSON in UTF-8 ({error})")]
    try:
        faults = list(_broken_rules(Group.model_validate(record, strict=True)))
    except ValidationError as error:
        faults = [(".".join(map(str, e["loc"])) or "record", e["msg"]) for e in error.errors()]
    return record, repeated + faults


def _broken_rules(group: Group) -> Iterator[Fault]:
    """What the schema cannot say."""
    texts: dict[str, str] = {}
    if not group.negative_bank:
        yield "negative_bank", "no flawed trace"
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
