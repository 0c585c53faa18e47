"""Seeds from every source through one loader, and the guard against test problems among them."""

import gzip
import itertools
import json
import re

import pytest
from common import DATA, has_path
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.groups.seeds import (
    BENCHMARK_FILES,
    LeakageError,
    LeakageGuard,
    SeedSettings,
    benchmark_problems,
    load_seeds,
    normalise,
)
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)
    return path


def mbpp_row(task_id, text="Write a function to add two numbers.", **more):
    return {
        "task_id": task_id,
        "text": text,
        "code": "def add(a, b):\r\n  return a + b",
        "test_setup_code": "",
        "test_list": ["assert add(1, 2) == 3"],
        "challenge_test_list": [],
        **more,
    }


def contest_row(name, *solutions):
    return {
        "name": name,
        "description": f"Read n and print it doubled ({name}).",
        "public_tests": {"input": ["1\n"], "output": ["2\n"]},
        "private_tests": {"input": ["4\n"], "output": ["8\n"]},
        "generated_tests": {"input": [], "output": []},
        "solutions": {"language": [s[0] for s in solutions], "solution": [s[1] for s in solutions]},
    }


def test_gsm8k_from_a_folder_unfolds_the_calculator_and_keeps_the_answer(tmp_path):
    write(tmp_path / "gsm8k" / "train.jsonl.gz", {"question": "Q?", "answer": "2+3 = <<2+3=5>>5 eggs\n#### 5"})
    (seed,) = load_seeds(SeedSettings(source="gsm8k", folder=tmp_path))
    assert (seed.problem_id, seed.reference_solution, seed.answer, seed.domain) == (
        "gsm8k-train-00000",
        "2+3 = 5 eggs",
        "5",
        "math",
    )


def test_mbpp_takes_its_training_ids_only(tmp_path):
    write(tmp_path / "mbpp" / "mbpp.jsonl", *(mbpp_row(i) for i in (1, 10, 11, 510, 511, 1000, 1001)))
    seeds = list(load_seeds(SeedSettings(source="mbpp", folder=tmp_path)))
    assert [s.problem_id for s in seeds] == ["mbpp-0511", "mbpp-1000"]
    assert seeds[0].reference_solution == "def add(a, b):\n  return a + b"
    assert seeds[0].problem == "Write a function to add two numbers.\nThe function is called like this: add(1, 2)"
    assert seeds[0].metadata["tests"] == {
        "style": "asserts",
        "code": ["assert add(1, 2) == 3"],
        "setup": "",
        "entry_point": "add",
        "from_program": [],
    }


def test_contests_need_a_python_3_solution_that_parses(tmp_path):
    write(
        tmp_path / "contests" / "train.jsonl",
        contest_row("cpp", (2, "int main() {}")),
        contest_row("broken", (3, "print n")),
        contest_row("good", (1, "print 2"), (3, "print 2"), (3, "print(2 * int(input()))"), (3, "pass")),
    )
    (seed,) = load_seeds(SeedSettings(source="contests", folder=tmp_path))
    assert seed.problem_id == "contests-train-good" and seed.task_type == "stdio"
    assert seed.reference_solution == "print(2 * int(input()))"
    cases = [{"input": "1\n", "output": "2\n"}, {"input": "4\n", "output": "8\n"}]
    assert seed.metadata["tests"] == {"style": "stdio", "cases": cases, "tolerance": None}


@pytest.mark.parametrize(
    ("source", "file", "record"),
    [
        ("gsm8k", "train.jsonl", {"question": "Q?", "answer": "no final line"}),
        ("gsm8k", "train.jsonl", {"question": "Q?"}),
        ("mbpp", "mbpp.jsonl", {"task_id": "x", "text": "t"}),
        ("mbpp", "mbpp.jsonl", mbpp_row(600, test_list=None)),
        ("contests", "train.jsonl", {"name": "n", "solutions": {"language": [3]}}),
    ],
)
def test_a_malformed_record_is_named_by_file_and_line(tmp_path, source, file, record):
    good = {
        "gsm8k": {"question": "Q?", "answer": "1\n#### 1"},
        "mbpp": mbpp_row(511),
        "contests": contest_row("a", (3, "pass")),
    }[source]
    path = write(tmp_path / source / file, good, record)
    with pytest.raises(InputError) as error:
        list(load_seeds(SeedSettings(source=source, folder=tmp_path)))
    assert has_path(str(error.value), path, 2)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="name a folder that holds it, or none to use the hub"):
        list(load_seeds(SeedSettings(source="mbpp", folder=tmp_path)))


@pytest.mark.parametrize("source", ["gsm8k", "mbpp", "contests"])
def test_without_a_folder_the_hub_is_asked_at_a_pinned_revision(source):
    with pytest.raises(InputError, match="at revision [0-9a-f]{40} from the Hugging Face hub.*local"):  # offline here
        next(load_seeds(SeedSettings(source=source)))


