"""Rewards while training, with stand-ins for the model and the RM: parts, modes, failures, the log."""

import asyncio
import contextlib
import json
import math
import threading
from collections import Counter
from concurrent.futures import Future
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from common import lines, story

from tracelift_lib.executor.backends import CallFailed
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.planner.judges import TruthJudge
from tracelift_lib.planner.log import collect_log
from tracelift_lib.planner.reward_engine import RewardEngine, TooManyFailures
from tracelift_lib.planner.rewards import ARMS, NEEDS, compares
from tracelift_lib.problems.prompts import PromptLimits, extract_trace, wrap_trace
from tracelift_lib.runs.presets import load_preset
from tracelift_lib.verifier.verdicts import Verifier

A, B = story(3, ("+", 2), problem_id="a"), story(4, ("*", 2), problem_id="b")  # answers 5 and 8


class FakeBackend:
    """Answers with the runs that are written for each trace (None: without one), and remembers what it was asked."""

    name = "fake"

    def __init__(self, runs, no_trace=None):
        self.runs, self.no_trace, self.calls = runs, no_trace, []

    def submit(self, prompts, n, seed):
        problems = ["a" if "(story a)" in p else "b" for p in prompts]
        traces = [extract_trace(p) for p in prompts]
        self.calls.append((problems, traces, n, seed))
        return [self._future(x, z, n, traces[:i].count(z)) for i, (x, z) in enumerate(zip(problems, traces))]

    def _future(self, problem, trace, n, before):
        runs = self.runs[trace] if trace else self.no_trace[problem][before]
        future = Future()
        if isinstance(runs, Exception):
            future.set_exception(runs)
        else:
            right = {"a": "5", "b": "8"}[problem]
            future.set_result([f"Answer: {right if r else 1}" for r in runs[:n]])
        return future


class FakeScorer:
    def __init__(self, quality):
        self.quality, self.calls = quality, []

    def score(self, problems, traces, progress=None):
        self.calls.append(([p.problem_id for p in problems], list(traces)))
        return np.array([self.quality[z] for z in traces], dtype=float), np.zeros((len(traces), 5))


class FakeJudge:
    """Gives every trace this score; remembers the traces."""

    def __init__(self, value):
        self.value, self.judged = value, []

    def score(self, problems, traces, progress=None):
        self.judged += traces
        return np.full(len(traces), self.value), None


RUNS = {"good": [1, 1, 0, 1], "bad": [0, 1, 0, 0], "lucky": [1, 0, 0, 0]}
QUALITY = {"good": 0.8, "bad": 0.5, "lucky": 0.25}
BASELINE = {"a": [0, 0, 0, 1], "b": [1, 0]}


def engine(tmp_path, arm="tracelift", quality=QUALITY, runs=RUNS, no_trace=None, verifier=None, **change):
    executor = Executor(FakeBackend(runs, no_trace), "short", PromptLimits(), verifier or Verifier())
    arguments = dict(
        arm=arm,
        k=3,
        executor=executor,
        scorer=FakeScorer(quality),
        problems={"a": A, "b": B},
        baseline={"a": [0, 1, 0], "b": [1, 0, 1]} if arm == "released_code" else BASELINE,
        seed=2,
        max_failure_rate=0.25,
        min_failures=1,
        log_folder=tmp_path / "rollouts",
    )
    (tmp_path / "rollouts").mkdir(exist_ok=True)
    return RewardEngine(**(arguments | change))


def score(e, completions, ids, seed=0):
    return asyncio.run(e.score(completions, ids, seed))[0]


def call(e, completions, ids, step=0):
    """As TRL calls it."""
    state = SimpleNamespace(global_step=step)
    return asyncio.run(e.reward(completions=completions, problem_id=ids, trainer_state=state, prompts=["p"] * len(ids)))


