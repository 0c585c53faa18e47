"""Case studies: groups of a planner's completions, chosen from logged rollouts by a stated rule.

A case is one group (the completions for one problem in one step) with all that is known of it; viewer.py draws it. What
the log does not have, the executor's texts and the RM's rubric, `replay` draws anew from the same frozen models.
"""

from __future__ import annotations

import difflib
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from tracelift_lib.executor.frozen import Executor
from tracelift_lib.groups.habits import habit_of
from tracelift_lib.groups.schema import dimensions
from tracelift_lib.groups.truth import has_truth
from tracelift_lib.planner.rewards import ARMS, NEEDS
from tracelift_lib.planner.theory import advantages
from tracelift_lib.problems.code_tests import StdioTests, read_tests
from tracelift_lib.problems.files import InputError, file_sha256, read_jsonl
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinycode import read_plan
from tracelift_lib.problems.tinyworld import read_lines
from tracelift_lib.reward_model.scorer import TraceScorer
from tracelift_lib.verifier.verify_code import CodeVerifier, extract_program

REQUIRED = ("problem_id", "trace", "reward")  # columns without which a table is none of rollouts
GROUP = ["arm", "seed", "step", "problem_id"]  # what the completions of one group share
COMPARED = ("exec_only", "tracelift")
MOST = 4_000  # characters of one text that are shown
LONGEST = 20_000  # characters of one text that are read: nothing that a planner writes on purpose is longer


def visible(text: str, most: int = MOST) -> str:
    """Plain text in which nothing hides: control, format and surrogate characters as ⟨U+202E⟩, a long text cut."""
    cut = f" … ({len(text) - most:,} more characters)" if len(text) > most else ""
    return "".join(map(_shown, text[:most])) + cut


def _shown(character: str) -> str:
    usual = character in "\n\t " or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return character if usual else f"⟨U+{ord(character):04X}⟩"


# --- what a case holds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One line of a trace. `missing`: a line of the reference that the trace lacks here; empty: nobody knows."""

    text: str
    mark: Literal["right", "wrong", "missing", ""] = ""


@dataclass(frozen=True)
class Sample:
    """An executor's answer with its verdict; of a program also (test, outcome) for each test."""

    answer: str
    success: bool
    outcome: str
    tests: tuple[tuple[str, str], ...] = ()


@dataclass
class Trace:
    """One trace of a group: how many completions wrote it, and what it was paid.

    Attributes:
        parts: s, q, u and so on, those that are known.
        paid: arm -> (reward, advantage in this group).
        rubric: dimension -> the RM's expected label, 0 to 4.
        note: why there is no trace or no reward.
    """

    steps: list[Step]
    label: str = ""
    times: int = 1
    parts: dict[str, float] = field(default_factory=dict)
    paid: dict[str, tuple[float, float]] = field(default_factory=dict)
    rubric: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    note: str = ""

    @property
    def text(self) -> str:
        """The trace as it was written."""
        return "\n".join(step.text for step in self.steps if step.mark != "missing")


@dataclass
class Case:
    """A problem and the traces of one or more groups for it: column -> traces. `why` says which rule chose it."""

    title: str
    why: str
    problem: Problem
    columns: dict[str, list[Trace]]
    without: list[Sample] = field(default_factory=list)

    def __str__(self) -> str:
        """The case as plain text, for places that show no HTML."""
        lines = [f"{self.title} ({self.why})", self.problem.problem]
        for name, traces in self.columns.items():
            for trace in traces:
                paid = ", ".join(f"{arm} r={r:.2f} A={a:+.2f}" for arm, (r, a) in trace.paid.items())
                lines.append(f"[{name}] {trace.times} x {trace.label} {trace.note}: {paid}")
                lines += [f"    {MARKS[step.mark]} {step.text}" for step in trace.steps]
        return "\n".join(map(visible, lines))


MARKS = {"right": "+", "wrong": "x", "missing": "?", "": " "}


# --- rollouts -------------------------------------------------------------------------------------------


