"""Benchmark sets: the registry, each set's layout by rows made by hand, a user's own file, and bad rows."""

import base64
import functools
import gzip
import json
import pickle
import re
import zlib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from common import DATA, has_path

from tracelift_lib.evaluation import benchmark_sets
from tracelift_lib.evaluation.benchmark_sets import LOADERS, REGISTRY, load_set, read_set, set_names
from tracelift_lib.problems.files import DATA_VARIABLE, InputError
from tracelift_lib.problems.records import MissingSet
from tracelift_lib.verifier.verdicts import Verifier

PUBLIC = {"gsm8k": 1319, "math500": 500, "humaneval": 164, "mbpp": 500}


def lines(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return path


@functools.cache
def public(name: str):
    if not DATA.is_dir():
        pytest.skip("the public data are not here")
    return load_set(name, DATA)


def by_id(loaded):
    return {p.problem_id: p for p in loaded.problems}


# --- the registry -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", set_names())
def test_each_set_says_where_it_is_and_under_which_licence(name):
    spec, _ = read_set(name)
    assert spec.name == name and spec.licence and spec.home.startswith("https://")
    if spec.loader != "gsm_symbolic":
        assert spec.files and re.fullmatch("[0-9a-f]{40}", spec.hub.revision)
    assert "{trace}" in spec.templates("instruct").executor_with_trace and spec.templates("short")


def test_the_sets_that_people_publish_on_are_there():
    wanted = "gsm8k math500 svamp gsm_hard gsm_symbolic aime_2024 aime_2025 humaneval humaneval_plus mbpp mbpp_plus"
    assert {*wanted.split(), "livecodebench"} <= set(set_names())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_copies_load_whole(name):
    loaded = public(name)
    assert len(loaded.problems) == PUBLIC[name] and loaded.refused == []
    assert all(re.fullmatch("[0-9a-f]{64}", sha) for sha in loaded.source.values())


def test_answers_of_math500_keep_their_commas():
    """As a GSM8K answer `(3, 2)` would lose its comma."""
    problems = by_id(public("math500"))
    rows = json.loads((DATA / "math500" / "math500_test.json").read_text())
    assert {f"math500-{r['unique_id']}": r["answer"].strip() for r in rows} == {
        i: p.answer for i, p in problems.items()
    }
    prompt = read_set("math500")[0].templates("instruct").executor
    assert "final number" not in prompt and "LaTeX" in prompt


# --- layouts of sets that are not here --------------------------------------------------------


def test_svamp(tmp_path):
    row = {
        "ID": "chal-1",
        "Body": "Jack had 8 pens.",
        "Question": "How many?",
        "Equation": "( 8.0 - 3.0 )",
        "Answer": 5.0,
    }
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp" / "SVAMP.json").write_text(json.dumps([row]))
    p = load_set("svamp", tmp_path).problems[0]
    assert (p.problem_id, p.problem, p.answer) == ("svamp-chal-1", "Jack had 8 pens. How many?", "5")
    assert p.reference_solution == "( 8.0 - 3.0 )"


def test_gsm_hard_gzipped_and_in_the_folder_itself(tmp_path):
    lines(tmp_path / "gsmhardv2.jsonl.gz", {"input": "q", "code": "def solution(): ...", "target": -9867630.0})
    p = load_set("gsm_hard", tmp_path).problems[0]
    assert (p.problem_id, p.answer) == ("gsm_hard-0", "-9867630")


def test_aime_as_parquet(tmp_path):
    (tmp_path / "aime_2025").mkdir()
    pd.DataFrame({"problem": ["q"], "answer": ["070"], "id": ["0"]}).to_parquet(tmp_path / "aime_2025" / "test.parquet")
    assert load_set("aime_2025", tmp_path).problems[0].answer == "070"


def test_plus_tests(tmp_path):
    prompt = "def inc(x):\n    '''one more'''\n"
    test = "def check(candidate):\n    assert candidate(1) == 2\n"
    row = {"task_id": "HumanEval/7", "prompt": prompt, "entry_point": "inc", "canonical_solution": "    return x + 1\n"}
    lines(tmp_path / "humaneval_plus" / "a.jsonl", row | {"test": test})
    plus = {
        "task_id": 12,
        "prompt": "Write inc.",
        "code": "def inc(x): return x + 1",
        "test_list": ["assert inc(1) == 2"],
    }
    lines(tmp_path / "mbpp_plus" / "a.jsonl", plus | {"test": "for a, b in [(1, 2)]:\n    assert inc(a) == b"})
    one, two = (load_set(name, tmp_path).problems[0] for name in ("humaneval_plus", "mbpp_plus"))
    assert one.problem_id == "humaneval_plus-HumanEval/7" and one.metadata["tests"]["code"] == [test]
    assert two.problem_id == "mbpp_plus-12" and two.metadata["tests"]["code"][0].startswith("for a, b")
    assert two.problem.endswith("inc(1)")


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def livecodebench(key, public, private, **more):
    facts = {"question_content": "Do it.", "question_id": key, "starter_code": "", "metadata": "{}"}
    return facts | {"public_test_cases": json.dumps(public), "private_test_cases": private} | more


def test_livecodebench(tmp_path):
    stdin = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    calls = [{"input": "[1, 2]\n5", "output": "8", "testtype": "functional"}]
    starter = "class Solution:\n    def total(self, a, b):\n        "
    rows = [
        livecodebench("a", stdin, packed(stdin * 2)),
        livecodebench("b", calls, json.dumps(calls), starter_code=starter, metadata='{"func_name": "total"}'),
        livecodebench("c", stdin, base64.b64encode(zlib.compress(pickle.dumps(Path("x")))).decode()),
    ]
    lines(tmp_path / "livecodebench" / "test6.jsonl", *rows)
    loaded = load_set("livecodebench", tmp_path)
    found = by_id(loaded)
    assert found["livecodebench-a"].metadata["tests"]["cases"] == [{"input": "1 2\n", "output": "3\n"}] * 3
    two = found["livecodebench-b"]
    assert (
        two.metadata["tests"]["code"] == ["assert Solution().total(*[[1, 2], 5]) == 8"] * 2
        and "def total" in two.problem
    )
    assert [r[0] for r in loaded.refused] == ["livecodebench-c"] and "only text is read" in loaded.refused[0][2]


def test_livecodebench_calls_run():
    if not DATA.is_dir():
        pytest.skip("runs programs only where the public data are")
    spec = read_set("livecodebench")[0]
    calls = [{"input": "[1, 2]\n5", "output": "8", "testtype": "functional"}]
    row = livecodebench("b", calls, "[]", metadata='{"func_name": "total"}')
    problem = LOADERS["livecodebench"](row, spec)
    program = "```python\nclass Solution:\n    def total(self, a, b):\n        return sum(a) + b\n```"
    assert [v.success for v in Verifier().verify([problem] * 2, [program, program.replace("+ b", "- b")])] == [1, 0]


def test_gsm_symbolic_is_made_on_the_spot(monkeypatch):
    monkeypatch.setattr(benchmark_sets, "GENERATED", 8)
    a, b = (load_set("gsm_symbolic", limit=5, seed=s) for s in (3, 3))
    assert a.problems == b.problems and len(a.problems) == 5 and all(p.reference_solution for p in a.problems)


# --- a user's own -----------------------------------------------------------------------------


def test_a_file_in_the_documented_layout_needs_nothing_else(tmp_path):
    math = lines(
        tmp_path / "mine.jsonl", {"problem": "1 + 1?", "answer": 2}, {"id": "x", "problem": "half?", "answer": "1/2"}
    )
    loaded = load_set(str(math))
    assert {i: p.answer for i, p in by_id(loaded).items()} == {"mine-0": "2", "mine-x": "1/2"}
    tests = {"style": "stdio", "cases": [{"input": "1\n", "output": "2\n"}]}
    code = load_set(str(lines(tmp_path / "code.jsonl.gz", {"problem": "Add one.", "tests": tests})))
    assert code.set.domain == "code" and code.problems[0].metadata["tests"] == tests


def write_set(folder: Path, **more) -> str:
    path = folder / "own.yaml"
    path.write_text(
        yaml.safe_dump({"title": "t", "domain": "math", "licence": "none", "files": ["rows.jsonl"], **more})
    )
    return str(path)


def test_fields_of_all_kinds(tmp_path):
    fields = {"problem": "{q}\n{options}", "answer": "solution", "answer_boxed": True}
    row = {
        "q": "Which?",
        "options": ["A) 1", "B) 2"],
        "solution": "so \\boxed{5} or rather \\boxed{\\frac{1}{2}}.",
        "level": 3,
    }
    lines(tmp_path / "rows.jsonl", row, row | {"level": 9})
    loaded = load_set(write_set(tmp_path, fields=fields, where={"level": [1, 5]}))
    assert [(p.problem, p.answer) for p in loaded.problems] == [("Which?\nA) 1\nB) 2", "\\frac{1}{2}")]


def test_tests_within_json_text(tmp_path):
    whole = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
    lines(tmp_path / "rows.jsonl", {"question": "Add one.", "input_output": whole})
    tests = {"inputs": "input_output.inputs", "outputs": "input_output.outputs"}
    loaded = load_set(write_set(tmp_path, domain="code", fields={"problem": "question", "tests": tests}))
    assert loaded.problems[0].metadata["tests"]["cases"] == [{"input": "1\n", "output": "2\n"}]


def test_a_larger_limit_keeps_the_problems_of_a_smaller_one(tmp_path):
    path = str(lines(tmp_path / "mine.jsonl", *({"problem": f"{i}?", "answer": i} for i in range(40))))
    small, large = ([p.problem_id for p in load_set(path, limit=n).problems] for n in (5, 20))
    assert large[:5] == small and len(large) == 20 and small != sorted(small)


# --- what cannot be used ----------------------------------------------------------------------


def test_one_unreadable_truth_is_told_and_leaves_the_others_alone(tmp_path):
    rows = [{"id": i, "problem": "q?", "answer": a} for i, a in enumerate([3, "", None, "7 or 8, who knows?", 5])]
    path = lines(tmp_path / "mine.jsonl", *rows, {"id": 0, "problem": "q?", "answer": 1}, {"id": 9, "problem": "q?"})
    loaded = load_set(str(path))
    assert sorted(by_id(loaded)) == ["mine-0", "mine-4"]
    told = {(i, place.rpartition(":")[2]): reason for i, place, reason in loaded.refused}
    assert "is empty" in told["mine-1", "2"] and "null" in told["mine-2", "3"] and "7 or 8" in told["mine-3", "4"]
    assert "twice" in told["mine-0", "6"] and "'answer': is not there" in told["mine-9", "7"]


@pytest.mark.parametrize(
    "more, words",
    [
        ({"fields": {"problm": "q"}}, ["fields.problm", "answer_pattern"]),
        ({"domain": "maths"}, ["domain", "math"]),
        ({"hub": {"name": "x/y"}}, ["hub.revision", "splits"]),
        ({"prompt": {"executor": "Solve {problm}"}}, ["prompt.executor", "problm"]),
        ({"prompt": {"executor_with_trace": "Solve {problem}"}}, ["executor_with_trace", "{trace}"]),
    ],
)
def test_a_bad_set_file_names_file_and_field(tmp_path, more, words):
    with pytest.raises(InputError) as error:
        read_set(write_set(tmp_path, **more))[0].templates("instruct")
    assert all(word in str(error.value) for word in ["own", *words])


def test_a_set_without_any_usable_row_is_an_error(tmp_path):
    path = lines(tmp_path / "mine.jsonl", {"question": "q", "answer": 1})
    with pytest.raises(InputError, match="'question': is unknown.*YAML") as error:
        load_set(str(path))
    assert has_path(str(error.value), path, 1)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(MissingSet, match="svamp/SVAMP.json.*leave --data out"):
        load_set("svamp", tmp_path)
    with pytest.raises(InputError, match="no set 'gsm9k'.*gsm8k.*add_a_benchmark"):
        load_set("gsm9k")
    with pytest.raises(MissingSet, match="set own: no rows.jsonl"):
        load_set(write_set(tmp_path))
    (tmp_path / "mine.jsonl").write_text('{"problem": "q", "answer": 1}\n{"problem": "q", "ans')
    with pytest.raises(InputError, match=r"mine.jsonl:2: not valid JSON"):
        load_set(str(tmp_path / "mine.jsonl"))


# --- the page ---------------------------------------------------------------------------------


def page_block(kind: str, start: str) -> str:
    page = (REGISTRY.parents[2] / "docs" / "add_a_benchmark.md").read_text()
    return next(b for b in re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) if b.startswith(start))


def test_the_worked_example_of_the_page_works(tmp_path):
    (tmp_path / "orchard.jsonl").write_text(page_block("jsonl", '{"key"'))
    (tmp_path / "orchard.yaml").write_text(page_block("yaml", "title: Orchard"))
    loaded = load_set(str(tmp_path / "orchard.yaml"))
    problems = by_id(loaded)
    assert {i: p.answer for i, p in problems.items()} == {"orchard-a1": "72", "orchard-a2": "1100"}
    assert problems["orchard-a1"].reference_solution == "3 * 24 = 72 pears."
    assert problems["orchard-a1"].problem == "A crate holds 24 pears. How many are in 3 crates?"
    assert [(i, place.rpartition("/")[2]) for i, place, _ in loaded.refused] == [("orchard-a3", "orchard.jsonl:3")]
    assert "the number of pieces of fruit." in loaded.set.templates("instruct").executor
