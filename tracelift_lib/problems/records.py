"""Records of data sets, from local files or the Hugging Face hub, each with the place that it comes from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from tracelift_lib.problems.files import (
    DATA_VARIABLE,
    InputError,
    json_object,
    open_text,
    parse_json,
    read_jsonl,
    require_file,
)
from tracelift_lib.problems.hub import HUB_ERRORS, explain

BATCH = 1000  # rows of a parquet file in memory
Schema = TypeVar("Schema")


class MissingSet(InputError):
    """A data set that is neither in the local folder nor available from the hub."""


@dataclass(frozen=True)
class DataSet:
    """Where the records of a data set are, in a local folder and on the hub.

    Attributes:
        files: pattern of its files in a local folder; each may also be there with `.gz` at its end.
        hub: its name on the hub; None: it is not there.
        config, revision, splits: what is read on the hub; the splits one after the other.
        home: where people find it if it is not on the hub.
    """

    files: str
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    splits: tuple[str, ...] = ("train",)
    home: str = ""

    def records(self, folder: Path | None, streaming: bool = False) -> Iterator[tuple[str, dict]]:
        """(place, record) of every row, from `folder` or, without one, from the hub.

        streaming: read the hub's rows as they arrive, instead of downloading the data set into its cache first.

        Raises:
            MissingSet: it is not there; says what to do.
            InputError: a file is damaged, or a line or row holds no object; names it.
        """
        if folder is not None:
            paths = find_files(folder, self.files)
            if not paths:
                other = f"or none to use the hub ({self.hub})" if self.hub else f"which comes from {self.home}"
                raise MissingSet(
                    f"{folder}: no {self.files} (or .gz); name a folder that holds it, {other}. The folder is a "
                    f"setting, or the environment variable {DATA_VARIABLE}"
                )
            for path in paths:
                yield from file_records(path)
            return
        instead = f"set the environment variable {DATA_VARIABLE} to a local folder that holds {self.files} (or .gz)"
        if self.hub is None:
            raise MissingSet(f"{self.files} is not on the hub: get it from {self.home} and {instead}")
        yield from hub_records(self, instead, streaming)


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files of `folder` that match `pattern`, ordered by name; one that is there also with `.gz` counts once."""
    found = [*folder.glob(f"{pattern}.gz"), *folder.glob(pattern)]
    by_name = {str(path).removesuffix(".gz"): path for path in found}
    return [by_name[name] for name in sorted(by_name)]


def file_records(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, record) of a .parquet file, of a .json file that holds one list, or of a JSON Lines file (all others).

    `place` is `file:line` (from 1), or `file: row n` (from 0).

    Raises:
        InputError: the file is missing or damaged, or a line or row holds no object; names it.
    """
    if path.name.endswith((".json", ".json.gz")):
        for number, row in enumerate(_json_list(path)):
            place = f"{path}: row {number}"
            yield place, json_object(place, row)
    elif path.suffix == ".parquet":
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(_table_rows(path)))
    else:
        yield from ((f"{path}:{number}", record) for number, record in read_jsonl(path))


def _json_list(path: Path) -> list:
    with open_text(path) as file:
        try:
            rows = parse_json(file.read(), str(path))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); was the file cut off?") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: a JSON {type(rows).__name__}, but the file must hold a list of objects")
    return rows


def _table_rows(path: Path) -> Iterator[dict]:
    import pyarrow as pa  # takes half a second, and most runs read text
    import pyarrow.parquet as pq

    require_file(path)
    try:
        for batch in pq.ParquetFile(path).iter_batches(BATCH):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # of Arrow's own, one kind for each part of the file
        raise InputError(f"{path}: damaged or not a parquet file ({error}); get the file again") from None


def hub_records(data_set: DataSet, instead: str, streaming: bool = False) -> Iterator[tuple[str, dict]]:
    """(place, record) of a data set's rows on the hub; `place` is `name split row n` (from 0).

    Raises:
        MissingSet: it is unavailable; says why, and that one can do what `instead` says.
    """
    from datasets import load_dataset  # takes a second, and most runs use local files

    name, revision = data_set.hub, data_set.revision
    for split in data_set.splits:
        try:
            rows = load_dataset(name, data_set.config, split=split, revision=revision, streaming=streaming)
            yield from ((f"{name} {split} row {number}", row) for number, row in enumerate(rows))
        except HUB_ERRORS as error:
            raise MissingSet(explain(error, name, revision, "data set", instead)) from None
        except ValueError as error:  # no valid name, or no such configuration or split
            raise MissingSet(f"data set {name}, split {split}: {error}. Correct the name, or {instead}") from None


@contextlib.contextmanager
def reading(place: str, needs: str) -> Iterator[None]:
    """Turns what goes wrong with one record into an InputError that names its place, and what a record `needs`."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "record"
        raise InputError(f"{place}: field {field}: {first['msg']}; needs {needs}") from None
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, SyntaxError, StopIteration) as error:
        raise InputError(f"{place}: not laid out as expected ({error!r}); needs {needs}") from None


def data_file(path: Path, schema: type[Schema]) -> Schema:
    """The content of a YAML file that lies beside its module, in the form of the type `schema`.

    Raises:
        InputError: a field is missing, unknown or of another type; names the file and the field.
    """
    with path.open(encoding="utf-8") as file, reading(str(path), "the fields that the module which reads it declares"):
        return TypeAdapter(schema).validate_python(yaml.safe_load(file))
