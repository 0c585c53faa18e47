"""A problem, whatever its source, and how problems are read from files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tracelift_lib.problems.files import DATA_VARIABLE, PROJECT, InputError, data_folder, read_jsonl
from tracelift_lib.problems.hub import HUB_ERRORS, explain

GSM8K_FIELDS = "'question' and 'answer' with a '####' line"


class Problem(BaseModel):
    """One problem x with what is known about it. `metadata` holds plain JSON values."""

    model_config = ConfigDict(extra="forbid")
    problem_id: str
    source: str
    domain: Literal["math", "code"]
    task_type: str
    problem: str
    reference_solution: str
    answer: str
    metadata: dict[str, Any] = {}


def gsm8k_trace(answer: str) -> tuple[str, str]:
    """Split a GSM8K `answer` field into (trace, final answer).

    Calculator annotations `<<48/2=24>>` are unfolded and the `####` line is removed
    (method.md section 3). Raises ValueError if there is no `####` line.
    """
    body, mark, final = answer.rpartition("####")
    if not mark:
        raise ValueError("no '####' before the final answer")
    trace = re.sub(r"<<[^<>]*>>", "", body).strip()
    return trace, final.strip().replace(",", "")


def load_gsm8k(folder: Path | None, split: Literal["train", "test"], revision: str) -> list[Problem]:
    """GSM8K problems from a local folder (`gsm8k/<split>.jsonl[.gz]`) or the hub.

    Without `folder` the environment variable TRACELIFT_DATA may name one: where the same data lie on this machine
    is no setting of the experiment, so it is not in the preset. Relative paths count from the project's folder.

    Raises:
        InputError: the folder or a record is not laid out as expected, or the hub cannot be reached.
    """
    folder = PROJECT / folder if folder else data_folder()
    records = _hub_records(split, revision) if not folder else _folder_records(folder, split)
    problems = []
    for where, record in records:
        try:
            problems.append(gsm8k_problem(record, f"gsm8k-{split}-{len(problems):05d}"))
        except (KeyError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: not a GSM8K record ({error}); needs {GSM8K_FIELDS}") from None
    return problems


def gsm8k_problem(record: dict, problem_id: str) -> Problem:
    """The problem of one GSM8K record, which has GSM8K_FIELDS; raises KeyError, ValueError and the like if not."""
    trace, final = gsm8k_trace(record["answer"])
    return Problem(
        problem_id=problem_id,
        source="gsm8k",
        domain="math",
        task_type="math_word_problem",
        problem=record["question"],
        reference_solution=trace,
        answer=final,
    )


def _hub_records(split: str, revision: str) -> Iterator[tuple[str, dict]]:
    from datasets import load_dataset

    try:
        rows = load_dataset("openai/gsm8k", "main", split=split, revision=revision)
    except HUB_ERRORS as error:
        local = f"set the environment variable {DATA_VARIABLE} to a folder with gsm8k/{split}.jsonl (or .jsonl.gz)"
        raise InputError(explain(error, "openai/gsm8k", revision, "data set", local)) from None
    yield from ((f"openai/gsm8k {split} row {i}", row) for i, row in enumerate(rows))


def _folder_records(folder: Path, split: str) -> Iterator[tuple[str, dict]]:
    for name in (f"gsm8k/{split}.jsonl", f"gsm8k/{split}.jsonl.gz"):
        if (folder / name).exists():
            yield from ((f"{folder / name}:{n}", row) for n, row in read_jsonl(folder / name))
            return
    raise InputError(
        f"{folder}: no gsm8k/{split}.jsonl or gsm8k/{split}.jsonl.gz; point {DATA_VARIABLE} to a folder that has it, "
        f"or leave {DATA_VARIABLE} and problems.folder empty to download openai/gsm8k from the hub"
    )
