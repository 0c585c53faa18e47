"""The bench of the reward phase: what it compares with does what it says."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from loopback import LoopbackServer, question

from bench import reward as bench
from bench.model_server import Slots
from tracelift_lib.runs.presets import load_preset


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


def test_a_server_of_stated_capacity_writes_no_more_at_once():
    """Seven samples at three slots are three rounds, in one request or in seven; without a limit, one."""

    async def seconds(slots, requests):
        server, start = Slots(0.05, slots), time.monotonic()
        texts = await asyncio.gather(*map(server.ask, requests))
        assert sum(map(len, texts)) == 7
        return time.monotonic() - start

    for slots, rounds in ((3, 3), (7, 1), (0, 1)):
        for requests in ([7], [1] * 7):
            assert asyncio.run(seconds(slots, requests)) >= 0.05 * rounds * 0.99


def test_the_baseline_is_timed_in_and_out(monkeypatch):
    """A clock that only calls move: 32 s for the 64 problems drawn in bulk, so a half for each of the step's two."""
    now, known = [0.0], []

    def draw(asker, problems, seed):
        assert len(problems) == bench.BULK
        now[0] += 32.0
        return {"drawn": True}

    def score(baseline, problems, completions, seed):
        known.append(baseline)
        now[0] += 4.0 if baseline else 5.0

    monkeypatch.setattr(bench, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(bench, "draw_baseline", draw)
    monkeypatch.setattr(bench, "score_step", score)
    monkeypatch.setattr(bench, "engine_of", lambda asker, scorer, problems, baseline, s_run: baseline)
    monkeypatch.setattr(bench, "executor", lambda url: SimpleNamespace(backend=SimpleNamespace(close=lambda: None)))
    problems, completions = bench.batch(2, 4)
    assert bench.engine_times("u", None, problems, completions) == {"fresh": 5.0, "in": 4.0 + 2 * 0.5, "out": 4.0}
    assert known == [None] * (1 + bench.REPEATS) + [{"drawn": True}] * (1 + bench.REPEATS)


def test_the_shapes_are_those_of_launches():
    """1 completion a process as in the released launch, 4 of one problem, 32 of eight; each a row of the table."""
    assert {n: len(bench.batch(*shape)[0]) for n, shape in bench.SHAPES.items()} == {1: 1, 4: 4, 32: 32}
    rows = [bench.row(f"reward_{n}_{w}", 0.5, 3.0, 6.0, "s", "") for n in bench.SHAPES for w in bench.ENGINE]
    lines = bench.shape_table(rows).splitlines()
    assert len(lines) == 5 and lines[2] == "| 1 | 3.00 | 0.50 (6.0x) | 0.50 (6.0x) | 0.50 (6.0x) |"


def test_rows_are_named_and_rated(monkeypatch):
    separate, merged = {"seconds": 2.0, "step": 40.0, "baseline": 9.0}, {"seconds": 2.0, "step": 30.0, "baseline": 9.0}
    for change, ours in (({"baseline": "cached", "s_run": "merged"}, 33.0), ({"baseline": "fresh"}, 66.0)):
        paper = load_preset("paper", overrides={f"execution.{name}": value for name, value in change.items()})
        monkeypatch.setattr(bench, "load_preset", lambda name, paper=paper: paper)
        tokens = bench.tokens_row(66.0, separate, merged)
        assert tokens["name"] == "reward_executor_tokens" and (tokens["ours"], tokens["ratio"]) == (ours, ours / 66)
    bound = bench.bound_row(separate, 400.0, 0.1, bench.batch()[0])
    assert bound["name"] == "reward_over_lower_bound" and bound["other"] == pytest.approx(40 * 32 / 400)
    assert bound["ratio"] == pytest.approx(2.0 / 3.2) and {"unit", "note"} <= set(bound)
