"""Natural errors: loaders, the decision rule, metrics against cases counted by hand, and the stage with tiny models."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from common import DATA, PROJECT

from tracelift_lib.evaluation import natural_measures
from tracelift_lib.evaluation.natural_sets import (
    FORMATS,
    LABELS_OF,
    NATURAL_SETS,
    load_natural,
    load_own,
    plain_step,
    sample_problems,
    trace_of_solution,
)
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.problems.files import DATA_VARIABLE, WORK, InputError
from tracelift_lib.problems.prompts import OPEN, as_chat, planner_prompt, reward_model_text
from tracelift_lib.problems.records import MissingSet
from tracelift_lib.runs import stages
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def process_row(**change):
    return {
        "id": "g-0",
        "generator": "m",
        "problem": "p",
        "steps": ["1. a", "b"],
        "final_answer_correct": True,
        "label": 1,
        **change,
    }


def test_solution_text_loses_notes_and_the_line_that_decides_the_label():
    assert trace_of_solution("He has 3*2 = <<3*2=6>>6\n\nSo 6.\nA: 6") == ["He has 3*2 = 6", "So 6."]
    assert trace_of_solution("cut off in the mid") == ["cut off in the mid"]


def test_plain_step():
    assert plain_step("Step 2. We add.") == "We add."
    assert plain_step("1. We add.\n\n# Answer\n\n29") == "We add."
    assert plain_step("3.5 is half of 7") == "3.5 is half of 7"


@pytest.mark.parametrize(
    "change, field", [({"label": 2}, "label"), ({"label": "1"}, "label"), ({"steps": []}, "steps")]
)
def test_bad_process_row_is_named(tmp_path, change, field):
    write(tmp_path / "processbench/gsm8k.json", json.dumps([process_row(), process_row(**change)]))
    with pytest.raises(InputError, match=rf"gsm8k\.json: row 1.*{field}"):
        load_natural("processbench_gsm8k", tmp_path)


def test_bad_solution_is_named_and_missing_files_say_where_from(tmp_path):
    record = {"question": "q", "ground_truth": "t", "6b": {"solution": "x"}}
    write(tmp_path / "gsm8k/example_model_solutions.jsonl", json.dumps(record) + "\n")
    with pytest.raises(InputError, match=r"solutions\.jsonl:1.*6b\.is_correct"):
        load_natural("gsm8k_solutions", tmp_path)
    with pytest.raises(MissingSet, match="hitsmy/PRMBench_Preview"):
        load_natural("prmbench", tmp_path)
    with pytest.raises(MissingSet, match="TRACELIFT_DATA"):
        load_natural("gsm8k_solutions", None)


def test_prm_errors_count_from_one_and_stay_inside(tmp_path):
    row = {
        "idx": "circular_7",
        "classification": "circular",
        "original_question": "q",
        "modified_question": "r",
        "original_process": ["a"],
        "modified_process": ["a", "b"],
        "error_steps": [2, 9],
    }
    write(tmp_path / "prmbench/x.jsonl", json.dumps(row) + "\n")
    original, modified = load_natural("prmbench", tmp_path)
    assert (original.errors, modified.errors, modified.item) == ((), (1,), "circular: 7")


# --- sets of one's own (docs/natural_errors.md) ----------------------------------------------------

STEPS = {"problem": "p", "steps": ["Step 1: a", "b", "c"], "errors": [1, 2], "answer_right": False, "generator": "m"}
BIG = {"input": "p", "steps": ["a", "b", "c"], "answer": "(A)", "target": " (B)", "mistake_index": 1}
MR = {
    "Question_UUID": "u-1",
    "Question": "p",
    "Options": "A: 1 B: 2",
    "Sampled_Model": "m",
    "Subject": "coding",
    "Ground_Truth_Answer": "A",
    "Model_Solution_Steps": ["Step 1: a", "Step 2: b", "Step 3: c"],
    "Model_Solution_Correctness": "incorrect",
    "Model_Solution_First_Error_Step": 2,
    "Model_Solution_Error_Reason": [],
}
PRM = {
    "idx": "circular_7",
    "classification": "circular",
    "original_question": "p",
    "original_process": ["a"],
    "modified_process": ["a", "b"],
    "error_steps": [2],
}


def jsonl(path, *records):
    write(path, "".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize(
    "layout, record, expected",
    [
        ("steps", STEPS, ("p", ("a", "b", "c"), (1, 2), False)),
        ("steps", {"problem": "p", "steps": ["a"], "first_error": None}, ("p", ("a",), (), None)),
        ("steps", {"problem": "p", "steps": ["a", "b"], "first_error": 0}, ("p", ("a", "b"), (0,), None)),
        ("processbench", process_row(), ("p", ("a", "b"), (1,), True)),
        ("bigbench_mistake", BIG, ("p", ("a", "b", "c"), (1,), False)),
        ("bigbench_mistake", BIG | {"mistake_index": None, "target": "(A)"}, ("p", ("a", "b", "c"), (), True)),
        ("mrben", MR, ("p\nA: 1 B: 2", ("a", "b", "c"), (1,), None)),
        (
            "mrben",
            MR | {"Model_Solution_First_Error_Step": "Step 3", "Options": ""},
            ("p", ("a", "b", "c"), (2,), None),
        ),
        (
            "mrben",
            {k: v for k, v in MR.items() if k != "Options"}
            | {"Model_Solution_Correctness": "correct", "Model_Solution_First_Error_Step": "N/A"}
            | {"Model_Solution_Steps": "Step 1: a\nmore\nStep 2: b"},
            ("p", ("a\nmore", "b"), (), None),
        ),
    ],
)
def test_each_format_by_hand(tmp_path, layout, record, expected):
    """Counted from 0, whatever the format counts from."""
    (trace,) = load_own("mine", jsonl(tmp_path / "mine.jsonl", record), layout, "code", "stdio")
    assert (trace.problem, trace.steps, trace.errors, trace.answer_right) == expected
    assert (trace.set, trace.domain, trace.as_problem().task_type) == ("mine", "code", "stdio")


def test_a_file_of_pairs_has_both_processes(tmp_path):
    original, modified = load_own("mine", jsonl(tmp_path / "m.jsonl", PRM), "prmbench")
    assert (original.errors, modified.errors, modified.labels) == ((), (1,), "pairs")


@pytest.mark.parametrize(
    "layout, record, words",
    [
        ("steps", STEPS | {"errors": [3]}, "'errors': step 3, but there are 3 steps"),
        ("steps", STEPS | {"errors": [-1]}, "'errors': step -1"),
        ("steps", STEPS | {"first_error": 1}, "either 'errors'"),
        ("steps", {k: v for k, v in STEPS.items() if k != "errors"}, "either 'errors'"),
        ("steps", STEPS | {"steps": "a b"}, "field steps"),
        ("steps", STEPS | {"step": 3}, "field step"),
        ("bigbench_mistake", BIG | {"mistake_index": 3}, "'mistake_index': step 3"),
        ("bigbench_mistake", {"input": "p", "steps": ["a"]}, "field mistake_index"),
        ("mrben", MR | {"Model_Solution_First_Error_Step": 4}, "First_Error_Step': step 3"),
        ("mrben", MR | {"Model_Solution_Correctness": "maybe"}, "field Model_Solution_Correctness"),
        ("processbench", BIG, "field id"),
    ],
)
def test_a_row_that_breaks_its_format_is_named_with_its_line(tmp_path, layout, record, words):
    good = {"steps": STEPS, "bigbench_mistake": BIG, "mrben": MR, "processbench": process_row()}[layout]
    file = jsonl(tmp_path / "mine.jsonl", good, record)
    with pytest.raises(InputError, match=rf"mine\.jsonl:2.*{words}.*docs/natural_errors.md"):
        load_own("mine", file, layout)


def test_rows_without_a_label_are_counted_aloud_and_none_at_all_is_an_error(tmp_path, capsys):
    unknown = MR | {"Model_Solution_First_Error_Step": "N/A", "Question_UUID": "u-2"}
    assert len(load_own("mine", jsonl(tmp_path / "a.jsonl", MR, unknown), "mrben")) == 1
    assert "mine: 1 of 2 rows" in capsys.readouterr().out
    with pytest.raises(InputError, match="natural_errors.sets.mine: no labelled trace"):
        load_own("mine", jsonl(tmp_path / "b.jsonl", unknown), "mrben")
    with pytest.raises(InputError, match="two traces.*'g-0' of 'm'"):
        load_own("mine", jsonl(tmp_path / "c.jsonl", process_row(), process_row()), "processbench")
    with pytest.raises(InputError, match="nothing.jsonl: no such file"):
        load_own("mine", str(tmp_path / "nothing.jsonl"), "steps")


def test_the_documented_formats_are_those_there_are():
    text = (PROJECT / "docs" / "natural_errors.md").read_text()
    assert all(f"`{name}`" in text for name in FORMATS)


OWN = {"file": "data/mine.jsonl", "format": "steps", "domain": "code"}


def check_with(sets):
    return load_preset("check", overrides={"natural_errors": {"sets": sets}})


def test_a_preset_names_a_set_of_ones_own_beside_a_public_one():
    own = check_with({"prmbench": 5, "mine": OWN}).natural_errors.sets
    assert own["prmbench"] == 5 and own["mine"].model_dump(exclude_none=True) == OWN


@pytest.mark.parametrize(
    "sets, words",
    [
        ({"mine": 5}, "'mine' is no public set .*mine: {file: ..., format: ..., domain: ...}"),
        ({"prmbench": OWN}, "word of its own"),
        ({"Mine!": OWN}, "word of its own"),
        ({"mine": OWN | {"format": "stepz"}}, "sets.mine.*format.*'bigbench_mistake'"),
        ({"mine": OWN | {"domain": "law"}}, "sets.mine.*domain"),
        ({"mine": OWN | {"formats": "steps"}}, "unknown key 'formats'; did you mean 'format'"),
        ({"mine": {"format": "steps"}}, "sets.mine.*file: Field required"),
        ({"prmbench": 0}, "sets.prmbench"),
    ],
)
def test_a_set_that_cannot_be_is_refused_by_the_preset(sets, words):
    with pytest.raises(InputError, match=words):
        check_with(sets)


def test_the_key_of_ones_own_set_goes_by_content(tmp_path):
    def key(name, text, **change):
        write(tmp_path / name, text)
        own = {"mine": OWN | {"file": str(tmp_path / name)} | change}
        return stages.key_of(check_with(own), "natural_errors", {})

    first = key("a.jsonl", "1")
    assert key("b.jsonl", "1") == first != key("b.jsonl", "2")
    assert first not in (key("a.jsonl", "1", domain="math"), key("a.jsonl", "1", problems=3))


def test_ones_own_sets_have_tables_by_what_is_labelled(tmp_path):
    """A score that falls at the first error finds every one; the reward model is asked about the set's domain."""
    rows = [STEPS | {"problem": f"p{n}", "errors": [n % 3] if n % 4 else []} for n in range(12)]
    traces = load_own("mine", jsonl(tmp_path / "m.jsonl", *rows), "steps", "code")
    table = pd.DataFrame(
        {
            **{name: getattr(t, name) for name in ("set", "item", "part", "kind", "problem", "labels")},
            "step": step,
            "steps": len(t.steps),
            "errors": list(t.errors),
            "answer_right": t.answer_right,
            "q": 0.0 if t.errors and step >= t.errors[0] else 1.0,
        }
        for t in traces
        for step in range(len(t.steps))
    ).astype({"answer_right": "boolean"})
    found = natural_measures.all_results(table, 20, 0)
    assert list(found) == ["first_errors"]
    values = found["first_errors"].set_index("metric")["value"]
    assert values["F1"] == values["accuracy on erroneous"] == values["accuracy on correct"] == 1.0
    assert {t.as_problem().domain for t in traces} == {"code"}
    assert reward_model_text(traces[0].as_problem(), "z").startswith("<task>code</task>\n<type>code</type>")


