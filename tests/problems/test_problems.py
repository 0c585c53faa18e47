"""Reading problems from files: every fault names the file and the line."""

import gzip
import json
import re
from fractions import Fraction

import pytest
from common import DATA, has_path

from tracelift_lib.problems.files import InputError, read_jsonl
from tracelift_lib.problems.problem import gsm8k_trace, load_gsm8k
from tracelift_lib.verifier.verify_math import verify_math

needs_data = pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason="../shared/data/gsm8k is not there")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_records_come_with_their_line_numbers(tmp_path, name):
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write('{"x": 1}\n\n   \n{"x": "дом 家"}')
    assert list(read_jsonl(tmp_path / name)) == [(1, {"x": 1}), (4, {"x": "дом 家"})]


@pytest.mark.parametrize(
    "line, word",
    [
        ("{", "JSON"),
        ('{"a": 1', "JSON"),
        ("not json", "JSON"),
        ("[1]", "list"),
        ("3", "int"),
        ('"text"', "str"),
        ("null", "NoneType"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, word):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n{"x": 2}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        list(read_jsonl(path))
    assert has_path(str(caught.value), path, 3) and word in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "none.jsonl"))):
        list(read_jsonl(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],  # cut off while it was written
        lambda data: b'{"x": 1}\n',  # not compressed at all
        lambda data: gzip.compress(b'{"x": "\xff\xfe"}\n'),  # not UTF-8
    ],
    ids=["cut off", "not gzip", "not UTF-8"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    """These are faults that a person can mend, so they are InputErrors with the path, not tracebacks."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b"".join(b'{"x": %d}\n' % i for i in range(5000)))))
    with pytest.raises(InputError, match=re.escape(str(path))):
        list(read_jsonl(path))


# --- GSM8K ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, trace, final",
    [
        (
            "He has 48/2 = <<48/2=24>>24 clips.\nThen 24+48 = <<24+48=72>>72.\n#### 72",
            "He has 48/2 = 24 clips.\nThen 24+48 = 72.",
            "72",
        ),
        ("It costs $<<1200*2=2400>>2,400.\n#### 2,400", "It costs $2,400.", "2400"),
        ("No sums.\n####  -3 ", "No sums.", "-3"),
        ("#### in the text\nreally\n#### 5", "#### in the text\nreally", "5"),
        ("A point.\n#### (1,234)", "A point.", "(1,234)"),  # MATH in GSM8K's layout: only a number's commas go
        ("A list.\n#### 1,2", "A list.", "1,2"),
        ("Money.\n#### $1,234.50", "Money.", "$1234.50"),
    ],
)
def test_gsm8k_annotations_are_unfolded_and_the_answer_is_split_off(answer, trace, final):
    assert gsm8k_trace(answer) == (trace, final)


def test_gsm8k_answer_without_its_mark_is_refused():
    with pytest.raises(ValueError, match="####"):
        gsm8k_trace("The result is 5.")


def gsm8k_folder(tmp_path, *records):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def test_gsm8k_from_a_folder(tmp_path):
    records = {"question": "Q1?", "answer": "a = <<2*3=6>>6\n#### 6"}, {"question": "Q2?", "answer": "b\n#### 7"}
    folder = gsm8k_folder(tmp_path, *records)
    first, second = load_gsm8k(folder, "test", revision="unused")
    assert (first.problem, first.reference_solution, first.answer) == ("Q1?", "a = 6", "6")
    assert (second.problem, second.answer, second.domain) == ("Q2?", "7", "math")
    assert first.problem_id != second.problem_id


@pytest.mark.parametrize(
    "record",
    [
        {"answer": "a\n#### 1"},
        {"question": "Q?"},
        {"question": "Q?", "answer": "no mark"},
        {"question": "Q?", "answer": 5},
    ],
)
def test_a_bad_gsm8k_record_is_named(tmp_path, record):
    folder = gsm8k_folder(tmp_path, {"question": "Q1?", "answer": "a\n#### 6"}, record)
    with pytest.raises(InputError) as caught:
        load_gsm8k(folder, "test", revision="unused")
    assert has_path(str(caught.value), folder / "gsm8k" / "test.jsonl", 2)


def test_a_folder_without_gsm8k_is_named(tmp_path):
    with pytest.raises(InputError, match="gsm8k/train.jsonl"):
        load_gsm8k(tmp_path, "train", revision="unused")


@needs_data
@pytest.mark.parametrize("split, name, rows", [("train", "train.jsonl.gz", 7473), ("test", "test.jsonl", 1319)])
def test_all_of_gsm8k_parses_and_verifies(split, name, rows):
    opener = gzip.open if name.endswith("gz") else open
    with opener(DATA / "gsm8k" / name, "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    problems = load_gsm8k(DATA, split, revision="unused")
    assert len(problems) == len(raw) == rows
    assert len({p.problem_id for p in problems}) == rows
    for record, p in zip(raw, problems):
        final = record["answer"].split("####")[-1]
        assert Fraction(p.answer) == Fraction(final.replace(",", "").strip())
        assert verify_math(f"#### {final}", p.answer) == 1
        assert verify_math(f"The answer is {final}.", p.answer) == 1
        assert verify_math(f"The answer is {Fraction(p.answer) + 1}.", p.answer) == 0
        assert "<<" not in p.reference_solution and ">>" not in p.reference_solution
        assert "####" not in p.reference_solution and p.reference_solution
        # What is left is the raw text without its annotations, word for word.
        kept = [part.split(">>")[-1] for part in record["answer"].split("####")[0].split("<<")]
        assert p.reference_solution == "".join(kept).strip()
