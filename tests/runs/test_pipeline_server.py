"""The pipeline with its executor behind an HTTP server."""

import json

import pandas as pd
import pytest
from loopback import LoopbackServer, Status, question

from tracelift_lib.executor.backends import CallFailed
from tracelift_lib.runs import stages
from tracelift_lib.runs.pipeline import Run

SMALL = {
    "executor.steps": 2,
    "planner.steps": 2,
    "groups": None,
    "reward_model": None,
    "prediction": None,
    "evaluation": None,
    "leaves_out": dict.fromkeys(("01", "02", "06", "07", "08", "10", "12"), "not tested here"),
    "planner_training.steps": 1,
    "planner_training.arms": ["llm_judge"],
    "execution.problems": 4,
}


def solver(number, body):
    """Right on every second seed with a trace, never without one; depends on the request alone."""
    right = "<reasoning>" in question(body)
    return [f"Answer: {3 if right and (body['seed'] + i) % 2 else 100 + i}" for i in range(body["n"])]


def server_run(server, **more):
    backend = {"kind": "server", "base_urls": [server.url], "model": "m", "retries": 0, **more}
    return Run("check", overrides=SMALL | {"execution.backend": backend})


@pytest.mark.parametrize("chunk", [256, 3])
def test_uplift_and_baseline_need_no_model_here(chunk, monkeypatch):
    """No executor stage is made. Chunks change nothing, nor does how patiently and where the server is asked."""
    monkeypatch.setattr(stages, "BASELINE_CHUNK", chunk)
    with LoopbackServer(solver) as server:
        run = server_run(server)
        run.make("problems")
        rows = pd.read_parquet(run.make("uplift").path / "verdicts.parquet")
        baseline = run.make("baseline").json("baseline.json")
        assert not run.has("executor") and server_run(server, timeout=9.0, concurrency=1).has("baseline")
        assert not server_run(server, api="completion").has("baseline")
        asked = {question(body) for body in server.bodies}
    assert set(rows["condition"]) == {"none", "reference"}
    assert len(rows) == 4 * 2 * run.preset.execution.baseline_samples
    assert baseline == {p.problem_id: [0] * 4 for p in run.problems("rl")}
    assert {f"Solve.\n{p.problem}" for p in run.problems("rl")} <= asked


def test_an_interrupted_baseline_goes_on_where_it_stopped(monkeypatch):
    monkeypatch.setattr(stages, "BASELINE_CHUNK", 3)
    broken = []

    def script(number, body):
        return Status(400) if broken and question(body) == broken[0] else solver(number, body)

    with LoopbackServer(script) as server:
        run = server_run(server)
        run.make("problems")
        problems = [f"Solve.\n{p.problem}" for p in run.problems("rl")]
        broken.append(problems[4])
        with pytest.raises(CallFailed, match="executor_http_400"):
            run.make("baseline")
        del broken[:], server.bodies[:]
        assert len(run.make("baseline").json("baseline.json")) == len(problems)
    n = run.preset.execution.baseline_samples
    assert {question(body) for body in server.bodies if body["n"] == n} == set(problems[3:])


def test_a_planner_trains_against_a_server():
    """TRL's loop, the async reward function and the requests' own loop together."""
    with LoopbackServer(solver) as server:
        run = server_run(server)
        for stage in ("problems", "executor", "planner", "baseline"):
            run.make(stage)
        folder = run.make("planner_training", arm="llm_judge", seed=0).path
    rollouts = pd.read_parquet(folder / "rollouts.parquet")
    t = run.preset.planner_training
    assert len(rollouts) == t.problems_per_step * t.generations and rollouts["failure"].isna().all()
    steps = pd.read_csv(folder / "steps.csv")
    assert steps["baseline"].tolist() == ["cached"] and json.loads(steps["failures"][0]) == {}