def results(name, rows, resamples=50):
    """A table of rows of the first set that has it."""
    labels = natural_measures.TABLES[name].labels
    of = next(name for name, label in LABELS_OF.items() if label in labels)
    return natural_measures.results(name, rows.assign(set=of), resamples, seed=0)


def test_ranking_by_hand():
    rows = pd.DataFrame(
        {
            "problem": list("aaabb"),
            "answer_right": [True, True, False, True, False],
            "length": [3.0, 1.0, 2.0, 5.0, 5.0],
        }
    )
    table = results("ranking", rows).set_index("metric")
    assert table.loc["pair accuracy", "value"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert table.loc["AUC within problem", "cases"] == 3
    assert table.loc["AUC within problem", "value"] == pytest.approx(1.5 / 3)


def test_f1_by_hand():
    assert natural_measures.harmonic_f1(np.array([1, 2, 1, 1])) == pytest.approx(2 / 3)
    assert natural_measures.step_f1(np.array([1, 1, 1, 3])) == pytest.approx((0.5 + 0.75) / 2)


def process_rows(n=12):
    """A score that knows: 0 at and after the first error, 1 before it. Every third trace is right."""
    rows = []
    for i in range(n):
        errors = [] if i % 3 == 0 else [1]
        rows += [
            {
                "item": f"i{i}",
                "part": "m",
                "kind": "",
                "problem": f"p{i}",
                "step": s,
                "steps": 3,
                "errors": errors,
                "answer_right": i % 3 == 1,
                "q": float(not errors or s < 1),
                "length": -s - 1.0,
            }
            for s in range(3)
        ]
    return pd.DataFrame(rows)


def test_first_errors_of_a_score_that_knows_them():
    table = results("first_errors", process_rows()).set_index(["score", "metric"])
    assert table.loc[("RM", "F1"), "value"] == 1
    lucky = table.loc[("RM", "right answer, wrong reason: exact")]
    assert (lucky["value"], lucky["cases"]) == (1, 4)
    assert table.loc[("length (shorter is better)", "F1"), "value"] < 1


def test_first_errors_of_pairs_by_hand():
    """The two processes of a row are two traces; a modified one without labels is none; answers are not labelled."""
    rows = prm_rows(
        *(
            (p, kind, 1, part, errors, scores)
            for p in "ab"
            for kind, part, errors, scores in [
                ("circular", "original", [], [0.9, 0.8]),
                ("circular", "modified", [1, 2], [0.9, 0.2, 0.1]),
                ("deception", "original", [], [0.9, 0.3]),
                ("deception", "modified", [], [0.0]),
                (natural_measures.CONTROL, "modified", [], [0.7]),
            ]
        )
    ).assign(answer_right=pd.array([pd.NA] * 18, "boolean"))
    table = results("first_errors", rows, 20).set_index("metric")
    assert table["value"].to_dict() == {"F1": 1, "accuracy on erroneous": 1, "accuracy on correct": 1}
    assert table["cases"].tolist() == [8, 2, 6]


def test_no_threshold_is_judged_on_the_problems_it_was_chosen_on():
    """Scores of one half lie at 10 times the other's scale: a threshold chosen on the same half would find all."""
    rows = process_rows()
    half = natural_measures.halves(rows["problem"].tolist(), 0)
    rows["q"] = rows["q"] + rows["problem"].map(half) * 10
    table = results("first_errors", rows.drop(columns="length"), 20)
    assert table.set_index("metric").loc["F1", "value"] < 0.5


def prm_rows(*processes):
    """Rows of (problem, kind, number, part, errors, scores of the prefixes)."""
    return pd.DataFrame(
        {
            "problem": problem,
            "kind": kind,
            "item": f"{kind}: {number}",
            "part": part,
            "errors": errors,
            "step": step,
            "steps": len(scores),
            "q": q,
        }
        for problem, kind, number, part, errors, scores in processes
        for step, q in enumerate(scores)
    )


def test_original_against_modified_by_hand():
    table = results(
        "pairs",
        prm_rows(
            ("a", "circular", 1, "original", [], [0.1, 0.8]),
            ("a", "circular", 1, "modified", [1], [0.9, 0.9, 0.3]),
            ("a", "circular", 2, "original", [], [0.5]),
            ("a", "circular", 2, "modified", [0], [0.5]),
            ("b", "deception", 1, "original", [], [0.9, 0.2]),
            ("b", "deception", 1, "modified", [0], [0.1, 0.4]),
            ("b", natural_measures.CONTROL, 1, "original", [], [0.9]),
            ("b", natural_measures.CONTROL, 1, "modified", [], [0.1]),
        ),
    ).set_index("kind")
    assert table["value"].to_dict() == {"all kinds": 0.5, "circular": 0.75, "deception": 0, natural_measures.CONTROL: 1}
    assert table["cases"].to_dict() == {"all kinds": 3, "circular": 2, "deception": 1, natural_measures.CONTROL: 1}


def test_error_steps_by_hand():
    """The best that a threshold can do flags one of two wrong steps, or both and a right one."""
    wrong = [(p, "circular", 1, "modified", [1, 2], [0.9, 0.2, 0.6, 0.4]) for p in "ab"]
    rest = [
        ("a", "circular", 1, "original", [], [0.0] * 9),
        ("b", natural_measures.CONTROL, 1, "modified", [0], [0.95] * 9),
    ]
    table = results("error_steps", prm_rows(*wrong, *rest))
    assert table["cases"].tolist() == [8]
    assert table["value"].tolist() == pytest.approx([(2 / 3 + 4 / 5) / 2])


def test_the_sentence_of_a_task_goes_by_intervals():
    def row(score, value, low, high):
        return {"set": "s", "score": score, "metric": "F1", "value": value, "low": low, "high": high, "cases": 7}

    rows = [row("RM", 0.3, 0.25, 0.4), row("length", 0.6, 0.5, 0.7), row("coin", 0.2, 0.1, 0.24)]
    headline = natural_measures.headlines(
        {"first_errors": pd.DataFrame([*rows, row("RM", 0.9, 0.9, 0.9) | {"metric": "other"}]), "added": pd.DataFrame()}
    )
    assert headline["chance"].tolist() == [0.2] * 3
    [said] = natural_measures.in_words(headline)
    assert "above chance (0.20)" in said and "worse than the best simple score, length" in said
    [said] = natural_measures.in_words(headline.assign(low=0.1, high=0.9))
    assert "not told apart from chance" in said and "not told apart" in said


SETS = {"gsm8k_solutions": 4, "processbench_gsm8k": 6, "prmbench": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The layout of the public sets, with a few records of each."""
    folder = tmp_path_factory.mktemp("data")
    question = "Mia has {} coins. She gets 2. How many coins does Mia have now?".format
    solutions = [
        {
            "question": question(n),
            "ground_truth": "t",
            "6b": {"solution": f"gets 2: {n} + 2 = {n + 2}.\nA: {n + 2}", "is_correct": True},
            "175b": {"solution": f"gets 2: {n} - 2 = <<{n}-2={n - 2}>>{n - 2}.\nA: {n - 2}", "is_correct": False},
        }
        for n in range(3, 9)
    ]
    processes = [
        process_row(
            id=f"g-{n}",
            problem=question(n),
            steps=[f"1. gets {n}.", f"gets 2: {n} + 2 = {n + 3}.", "So."],
            label=1 if n % 2 else -1,
            final_answer_correct=n % 3 == 0,
        )
        for n in range(3, 9)
    ]
    pairs = [
        {
            "idx": f"circular_{n}",
            "classification": "circular",
            "original_question": question(n),
            "original_process": ["She gets 2.", f"{n} + 2 = {n + 2}."],
            "error_steps": [2],
            "modified_process": ["She gets 2.", f"{n} + 2 = {n}.", "So it is."],
        }
        for n in range(3, 6)
    ]
    for name, rows in (("gsm8k_solutions", solutions), ("prmbench", pairs)):
        path = folder / NATURAL_SETS[name].files.replace("*", "x")
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    write(folder / NATURAL_SETS["processbench_gsm8k"].files, json.dumps(processes))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory, folder):
    """Preset check with an executor and an RM really trained, a little, in a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv(DATA_VARIABLE, str(folder))
        patch.setattr(stages, "NATURAL_CHUNK", 8)
        run = Run(
            "check",
            overrides={
                "executor.steps": 2,
                "reward_model.epochs": 1,
                "groups.sizes.train": 8,
                "natural_errors": {"sets": SETS},
            },
        )
        for stage in ("problems", "executor", "groups", "reward_model"):
            run.make(stage)
        yield run


@pytest.fixture(scope="module")
def resumed(real):
    """(rows, chunks scored) of the stage, interrupted in its second chunk and made again."""
    chunks, score = [], natural_measures.score_traces

    def interrupted(traces, *rest):
        chunks.append(len(traces))
        if len(chunks) == 2:
            raise KeyboardInterrupt
        return score(traces, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "score_traces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            real.make("natural_errors")
        artifact = real.make("natural_errors")
    assert not (artifact.path / WORK).exists()
    return pd.read_parquet(artifact.path / "scores.parquet"), chunks


def test_an_interrupted_stage_goes_on_and_gives_the_same(real, resumed, folder):
    rows, chunks = resumed
    assert chunks == [8, 8, 8, 4]  # the first chunk was not scored again
    assert rows.groupby("set").size().to_dict() == {"gsm8k_solutions": 8, "processbench_gsm8k": 18, "prmbench": 15}
    traces = [t for name, n in SETS.items() for t in sample_problems(load_natural(name, folder), n, 0)]
    executor = real.need("executor").path
    again = natural_measures.score_traces(
        traces, load_model(executor), load_tokenizer(executor), real.reward_model(), real.preset.prompt_style, 2048, 0
    )
    for column in ("set", "item", "part", "step", "steps", "length"):
        assert again[column].tolist() == rows[column].tolist()
    assert again["answer_right"].equals(rows["answer_right"].astype("boolean"))
    assert [list(e) for e in again["errors"]] == [list(e) for e in rows["errors"]]
    for column in ("q", "log_likelihood", "step_log_likelihood"):
        assert np.allclose(again[column], rows[column], atol=1e-5)
    assert rows["coin"].is_unique


@torch.inference_mode()
def test_scores_are_those_of_one_prefix_at_a_time(real, resumed, folder):
    rows = resumed[0]
    rows = rows[(rows["set"] == "processbench_gsm8k") & (rows["item"] == "g-3")].sort_values("step")
    trace = next(t for t in load_natural("processbench_gsm8k", folder) if t.item == "g-3")
    problem = trace.as_problem()
    executor, scorer = real.need("executor").path, real.reward_model()
    model, tokenizer = load_model(executor), load_tokenizer(executor)
    prompt = tokenizer.encode(
        as_chat(planner_prompt(problem, real.preset.prompt_style), tokenizer), add_special_tokens=False
    )
    assert len(rows) == 3
    sums, counts = [0.0], [0]
    for row in rows.itertuples():
        text = f"{OPEN}\n" + "".join(f"{s}\n" for s in trace.steps[: row.step + 1])
        text = text.removesuffix("\n") if row.step == 2 else text  # a line's end belongs to the line
        ids = tokenizer.encode(text, add_special_tokens=False)
        logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(ids)))
        counts.append(len(ids))
        assert row.log_likelihood == pytest.approx(sums[-1] / counts[-1], abs=1e-4)
        last_step = (sums[-1] - sums[-2]) / (counts[-1] - counts[-2])
        assert row.step_log_likelihood == pytest.approx(last_step, abs=1e-4)
        trace_text = "\n".join(trace.steps[: row.step + 1])
        encoded = scorer.tokenizer(
            reward_model_text(problem, trace_text), add_special_tokens=False, return_tensors="pt"
        )
        alone = scorer.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).q
        assert row.q == pytest.approx(float(alone[0]), abs=1e-5)
        assert row.length == -len(trace_text)