def test_parts_and_reward_by_hand(tmp_path):
    """s is the first run alone; the uplift uses the other three and the problem's own baseline (1/4 and 1/2)."""
    e = engine(tmp_path)
    rows = score(e, [wrap_trace(z) for z in ("good", "bad", "lucky", "good")], ["a", "a", "b", "b"], seed=9)
    parts = [(r["problem_id"], r["trace"], r["s"], r["q"], r["u"]) for r in rows]
    assert parts == [
        ("a", "good", 1, 0.8, pytest.approx(2 / 3 - 1 / 4)),
        ("a", "bad", 0, 0.5, pytest.approx(1 / 3 - 1 / 4)),
        ("b", "lucky", 1, 0.25, pytest.approx(0 - 1 / 2)),
        ("b", "good", 1, 0.8, pytest.approx(2 / 3 - 1 / 2)),
    ]
    assert [r["reward"] for r in rows] == pytest.approx([0.5 + 0.4 * 5 / 12, 0.25 / 12, 0.5 - 0.125 / 2, 0.5 + 0.4 / 6])
    assert e.executor.backend.calls == [(["a", "a", "b", "b"], ["good", "bad", "lucky", "good"], 4, 9)]
    assert (e.n_rewards, e.failures.total()) == (4, 0)


MALFORMED = ["", "good", "<reasoning>good", "<reasoning></reasoning>", wrap_trace("good") + wrap_trace("bad")]


@pytest.mark.parametrize("arm", ARMS)
def test_a_completion_without_a_trace_earns_zero_and_runs_nothing(tmp_path, arm):
    """Zero in every arm, even where an empty trace could look better than a harmful one; it is no failure."""
    e = engine(tmp_path, arm, judge=FakeJudge(1.0))
    mixed = [MALFORMED[0], wrap_trace("good"), *MALFORMED[1:]]
    rows = score(e, mixed, ["a"] * len(mixed))
    assert [r["reward"] for i, r in enumerate(rows) if i != 1] == [0.0] * len(MALFORMED)
    assert all(r["trace"] is None and r["s"] == r["q"] == r["u"] == 0 for i, r in enumerate(rows) if i != 1)
    assert e.executor.backend.calls[0][1] == ["good"] and not e.failures
    assert rows[1]["reward"] == pytest.approx(ARMS[arm](*(rows[1][name] for name in "squjc"))) and rows[1]["s"] == 1


def test_a_batch_without_any_trace(tmp_path):
    assert [r["reward"] for r in score(engine(tmp_path), MALFORMED, ["b"] * 5)] == [0.0] * 5


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_computes_only_what_it_needs(tmp_path, arm):
    """Runs, RM and judge cost time: an arm without uplift asks for one run, one without q for no score."""
    judge = FakeJudge(0.6)
    e = engine(
        tmp_path,
        arm,
        scorer=FakeScorer(QUALITY) if "q" in NEEDS[arm] else None,
        judge=judge if "j" in NEEDS[arm] else None,
    )
    (row,) = score(e, [wrap_trace("good")], ["a"])
    assert e.executor.backend.calls[0][2] == (4 if compares(arm) else 1) and len(e.executor.backend.calls) == 1
    assert (judge.judged == ["good"]) == ("j" in NEEDS[arm])
    s, q, u, j = 1.0, 0.8, 2 / 3 - 1 / 4, 0.6
    assert row["reward"] == pytest.approx(
        {
            "exec_only": s,
            "tracelift": 0.5 * s + 0.5 * q * u,
            "no_uplift": 0.5 * s + 0.5 * q,
            "rm_uplift_only": q * u,
            "llm_judge": 0.5 * s + 0.5 * j * u,
            "released_code": 1.0,
            "random_bonus": 0.5 * s + 0.5 * j * u,
            "success_times_quality": s * q,
            "quality_among_equals": s + q,  # a group of one has equal outcomes
        }[arm]
    )


def test_quality_decides_only_among_completions_of_equal_outcome(tmp_path):
    """Of problem a one succeeds and one has no trace; of problem b both do: only b's are paid for quality."""
    e = engine(tmp_path, "quality_among_equals", scorer=FakeScorer(QUALITY))
    rows = score(e, [wrap_trace("good"), "none", wrap_trace("good"), wrap_trace("good")], ["a", "a", "b", "b"])
    assert [row["s"] for row in rows] == [1.0, 0.0, 1.0, 1.0]
    assert [row["t"] for row in rows] == [0.0, 0.0, 1.0, 1.0]
    assert [row["reward"] for row in rows] == pytest.approx([1.0, 0.0, 1.8, 1.8])


# --- the released code's reward ---------------------------------------------------------------