@pytest.mark.parametrize("source", ["tiny_world", "tiny_code", "gsm_symbolic"])
def test_generated_seeds_are_repeatable_endless_and_differ_by_seed(source):
    def take(n, **settings):
        return list(itertools.islice(load_seeds(SeedSettings(source=source, **settings)), n))

    assert take(5) == take(5)
    assert [p.problem for p in take(5)] != [p.problem for p in take(5, seed=1)]
    assert [p.problem_id for p in take(9, limit=3, every=2)] == [p.problem_id for p in take(5)[::2]]
    assert len({p.problem_id for p in take(20)}) == 20
    assert all(p.reference_solution and "####" not in p.reference_solution for p in take(20))


# --- leakage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Tom has 1,000 eggs.", "tom  has\n1000 eggs"),
        ("It costs $5.00!", "It costs 5"),
        ("It costs 2.50 dollars", "it costs 2.5 dollars."),
        ("A well-kept (old) house?", "a well kept old house"),
        ("Élan_vital", "élan vital"),
    ],
)
def test_copies_that_differ_in_form_are_the_same(a, b):
    assert normalise(a) == normalise(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Tom has 3 eggs", "Tom has 4 eggs"),
        ("2.5 kg", "25 kg"),
        ("10 eggs", "1 egg"),
        ("2.05 m", "2.5 m"),
        ("1,00 m", "100 m"),
        ("100 eggs", "1 eggs"),
    ],
)
def test_different_problems_stay_different(a, b):
    assert normalise(a) != normalise(b)


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def problem(name, text):
    return Problem(
        problem_id=name, source="hand", domain="math", task_type="t", problem=text, reference_solution="r", answer="1"
    )


def test_the_guard_lists_every_leak_and_how_it_matched():
    guard = LeakageGuard([("bench-1", "How many eggs?"), ("bench-2", "Tom has 1,000 cows.")])
    seeds = [problem("a", "How many eggs?"), problem("b", "Ann has 2 cows."), problem("c", "TOM has 1000 cows")]
    with pytest.raises(LeakageError) as error:
        guard.check(iter(seeds))
    listed = [line.strip() for line in str(error.value).split("\n")[1:-1]]
    assert listed == ["a is bench-1 (exact match)", "c is bench-2 (normalised match)"]
    guard.check([seeds[1]])
    LeakageGuard().check(seeds)


def test_benchmarks_of_a_folder_are_found_whatever_is_there(tmp_path):
    assert list(benchmark_problems(tmp_path)) == []
    with pytest.raises(InputError, match="gsm8k: no test.jsonl"):
        list(benchmark_problems(tmp_path, needed="gsm8k"))
    write(tmp_path / "gsm8k" / "test.jsonl", {"question": "Q?", "answer": "1\n#### 1"})
    assert len(list(benchmark_problems(tmp_path, needed="gsm8k"))) == 1
    contest = write(tmp_path / "contests" / "test.jsonl", contest_row("cpp", (2, "int main() {}")))
    assert ("contests-test-cpp", "Read n and print it doubled (cpp).") in list(benchmark_problems(tmp_path))
    contest.unlink()  # (a test problem counts even without a Python solution)
    write(tmp_path / "humaneval" / "HumanEval.jsonl.gz", {"prompt": "def f():"})
    (tmp_path / "math500").mkdir()
    (tmp_path / "math500" / "math500_test.json").write_text(json.dumps([{"problem": "P1"}, {"problem": "P2"}]))
    assert [text for _, text in benchmark_problems(tmp_path)] == ["Q?", "P1", "P2", "def f():"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("file, field", BENCHMARK_FILES.items())
def test_a_benchmark_is_guarded_by_each_name_that_the_readme_allows(tmp_path, capsys, file, field, suffix):
    """Plain or with .gz; what is not there is said, so that nobody thinks it guarded."""
    (tmp_path / file).parent.mkdir()
    text = json.dumps({field: "A test problem."})
    data = (f"[{text}]" if file.endswith(".json") else text).encode()
    (tmp_path / f"{file}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    assert [found for _, found in benchmark_problems(tmp_path)] == ["A test problem."]
    said = capsys.readouterr().out
    assert "gsm8k/test.jsonl" in said and file not in said
    assert all(other in said for other in BENCHMARK_FILES if other != file)


def test_a_benchmark_without_its_field_is_named(tmp_path):
    write(tmp_path / "humaneval" / "HumanEval.jsonl", {"task": "def f():"})
    with pytest.raises(InputError, match=r"HumanEval.jsonl:1: .*'prompt'"):
        list(benchmark_problems(tmp_path))


@pytest.mark.skipif(not DATA.exists(), reason="public data are not here")
def test_real_training_sets_against_real_benchmarks():
    """GSM8K train is clean; three MBPP training problems have the very text of a test problem."""
    guard = LeakageGuard(benchmark_problems(DATA))
    assert len(guard) > 3000
    guard.check(load_seeds(SeedSettings(source="gsm8k", folder=DATA, limit=1500)))
    with pytest.raises(LeakageError) as error:
        guard.check(load_seeds(SeedSettings(source="mbpp", folder=DATA)))
    assert re.findall(r"mbpp-\d+(?= is)", str(error.value)) == ["mbpp-0602", "mbpp-0704", "mbpp-0872"]
