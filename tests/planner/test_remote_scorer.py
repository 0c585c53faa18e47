"""Rewards whose q comes from a scoring service: a real scoring service on loopback, and services that fail."""

import asyncio
import json
import math
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from common import MATH
from test_reward_engine import RUNS, A, B, call, engine

from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.planner.reward_engine import TooManyFailures
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import wrap_trace
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.remote import RemoteScorer, ScoringError
from tracelift_lib.reward_model.scorer import Scorer
from tracelift_lib.reward_model.server import serving
from tracelift_lib.runs.pipeline import STAGES, WARM_START, Run
from tracelift_lib.runs.presets import load_preset

SHAPE = Qwen2Shape(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
)
TRACES = [("a", "good"), ("a", "bad"), ("b", "lucky"), ("b", "good")]
BATCH = [wrap_trace(trace) for _, trace in TRACES]
IDS = [problem for problem, _ in TRACES]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    tokenizer = train_tokenizer(["good bad lucky Mia has 3 coins. How many in the end?"] * 3, 320)
    new_qwen2(tokenizer, SHAPE, seed=3).save_pretrained(path / "base")
    return Scorer(ReasoningRewardModel.from_backbone(path / "base", MATH, seed=1), tokenizer, 4096, 512)


@pytest.fixture(scope="module")
def url(scorer):
    with serving(scorer) as url:
        yield url


def rows_of(e, batch=BATCH, ids=IDS):
    return asyncio.run(e.score(batch, ids, 0))[0]


def test_a_served_reward_model_gives_the_rewards_of_the_local_one(tmp_path, url, scorer):
    local, remote = (
        rows_of(engine(tmp_path, scorer=s)) for s in (scorer, RemoteScorer(url, 512, retries=1, backoff=0.001))
    )
    for name in ("q", "reward", "s", "u"):
        np.testing.assert_allclose([r[name] for r in remote], [r[name] for r in local], atol=1e-4)
    assert np.ptp([r["q"] for r in remote]) > 1e-3 and all(r["failure"] is None for r in remote)


class NotANumber:
    """A scorer in the server whose model has gone wrong."""

    def __init__(self, scorer):
        self.scorer, self.model, self.max_length = scorer, scorer.model, scorer.max_length
        self.encode = scorer.encode

    def score_tokens(self, *args, **kwargs):
        q, labels = self.scorer.score_tokens(*args, **kwargs)
        return q * math.nan, labels


def test_a_model_that_scores_nan_gives_no_reward(tmp_path, scorer):
    """Nothing is guessed: all parts are nan, the failure is counted by its kind and stops the run."""
    with serving(NotANumber(scorer)) as url:
        e = engine(tmp_path, scorer=RemoteScorer(url, 512, retries=1, backoff=0.001))
        rows = rows_of(e)
        assert [r["reward"] for r in rows] == [None] * 4 and all(math.isnan(r["s"]) for r in rows)
        assert e.failures == Counter(reward_model_http_500=4)
        with pytest.raises(TooManyFailures, match="reward_model_http_500 8"):
            call(e, BATCH, IDS)


def test_a_service_that_goes_away_gives_no_reward(tmp_path, scorer):
    with serving(scorer) as url:
        e = engine(tmp_path, scorer=RemoteScorer(url, 512, retries=1, backoff=0.001))
        assert all(r["reward"] is not None for r in rows_of(e))
    assert [r["failure"] for r in rows_of(e)] == ["reward_model_connection"] * 4


