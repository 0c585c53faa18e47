"""The scoring service over real loopback connections: its format, its batching, its errors; and the client."""

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import pytest
from common import MATH, PROJECT, story

from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.problems.prompts import reward_model_text
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.remote import RemoteScorer, ScoringError
from tracelift_lib.reward_model.scorer import Scorer
from tracelift_lib.reward_model.server import Batcher, Item, ScoreRequest, serving

SHAPE = Qwen2Shape(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
)
ITEM = {"problem": "Mia has 3 coins.", "reasoning": "gets 2: 3 + 2 = 5.", "task_name": "math", "task_type": "story"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    tokenizer = train_tokenizer([reward_model_text(story(3, ("+", 2)), "gets 2: 3 + 2 = 5.")] * 3, 320)
    new_qwen2(tokenizer, SHAPE, seed=3).save_pretrained(path / "base")
    ReasoningRewardModel.from_backbone(path / "base", MATH, seed=1).save_pretrained(path / "rm")
    tokenizer.save_pretrained(path / "rm")
    return path / "rm"


@pytest.fixture(scope="module")
def scorer(folder):
    return Scorer.from_folder(folder, 4096, 512)


@pytest.fixture(scope="module")
def url(scorer):
    with serving(scorer) as url:
        yield url


def ask(url, body, **kwargs):
    return httpx.post(f"{url}/score", json=body, trust_env=False, timeout=60, **kwargs)


def cases(n):
    problems = [story(3 + i % 4, ("+", 2), problem_id=f"s-{i % 4}") for i in range(n)]
    return problems, [f"gets {i}: 3 + {i} = {3 + i}." for i in range(n)]


# --- the server -------------------------------------------------------------------------------


def test_served_scores_are_the_scorers_own(url, scorer):
    problems, traces = cases(9)
    items = [
        {"problem": p.problem, "reasoning": z, "task_name": p.domain, "task_type": p.task_type}
        for p, z in zip(problems, traces)
    ]
    answer = ask(url, {"items": items, "max_length": 512, "batch_size": 4})
    assert answer.status_code == 200
    scores = answer.json()["scores"]
    q, labels = scorer.score(problems, traces)
    np.testing.assert_allclose([s["total_score"] for s in scores], q, atol=1e-6)
    assert [list(s["dimensions"]) for s in scores] == [list(MATH)] * 9
    np.testing.assert_allclose([list(s["dimensions"].values()) for s in scores], labels, atol=1e-5)
    assert np.ptp(q) > 1e-3


def test_max_length_cuts_the_texts(url, scorer):
    ids = scorer.tokenizer(
        "<task>math</task>\n<type>story</type>\n<problem>\nMia has 3 coins.\n</problem>\n<reasoning>\n"
        "gets 2: 3 + 2 = 5.\n</reasoning>",
        add_special_tokens=False,
    )["input_ids"]
    for length in (20, len(ids)):
        expected = scorer.score_tokens([ids[:length]])[0][0]
        answer = ask(url, {"items": [ITEM], "max_length": length, "batch_size": 1}).json()
        assert answer["scores"][0]["total_score"] == pytest.approx(expected, abs=1e-6)
    assert scorer.score_tokens([ids[:20]])[0][0] != pytest.approx(expected, abs=1e-4)


def test_length_and_batch_size_may_be_left_out_and_nothing_to_score_is_fine(url):
    assert len(ask(url, {"items": [ITEM, ITEM]}).json()["scores"]) == 2
    assert ask(url, {"items": []}).json() == {"scores": []}


@pytest.mark.parametrize(
    "body, words",
    [
        ({}, "items: Field required"),
        ({"items": {}}, "items:"),
        ([], "body:"),
        ({"items": [ITEM, {k: v for k, v in ITEM.items() if k != "reasoning"}]}, "items.1.reasoning: Field required"),
        ({"items": [ITEM | {"problem": 5}]}, "items.0.problem"),
        ({"items": [ITEM | {"problem": ""}]}, "items.0.problem"),
        ({"items": [ITEM | {"task_name": "poetry"}]}, "items.0.task_name"),
        ({"items": [ITEM | {"tests": 3}]}, "items.0.tests"),
        ({"items": [ITEM | {"answer": "x"}]}, "items.0.answer"),
        ({"items": [ITEM], "max_length": 0}, "max_length"),
        ({"items": [ITEM], "batch_size": "8"}, "batch_size"),
        ({"items": [ITEM], "max_length": 513}, "max_length: 513 is more than this server reads (512)"),
    ],
)
def test_a_request_that_breaks_the_format_names_the_field(url, body, words):
    answer = ask(url, body)
    assert answer.status_code == 400 and words in answer.json()["error"]


def score_of(scorer, text):
    return pytest.approx(scorer.score_tokens(scorer.encode([text], 512))[0][0], abs=1e-6)


def test_an_item_as_the_released_code_trainer_sends_it(url, scorer):
    """Problem and reasoning alone: the domain of the served model, and the type that its renderer falls back on."""
    answer = ask(url, {"items": [{"problem": " Mia has 3 coins.\n", "reasoning": "gets 2\n"}]})
    assert answer.json()["scores"][0]["total_score"] == score_of(
        scorer,
        "<task>math</task>\n<type>unknown</type>\n<problem>\nMia has 3 coins.\n</problem>\n<reasoning>\ngets 2\n"
        "</reasoning>",
    )


def test_tests_of_an_item_are_read(url, scorer):
    item = ITEM | {"task_name": "code", "tests": "in: 1\nout: 2\n"}
    assert ask(url, {"items": [item]}).json()["scores"][0]["total_score"] == score_of(
        scorer,
        "<task>code</task>\n<type>story</type>\n<problem>\nMia has 3 coins.\n</problem>\n<tests>\nin: 1\nout: 2\n"
        "</tests>\n<reasoning>\ngets 2: 3 + 2 = 5.\n</reasoning>",
    )


def test_an_item_without_a_domain_needs_a_model_that_has_one(scorer, monkeypatch):
    monkeypatch.setattr(scorer.model.config, "rm_dimension_names", list("abcde"))
    with serving(scorer) as url:
        answer = ask(url, {"items": [ITEM, {"problem": "p", "reasoning": "z"}]})
    assert answer.status_code == 400 and "items.1.task_name" in answer.json()["error"]


def test_requests_that_were_given_up_do_not_end_the_service(scorer):
    """Cancelled while they wait, in any number: the next request is answered."""

    async def work():
        batcher, request = Batcher(scorer), ScoreRequest(items=[Item(**ITEM)])
        await batcher.busy.acquire()
        for _ in range(2):
            waiting = [asyncio.create_task(batcher.score(request)) for _ in range(3)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        batcher.busy.release()
        return await asyncio.wait_for(batcher.score(request), 30)

    q, labels = asyncio.run(work())
    assert q.shape == (1,) and labels.shape == (1, 5)


@pytest.mark.parametrize(
    "body", [b"{not json", b"", b"\xff\xfe", json.dumps({"items": [ITEM | {"problem": "\ud800"}]}).encode()]
)
def test_bytes_that_are_no_request_are_refused_and_the_server_goes_on(url, body):
    answer = httpx.post(f"{url}/score", content=body, trust_env=False)
    assert answer.status_code == 400 and answer.json()["error"]
    assert ask(url, {"items": [ITEM]}).status_code == 200


def test_other_paths_and_methods(url):
    assert httpx.get(f"{url}/score", trust_env=False).status_code == 405
    assert httpx.get(f"{url}/nothing", trust_env=False).status_code == 404
    health = httpx.get(f"{url}/health", trust_env=False).json()
    assert health == {"status": "ok", "dimensions": list(MATH), "max_length": 512}


def test_requests_that_wait_together_are_scored_together(url, scorer, monkeypatch):
    """Twelve clients while the first request is being scored: two passes, and to each client its own scores.

    Each pass keeps to the smallest batch size that one of its clients asked for.
    """
    passes, hold, original = [], threading.Event(), scorer.score_tokens

    def score_tokens(encoded, batch_size=None, progress=None):
        passes.append((len(encoded), batch_size))
        if len(passes) == 1:
            hold.wait(30)
        return original(encoded, batch_size, progress)

    monkeypatch.setattr(scorer, "score_tokens", score_tokens)
    problems, traces = cases(13)
    remotes = [RemoteScorer(url, max_length=512, batch_size=20 - i) for i in range(13)]
    with ThreadPoolExecutor(13) as pool:
        first = pool.submit(remotes[0].score, problems[:1], traces[:1])
        while not passes:
            time.sleep(0.01)
        rest = [pool.submit(r.score, [p], [z]) for r, p, z in zip(remotes[1:], problems[1:], traces[1:])]
        time.sleep(1.0)  # for all twelve to have arrived
        hold.set()
        found = [f.result()[0][0] for f in [first, *rest]]
    assert passes == [(1, 20), (12, 8)]
    np.testing.assert_allclose(
        found, original(scorer.encode([reward_model_text(p, z) for p, z in zip(problems, traces)], 512))[0], atol=1e-6
    )


def test_a_client_that_goes_away_takes_no_score_from_those_it_waited_with(url, scorer, monkeypatch):
    started, hold, original = threading.Event(), threading.Event(), scorer.score_tokens

    def score_tokens(*args, **kwargs):
        started.set()
        hold.wait(30)
        return original(*args, **kwargs)

    monkeypatch.setattr(scorer, "score_tokens", score_tokens)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, url, {"items": [ITEM]})
        started.wait(30)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/score", json={"items": [ITEM]}, trust_env=False, timeout=0.3)
        other = pool.submit(ask, url, {"items": [ITEM]})
        time.sleep(0.3)  # for it to have arrived
        hold.set()
        q = [answer.result().json()["scores"][0]["total_score"] for answer in (first, other)]
    assert q[0] == pytest.approx(q[1], abs=1e-6)


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), None])
def test_a_model_that_fails_is_an_error_not_a_score(url, scorer, monkeypatch, failure):
    def score_tokens(encoded, batch_size=None, progress=None):
        if failure:
            raise failure
        return np.full(len(encoded), np.nan), np.zeros((len(encoded), 5))

    with monkeypatch.context() as patch:
        patch.setattr(scorer, "score_tokens", score_tokens)
        answer = ask(url, {"items": [ITEM]})
        assert answer.status_code == 500
        assert ("out of memory" if failure else "not a number") in answer.json()["error"]
        with pytest.raises(ScoringError, match="500"):
            RemoteScorer(url, max_length=512, retries=0).score(*cases(1))
    assert ask(url, {"items": [ITEM]}).status_code == 200


