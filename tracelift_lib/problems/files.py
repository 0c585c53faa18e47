"""Files: the project's folders, JSON Lines, and the error for bad input."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
DATA_VARIABLE = "TRACELIFT_DATA"


class InputError(ValueError):
    """Input that a person can mend; the message names the file, line or field and what to do."""


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number from 1, record) of a .jsonl or .jsonl.gz file; blank lines are skipped.

    Raises:
        InputError: the file is missing, or a line is not a JSON object; names file and line.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _json_object(path, number, line)
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged or not UTF-8 text ({error}); get the file again") from None


def _json_object(path: Path, number: int, line: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno}). "
            "Each line must hold one JSON object; was the file cut off while it was written?"
        ) from None
    if not isinstance(record, dict):
        raise InputError(f"{path}:{number}: a JSON {type(record).__name__}, but each line must hold an object")
    return record


def data_folder() -> Path | None:
    """The folder that the environment variable TRACELIFT_DATA names; relative paths count from the project's folder."""
    named = os.environ.get(DATA_VARIABLE)
    return PROJECT / named if named else None


WORK = "work"  # scratch of a stage in the making: checkpoints, partial logs


def write_json(path: Path, value: Any) -> None:
    """Write by rename, so that a reader never sees half a file."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def git_revision() -> str:
    """Newest commit that touched code, notebooks or presets; `+` if they have been changed since.

    Commits of results or prose do not change it, so a figure's footer stays true after it is committed.
    """
    code = ["tracelift_lib", "notebooks", "presets", "pyproject.toml"]
    try:
        revision = _git("log", "-1", "--format=%h", "--abbrev=10", "--", *code)
        changed = _git("status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git)"
    return (revision or "uncommitted") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PROJECT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
