"""Natural errors: loaders, the decision rule, and metrics against cases counted by hand. No language model here."""

import json

import numpy as np
import pandas as pd
import pytest
from common import DATA

from tracelift_lib import natural_errors as ne
from tracelift_lib.problems import InputError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def process_row(**change):
    return {"id": "g-0", "generator": "m", "problem": "p", "steps": ["1. a", "b"], "final_answer_correct": True,
            "label": 1, **change}


def test_solution_text_loses_notes_and_the_line_that_decides_the_label():
    assert ne.trace_of_solution("He has 3*2 = <<3*2=6>>6\n\nSo 6.\nA: 6") == ["He has 3*2 = 6", "So 6."]
    assert ne.trace_of_solution("cut off in the mid") == ["cut off in the mid"]


def test_plain_step():
    assert ne.plain_step("Step 2. We add.") == "We add."
    assert ne.plain_step("1. We add.\n\n# Answer\n\n29") == "We add."
    assert ne.plain_step("3.5 is half of 7") == "3.5 is half of 7"


@pytest.mark.parametrize("change, field", [
    ({"label": 2}, "label"), ({"label": "1"}, "label"), ({"steps": []}, "steps")
])
def test_bad_process_row_is_named(tmp_path, change, field):
    write(tmp_path / "processbench/gsm8k.json", json.dumps([process_row(), process_row(**change)]))
    with pytest.raises(InputError, match=rf"gsm8k\.json: row 1.*{field}"):
        ne.load_natural("processbench_gsm8k", tmp_path)


def test_bad_solution_is_named_and_missing_files_say_where_from(tmp_path):
    record = {"question": "q", "ground_truth": "t", "6b": {"solution": "x"}}
    write(tmp_path / "gsm8k/example_model_solutions.jsonl", json.dumps(record) + "\n")
    with pytest.raises(InputError, match=r"solutions\.jsonl:1.*6b\.is_correct"):
        ne.load_natural("gsm8k_solutions", tmp_path)
    with pytest.raises(InputError, match="hitsmy/PRMBench_Preview"):
        ne.load_natural("prmbench", tmp_path)


def test_prm_errors_count_from_one_and_stay_inside(tmp_path):
    row = {"idx": "circular_7", "classification": "circular", "original_question": "q", "modified_question": "r",
           "original_process": ["a"], "modified_process": ["a", "b"], "error_steps": [2, 9]}
    write(tmp_path / "prmbench/x.jsonl", json.dumps(row) + "\n")
    original, modified = ne.load_natural("prmbench", tmp_path)
    assert (original.errors, modified.errors, modified.item) == ((), (1,), "circular: 7")


def test_ranking_by_hand():
    rows = pd.DataFrame({"problem": list("aaab" "b"), "answer_right": [True, True, False, True, False],
                         "length": [3.0, 1.0, 2.0, 5.0, 5.0]})
    table = ne.rank_solutions(rows, 50, 0).set_index("metric")
    assert table.loc["pair accuracy", "value"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert table.loc["AUC within problem", "n"] == 3
    assert table.loc["AUC within problem", "value"] == pytest.approx(1.5 / 3)


def test_first_below_f1():
    assert ne.first_below(np.array([0.9, 0.2, 0.1]), 0.5) == 1
    assert ne.first_below(np.array([0.9]), 0.5) == -1
    assert ne.harmonic_f1(np.array([1, 2, 1, 1])) == pytest.approx(2 / 3)
    assert ne.step_f1(np.array([1, 1, 1, 3])) == pytest.approx((0.5 + 0.75) / 2)


def process_rows(n=12):
    """A score that knows: 0 at and after the first error, 1 before it. Every third trace is right."""
    rows = []
    for i in range(n):
        errors = [] if i % 3 == 0 else [1]
        rows += [{"item": f"i{i}", "problem": f"p{i}", "step": s, "steps": 3, "errors": errors,
                  "answer_right": i % 3 == 1, "q": float(not errors or s < 1), "length": -s - 1.0} for s in range(3)]
    return pd.DataFrame(rows)


def test_first_errors_of_a_score_that_knows_them():
    table = ne.find_first_errors(process_rows(), 50, 0).set_index(["score", "metric"])
    assert table.loc[("RM", "F1"), "value"] == 1
    lucky = table.loc[("RM", "right answer, wrong reason: exact")]
    assert (lucky["value"], lucky["n"]) == (1, 4)
    assert table.loc[("length (shorter is better)", "F1"), "value"] < 1


def test_no_threshold_is_judged_on_the_problems_it_was_chosen_on():
    """Scores of one half lie at 10 times the other's scale: a threshold chosen on the same half would find all."""
    rows, half = process_rows(), None
    half = ne.halves(rows["problem"].tolist(), 0)
    rows["q"] = rows["q"] + rows["problem"].map(half) * 10
    table = ne.find_first_errors(rows[["item", "problem", "step", "steps", "errors", "answer_right", "q"]], 20, 0)
    assert table.set_index("metric").loc["F1", "value"] < 0.5


@pytest.mark.skipif(not (DATA / "processbench").exists(), reason="no ../shared/data")
def test_public_sets_have_their_known_counts():
    gsm8k, math = (ne.load_natural(f"processbench_{n}", DATA) for n in ("gsm8k", "math"))
    for traces, total, wrong, lucky in ((gsm8k, 400, 207, 7), (math, 1000, 594, 94)):
        assert len(traces) == total
        assert sum(bool(t.errors) for t in traces) == wrong
        assert sum(bool(t.errors) and t.answer_right for t in traces) == lucky
    assert len(ne.load_natural("prmbench", DATA)) == 2 * 6216
    solutions = ne.load_natural("gsm8k_solutions", DATA)
    assert not any(step.startswith("A:") or "<<" in step for t in solutions for step in t.steps[-1:])
