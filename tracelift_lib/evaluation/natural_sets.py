"""Natural errors of public sets: where they come from, and their traces in one form."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.records import DataSet, reading

PROCESSBENCH = "Qwen/ProcessBench", None, "3bdcd5371ed567559a78f559c01c13a6deee7604"
PRMBENCH = "hitsmy/PRMBench_Preview", None, "5cc7683d0ae5797f84d7aeac0607966f277c39e1"
SOLUTIONS = "https://github.com/openai/grade-school-math (grade_school_math/data/example_model_solutions.jsonl)"
NATURAL_SETS = {
    "gsm8k_solutions": DataSet("gsm8k/example_model_solutions.jsonl", home=SOLUTIONS),
    "processbench_gsm8k": DataSet("processbench/gsm8k.json", *PROCESSBENCH, ("gsm8k",)),
    "processbench_math": DataSet("processbench/math.json", *PROCESSBENCH, ("math",)),
    "prmbench": DataSet("prmbench/*.jsonl", *PRMBENCH, ("train",)),
}


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


def load_natural(name: str, folder: Path | None) -> list[NaturalTrace]:
    """All traces of the set `name`, from a local folder (NATURAL_SETS names its files) or, without one, from the hub.

    Raises:
        MissingSet: no such file, or the hub cannot be reached.
        InputError: a record is not as expected; names file, row and field.
    """
    traces: list[NaturalTrace] = []
    for where, record in NATURAL_SETS[name].records(folder):
        with reading(where, f"a record of {name}"):
            traces += ROWS.get(name, _ProcessRow).model_validate(record).traces(name)
    return traces


class _Solution(BaseModel, strict=True):
    is_correct: bool
    solution: str


class _SolutionRow(BaseModel, extra="allow"):
    question: str
    ground_truth: Any = None
    __pydantic_extra__: dict[str, _Solution]  # name of a model -> its solution

    def traces(self, name: str) -> list[NaturalTrace]:
        """One for each model; equal texts of one problem once (labels differ only by the last lines)."""
        if not self.model_extra:
            raise ValueError("no solutions: fields such as '6b_finetuning', each with 'solution' and 'is_correct'")
        traces: dict[tuple[str, ...], NaturalTrace] = {}
        for model, solution in self.model_extra.items():
            item, steps = f"{model}: {self.question}", tuple(trace_of_solution(solution.solution))
            new = NaturalTrace(name, item, model, "", self.question, steps, (), solution.is_correct)
            traces.setdefault(steps, new)
        return [trace for trace in traces.values() if trace.steps]


class _ProcessRow(BaseModel, strict=True):
    id: str
    generator: str
    problem: str
    steps: list[str] = Field(min_length=1)
    final_answer_correct: bool
    label: int = Field(ge=-1)

    def traces(self, name: str) -> list[NaturalTrace]:
        if self.label >= len(self.steps):
            raise ValueError(f"field 'label': {self.label}, but there are {len(self.steps)} steps (the first is 0)")
        errors = () if self.label == -1 else (self.label,)
        steps = tuple(map(plain_step, self.steps))
        return [NaturalTrace(name, self.id, self.generator, "", self.problem, steps, errors, self.final_answer_correct)]


class _PrmRow(BaseModel, strict=True):
    idx: str
    classification: str
    original_question: str
    original_process: list[str] = Field(min_length=1)
    modified_process: list[str] = Field(min_length=1)
    error_steps: list[int] | None

    def traces(self, name: str) -> list[NaturalTrace]:
        """Original and modified process, both as answers to the original question: they differ in the process only.

        (Under its own, changed question a few rows' modified process would be a right answer to another problem.)
        `error_steps` counts from 1; what lies beyond the last step is left out.
        """
        errors = sorted({e - 1 for e in self.error_steps or [] if 1 <= e <= len(self.modified_process)})
        kind, question = self.classification, self.original_question
        item = f"{kind}: {self.idx.removeprefix(kind + '_')}"
        parts = (("original", self.original_process, ()), ("modified", self.modified_process, tuple(errors)))
        return [
            NaturalTrace(name, item, part, kind, question, tuple(map(plain_step, steps)), wrong, None)
            for part, steps, wrong in parts
        ]


ROWS = {"gsm8k_solutions": _SolutionRow, "prmbench": _PrmRow}  # else a row of ProcessBench


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
