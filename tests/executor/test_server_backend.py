"""The server backend against real HTTP servers on loopback, well-behaved and faulty."""

import asyncio
import logging
import time
from collections import Counter

import pytest
from common import story
from loopback import HANG_UP, LoopbackServer, Raw, Status, Trickle, numbered, question

from tracelift_lib.executor.backends import ServerBackend, derived_seed
from tracelift_lib.executor.client import CallFailed
from tracelift_lib.executor.frozen import Executor, SelfTestError
from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.models.generation import Sampling
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import PromptLimits, wrap_trace
from tracelift_lib.verifier.verdicts import Verifier

SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=17, batch_tokens=1)
A, B = story(3, ("+", 2), problem_id="a"), story(4, ("*", 2), problem_id="b")  # answers 5 and 8


@pytest.fixture
def connect():
    """Backends that are closed when the test ends."""
    made = []

    def make(*servers, **change):
        settings = {
            "kind": "server",
            "base_urls": [s.url for s in servers],
            "model": "m",
            "backoff": 0.01,
            "timeout": 5.0,
            "retries": 2,
        }
        made.append(ServerBackend(ServerBackendSettings(**settings | change), SAMPLING))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def ask(backend, prompts, n=3, seed=0):
    """Texts or failures, in order."""
    return [f.exception() or f.result() for f in backend.submit(prompts, n, seed)]


def executor(backend):
    return Executor(backend, "short", PromptLimits(), Verifier())


# --- what is sent and what comes back ---------------------------------------------------------