def answering(answer):
    """A service of somebody else's that gives `answer(items)` for each request, as JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
            body = json.dumps(answer(items)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def service():
    servers = []

    def start(answer):
        server, url = answering(answer)
        servers.append(server)
        return url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("bad, kind", [(1.5, "value"), (math.nan, "value"), (None, "format"), ("0.5", "format")])
def test_one_score_that_cannot_be_right_fails_its_own_traces_only(tmp_path, service, bad, kind):
    url = service(lambda items: [bad if item["reasoning"] == "bad" else 0.25 for item in items])
    e = engine(tmp_path, scorer=RemoteScorer(url))
    rows = rows_of(e)
    assert [r["failure"] for r in rows] == [None, f"reward_model_{kind}", None, None]
    assert [r["q"] for r in rows if r["failure"] is None] == [0.25] * 3 and rows[1]["reward"] is None
    assert e.failures == Counter({f"reward_model_{kind}": 1})


def test_one_lost_connection_loses_no_reward(tmp_path, service):
    asked = []

    def answer(items):
        asked.append(items)
        if len(asked) == 1:
            raise ConnectionAbortedError  # the handler ends without an answer
        return [0.25] * len(items)

    e = engine(tmp_path, scorer=RemoteScorer(service(answer), backoff=0.001))
    assert [r["q"] for r in rows_of(e)] == [0.25] * 4 and not e.failures and len(asked) == 2


def test_an_answer_out_of_the_protocol_fails_its_request(tmp_path, service):
    e = engine(tmp_path, scorer=RemoteScorer(service(lambda items: {"scores": [0.5] * (len(items) + 1)})))
    assert [r["failure"] for r in rows_of(e)] == ["reward_model_format"] * 4


def test_scores_that_came_before_a_failed_request_are_kept_with_the_error(service, monkeypatch):
    """Requests of two: the second fails, the third is not sent."""
    monkeypatch.setattr("tracelift_lib.reward_model.remote.REQUEST_ITEMS", 2)
    asked = []

    def answer(items):
        asked.append(len(items))
        return [0.1, 0.2] if len(asked) == 1 else []

    problems, traces = [A] * 6, list("uvwxyz")
    with pytest.raises(ScoringError) as caught:
        RemoteScorer(service(answer)).score(problems, traces)
    assert caught.value.kind == "format" and asked == [2, 2]
    np.testing.assert_array_equal(caught.value.q, [0.1, 0.2, *[math.nan] * 4])


# --- the preset -------------------------------------------------------------------------------


def remote_run(url, **more):
    return Run("check", overrides={"execution.scorer": {"url": url, "model": "rm", "max_length": 512, **more}})


def test_a_preset_names_the_service(url, scorer):
    run = remote_run(url)
    problems, traces = [A, B], list(RUNS)[:2]
    np.testing.assert_allclose(run.scorer().score(problems, traces)[0], scorer.score(problems, traces)[0], atol=1e-4)


def test_with_a_service_no_reward_model_is_needed(url):
    p = remote_run(url).preset
    for stage, instance in (("planner_training", {"arm": "tracelift", "seed": 0}), ("evaluation", WARM_START)):
        assert "reward_model" in dict(STAGES[stage].needs(load_preset("check"), instance))
        assert "reward_model" not in dict(STAGES[stage].needs(p, instance))


def test_what_the_service_serves_is_part_of_the_key_and_where_is_not(url):
    stages = ("planner_training", "evaluation", "uplift", "baseline")
    base, here, there, other = (
        {s: STAGES[s].config(run.preset) for s in stages}
        for run in (
            Run("check"),
            remote_run(url),
            remote_run("http://elsewhere:1", timeout=5.0, batch_size=2, retries=0, backoff=3.0),
            remote_run(url, model="another"),
        )
    )
    assert here == there
    assert (
        {s for s in stages if here[s] != other[s]}
        == {s for s in stages if here[s] != base[s]}
        == {"planner_training", "evaluation"}
    )


@pytest.mark.parametrize("url", ["localhost:8100", "ftp://host", "http://user:secret@host"])
def test_an_address_that_cannot_be_one_is_refused(url):
    with pytest.raises(InputError, match="execution.scorer"):
        load_preset("check", overrides={"execution.scorer": {"url": url, "model": "rm"}})