def test_every_table_of_the_stage_has_every_score(resumed):
    tables = natural_measures.all_results(resumed[0], 20, 0)
    assert set(tables) == {"ranking", "first_errors", "pairs", "error_steps"}
    for table in tables.values():
        assert set(table["score"]) == set(natural_measures.SCORES.values())
        assert table["value"].dropna().between(0, 1).all()
        known = table.dropna()
        assert ((known["low"] <= known["value"]) & (known["value"] <= known["high"])).all()
    assert set(tables["first_errors"]["set"]) == {"processbench_gsm8k", "prmbench"}
    assert len(natural_measures.in_words(natural_measures.headlines(tables))) == 5


@pytest.mark.skipif(not (DATA / "processbench").exists(), reason="no ../shared/data")
def test_public_sets_have_their_known_counts():
    gsm8k, math = (load_natural(f"processbench_{n}", DATA) for n in ("gsm8k", "math"))
    for traces, total, wrong, lucky in ((gsm8k, 400, 207, 7), (math, 1000, 594, 94)):
        assert len(traces) == total
        assert sum(bool(t.errors) for t in traces) == wrong
        assert sum(bool(t.errors) and t.answer_right for t in traces) == lucky
    assert len(load_natural("prmbench", DATA)) == 2 * 6216
    solutions = load_natural("gsm8k_solutions", DATA)
    assert not any(step.startswith("A:") or "<<" in step for t in solutions for step in t.steps[-1:])


def test_a_share_of_0_of_16_is_not_certain():
    """Every resample is 0 too; the interval is Wilson's."""
    counts = pd.DataFrame({"wins": 0.0, "n": 1.0}, index=pd.Index([f"p{i}" for i in range(16)], name="problem"))
    measure = natural_measures.Measure("pair accuracy", counts, natural_measures.share, 16)
    assert measure.interval(100, seed=0) == pytest.approx((0, 0, 0.1936), abs=1e-4)