@pytest.mark.parametrize(
    "api, path, prompt", [("chat", "/v1/chat/completions", "p 0"), ("completion", "/v1/completions", "p 0\n")]
)
def test_a_request_says_how_to_draw(connect, api, path, prompt):
    with LoopbackServer(numbered) as server:
        ((texts),) = ask(connect(server, api=api), ["p 0"], n=4, seed=9)
    (body,) = server.bodies
    assert (body["path"], question(body)) == (path, prompt)
    assert (body["model"], body["n"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 4, 0.5, 0.9, 17)
    assert texts == numbered(0, body)


def test_further_fields_reach_the_server(connect):
    """Such as vLLM's switch for thinking, which its template reads."""
    fields = {"chat_template_kwargs": {"enable_thinking": False}}
    with LoopbackServer(numbered) as server:
        ask(connect(server, extra_body=fields), ["p 0"])
    assert fields.items() <= server.bodies[0].items()


def test_thinking_that_was_cut_off_is_an_empty_answer_and_no_fault(connect):
    """`content: null`: asked again it would end the same way, and a share of failures stops a run."""
    body = '{"choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": null}}]}'
    with LoopbackServer(lambda number, _: Raw(body)) as server:
        assert ask(connect(server), ["p 0"], n=1) == [[""]]
        assert len(server.bodies) == 1


def test_answers_stand_in_the_order_of_the_prompts(connect):
    """The first prompts are answered last."""

    async def later(number, body):
        await asyncio.sleep(0.02 * (5 - int(question(body))))
        return [f"{question(body)}-{i}" for i in range(body["n"])]

    with LoopbackServer(later) as server:
        assert ask(connect(server), list("01234"), n=2) == [[f"{i}-0", f"{i}-1"] for i in range(5)]


def test_seeds_depend_on_seed_and_prompt_only(connect):
    """So a resumed or re-chunked run draws the same; the same prompt twice is drawn independently."""
    with LoopbackServer(numbered) as server:
        backend = connect(server)
        whole = ask(backend, ["x", "y", "y", "z"], seed=1)
        assert ask(backend, ["x", "y", "y", "z"], seed=1) == whole
        assert ask(backend, ["z"], seed=1) + ask(backend, ["x"], seed=1) == [whole[3], whole[0]]
        assert ask(backend, ["x"], seed=2) != [whole[0]]
    assert len({tuple(texts) for texts in whole}) == 4
    assert all(0 <= body["seed"] < 2**31 for body in server.bodies)


def test_derived_seeds_do_not_collide():
    seeds = {derived_seed(a, b) for a in range(100) for b in ("x", "y", 0, 1)}
    assert len(seeds) == 400 and derived_seed(1, "x") == derived_seed(1, "x")
    derived_seed(0, "\ud800")  # half a character, as a broken decoder gives it


# --- load -------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_requests_in_flight_than_allowed(connect, concurrency):
    with LoopbackServer(numbered, latency=0.03) as server:
        assert all(isinstance(x, list) for x in ask(connect(server, concurrency=concurrency), list("abcdefghij")))
    assert server.most_in_flight == concurrency


def test_several_servers_share_the_load(connect):
    with LoopbackServer(numbered, latency=0.02) as one, LoopbackServer(numbered, latency=0.02) as two:
        ask(connect(one, two, concurrency=3), [str(i) for i in range(24)])
    assert len(one.bodies) + len(two.bodies) == 24
    assert min(len(one.bodies), len(two.bodies)) >= 8 and one.most_in_flight == two.most_in_flight == 3


def test_few_requests_are_spread_too(connect):
    with LoopbackServer(numbered, latency=0.1) as one, LoopbackServer(numbered, latency=0.1) as two:
        ask(connect(one, two), [str(i) for i in range(10)])
    assert len(one.bodies) == len(two.bodies) == 5


def test_a_slow_server_gets_less(connect):
    with LoopbackServer(numbered, latency=0.2) as slow, LoopbackServer(numbered, latency=0.005) as fast:
        ask(connect(slow, fast, concurrency=2), [str(i) for i in range(30)])
    assert len(fast.bodies) > 2 * len(slow.bodies)


def test_a_dead_server_is_passed_over(connect):
    """Every request ends well: those that met the dead server first are tried on the other."""
    with LoopbackServer(numbered) as dead:
        pass
    with LoopbackServer(numbered, latency=0.01) as alive:
        answers = ask(connect(dead, alive, concurrency=2, retries=1, backoff=0.1), [str(i) for i in range(12)])
    assert all(isinstance(x, list) for x in answers) and len(alive.bodies) == 12


def test_a_server_that_has_rested_is_fully_used_again(connect):
    """It fails its first requests, rests, and then holds on to what it gets until it has as many as it may."""
    full = []

    async def script(i, body):
        if i < 3:
            return Status(500)
        deadline = time.monotonic() + 10
        while not full and time.monotonic() < deadline:
            full.extend([True] * (weak.in_flight == 3))
            await asyncio.sleep(0.005)
        return numbered(i, body)

    with LoopbackServer(script) as weak, LoopbackServer(numbered, latency=0.03) as strong:
        answers = ask(connect(weak, strong, concurrency=3, retries=5, backoff=0.002), [str(i) for i in range(40)])
    assert all(isinstance(x, list) for x in answers) and full and weak.most_in_flight == 3


# --- faults -----------------------------------------------------------------------------------

PASSING = [
    Status(500),
    Status(503),
    Status(429),
    Status(408),
    HANG_UP,
    Raw("{not json"),
    Raw(""),
    Raw("{}"),
    Raw("null"),
    Raw('{"choices": null}'),
    Raw('{"choices": [{"index": 0}]}'),
    Raw("[1, 2]"),
    [],
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: str(getattr(f, "code", getattr(f, "body", f)))[:20])
@pytest.mark.parametrize("api", ["chat", "completion"])
def test_a_passing_fault_is_tried_again(connect, fault, api):
    with LoopbackServer(lambda i, body: fault if i < 2 else numbered(i, body)) as server:
        (texts,) = ask(connect(server, api=api, retries=2), ["p"])
    assert texts == numbered(2, server.bodies[2]) and len(server.bodies) == 3
    assert len({body["seed"] for body in server.bodies}) == 1


@pytest.mark.parametrize(
    "fault, kind",
    [
        (Status(500), "executor_http_500"),
        (HANG_UP, "executor_connection"),
        (Raw("{not json"), "executor_malformed"),
        (Raw("{}"), "executor_malformed"),
        ([], "executor_malformed"),
    ],
    ids=lambda f: f if isinstance(f, str) else "",
)
def test_a_lasting_fault_ends_after_the_retries_and_says_what_it_was(connect, fault, kind):
    with LoopbackServer(lambda i, body: fault) as server:
        (failure,) = ask(connect(server, retries=3), ["p"])
    assert isinstance(failure, CallFailed) and failure.kind == kind and server.url in str(failure)
    assert len(server.bodies) == 4


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_refused_request_is_not_repeated(connect, code):
    with LoopbackServer(lambda i, body: Status(code, "no such model")) as server:
        (failure,) = ask(connect(server), ["p"])
    assert failure.kind == f"executor_http_{code}" and "no such model" in str(failure) and len(server.bodies) == 1


def test_a_slow_reply_times_out(connect):
    with LoopbackServer(numbered, latency=2.0) as server:
        (failure,) = ask(connect(server, timeout=0.1, retries=1), ["p"])
    assert failure.kind == "executor_timeout" and len(server.bodies) == 2


def test_a_reply_that_trickles_in_times_out(connect):
    """Each byte comes in time, the reply never ends."""
    with LoopbackServer(lambda i, body: Trickle()) as server:
        (failure,) = ask(connect(server, timeout=0.2, retries=0), ["p"])
    assert failure.kind == "executor_timeout"


def test_waits_between_tries_grow(connect):
    moments = []
    with LoopbackServer(lambda i, body: moments.append(time.monotonic()) or Status(500)) as server:
        ask(connect(server, retries=3, backoff=0.05), ["p"])
    gaps = [b - a for a, b in zip(moments, moments[1:])]
    assert gaps[0] >= 0.05 and gaps[1] >= 0.1 and gaps[2] >= 0.2


def test_a_server_may_ask_for_a_longer_wait(connect):
    moments = []

    def script(i, body):
        moments.append(time.monotonic())
        return Status(429, headers={"Retry-After": "0.3"}) if i == 0 else numbered(i, body)

    with LoopbackServer(script) as server:
        ask(connect(server), ["p"])
    assert moments[1] - moments[0] >= 0.3


def test_one_failure_leaves_the_others_alone(connect):
    def script(i, body):
        return Status(400) if question(body) == "bad" else numbered(i, body)

    with LoopbackServer(script) as server:
        good, bad, fine = ask(connect(server), ["good", "bad", "fine"])
    assert len(good) == len(fine) == 3 and isinstance(bad, CallFailed)


# --- servers that ignore n or do not sample ---------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_server_that_gives_fewer_texts_is_asked_for_the_rest(connect, at_once, caplog):
    """With another seed each time, or a server that honours seeds would repeat itself; said once."""
    with LoopbackServer(lambda i, body: numbered(i, body)[:at_once]) as server, caplog.at_level(logging.WARNING):
        answers = ask(connect(server), ["p", "q"], n=5)
    assert [len(texts) for texts in answers] == [5, 5] and len(set(answers[0])) == 5
    assert Counter(question(body) for body in server.bodies) == {"p": -(-5 // at_once), "q": -(-5 // at_once)}
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies)
    assert caplog.text.count("n=5") == 1


def test_more_texts_than_asked_for_are_left(connect):
    with LoopbackServer(lambda i, body: list("abcdef")) as server:
        assert ask(connect(server), ["p"], n=2) == [["a", "b"]]


@pytest.mark.parametrize("texts_a_request", [1, None])
def test_a_greedy_server_is_refused(connect, texts_a_request):
    with LoopbackServer(lambda i, body: ["Answer: 5"] * (texts_a_request or body["n"])) as server:
        with pytest.raises(SelfTestError, match="decodes greedily.*generation_config"):
            executor(connect(server)).self_test([A, B])


def test_a_sampling_server_that_ignores_n_passes_the_self_test(connect):
    with LoopbackServer(lambda i, body: numbered(i, body)[:1]) as server:
        executor(connect(server)).self_test([A])


def test_an_unreachable_server_is_named_by_the_self_test(connect):
    with LoopbackServer(numbered) as gone:
        pass
    with pytest.raises(CallFailed, match=gone.url):
        executor(connect(gone, retries=0)).self_test([A])


# --- the key ----------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_is_never_said(connect, monkeypatch, caplog):
    """Not even if the server repeats it in its error."""
    monkeypatch.setenv("MY_KEY", "sk-very-secret")

    def script(i, body):
        return Status(500 if i == 0 else 401, f"bad key {server.keys[-1]}")

    with LoopbackServer(script) as server, caplog.at_level(logging.DEBUG):
        (failure,) = ask(connect(server, api_key_env="MY_KEY"), ["p"])
    assert server.keys == ["Bearer sk-very-secret"] * 2
    assert "secret" not in str(failure) + repr(failure) + caplog.text and "bad key" in str(failure)


def test_a_missing_key_is_an_error_that_names_the_variable(connect, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with LoopbackServer(numbered) as server, pytest.raises(InputError, match="MY_KEY"):
        connect(server, api_key_env="MY_KEY")


# --- through the executor and the reward engine ---------------------------------------------------


@pytest.mark.parametrize("baseline, s_run", [({"a": [0, 1], "b": [0]}, "separate"), (None, "merged")])
def test_rewards_repeat_with_the_seed_on_a_server_that_honours_seeds(connect, tmp_path, baseline, s_run):
    """Whatever the order in which answers come; another seed draws others. A failed call costs its trace only."""
    completions, ids = [wrap_trace(f"try {i}") for i in range(8)], ["a"] * 4 + ["b"] * 4

    async def script(number, body):
        await asyncio.sleep(0.01 * (number % 3))
        if "try 5" in question(body):
            return Status(400)
        right = "5" if "(story a)" in question(body) else "8"
        return [f"Answer: {right if (body['seed'] + i) % 2 else 1}" for i in range(body["n"])]

    def rewards(seed):
        e = executor(connect(server, concurrency=3))
        engine = RewardEngine(
            arm="rm_uplift_only",
            k=3,
            executor=e,
            scorer=Constant(),
            problems={"a": A, "b": B},
            baseline=baseline,
            seed=0,
            max_failure_rate=1.0,
            log_folder=tmp_path,
            s_run=s_run,
        )
        rows, _ = asyncio.run(engine.score(completions, ids, seed))
        assert engine.failures == {"executor_http_400": 1}
        return [(row["reward"], row["s"]) for row in rows if row["failure"] is None]

    class Constant:
        def score(self, problems, traces):
            return [1.0] * len(traces), None

    with LoopbackServer(script) as server:
        first = rewards(1)
        assert len(first) == 7 and rewards(1) == first and rewards(2) != first


def test_closing_gives_up_what_still_waits():
    with LoopbackServer(numbered, latency=30.0) as server:
        settings = ServerBackendSettings(kind="server", base_urls=[server.url], model="m", concurrency=2)
        backend = ServerBackend(settings, SAMPLING)
        futures = backend.submit(list("abcdef"), 1, seed=0)
        while server.in_flight < 2:
            time.sleep(0.01)
        backend.close()
    assert all(future.cancelled() for future in futures) and len(server.bodies) == 2


def test_verdicts_over_http(connect):
    def script(i, body):
        right = "5" if "(story a)" in question(body) else "8"
        return [f"Answer: {right}"] + ["Answer: 1"] * (body["n"] - 1)

    with LoopbackServer(script) as server:
        e = executor(connect(server))
        assert e.verdicts([A, B], ["help", None], 3, seed=0).tolist() == [[1, 0, 0], [1, 0, 0]]
    with pytest.raises(CallFailed):
        e.verdicts([A], [None], 1, seed=0)


def test_an_interrupt_gives_the_requests_up(connect, monkeypatch):
    """Ctrl-C while waiting: nothing goes on in the background."""

    def interrupted(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr("tracelift_lib.executor.frozen.as_completed", interrupted)
    with LoopbackServer(numbered, latency=0.3) as server:
        backend = connect(server, concurrency=1)
        with pytest.raises(KeyboardInterrupt):
            executor(backend).answer([A] * 5, [None] * 5, 2, seed=0)
        time.sleep(0.5)
    assert len(server.bodies) <= 1