def read_rollouts(paths: Iterable[Path]) -> pd.DataFrame:
    """Rollouts of one or more runs in one table with columns `arm`, `seed` and `step`.

    Arm and seed are those of the manifest beside a file, else the name of its folder, and 0.

    Raises:
        InputError: a file is missing, no parquet, empty, or lacks a column; names it.
    """
    tables = []
    for path in paths:
        try:
            with path.open("rb") as file:  # a folder is refused: it could hold more than one table
                table = pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise InputError(f"{path}: not a readable parquet file ({error})") from None
        if missing := [name for name in REQUIRED if name not in table]:
            raise InputError(f"{path}: no column {missing}; rollouts have {list(REQUIRED)} at least")
        if table.empty:
            raise InputError(f"{path}: no rows")
        config = _manifest(path).get("config", {})
        known = {"arm": config.get("arm", path.resolve().parent.name), "seed": config.get("seed", 0), "step": 0}
        tables.append(table.assign(**{name: value for name, value in known.items() if name not in table}))
    return with_advantages(pd.concat(tables, ignore_index=True))


def _manifest(rollouts: Path) -> dict:
    path = rollouts.with_name("manifest.json")
    return json.loads(path.read_text()) if path.exists() else {}


def problems_beside(rollouts: Path) -> dict[str, Problem]:
    """The problems that a run in runs/PRESET/planner_training/ was trained on, by id; none if it lies elsewhere."""
    wanted, found = _manifest(rollouts).get("upstream", {}).get("problems"), {}
    for manifest in sorted(rollouts.resolve().parents[2].glob("problems/*/manifest.json")):
        if file_sha256(manifest) == wanted:
            for path in manifest.parent.glob("*.jsonl"):
                found |= read_problems(path)
    return found


def read_problems(path: Path) -> dict[str, Problem]:
    """Problems of a .jsonl file, as a run's stage `problems` writes them, by id. Raises InputError."""
    problems = {}
    for number, record in read_jsonl(path):
        try:
            problem = Problem.model_validate(record)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not a problem: {error}") from None
        problems[problem.problem_id] = problem
    return problems


def with_advantages(rollouts: pd.DataFrame) -> pd.DataFrame:
    """`rollouts` with columns `r_ARM` and `A_ARM`: reward and advantage under the own arm, and under other arms.

    Another arm can be computed only where its parts have been: a run of `exec_only` logs neither q nor û.
    """
    tables = []
    for arm, table in rollouts.groupby("arm", sort=False):
        known = NEEDS.get(str(arm), frozenset())
        rewards = {name: _paid(table, name) for name in COMPARED if NEEDS[name] <= known and NEEDS[name] <= {*table}}
        for name, values in {**rewards, arm: table["reward"].astype(float)}.items():
            by_group = values.groupby([table[key] for key in GROUP])
            table = table.assign(**{f"r_{name}": values, f"A_{name}": by_group.transform(_advantages)})
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _paid(table: pd.DataFrame, arm: str) -> pd.Series:
    """What `arm` pays these completions: nothing without a trace, NaN where a part has failed."""
    zeros = pd.Series(0.0, table.index)
    paid = ARMS[arm](*(table.get(part, zeros) for part in ("s", "q", "u", "j", "c", "t")))
    return paid.where(table["trace"].notna(), 0.0).where(table["reward"].notna())


def _advantages(rewards: pd.Series) -> pd.Series:
    """Failed rewards take no part, as in TRL."""
    whole = rewards.dropna()
    return pd.Series(advantages(whole.to_numpy()) if len(whole) > 1 else np.zeros(len(whole)), whole.index)


# --- which groups to look at ------------------------------------------------------------------------------


def _apart(table: pd.DataFrame) -> pd.Series:
    first, second = (table.get(f"A_{arm}", pd.Series(np.nan, table.index)) for arm in COMPARED)
    return (first - second).abs().groupby([table[k] for k in GROUP]).mean()