def test_the_command_serves_a_folder(folder, scorer, unused_port):
    options = f"--model {folder} --port {unused_port} --max-length 512"
    command = [sys.executable, "-m", "tracelift_lib.runs.cli", "serve-rm", *options.split()]
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{unused_port}"
            for _ in range(600):
                try:
                    assert httpx.get(f"{url}/health", trust_env=False).json()["max_length"] == 512
                    break
                except httpx.TransportError:
                    assert server.poll() is None, "the server ended"
                    time.sleep(0.2)
            np.testing.assert_allclose(
                RemoteScorer(url, max_length=512).score(*cases(3))[0], scorer.score(*cases(3))[0], atol=1e-6
            )
        finally:
            server.terminate()


@pytest.fixture
def unused_port():
    """Below the ports that the system gives to whoever asks for any, so that nobody takes it before its use."""
    while True:
        try:
            with HTTPServer(
                ("127.0.0.1", random.SystemRandom().randrange(20_000, 30_000)), BaseHTTPRequestHandler
            ) as probe:
                return probe.server_port
        except OSError:
            continue


# --- the client -------------------------------------------------------------------------------


def test_remote_and_local_scorers_agree(url, scorer, monkeypatch):
    monkeypatch.setattr("tracelift_lib.reward_model.remote.REQUEST_ITEMS", 4)  # several requests
    problems, traces = cases(10)
    for address in (url, url + "/", url + "/score"):
        q, labels = RemoteScorer(address, max_length=512).score(problems, traces)
        local_q, local_labels = scorer.score(problems, traces)
        np.testing.assert_allclose(q, local_q, atol=1e-4)
        np.testing.assert_allclose(labels, local_labels, atol=1e-4)
    q, labels = RemoteScorer(url).score([], [])
    assert q.shape == (0,) and labels.shape == (0, 5)
    with pytest.raises(ValueError):
        RemoteScorer(url).score(problems, traces[:3])


