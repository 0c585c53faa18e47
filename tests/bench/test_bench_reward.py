"""The bench of the reward phase: what it compares with does what it says."""

import pytest
from loopback import LoopbackServer, question

from bench import reward as bench


class Scorer:
    def __init__(self):
        self.sizes = []

    def score(self, problems, traces, progress=None):
        self.sizes.append(len(traces))
        return [0.5] * len(traces), None


def test_the_plain_loop_asks_one_after_another_and_repeats_the_baseline():
    """1 + K + K runs and one score a completion, never two at once, one sample a request."""
    problems, completions = bench.batch()
    problems, completions, scorer = problems[:6], completions[:6], Scorer()
    with LoopbackServer(lambda i, body: ["Answer: 3"] * body["n"], latency=0.001) as server:
        rewards = bench.plain_loop(server.url, scorer, problems, completions)
    assert len(rewards) == 6 and scorer.sizes == [1] * 6 and server.most_in_flight == 1
    assert all(body["n"] == 1 for body in server.bodies) and len(server.bodies) == 6 * (1 + 2 * bench.K)
    with_trace = sum("<reasoning>" in question(body) for body in server.bodies)
    assert with_trace == 6 * (1 + bench.K)


def test_completions_of_the_bench_are_all_different():
    """Else the engine would save on repeated traces, which the bench is not to count."""
    problems, completions = bench.batch()
    assert len(problems) == bench.PROBLEMS * bench.GENERATIONS == len(set(completions))
    assert all(completion.count("<reasoning>") == 1 for completion in completions)


def test_rows_are_named_and_rated():
    separate, merged = {"seconds": 2.0, "step": 40.0, "baseline": 9.0}, {"seconds": 2.0, "step": 30.0, "baseline": 9.0}
    tokens = bench.tokens_row(66.0, separate, merged)
    assert tokens["name"] == "reward_executor_tokens" and tokens["ours"] == 33.0 and tokens["ratio"] == 0.5
    bound = bench.bound_row(separate, 400.0, 0.1, bench.batch()[0])
    assert bound["name"] == "reward_over_lower_bound" and bound["other"] == pytest.approx(40 * 32 / 400)
    assert bound["ratio"] == pytest.approx(2.0 / 3.2) and {"unit", "note"} <= set(bound)