def _disagreement(table: pd.DataFrame) -> pd.Series:
    """Only where both have been computed: by an arm that asks the RM and compares runs."""
    both = table["arm"].map(lambda arm: {"q", "u"} <= NEEDS.get(arm, frozenset()))
    if not both.any() or not {"q", "u", "baseline_success"} <= {*table}:
        return pd.Series(dtype=float)
    success = table["u"] + table["baseline_success"]
    gap = (table["q"] - success).abs().where(both & table["trace"].notna())
    return gap.groupby([table[k] for k in GROUP]).max()


def _failures(table: pd.DataFrame) -> pd.Series:
    """A program that fails its tests may still earn something (docs/method.md section 4): only s = 1 is a success."""
    wrong = table["s"] < 1 if "s" in table else table["reward"] <= 0
    failed = table["trace"].isna() | table["reward"].isna() | wrong
    return failed.astype(float).groupby([table[k] for k in GROUP]).mean()


RULES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "advantages": ("mean difference of the advantages under exec_only and tracelift", _apart),
    "disagreement": ("largest difference between the RM's q and the executor's success with the trace", _disagreement),
    "failures": (
        "share of completions without a trace, without a reward, or with which the executor failed",
        _failures,
    ),
}


def choose(rollouts: pd.DataFrame, rule: str, n: int) -> pd.Series:
    """The n groups with the largest value of a rule, one a problem: (arm, seed, step, problem_id) -> value.

    Of equal values the earliest step comes first. Groups for which the rule's value is zero or unknown are left out.
    """
    values = RULES[rule][1](rollouts).dropna()
    table = values[values > 0].rename("value").reset_index()
    if table.empty:
        return pd.Series(dtype=float)
    table = table.sort_values(["value", "step", "seed", "problem_id"], ascending=[False, True, True, True])
    return table.drop_duplicates("problem_id").head(n).set_index(GROUP)["value"]


# --- cases --------------------------------------------------------------------------------------------------


def cases_of(rollouts: pd.DataFrame, chosen: pd.Series, problems: Mapping[str, Problem], why: str) -> list[Case]:
    """A case for each chosen group; other arms' groups of the same seed, step and problem stand beside it."""
    cases = []
    for (arm, seed, step, problem_id), value in chosen.items():
        same = (rollouts["seed"] == seed) & (rollouts["step"] == step) & (rollouts["problem_id"] == problem_id)
        by_arm = dict(list(rollouts[same].groupby("arm", sort=False)))
        ordered = [arm, *(other for other in by_arm if other != arm)]
        problem = problems.get(problem_id) or unknown_problem(problem_id)
        columns = {str(a): _traces(by_arm[a], problem) for a in ordered}
        title = f"{problem_id}, step {step}, seed {seed}"
        cases.append(Case(title, f"{why}: {value:.2f}", problem, columns))
    return cases


def unknown_problem(problem_id: str) -> Problem:
    """Stands for a problem whose text is not at hand."""
    text = "(the text of this problem is not at hand)"
    unknown = {"source": "unknown", "task_type": "unknown", "problem": text, "reference_solution": "", "answer": ""}
    return Problem(problem_id=str(problem_id), domain="math", **unknown)


def _traces(group: pd.DataFrame, problem: Problem) -> list[Trace]:
    """Equal traces once, those that the group's own arm pushes up most first."""
    arms = [name.removeprefix("A_") for name in group if name.startswith("A_") and group[name].notna().any()]
    texts = group["trace"].fillna(group["malformed"] if "malformed" in group else "").fillna("")
    traces = []
    for text, same in group.groupby(texts, sort=False):
        row = same.iloc[0]
        arm_knows = NEEDS.get(row["arm"], frozenset("squjc"))
        parts = {p: float(row[p]) for p in "squjc" if p in arm_knows and p in same and pd.notna(row[p])}
        if pd.notna(row.get("baseline_success")):
            parts["baseline_success"] = float(row["baseline_success"])
        known = has_truth(problem)
        trace = None if pd.isna(row["trace"]) else text
        failure = row.get("failure")
        traces.append(
            Trace(
                marked_steps(problem, text) if trace else [Step(text[:LONGEST])],
                habit_of(problem, trace).replace("_", " ") if known else "",
                len(same),
                parts,
                {arm: (_mean(same[f"r_{arm}"]), _mean(same[f"A_{arm}"])) for arm in arms},
                note="no well-formed trace" if trace is None else f"no reward: {failure}" if pd.notna(failure) else "",
            )
        )
    return sorted(traces, key=lambda t: -np.nan_to_num([(0.0, 0.0), *t.paid.values()][-1][1]))


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if values.notna().any() else math.nan