@pytest.fixture
def answering():
    """A service of somebody else's: answers what the test says, remembers what it was asked."""
    state = {"status": 200, "body": b"[]", "asked": [], "first": []}  # first: statuses of the first requests

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            state["asked"].append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = state["first"].pop(0) if state["first"] else state["status"]
            if status is None:
                return self.connection.close()  # without an answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(state["body"])))
            self.end_headers()
            self.wfile.write(state["body"])

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        state["url"] = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


def test_what_the_client_asks(answering):
    answering["body"] = b"[0.25, 1]"
    problems, traces = cases(2)
    RemoteScorer(answering["url"], max_length=100, batch_size=7).score(problems, traces)
    assert answering["asked"] == [
        {
            "items": [
                {"problem": p.problem, "reasoning": z, "task_name": "math", "task_type": "arithmetic_story"}
                for p, z in zip(problems, traces)
            ],
            "max_length": 100,
            "batch_size": 7,
        }
    ]


@pytest.mark.parametrize(
    "answer",
    [
        [0.25, 1],
        *({name: [0.25, 1]} for name in ("scores", "results", "outputs", "data")),
        *([{name: 0.25, "text": "x"}, {name: 1}] for name in ("total_score", "score", "reward", "total", "value")),
        {"results": [{"score": 0.25}, 1.0], "model": "rm"},
    ],
    ids=str,
)
def test_every_shape_of_answer_is_read(answering, answer):
    answering["body"] = json.dumps(answer).encode()
    q, labels = RemoteScorer(answering["url"]).score(*cases(2))
    assert q.tolist() == [0.25, 1.0] and labels.shape == (2, 5) and np.isnan(labels).all()


