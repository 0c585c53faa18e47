"""Natural errors: public sets and files of the user's own, their traces in one form (docs/natural_errors.md)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.records import DataSet, file_records, reading

PROCESSBENCH = "Qwen/ProcessBench", None, "3bdcd5371ed567559a78f559c01c13a6deee7604"
PRMBENCH = "hitsmy/PRMBench_Preview", None, "5cc7683d0ae5797f84d7aeac0607966f277c39e1"
SOLUTIONS = "https://github.com/openai/grade-school-math (grade_school_math/data/example_model_solutions.jsonl)"
NATURAL_SETS = {
    "gsm8k_solutions": DataSet("gsm8k/example_model_solutions.jsonl", home=SOLUTIONS),
    "processbench_gsm8k": DataSet("processbench/gsm8k.json", *PROCESSBENCH, ("gsm8k",)),
    "processbench_math": DataSet("processbench/math.json", *PROCESSBENCH, ("math",)),
    "prmbench": DataSet("prmbench/*.jsonl", *PRMBENCH, ("train",)),
}
TASK_TYPES = {"math": "math_word_problem", "code": "code"}  # as the reward model reads them, unless a set says more
# What is labelled: whether the answer is right; the first wrong step; pairs of processes with their wrong steps.
Labels = Literal["answer", "first_error", "pairs"]


@dataclass(frozen=True)
class NaturalTrace:
    """One trace of a set. `errors` holds the labelled wrong steps (from 0): of some sets only the first is known."""

    set: str
    item: str  # what belongs together: the two processes of a PRMBench row; else the trace itself
    part: str  # the model that wrote it; `original` or `modified`
    kind: str  # PRMBench's kind of error
    problem: str
    steps: tuple[str, ...]
    errors: tuple[int, ...]
    answer_right: bool | None  # None: not labelled
    labels: Labels = "first_error"
    domain: Literal["math", "code"] = "math"
    task_type: str = TASK_TYPES["math"]

    def as_problem(self) -> Problem:
        """The problem as planner prompts and the reward model read it."""
        unknown = dict.fromkeys(("problem_id", "source", "reference_solution", "answer"), "")
        return Problem(domain=self.domain, task_type=self.task_type, problem=self.problem, **unknown)


def load_natural(name: str, folder: Path | None) -> list[NaturalTrace]:
    """All traces of the public set `name`, from a local folder (NATURAL_SETS names its files) or, without one, the hub.

    Raises:
        MissingSet: no such file, or the hub cannot be reached.
        InputError: a record is not as expected; names file, row and field.
    """
    return _traces(name, NATURAL_SETS[name].records(folder), FORMAT_OF[name])


def load_own(
    name: str, file: str, layout: str, domain: str = "math", task_type: str | None = None
) -> list[NaturalTrace]:
    """All traces of a file of the user's own, a relative path from the project's folder; `layout`: one of FORMATS.

    Rows whose label says nothing are left out, and counted in a line.

    Raises:
        InputError: there is no such file, a record is not as expected, no trace is left, or two have one name.
    """
    path = PROJECT / Path(file).expanduser()
    traces = _traces(name, file_records(path), layout)
    if not traces:
        raise InputError(f"natural_errors.sets.{name}: no labelled trace in {path} (format {layout})")
    seen: set[tuple[str, str]] = set()
    for t in traces:
        if (t.item, t.part) in seen:
            raise InputError(f"natural_errors.sets.{name}: two traces in {path} are called {t.item!r} of {t.part!r}")
        seen.add((t.item, t.part))
    return [replace(t, domain=domain, task_type=task_type or TASK_TYPES[domain]) for t in traces]


def _traces(name: str, records: Iterable[tuple[str, dict]], layout: str) -> list[NaturalTrace]:
    traces: list[NaturalTrace] = []
    unlabelled = rows = 0
    for rows, (where, record) in enumerate(records, start=1):  # noqa: B007
        with reading(where, f"a record of format {layout} (docs/natural_errors.md)"):
            found = FORMATS[layout].model_validate(record).traces(name, str(rows))
        traces += found
        unlabelled += not found
    if unlabelled:
        print(f"{name}: {unlabelled} of {rows} rows have no usable label or no steps and are left out", flush=True)
    return traces


class _Solution(BaseModel, strict=True):
    is_correct: bool
    solution: str


class _SolutionRow(BaseModel, extra="allow"):
    question: str
    ground_truth: Any = None
    __pydantic_extra__: dict[str, _Solution]  # name of a model -> its solution

    def traces(self, name: str, row: str) -> list[NaturalTrace]:
        """One for each model; equal texts of one problem once (labels differ only by the last lines)."""
        if not self.model_extra:
            raise ValueError("no solutions: fields such as '6b_finetuning', each with 'solution' and 'is_correct'")
        traces: dict[tuple[str, ...], NaturalTrace] = {}
        for model, solution in self.model_extra.items():
            item, steps = f"{model}: {self.question}", tuple(trace_of_solution(solution.solution))
            new = NaturalTrace(name, item, model, "", self.question, steps, (), solution.is_correct, "answer")
            traces.setdefault(steps, new)
        return [trace for trace in traces.values() if trace.steps]


class _ProcessRow(BaseModel, strict=True):
    id: str
    generator: str
    problem: str
    steps: list[str] = Field(min_length=1)
    final_answer_correct: bool
    label: int = Field(ge=-1)

    def traces(self, name: str, row: str) -> list[NaturalTrace]:
        errors = _errors("label", [] if self.label == -1 else [self.label], self.steps)
        steps = tuple(map(plain_step, self.steps))
        return [NaturalTrace(name, self.id, self.generator, "", self.problem, steps, errors, self.final_answer_correct)]


class _PrmRow(BaseModel, strict=True):
    idx: str
    classification: str
    original_question: str
    original_process: list[str] = Field(min_length=1)
    modified_process: list[str] = Field(min_length=1)
    error_steps: list[int] | None

    def traces(self, name: str, row: str) -> list[NaturalTrace]:
        """Original and modified process, both as answers to the original question: they differ in the process only.

        (Under its own, changed question a few rows' modified process would be a right answer to another problem.)
        `error_steps` counts from 1; what lies beyond the last step is left out.
        """
        errors = sorted({e - 1 for e in self.error_steps or [] if 1 <= e <= len(self.modified_process)})
        kind, question = self.classification, self.original_question
        item = f"{kind}: {self.idx.removeprefix(kind + '_')}"
        parts = (("original", self.original_process, ()), ("modified", self.modified_process, tuple(errors)))
        return [
            NaturalTrace(name, item, part, kind, question, tuple(map(plain_step, steps)), wrong, None, "pairs")
            for part, steps, wrong in parts
        ]


class _StepsRow(BaseModel, strict=True, extra="forbid"):
    """Ours: the plain form for sets of the user's own."""

    problem: str = Field(min_length=1)
    steps: list[str] = Field(min_length=1)
    errors: list[int] | None = None
    first_error: int | None = None
    answer_right: bool | None = None
    id: str | None = None
    generator: str = ""
    kind: str = ""

    def traces(self, name: str, row: str) -> list[NaturalTrace]:
        given = self.model_fields_set & {"errors", "first_error"}
        if len(given) != 1 or (self.errors is None and "errors" in given):
            raise ValueError("needs either 'errors' (a list, empty if no step is wrong) or 'first_error' (or null)")
        wrong = self.errors if self.errors is not None else [n for n in [self.first_error] if n is not None]
        errors, steps = _errors(*given, sorted(set(wrong)), self.steps), tuple(map(plain_step, self.steps))
        item = self.id if self.id is not None else row
        return [NaturalTrace(name, item, self.generator, self.kind, self.problem, steps, errors, self.answer_right)]


class _BigBenchRow(BaseModel, strict=True):
    """BIG-Bench-Mistake (2311.08516; github.com/WHGTyen/BIG-Bench-Mistake): steps and index count from 0."""

    input: str = Field(min_length=1)
    steps: list[str] = Field(min_length=1)
    mistake_index: int | None
    answer: str | None = None
    target: str | None = None

    def traces(self, name: str, row: str) -> list[NaturalTrace]:
        wrong = [] if self.mistake_index is None else [self.mistake_index]
        errors, steps = _errors("mistake_index", wrong, self.steps), tuple(map(plain_step, self.steps))
        known = self.answer is not None and self.target is not None
        right = self.answer.strip() == self.target.strip() if known else None
        return [NaturalTrace(name, row, "", "", self.input, steps, errors, right)]


class _MrBenRow(BaseModel):
    """Mr-Ben (2406.13975): the first error step counts from 1, or is N/A."""

    Question_UUID: str
    Question: str = Field(min_length=1)
    Options: str | list[str] = ""  # not with coding questions
    Sampled_Model: str
    Subject: str = ""
    Model_Solution_Steps: list[str] | str = Field(min_length=1)
    Model_Solution_Correctness: Literal["correct", "incorrect"]
    Model_Solution_First_Error_Step: int | str | None

    def traces(self, name: str, row: str) -> list[NaturalTrace]:
        """Of an incorrect solution without a step that is named, nothing is known: none."""
        given = self.Model_Solution_Steps
        lines = re.split(r"\n(?=\s*Step\s*\d+)", given) if isinstance(given, str) else given
        number = re.search(r"\d+", str(self.Model_Solution_First_Error_Step))
        wrong = [int(number[0]) - 1] if number and self.Model_Solution_Correctness == "incorrect" else []
        if self.Model_Solution_Correctness == "incorrect" and not wrong:
            return []
        options = self.Options if isinstance(self.Options, str) else "\n".join(self.Options)
        problem = f"{self.Question}\n{options}".strip()
        errors, steps = _errors("Model_Solution_First_Error_Step", wrong, lines), tuple(map(plain_step, lines))
        item = f"{self.Question_UUID}: {self.Sampled_Model}"
        return [NaturalTrace(name, item, self.Sampled_Model, self.Subject, problem, steps, errors, None)]


def _errors(field: str, wrong: Sequence[int], steps: Sequence[str]) -> tuple[int, ...]:
    """The wrong steps, from 0. Raises ValueError: there is no such step."""
    for number in wrong:
        if not 0 <= number < len(steps):
            raise ValueError(f"field {field!r}: step {number}, but there are {len(steps)} steps (the first is 0)")
    return tuple(wrong)


FORMATS: dict[str, type[BaseModel]] = {  # name -> a record of it
    "steps": _StepsRow,
    "processbench": _ProcessRow,
    "prmbench": _PrmRow,
    "bigbench_mistake": _BigBenchRow,
    "mrben": _MrBenRow,
    "gsm8k_solutions": _SolutionRow,
}
FORMAT_OF = {name: name if name in FORMATS else "processbench" for name in NATURAL_SETS}
LABELS_OF: dict[str, Labels] = {  # of the public sets, for tables of scores that do not hold it
    "gsm8k_solutions": "answer",
    "prmbench": "pairs",
    "processbench_gsm8k": "first_error",
    "processbench_math": "first_error",
}


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


def sample_problems(traces: Sequence[NaturalTrace], problems: int | None, seed: int) -> list[NaturalTrace]:
    """The traces of `problems` problems drawn at random (None: of all); where answers are labelled and steps are not,
    of those with right and wrong solutions."""
    answers: dict[str, set[bool | None]] = {}
    for t in traces:
        answers.setdefault(t.problem, set()).add(t.answer_right)
    usable = [p for p, seen in answers.items() if traces[0].labels != "answer" or len(seen) == 2]
    chosen = set(random.Random(seed).sample(usable, min(problems or len(usable), len(usable))))
    return [t for t in traces if t.problem in chosen]


def prefixes(trace: NaturalTrace) -> list[tuple[str, ...]]:
    """What is scored: every prefix of steps; where only the answer is labelled, the whole trace."""
    if trace.labels == "answer":
        return [trace.steps]
    return [trace.steps[: i + 1] for i in range(len(trace.steps))]
