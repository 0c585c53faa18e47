"""The evaluation on benchmark sets with stand-ins: rows, resumption, pass@k, tables; the command with tiny models."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from common import story

from tracelift_lib.evaluation import benchmark_tables as tables
from tracelift_lib.evaluation.benchmark_sets import BenchmarkSet, LoadedSet
from tracelift_lib.evaluation.benchmarks import ALONE, CHUNK, REFERENCE, Policy, evaluate_set, usable
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, wrap_trace
from tracelift_lib.runs import evaluate
from tracelift_lib.verifier.verdicts import Verifier


def problem(number: int, answer: str, reference: str = "add") -> Problem:
    facts = {"source": "own", "domain": "math", "task_type": "math_word_problem", "problem": f"Question {number}?"}
    return Problem(problem_id=f"own-{number}", reference_solution=reference, answer=answer, **facts)


def loaded_set(n: int, **more) -> LoadedSet:
    spec = BenchmarkSet(name="own", title="t", domain="math", licence="none", **more)
    return LoadedSet(spec, [problem(i, str(i)) for i in range(n)])


class Future:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value

    def cancel(self):
        pass


class Script:
    """A backend that answers each prompt by a function of it, and remembers what it was asked."""

    name = "script"

    def __init__(self, answer, dies_at=math.inf):
        self.answer, self.asked, self.dies_at = answer, [], dies_at

    def submit(self, prompts, n, seed):
        if len(self.asked) + len(prompts) > self.dies_at:
            raise KeyboardInterrupt
        self.asked += prompts
        return [Future([self.answer(prompt, seed, i) for i in range(n)]) for prompt in prompts]


class Planner:
    """Writes what a function of the prompt says."""

    def __init__(self, write):
        self.write, self.sampling = write, Sampling(0.7, 1.0, 5, 100)
        self.tokenizer = type("T", (), {"chat_template": None, "bos_token": None, "__call__": self._tokens})()

    @staticmethod
    def _tokens(self, texts, add_special_tokens=False):
        return {"input_ids": [t.split() for t in texts]}

    def sample(self, prompts, n, seed):
        return [[self.write(prompt, i) for i in range(n)] for prompt in prompts]


@pytest.fixture(autouse=True)
def futures(monkeypatch):
    monkeypatch.setattr("tracelift_lib.executor.frozen.as_completed", lambda futures: futures)


def executor(backend):
    return Executor(backend, "instruct", PromptLimits(), Verifier())


def number_in(prompt: str) -> int:
    return int(prompt.split("Question ")[1].split("?")[0])


def right(prompt, seed=0, i=0):
    return f"The answer is {number_in(prompt)}."


# --- rows -------------------------------------------------------------------------------------


def test_two_stage_rows_by_hand(tmp_path):
    """Problem 0: a trace; 1: no tags. The executor is right where shown 'good'; without a trace it is not asked."""
    planner = Planner(
        lambda prompt, i: wrap_trace("good plan") if "Question 0" in prompt and i == 0 else "no tags at all here"
    )
    backend = Script(lambda prompt, seed, i: right(prompt) if "good" in prompt else "The answer is 77.")
    rows = evaluate_set(
        loaded_set(2), Policy("p", 3, planner, "rev"), executor(backend), 2, 0, tmp_path, {"executor_revision": "exe"}
    )
    assert rows["problem_id"].tolist() == ["own-0", "own-0", "own-1", "own-1"] and rows["sample"].tolist() == [
        0,
        1,
        0,
        1,
    ]
    assert rows["success"].tolist() == [1, 0, 0, 0] and rows["outcome"].tolist() == ["right"] + ["no trace"] * 3
    assert rows["well_formed"].tolist() == [True, False, False, False] and len(backend.asked) == 1
    assert rows["trace_tokens"].isna().tolist() == [False, True, True, True]
    assert rows["cut"].tolist() == [False, True, True, True]  # five words are as long as a trace may be
    assert set(rows["planner_revision"]) == {"rev"} and set(rows["executor_revision"]) == {"exe"}
    assert rows["truth"].tolist() == ["0", "0", "1", "1"] and set(rows["policy_seed"]) == {3}


def test_the_other_two_conditions_and_the_words_of_the_set(tmp_path):
    whole = loaded_set(2, prompt={"answer_form": "the letter"})
    for policy in (ALONE, REFERENCE):
        backend = Script(right)
        rows = evaluate_set(whole, Policy(policy), executor(backend), 3, 0, tmp_path / policy)
        assert len(rows) == 6 and rows["success"].all() and rows["trace_tokens"].isna().all()
        assert all(prompt.endswith("'The answer is' and then the letter.") for prompt in backend.asked)
        assert all(("add" in prompt) == (policy == REFERENCE) for prompt in backend.asked)


def test_a_set_without_reference_traces_says_so():
    whole = loaded_set(2)
    whole.problems = [problem(0, "0", ""), problem(1, "1", "a trace")]
    assert [p.problem_id for p in usable(whole, Policy(REFERENCE)).problems] == ["own-1"]
    assert usable(whole, Policy(ALONE)) is whole
    whole.problems = whole.problems[:1]
    with pytest.raises(InputError, match="set own: has no reference traces"):
        usable(whole, Policy(REFERENCE))


def test_one_truth_that_cannot_be_judged_leaves_the_others_alone(tmp_path):
    whole = loaded_set(3)
    whole.problems[1] = whole.problems[1].model_copy(update={"answer": "7 or 8, who knows?"})
    rows = evaluate_set(whole, Policy(ALONE), executor(Script(right)), 1, 0, tmp_path)
    assert rows["success"].tolist() == [1, 0, 1] and rows["outcome"][1].startswith("not judged")


# --- resumption -------------------------------------------------------------------------------


def noisy(prompt, seed, i):
    return f"The answer is {number_in(prompt) + (seed + i) % 2}."


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(tmp_path):
    whole, n = loaded_set(3 * CHUNK), 2
    unbroken = evaluate_set(whole, Policy(ALONE), executor(Script(noisy)), n, 5, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        evaluate_set(whole, Policy(ALONE), executor(Script(noisy, dies_at=CHUNK)), n, 5, tmp_path / "b")
    (tmp_path / "b" / "half.tmp").write_text("half a file of a killed run")
    backend = Script(noisy)
    resumed = evaluate_set(whole, Policy(ALONE), executor(backend), n, 5, tmp_path / "b")
    assert len(backend.asked) == 2 * CHUNK
    pd.testing.assert_frame_equal(unbroken.drop(columns="seconds"), resumed.drop(columns="seconds"))
    again = Script(noisy)
    evaluate_set(whole, Policy(ALONE), executor(again), n, 5, tmp_path / "b")
    assert again.asked == []


def test_a_larger_limit_asks_only_the_new_problems(tmp_path):
    evaluate_set(loaded_set(5), Policy(ALONE), executor(Script(right)), 1, 0, tmp_path)
    backend = Script(right)
    rows = evaluate_set(loaded_set(20), Policy(ALONE), executor(backend), 1, 0, tmp_path)
    assert len(backend.asked) == 15 and len(rows) == 20
    assert len(evaluate_set(loaded_set(3), Policy(ALONE), executor(backend), 1, 0, tmp_path)) == 3


def test_outputs_that_another_verifier_judged_are_judged_again(tmp_path):
    rows = evaluate_set(
        loaded_set(2), Policy(ALONE), executor(Script(right)), 1, 0, tmp_path, {"verifier_version": "old"}
    )
    part = next(tmp_path.glob("*.parquet"))
    rows.assign(success=0.0, outcome="wrong").to_parquet(part)
    kept = evaluate_set(
        loaded_set(2), Policy(ALONE), executor(Script(right)), 1, 0, tmp_path, {"verifier_version": "old"}
    )
    new = evaluate_set(
        loaded_set(2), Policy(ALONE), executor(Script(right)), 1, 0, tmp_path, {"verifier_version": "new"}
    )
    assert not kept["success"].any() and new["success"].all() and set(new["outcome"]) == {"right"}


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n, c", [(5, 0), (5, 2), (5, 5), (4, 1)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples(n, c):
    right = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        chosen = list(itertools.combinations(right, k))
        assert tables.pass_at_k(n, c, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    with pytest.raises(ValueError, match="samples"):
        tables.pass_at_k(n, c, n + 1)


def table_rows(policy, values, seed=0, set_="a", **more):
    """Rows of problems with these successes of their samples."""
    facts = {"policy": policy, "policy_seed": seed, "set": set_, "domain": "math", "outcome": "right", "rule": "strict"}
    facts |= {"well_formed": True, "trace_tokens": 4.0, "answer_tokens": 2.0, "cut": False, "seconds": 0.5} | more
    return pd.DataFrame(
        {**facts, "problem_id": f"{set_}-{i}", "sample": j, "success": float(v)}
        for i, samples in enumerate(values)
        for j, v in enumerate(samples)
    )


def test_shares_by_hand():
    long_but_malformed = table_rows("p", [[0]], trace_tokens=np.nan, well_formed=False).assign(problem_id="a-9")
    rows = pd.concat([table_rows("p", [[1, 0], [1, 1]]), long_but_malformed.loc[[0, 0]].assign(sample=[0, 1])])
    one = tables.shares(rows, (1, 2)).iloc[0]
    assert one["success"] == pytest.approx(0.5) and one["pass@1"] == pytest.approx(0.5)
    assert one["pass@2"] == pytest.approx(2 / 3) and one["malformed"] == pytest.approx(1 / 3)
    assert one["trace_tokens"] == 4 and one["problems"] == 3 and 0 < one["low"] < 0.5 < one["high"] < 1


def test_none_of_sixteen_has_a_width():
    one = tables.shares(table_rows("p", [[0]] * 16)).iloc[0]
    assert one["low"] == 0 and one["high"] == pytest.approx(0.194, abs=1e-3)


def test_averages_over_sets():
    rows = pd.concat([table_rows("p", [[1]] * 4), table_rows("p", [[1]] + [[0]] * 11, set_="b")])
    found = tables.shares(rows).set_index("set")["success"]
    assert found["micro average"] == pytest.approx(5 / 16) and found["macro average"] == pytest.approx((1 + 1 / 12) / 2)


def test_comparisons_by_hand():
    """a better on 9 problems and worse on 1 of 40: McNemar's p; b is the control's own model."""
    control = table_rows("c", [[0]] * 9 + [[1]] * 31)
    better = table_rows("a", [[1]] * 9 + [[0]] + [[1]] * 30)
    found = tables.comparisons(pd.concat([control, better, control.assign(policy="b")]), "c", ["b"])
    a, b = (found[found["comparison"] == f"{x} - c"].iloc[0] for x in "ab")
    assert a["difference"] == pytest.approx(0.2) and a["p"] == pytest.approx(22 / 1024) and a["verdict"] == "more"
    assert b["verdict"].startswith("not run") and np.isnan(b["p_holm"]) and a["p_holm"] == a["p"]


def test_comparisons_use_the_problems_that_both_have_and_pair_seeds():
    two = pd.concat([table_rows("a", [[1]] * 6, seed=s) for s in (0, 1)])
    control = pd.concat([table_rows("c", [[0]] * 4, seed=s) for s in (0, 1)])
    one = tables.comparisons(pd.concat([control, two]), "c").iloc[0]
    assert (one["problems"], one["seeds"], one["difference"]) == (4, 2, 1.0)
    alone = tables.comparisons(pd.concat([table_rows("c", [[0]] * 4), two]), "c").iloc[0]
    assert (alone["seeds"], alone["difference"]) == (2, 1.0)


def test_the_same_outputs_under_each_rule():
    """Nothing is asked: right by the last number alone, right by the statement alone, and no answer at all."""
    rows = table_rows("p", [[0], [1], [0]]).assign(
        problem="q", truth="5", answer=["so we get 5", "The answer is 5.\nNext 9", None]
    )
    found = tables.by_rule(rows).set_index("rule")
    assert set(found.index) == set(tables.RULES) >= {"strict", "last_number"}
    assert found.loc["strict", "success"] == pytest.approx(1 / 3) and found.loc["strict", "only_here_right"] == 0
    assert found.loc["last_number", ["only_here_right", "only_own_right"]].tolist() == [1, 1]


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A Qwen2 with random weights, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([story(3, ("+", 2)).problem, "The answer is 5. Solve it."] * 3, 300)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.1}
    new_qwen2(tokenizer, Qwen2Shape(**shape, **more), 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, model_folder):
    monkeypatch.setenv("TRACELIFT_HOME", str(tmp_path))
    data = tmp_path / "mine.jsonl"
    good = [{"problem": f"{i} + 1?", "answer": i + 1, "reference_solution": "add"} for i in range(3)]
    data.write_text("".join(json.dumps(r) + "\n" for r in [*good, {"problem": "q", "answer": ""}]))
    words = ["--executor", str(model_folder), "--sets", str(data), "--executor-tokens", "4", "--planner-tokens", "4"]
    return lambda *more: evaluate.main([*words, *more, "--out", "out"])


def test_the_command_end_to_end_and_again(command, tmp_path, model_folder, monkeypatch, capsys):
    assert command("--planner", f"none,reference,{model_folder}") == 0
    shown, out = capsys.readouterr().out, tmp_path / "out"
    assert "mine: 3 problems, 1 left out" in shown and "mine-3" in shown and "mine.jsonl:4" in shown
    rows = pd.read_parquet(out / "answers.parquet")
    assert rows.groupby("policy").size().to_dict() == {ALONE: 3, REFERENCE: 3, model_folder.name: 3}
    manifest = json.loads((out / "manifest.json").read_text())
    planner, drawn = manifest["planners"][0], manifest["executor"]["sampling"]["math"]
    assert planner["greedy"] and planner["max_new_tokens"] == 4 and planner["dtype"] == "torch.float32"
    assert drawn["temperature"] == 0 and drawn["max_new_tokens"] == 4 and manifest["executor"]["revision"]
    assert manifest["sets"]["mine"]["refused"][0]["id"] == "mine-3" and manifest["packages"]["transformers"]
    assert {p.name for p in out.glob("*.csv")} == {"shares.csv", "comparisons.csv", "by_rule.csv", "outcomes.csv"}
    monkeypatch.setattr(Sampler, "_generate", lambda *a: pytest.fail("asked again"))
    assert command("--planner", f"none,reference,{model_folder}") == 0


def test_several_samples_are_drawn_and_counted(command, tmp_path):
    assert command("--planner", "none", "--samples", "3", "--pass-at", "1,3") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["executor"]["sampling"]["math"]["temperature"] == 0.5
    assert {"pass@1", "pass@3"} <= set(pd.read_csv(tmp_path / "out" / "shares.csv"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--planner", "none", "--pass-at", "4"], "needs --samples 4"),
        (["--planner", "run:tiny/tracelif"], "no such planner; there are warm_start/0"),
        (["--planner", "run:tinny"], "unknown preset 'tinny'"),
        (["--planner", "no such folder"], "no such folder"),
    ],
)
def test_words_that_cannot_be_meant(command, words, message):
    with pytest.raises(InputError, match=message):
        command(*words)


def test_greedy_needs_no_seed(model_folder):
    sampler = Sampler(load_model(model_folder), load_tokenizer(model_folder), Sampling(0.0, 1.0, 8, 256))
    one, two = (sampler.sample(["Solve it."], 2, seed) for seed in (0, 1))
    assert one == two and one[0][0] == one[0][1]