@pytest.mark.parametrize(
    "trace, problem, ties, c",
    [
        ("good", "a", None, 1.0),  # 2 of 3 with the trace, 1 of 3 without
        ("bad", "a", None, 0.5),  # 1 of 3 each: the tie of the released code
        ("bad", "a", [0, -0.25, 0, 0], -0.25),
        ("lucky", "b", None, -1.0),  # 0 against 2
        ("good", "b", None, 2 / 3),  # 2 each
    ],
)
def test_the_released_form_counts_successes(tmp_path, trace, problem, ties, c):
    (row,) = score(engine(tmp_path, "released_code", ties=ties), [wrap_trace(trace)], [problem])
    assert row["c"] == pytest.approx(c)
    assert row["reward"] == pytest.approx(min(1, max(0, RUNS[trace][0] + 0.2 * QUALITY[trace] * c)))


# --- baseline and s run -----------------------------------------------------------------------


def test_a_fresh_baseline_is_drawn_for_each_trace(tmp_path):
    """K runs without a trace for each of the two traces, with another seed than the runs with it."""
    e = engine(tmp_path, baseline=None, no_trace={"a": [[0, 0, 1], [1, 1, 0]]})
    good, bad = score(e, [wrap_trace("good"), wrap_trace("bad")], ["a", "a"], seed=3)
    assert good["u"] == pytest.approx(2 / 3 - 1 / 3) and bad["u"] == pytest.approx(1 / 3 - 2 / 3)
    (_, traces, n, seed), (_, none, k, other) = e.executor.backend.calls
    assert (traces, n, seed, none, k) == (["good", "bad"], 4, 3, [None, None], 3) and other != seed


def test_fresh_mode_draws_nothing_for_an_arm_that_compares_nothing(tmp_path):
    e = engine(tmp_path, "exec_only", baseline=None)
    assert score(e, [wrap_trace("good")], ["a"])[0]["reward"] == 1 and len(e.executor.backend.calls) == 1


def test_a_merged_run_is_the_mean_of_the_same_k(tmp_path):
    e = engine(tmp_path, s_run="merged")
    (row,) = score(e, [wrap_trace("good")], ["a"])
    assert e.executor.backend.calls[0][2] == 3
    assert row["s"] == pytest.approx(2 / 3) and row["u"] == pytest.approx(2 / 3 - 1 / 4)
    (alone,) = score(engine(tmp_path, "exec_only", s_run="merged"), [wrap_trace("good")], ["a"])
    assert alone["s"] == 1  # an arm that compares nothing has one run


@pytest.mark.parametrize("k, p, q", [(1, 0.3, 0.8), (2, 0.5, 0.9), (3, 0.3, 0.8), (3, 0.5, 1.0), (4, 0.9, 0.2)])
def test_merging_keeps_the_mean_and_the_variance_is_as_documented(tmp_path, k, p, q):
    """Every outcome of the runs, weighed: the formulas of the module's docstring, and the claim for K >= 3."""
    moments = {}
    for mode, n in (("separate", k + 1), ("merged", k)):
        mean = square = 0.0
        for runs in product((0, 1), repeat=n):
            e = engine(tmp_path, runs={"z": list(runs)}, quality={"z": q}, k=k, s_run=mode, baseline={"a": [1, 0]})
            (row,) = score(e, [wrap_trace("z")], ["a"])
            weight = math.prod(p if r else 1 - p for r in runs)
            mean, square = mean + weight * row["reward"], square + weight * row["reward"] ** 2
        moments[mode] = (mean, square - mean**2)
    assert moments["merged"][0] == pytest.approx(moments["separate"][0])
    assert moments["separate"][1] == pytest.approx(p * (1 - p) * (1 + q**2 / k) / 4)
    assert moments["merged"][1] == pytest.approx(p * (1 - p) * (1 + q) ** 2 / (4 * k))
    if k >= 3:
        assert moments["merged"][1] <= moments["separate"][1] + 1e-12


