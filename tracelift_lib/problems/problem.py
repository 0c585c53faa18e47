"""A problem, whatever its source, and how problems are read from files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tracelift_lib.problems.files import data_folder
from tracelift_lib.problems.records import DataSet, reading

SHOWN_TESTS = "tests_or_constraints"  # key of metadata, named as in the released code's groups


class Frozen(BaseModel):
    """A record whose fields are fixed: none more, none changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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

    @property
    def shown_tests(self) -> str:
        """Tests that are part of the task's statement, as text; the reward model reads them. Empty: none.

        Not `metadata["tests"]`, which the verifier has and no model sees.
        """
        return str(self.metadata.get(SHOWN_TESTS) or "").strip()


def gsm8k_trace(answer: str) -> tuple[str, str]:
    """Split a GSM8K `answer` field into (trace, final answer).

    Calculator annotations `<<48/2=24>>` are unfolded and the `####` line is removed
    (docs/method.md section 3); a whole number loses its thousands commas. Raises ValueError if there is no `####` line.
    """
    body, mark, final = answer.rpartition("####")
    if not mark:
        raise ValueError("no '####' before the final answer")
    trace, final = re.sub(r"<<[^<>]*>>", "", body).strip(), final.strip()
    grouped = re.fullmatch(r"[-+$]*\d{1,3}(?:,\d{3})+(?:\.\d+)?", final)  # not "(1,234)", "1, 2" or "f(x,y)"
    return trace, final.replace(",", "") if grouped else final


def read_gsm8k(
    folder: Path | None, split: Literal["train", "test"], revision: str, streaming: bool = False
) -> Iterator[Problem]:
    """GSM8K's problems one at a time, from `folder` (`gsm8k/<split>.jsonl[.gz]`) or, without one, the hub.

    Raises:
        InputError: the file is missing, a record is not laid out as expected, or the hub cannot be reached.
    """
    data_set = DataSet(f"gsm8k/{split}.jsonl", "openai/gsm8k", "main", revision, (split,))
    for number, (place, record) in enumerate(data_set.records(folder, streaming)):
        with reading(place, "'question' and 'answer' with a '####' line"):
            trace, final = gsm8k_trace(record["answer"])
            problem = Problem(
                problem_id=f"gsm8k-{split}-{number:05d}",
                source="gsm8k",
                domain="math",
                task_type="math_word_problem",
                problem=record["question"],
                reference_solution=trace,
                answer=final,
            )
        yield problem


def load_gsm8k(folder: Path | None, split: Literal["train", "test"], revision: str) -> list[Problem]:
    """All of `read_gsm8k`, from `folder`, else from the folder that the environment variable TRACELIFT_DATA names.

    (Where the same data lie on this machine is no setting of the experiment, so it need not be in the preset.) A
    relative path counts from the project's folder.
    """
    return list(read_gsm8k(data_folder(folder), split, revision))
