"""Natural errors of public sets: where they come from, and their traces in one form."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from tracelift_lib.problems.files import DATA_VARIABLE, InputError, read_jsonl
from tracelift_lib.problems.problem import Problem

HUB = {  # data set, revision, split
    "processbench_gsm8k": ("Qwen/ProcessBench", "3bdcd5371ed567559a78f559c01c13a6deee7604", "gsm8k"),
    "processbench_math": ("Qwen/ProcessBench", "3bdcd5371ed567559a78f559c01c13a6deee7604", "math"),
    "prmbench": ("hitsmy/PRMBench_Preview", "5cc7683d0ae5797f84d7aeac0607966f277c39e1", "train"),
}
FILES = {  # in a local folder
    "gsm8k_solutions": "gsm8k/example_model_solutions.jsonl",
    "processbench_gsm8k": "processbench/gsm8k.json",
    "processbench_math": "processbench/math.json",
    "prmbench": "prmbench/*.jsonl",
}
SOLUTIONS_HOME = "https://github.com/openai/grade-school-math (grade_school_math/data/example_model_solutions.jsonl)"


class MissingSet(InputError):
    """A set that is neither in the folder nor available from the hub."""


@dataclass(frozen=True)
class NaturalTrace:
    """One trace of a set. `errors` holds the labelled wrong steps (from 0): of ProcessBench only the first is known."""

    set: str
    item: str  # what belongs together: the two processes of a PRMBench row; else the trace itself
    part: str  # the model that wrote it; `original` or `modified`
    kind: str  # PRMBench's kind of error
    problem: str
    steps: tuple[str, ...]
    errors: tuple[int, ...]
    answer_right: bool | None  # None: not labelled

    def as_problem(self) -> Problem:
        """The problem as planner prompts and the reward model read it."""
        unknown = dict.fromkeys(("problem_id", "source", "reference_solution", "answer"), "")
        return Problem(domain="math", task_type="math_word_problem", problem=self.problem, **unknown)


class _Solution(BaseModel, strict=True):
    is_correct: bool
    solution: str


class _SolutionRow(BaseModel, extra="allow"):
    question: str
    ground_truth: Any = None
    __pydantic_extra__: dict[str, _Solution]  # name of a model -> its solution


class _ProcessRow(BaseModel, strict=True):
    id: str
    generator: str
    problem: str
    steps: list[str] = Field(min_length=1)
    final_answer_correct: bool
    label: int = Field(ge=-1)


class _PrmRow(BaseModel, strict=True):
    idx: str
    classification: str
    original_question: str
    original_process: list[str] = Field(min_length=1)
    modified_process: list[str] = Field(min_length=1)
    error_steps: list[int] | None


def load_natural(name: str, folder: Path | None) -> list[NaturalTrace]:
    """All traces of the set `name`, from a local folder (FILES, each also as .gz) or, without one, from the hub.

    Raises:
        MissingSet: no such file, or the hub cannot be reached.
        InputError: a record is not as expected; names file, row and field.
    """
    records = _folder_records(name, folder) if folder else _hub_records(name)
    read = {"gsm8k_solutions": _solutions, "prmbench": _prm_pair}.get(name, _process)
    traces: list[NaturalTrace] = []
    for where, record in records:
        try:
            traces += read(name, record)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(f"{where}: field {field!r}: {first['msg']}; this is not a record of {name}") from None
        except ValueError as error:
            raise InputError(f"{where}: {error}; this is not a record of {name}") from None
    return traces


def _folder_records(name: str, folder: Path) -> Iterator[tuple[str, dict]]:
    paths = sorted([*folder.glob(FILES[name]), *folder.glob(FILES[name] + ".gz")])
    if not paths:
        where = SOLUTIONS_HOME if name not in HUB else f"data set {HUB[name][0]} on the Hugging Face hub"
        raise MissingSet(
            f"{folder}: no {FILES[name]} (or .gz) for the set {name}; point {DATA_VARIABLE} to a folder that has it. "
            f"It comes from {where}"
        )
    for path in paths:
        if ".jsonl" in path.suffixes:
            yield from ((f"{path}:{number}", record) for number, record in read_jsonl(path))
        else:
            yield from ((f"{path}: row {i}", record) for i, record in enumerate(_json_list(path)))


def _json_list(path: Path) -> list[dict]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            rows = json.load(file)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); was the file cut off?") from None
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged or not UTF-8 text ({error}); get the file again") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: a JSON {type(rows).__name__}, but the file must hold a list of objects")
    return rows


def _hub_records(name: str) -> Iterator[tuple[str, dict]]:
    if name not in HUB:
        raise MissingSet(
            f"the set {name} is not on the hub: get it from {SOLUTIONS_HOME} and set the environment variable "
            f"{DATA_VARIABLE} to a folder that holds {FILES[name]} (or .gz)"
        )
    from datasets import load_dataset

    path, revision, split = HUB[name]
    try:
        rows = load_dataset(path, split=split, revision=revision)
    except OSError as error:
        raise MissingSet(
            f"could not get {path} from the Hugging Face hub ({error}). Try again with a network, or set the "
            f"environment variable {DATA_VARIABLE} to a local folder that holds {FILES[name]} (or .gz)"
        ) from None
    yield from ((f"{path} {split} row {i}", row) for i, row in enumerate(rows))


def _solutions(name: str, record: dict) -> list[NaturalTrace]:
    """One trace per model; equal texts of one problem once (labels of equal texts differ only by their last lines)."""
    row = _SolutionRow.model_validate(record)
    if not row.model_extra:
        raise ValueError("no solutions: fields such as '6b_finetuning', each with 'solution' and 'is_correct'")
    traces: dict[tuple[str, ...], NaturalTrace] = {}
    for model, solution in row.model_extra.items():
        steps = tuple(trace_of_solution(solution.solution))
        if steps:
            item = f"{model}: {row.question}"
            new = NaturalTrace(name, item, model, "", row.question, steps, (), solution.is_correct)
            traces.setdefault(steps, new)
    return list(traces.values())


def trace_of_solution(solution: str) -> list[str]:
    """The lines of a GSM8K model solution, without calculator notes `<<3*2=6>>` and without the last line `A: 6`.

    The notes are marks of the data set, not reasoning. The last line goes because `is_correct` was computed from it
    and the RM's training traces end before the answer: what is asked is whether the reasoning looks right.
    """
    lines = [line.strip() for line in re.sub(r"<<[^<>]*(>>|$)", "", solution).strip().splitlines()]
    if lines and re.match(r"(A:|####)", lines[-1]):
        lines.pop()
    return [line for line in lines if line]


def plain_step(step: str) -> str:
    """A step without its number and without PRMBench's closing `# Answer` block.

    Only one of the two processes of some PRMBench rows has them, and a score must not tell the two apart by that.
    """
    return re.sub(r"^\s*(Step\s*)?\d+[.:)]\s+", "", step.split("\n# Answer")[0]).strip() or step.strip()


def _process(name: str, record: dict) -> list[NaturalTrace]:
    row = _ProcessRow.model_validate(record)
    if row.label >= len(row.steps):
        raise ValueError(f"field 'label': {row.label}, but there are {len(row.steps)} steps (the first is 0)")
    errors = () if row.label == -1 else (row.label,)
    steps = tuple(map(plain_step, row.steps))
    return [NaturalTrace(name, row.id, row.generator, "", row.problem, steps, errors, row.final_answer_correct)]


def _prm_pair(name: str, record: dict) -> list[NaturalTrace]:
    """Original and modified process, both as answers to the original question: then they differ in the process only.

    (Under its own, changed question a few rows' modified process would be a right answer to another problem.)
    `error_steps` counts from 1; what lies beyond the last step is left out.
    """
    row = _PrmRow.model_validate(record)
    errors = tuple(sorted({e - 1 for e in row.error_steps or [] if 1 <= e <= len(row.modified_process)}))
    kind = row.classification
    item = f"{kind}: {row.idx.removeprefix(kind + '_')}"
    parts = (("original", row.original_process, ()), ("modified", row.modified_process, errors))
    return [
        NaturalTrace(name, item, part, kind, row.original_question, tuple(map(plain_step, steps)), wrong, None)
        for part, steps, wrong in parts
    ]


def sample_problems(traces: Sequence[NaturalTrace], problems: int, seed: int) -> list[NaturalTrace]:
    """The traces of `problems` problems drawn at random; of gsm8k_solutions those with right and wrong solutions."""
    answers: dict[str, set[bool | None]] = {}
    for t in traces:
        answers.setdefault(t.problem, set()).add(t.answer_right)
    usable = [p for p, seen in answers.items() if traces[0].set != "gsm8k_solutions" or len(seen) == 2]
    chosen = set(random.Random(seed).sample(usable, min(problems, len(usable))))
    return [t for t in traces if t.problem in chosen]


def prefixes(trace: NaturalTrace) -> list[tuple[str, ...]]:
    """What is scored: every prefix of steps; of gsm8k_solutions, whose steps have no labels, the whole trace only."""
    if trace.set == "gsm8k_solutions":
        return [trace.steps]
    return [trace.steps[: i + 1] for i in range(len(trace.steps))]