# --- identical traces -------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [BASELINE, None])
def test_identical_traces_of_a_problem_are_computed_once_and_share_all(tmp_path, baseline):
    """The same trace of another problem is another case; other words around the tags are not."""
    e = engine(tmp_path, baseline=baseline, no_trace={"a": [[0, 0, 1]] * 4, "b": [[1, 1, 1]] * 4})
    completions = [wrap_trace("good"), "Well: " + wrap_trace("good"), wrap_trace("bad"), wrap_trace("good")]
    rows, stats = asyncio.run(e.score(completions, ["a", "a", "a", "b"], 0))
    assert [c[:2] for c in e.executor.backend.calls][0] == (["a", "a", "b"], ["good", "bad", "good"])
    assert e.scorer.calls == [(["a", "a", "b"], ["good", "bad", "good"])]
    assert {**rows[0], "completion_characters": 0} == {**rows[1], "completion_characters": 0}
    assert rows[3]["u"] != rows[0]["u"] and stats["repeated_traces"] == 0.25


def test_a_failure_of_a_shared_trace_counts_for_each_completion(tmp_path):
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    rows = score(e, [wrap_trace("bad")] * 3 + [wrap_trace("good")], ["a"] * 4)
    assert [r["reward"] is None for r in rows] == [True, True, True, False] and e.failures.total() == 3


# --- failures ---------------------------------------------------------------------------------