def marked_steps(problem: Problem, trace: str) -> list[Step]:
    """The lines of a trace beside those of the reference, where the true steps are known; else without marks."""
    lines = trace[:LONGEST].split("\n")
    if not has_truth(problem):
        return [Step(line) for line in lines]
    truth = problem.reference_solution.split("\n")
    told = [[str(read_lines(line) or read_plan(line) or line.strip()) for line in text] for text in (lines, truth)]
    steps = []
    for what, i, i_end, j, j_end in difflib.SequenceMatcher(None, *told, autojunk=False).get_opcodes():
        steps += [Step(line, "right" if what == "equal" else "wrong") for line in lines[i:i_end]]
        steps += [Step(line, "missing") for line in truth[j:j_end] if what != "equal"]
    return steps


# --- what the log does not have -------------------------------------------------------------------------------


def replay(cases: Sequence[Case], executor: Executor, scorer: TraceScorer | None, k: int, seed: int) -> None:
    """Put k executor samples with each trace, k without, and the RM's rubric into the cases.

    These are new draws from the frozen executor, not the runs that the log's verdicts are of.
    """
    asked = [(case, trace) for case in cases for column in case.columns.values() for trace in column]
    asked = [(case, trace) for case, trace in asked if trace.note != "no well-formed trace"]
    problems, texts = [case.problem for case, _ in asked], [trace.text for _, trace in asked]
    answers = executor.answer(problems, texts, k, seed) if asked else []
    for (_, trace), samples in zip(asked, _judged(executor, problems, answers)):
        trace.samples = samples
    problems = [case.problem for case in cases]
    without = executor.answer(problems, [None] * len(cases), k, seed + 1)
    for case, samples in zip(cases, _judged(executor, problems, without)):
        case.without = samples
    if scorer and asked:
        labels = scorer.score([case.problem for case, _ in asked], texts)[1]
        for (case, trace), row in zip(asked, labels):
            trace.rubric = dict(zip(dimensions(case.problem.domain), map(float, row)))


def _judged(executor: Executor, problems: Sequence[Problem], answers: list[list[str]]) -> list[list[Sample]]:
    flat = [(problem, y) for problem, ys in zip(problems, answers) for y in ys]
    verdicts = executor.verifier.verify([p for p, _ in flat], [y for _, y in flat])
    tests = iter(run_programs([(p, extract_program(y)) for p, y in flat if p.domain == "code"]))
    samples = iter(
        [
            Sample(y, bool(v.success), v.outcome, next(tests) if p.domain == "code" else ())
            for (p, y), v in zip(flat, verdicts)
        ]
    )
    return [[next(samples) for _ in ys] for ys in answers]


def run_programs(programs: Sequence[tuple[Problem, str]]) -> list[tuple[tuple[str, str], ...]]:
    """(test, outcome) of each test of each program, run in the sandbox. Raises SandboxError."""
    if not programs:
        return []
    tests = [read_tests(problem.metadata, f"problem {problem.problem_id}") for problem, _ in programs]
    with CodeVerifier(workers=2) as verifier:
        results = verifier.verify([(program, t) for (_, program), t in zip(programs, tests)])
    return [tuple(zip(map(str.strip, _told(t)), map(str, r.outcomes))) for t, r in zip(tests, results)]


def _told(tests) -> list[str]:
    """Each test in a line or two."""
    if isinstance(tests, StdioTests):
        return [f"{case.input.strip()} -> {case.output.strip()}" for case in tests.cases]
    return list(tests.code)