@pytest.mark.parametrize("order", [MATH, sorted(MATH), MATH[::-1]])
def test_labels_that_a_service_gives_are_read_by_name(answering, order):
    """Whatever order its JSON has them in; what else stands beside them is left alone."""
    given = {name: (0, 1.5, 2, 3, 4)[MATH.index(name)] for name in order} | {"total": 0.5}
    answering["body"] = json.dumps({"scores": [{"total_score": 0.5, "dimensions": given}, 0.1]}).encode()
    _, labels = RemoteScorer(answering["url"]).score(*cases(2))
    assert labels[0].tolist() == [0, 1.5, 2, 3, 4] and np.isnan(labels[1]).all()


@pytest.mark.parametrize("first", [[503], [429, 500, 408, 409], [None], [None, 502]])
def test_a_request_that_failed_for_a_passing_reason_is_tried_again(answering, first):
    answering.update(body=b"[0.25, 1]", first=list(first))
    q, _ = RemoteScorer(answering["url"], backoff=0.001).score(*cases(2))
    assert q.tolist() == [0.25, 1.0] and len(answering["asked"]) == len(first) + 1


@pytest.mark.parametrize(
    "status, body, kind", [(400, b"no", "http_400"), (404, b"", "http_404"), (200, b"x", "format")]
)
def test_what_would_fail_again_is_not_tried_again(answering, status, body, kind):
    answering.update(status=status, body=body)
    with pytest.raises(ScoringError) as caught:
        RemoteScorer(answering["url"]).score(*cases(2))
    assert caught.value.kind == kind and len(answering["asked"]) == 1


def test_tries_come_to_an_end(answering):
    answering["status"] = 503
    with pytest.raises(ScoringError, match="status 503.*given up after 3 tries") as caught:
        RemoteScorer(answering["url"], retries=2, backoff=0.001).score(*cases(2))
    assert caught.value.kind == "http_503" and len(answering["asked"]) == 3


@pytest.mark.parametrize(
    "status, body, words",
    [
        (500, b"[0.5, 0.5]", "status 500"),
        (400, b"items: bad", "items: bad"),
        (200, b"<html>", "not JSON"),
        (200, b"\xff", "not JSON"),
        (200, b"[0.5]", "1 scores for 2 items"),
        (200, b"[0.5, 0.5, 0.5]", "3 scores for 2"),
        (200, b"[]", "0 scores"),
        (200, b"{}", "no list"),
        (200, b"7", "no list"),
        (200, b'{"scores": 0.5}', "no list"),
        (200, b"[0.5, NaN]", "item 1"),
        (200, b"[0.5, Infinity]", "item 1"),
        (200, b"[0.5, 1.01]", "item 1"),
        (200, b"[-0.1, 0.5]", "item 0"),
        (200, b"[0.5, null]", "item 1"),
        (200, b'[0.5, "0.5"]', "item 1"),
        (200, b"[0.5, true]", "item 1"),
        (200, b'[0.5, {"quality": 0.5}]', "item 1"),
        (200, b"[[0.5], 0.5]", "item 0"),
        (200, b'[0.5, {"score": 0.5, "dimensions": {"a": 1}}]', "dimensions of item 1"),
        (200, b'[0.5, {"score": 0.5, "dimensions": {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}}]', "by name"),
        (200, json.dumps([0.5, {"score": 0.5, "dimensions": dict.fromkeys(MATH, 9)}]).encode(), "dimensions of item 1"),
        (200, json.dumps([0.5, {"score": 0.5, "dimensions": dict.fromkeys(MATH, True)}]).encode(), "labels in"),
    ],
)
def test_an_answer_that_cannot_be_right_is_an_error(answering, status, body, words):
    answering.update(status=status, body=body)
    with pytest.raises(ScoringError, match=words):
        RemoteScorer(answering["url"], retries=0).score(*cases(2))


def test_a_service_that_is_not_there_is_an_error(unused_port):
    with pytest.raises(ScoringError, match="is the scoring service up"):
        RemoteScorer(f"http://127.0.0.1:{unused_port}", retries=1, backoff=0.001).score(*cases(1))