def test_a_quality_that_is_nan_gives_no_reward_and_counts(tmp_path):
    """None leaves it out of the group; a zero would punish the trace for our failure."""
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    completions = [wrap_trace("good"), wrap_trace("bad"), wrap_trace("good"), wrap_trace("lucky")]
    rows = score(e, completions, ["a"] * 4)
    assert rows[1]["reward"] is None and all(rows[i]["reward"] is not None for i in (0, 2, 3))
    assert (e.failures, e.n_rewards) == (Counter(reward_model=1), 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_never_become_a_reward(tmp_path, value):
    e = engine(tmp_path, "no_uplift", quality={"good": value})
    assert score(e, [wrap_trace("good")], ["a"])[0]["reward"] is None
    e = engine(tmp_path, "llm_judge", judge=FakeJudge(value))
    assert score(e, [wrap_trace("good")], ["a"])[0]["reward"] is None and e.failures == Counter(judge=1)


def test_a_broken_quality_does_not_touch_an_arm_that_has_none(tmp_path):
    (scored,) = score(engine(tmp_path, "exec_only", quality={"good": math.nan}), [wrap_trace("good")], ["a"])
    assert scored["reward"] == 1


class FailingVerifier(Verifier):
    def verify(self, problems, answers):
        raise RuntimeError("no sandbox")


class FailingScorer:
    def score(self, problems, traces, progress=None):
        raise ConnectionError("no reward model, or no judge")


@pytest.mark.parametrize(
    "kind, change",
    [
        ("executor_timeout", {"runs": RUNS | {"good": CallFailed("executor_timeout", "late")}}),
        ("executor_http_500", {"baseline": None, "no_trace": {"a": [CallFailed("executor_http_500", "no")]}}),
        ("verifier", {"verifier": FailingVerifier()}),
        ("reward_model", {"scorer": FailingScorer()}),
        ("judge", {"arm": "llm_judge", "judge": FailingScorer()}),
    ],
)
def test_every_kind_of_failure_gives_none_is_counted_and_stops_the_run(tmp_path, kind, change):
    e = engine(tmp_path, **change)
    rows, _ = asyncio.run(e.score([wrap_trace("good"), "no trace"], ["a", "a"], 0))
    assert [(r["reward"], r["failure"]) for r in rows] == [(None, kind), (0.0, None)]
    assert e.failures == Counter({kind: 1})
    with pytest.raises(TooManyFailures, match=f"{kind} 2.*max_failure_rate"):
        call(e, [wrap_trace("good")], ["a"])


@pytest.mark.parametrize(
    "change, q, s, u",
    [
        ({"runs": RUNS | {"good": CallFailed("executor_timeout", "late")}}, 0.8, 0, 0 - 1 / 4),
        ({"scorer": FailingScorer()}, 0.5, 1, 2 / 3 - 1 / 4),
        ({"verifier": FailingVerifier()}, 0.8, 0, 0 - 1 / 4),
    ],
)
def test_failures_as_the_released_code_has_them(tmp_path, change, q, s, u):
    """docs/method.md section 9: failed runs are attempts without success, a failed score is 0.5; they are counted."""
    e = engine(tmp_path, failed="released_code", **change)
    (row,) = score(e, [wrap_trace("good")], ["a"])
    assert (row["q"], row["s"], row["u"]) == pytest.approx((q, s, u))
    assert row["reward"] == pytest.approx(0.5 * s + 0.5 * q * u) and e.failures.total() == 1


def test_one_failed_call_leaves_the_others_their_rewards(tmp_path):
    e = engine(tmp_path, runs=RUNS | {"bad": CallFailed("executor_connection", "gone")})
    rows = score(e, [wrap_trace(z) for z in ("good", "bad", "lucky")], ["a"] * 3)
    assert [r["reward"] is None for r in rows] == [False, True, False]
    assert all(math.isnan(rows[1][name]) for name in "squ")


def test_too_many_failures_stop_the_run(tmp_path):
    """The share counts over the whole run: 1 of 4 is allowed at 0.25, 2 of 5 is not. What failed is in the log."""
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    call(e, [wrap_trace(z) for z in ("good", "bad", "good", "good")], ["a", "a", "b", "b"])
    with pytest.raises(TooManyFailures, match="2 of 5"):
        call(e, [wrap_trace("bad")], ["a"], step=1)
    assert json.loads((tmp_path / "rollouts" / "000001.json").read_text())[0]["failure"] == "reward_model"


@pytest.mark.parametrize("failed, rewards, stops", [(1, 32, False), (9, 32, False), (10, 32, True), (10, 600, False)])
def test_a_few_failures_stop_a_run_by_no_share(tmp_path, failed, rewards, stops):
    """At the default of a preset, 0.02: one time-out among the first 32 completions is 3 %, and chance."""
    execution = load_preset("check").execution
    assert (execution.max_failure_rate, execution.min_failures) == (0.02, 10)
    e = engine(
        tmp_path,
        quality=QUALITY | {"bad": math.nan},
        max_failure_rate=execution.max_failure_rate,
        min_failures=execution.min_failures,
    )
    completions = [wrap_trace("bad")] * failed + [wrap_trace("good")] * (rewards - failed)
    with pytest.raises(TooManyFailures, match=f"{failed} of {rewards}") if stops else contextlib.nullcontext():
        call(e, completions, ["a"] * rewards)


def test_a_resumed_run_remembers_the_failures_of_its_first_part(tmp_path):
    """Step 1 is logged, but comes after the checkpoint: it is done again and counts once."""
    first = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    call(first, [wrap_trace(z) for z in ("good", "bad", "good", "good")], ["a", "a", "b", "b"])
    call(first, [wrap_trace("good")] * 4, ["a"] * 4, step=1)
    resumed = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    with pytest.raises(TooManyFailures, match=r"2 of 5 rewards failed \(reward_model 2\)"):
        call(resumed, [wrap_trace("bad")], ["a"], step=1)


@pytest.mark.parametrize(
    "arm, baseline, no_trace, expected",
    [
        ("tracelift", BASELINE, None, [0.25, 0.25, 0.5]),  # known for the problem, whatever the planner wrote
        ("tracelift", None, {"a": [[1, 0, 1]], "b": [[], [0, 0, 1]]}, [2 / 3, math.nan, 1 / 3]),  # drawn for each trace
        ("exec_only", BASELINE, None, [math.nan] * 3),
    ],
)
def test_success_without_a_trace_is_logged_beside_the_parts(tmp_path, arm, baseline, no_trace, expected):
    e = engine(tmp_path, arm, baseline=baseline, no_trace=no_trace)
    rows = score(e, [wrap_trace("good"), "no trace", wrap_trace("lucky")], ["a", "a", "b"])
    assert [r["baseline_success"] for r in rows] == pytest.approx(expected, nan_ok=True)
    assert [r["malformed"] for r in rows] == [None, "no trace", None]


def test_no_failure_is_allowed_at_rate_zero(tmp_path):
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan}, max_failure_rate=0.0, min_failures=10)
    call(e, [wrap_trace("good")], ["a"])
    with pytest.raises(TooManyFailures):
        call(e, [wrap_trace("good")] * 9 + [wrap_trace("bad")], ["a"] * 10, step=1)


# --- at once ----------------------------------------------------------------------------------


def test_executor_reward_model_and_judge_work_at_the_same_time(tmp_path):
    """Each waits until all three have begun; one after another they would wait for ever."""
    begun = threading.Barrier(3, timeout=20)

    class Backend(FakeBackend):
        def submit(self, prompts, n, seed):
            future = Future()
            threading.Thread(target=lambda: (begun.wait(), future.set_result(["Answer: 5"] * n))).start()
            return [future]

    class Scorer(FakeScorer):
        def score(self, problems, traces, progress=None):
            begun.wait()
            return super().score(problems, traces)

    e = engine(tmp_path, "llm_judge", judge=Scorer({"good": 0.5}))
    e.executor.backend, e.scorer = Backend(RUNS), Scorer(QUALITY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NEEDS, "llm_judge", frozenset("squj"))
        (row,) = score(e, [wrap_trace("good")], ["a"])
    assert (row["s"], row["q"], row["j"], row["failure"]) == (1, 0.8, 0.5, None)


# --- as TRL calls it --------------------------------------------------------------------------


def test_the_reward_function_returns_rewards_in_order_and_logs_every_part(tmp_path):
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    completions = [wrap_trace("good"), "no trace", wrap_trace("bad"), wrap_trace("good")]
    rewards = call(e, completions, ["a", "a", "b", "b"], step=7)
    assert rewards == [pytest.approx(0.5 + 0.4 * 5 / 12), 0.0, None, pytest.approx(0.5 + 0.4 / 6)]
    (file,) = (tmp_path / "rollouts").glob("*.json")
    rows = json.loads(file.read_text())
    assert [r["step"] for r in rows] == [7] * 4 and [r["problem_id"] for r in rows] == ["a", "a", "b", "b"]
    assert [r["reward"] for r in rows] == rewards and [r["trace"] for r in rows] == ["good", None, "bad", "good"]
    assert [r["completion_characters"] for r in rows] == [len(c) for c in completions]
    assert rows[0]["q"] == 0.8 and rows[0]["s"] == 1 and rows[0]["u"] == pytest.approx(5 / 12)
    stats = json.loads((tmp_path / "rollouts" / "steps" / "000007.json").read_text())
    assert (stats["step"], stats["baseline"]) == (7, "cached")
    phases = ("executor_seconds", "verifier_seconds", "rm_seconds")
    assert stats["repeated_traces"] == 0 and all(0 < stats[name] <= stats["seconds"] for name in phases)


def test_each_step_and_each_seed_draws_other_executor_runs(tmp_path):
    """The same noise at every step would be learned; the same at a repeated step makes a resumed run the same."""
    seen = {}
    for seed in (0, 1, 2):
        for step in (0, 1, 2, 50):
            e = engine(tmp_path, seed=seed, baseline=None, no_trace={"a": [[0, 0, 1]]})
            call(e, [wrap_trace("good")], ["a"], step)
            seen[seed, step] = [c[3] for c in e.executor.backend.calls]
    assert len({s for pair in seen.values() for s in pair}) == 2 * len(seen)
    e = engine(tmp_path, seed=1, baseline=None, no_trace={"a": [[0, 0, 1]]})
    call(e, [wrap_trace("good")], ["a"], 2)
    assert [c[3] for c in e.executor.backend.calls] == seen[1, 2]


def test_failed_rewards_survive_the_log(tmp_path):
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    call(e, [wrap_trace("good"), wrap_trace("bad"), wrap_trace("good"), wrap_trace("good")], ["a"] * 4, step=0)
    rollouts, steps = collect_log(tmp_path / "rollouts", [])
    assert rollouts["reward"].isna().tolist() == [False, True, False, False]
    assert rollouts["q"].isna().tolist() == [False, True, False, False]
    assert rollouts["failure"].fillna("").tolist() == ["", "reward_model", "", ""]
    assert steps["reward"].tolist() == pytest.approx([0.5 + 0.4 * 5 / 12])
    assert json.loads(steps["failures"][0]) == {"reward_model": 1} and steps["seconds"][0] > 0
    rollouts.to_parquet(tmp_path / "rollouts.parquet")
    steps.to_csv(tmp_path / "steps.csv")


def test_the_judge_of_the_tiny_world_is_its_truth():
    p = story(3, ("+", 2), ("*", 2))
    totals, labels = TruthJudge().score([p] * 3, [p.reference_solution, "The result is 10.", lines("5 * 2 = 10")])
    # Leap: shares 1/2, 1/2, 0, 1, 1/2; mean 0.5, minimum 0.
    assert totals == pytest.approx([1.0, 0.0, 0.25]) and labels.shape == (3, 5)
