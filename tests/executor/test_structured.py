"""Structured answers from a language model: a loopback server that speaks OpenAI's protocol, and a real tiny Qwen2."""

import asyncio
import json

import pytest
from common import group_record
from loopback import LoopbackServer, Raw, Status, question
from pydantic import BaseModel, ConfigDict

from tracelift_lib.executor.client import CallFailed
from tracelift_lib.executor.structured import Asker, BudgetSpent, Failure, LocalModel, OpenAIModel
from tracelift_lib.groups.by_model import ask_for_flaw, judge_by_model
from tracelift_lib.groups.checks import reject_reason
from tracelift_lib.groups.judge import RubricJudgement, calibrate
from tracelift_lib.groups.kinds import Flaw
from tracelift_lib.groups.schema import Group
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    age: int


def completion(content, finish="stop", refusal=None, tokens=50):
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens - 10, "completion_tokens": 10, "total_tokens": tokens},
    }
    return Raw(json.dumps(body))


GOOD = completion('{"name": "Rex", "age": 3}')


@pytest.fixture
def server():
    """A server whose `replies` come one after another, the last for ever; a function is called with the request."""

    def script(number, body):
        reply = loopback.replies.pop(0) if len(loopback.replies) > 1 else loopback.replies[0]
        return reply(body) if callable(reply) else reply

    with LoopbackServer(script) as loopback:
        loopback.replies = [GOOD]
        yield loopback


def model(server, **connection):
    return OpenAIModel(server.url, "m", max_tokens=100, **{"backoff": 0.01, **connection})


def asker(server, tmp_path, token_cap=100_000, **settings):
    return Asker(model(server, **settings), tmp_path / "answers.jsonl", token_cap)


def test_an_answer_that_fits_the_schema(server, tmp_path):
    assert asker(server, tmp_path).ask("Which pet?", Pet) == Pet(name="Rex", age=3)
    (body,) = server.bodies
    assert body["path"] == "/v1/chat/completions" and "Which pet?" in question(body)
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 100, 0.7)
    wanted = body["response_format"]["json_schema"]
    assert wanted["strict"] and wanted["schema"]["required"] == ["name", "age"]
    assert wanted["schema"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (completion("Rex is three."), "Invalid JSON"),
        (completion('{"name": "Rex", "age": 3'), "Invalid JSON"),
        (completion('{"name": "Rex"}'), "age"),
        (completion('{"name": "Rex", "age": "old"}'), "age"),
        (completion('{"name": "Rex", "age": 3, "owner": "Ann"}'), "owner"),
        (completion('{"name": "R', finish="length"), None),
        (completion(""), "Invalid JSON"),
    ],
)
def test_a_bad_answer_is_asked_for_again_with_the_fault_named(server, tmp_path, bad, named):
    server.replies = [bad, completion('Here it is: ```json\n{"name": "Rex", "age": 3}\n```')]
    assert asker(server, tmp_path).ask("Which pet?", Pet) == Pet(name="Rex", age=3)
    first, again = server.bodies
    assert (named is None or named in question(again)) and first["seed"] != again["seed"]


@pytest.mark.parametrize(
    ("reply", "reason", "requests"),
    [
        (completion("no JSON at all"), "not JSON", 3),
        (completion('{"name": 5, "age": 3}'), "breaks the schema", 3),
        (completion("", finish="length"), "cut off", 3),
        (completion(None, refusal="I cannot do that."), "refused", 1),
        (completion("", finish="content_filter"), "refused", 1),
        (Raw('{"unexpected": "body"}'), "malformed reply", 3),
        (Raw("<html>busy</html>"), "malformed reply", 3),
        (Raw('{"choices": []}'), "malformed reply", 3),
    ],
)
def test_an_answer_that_never_fits_is_a_failure_with_a_reason(server, tmp_path, reply, reason, requests):
    server.replies = [reply]
    assert asker(server, tmp_path).ask("Which pet?", Pet) == Failure(reason)
    assert len(server.bodies) == requests


@pytest.mark.parametrize("status", [429, 500, 503])
def test_overload_and_server_faults_are_tried_again(server, tmp_path, status):
    server.replies = [Status(status, "busy")] * 2 + [GOOD]
    assert asker(server, tmp_path).ask("Which pet?", Pet) == Pet(name="Rex", age=3)
    assert len(server.bodies) == 3


def test_a_time_out_is_tried_again(server, tmp_path):
    async def late(body):
        await asyncio.sleep(2)

    server.replies = [late, GOOD]
    assert asker(server, tmp_path, timeout=0.3).ask("Which pet?", Pet) == Pet(name="Rex", age=3)
    assert len(server.bodies) == 2


def test_an_endpoint_that_stays_down_stops_the_run_and_is_no_answer(server, tmp_path):
    server.replies = [Status(500, "broken")]
    with pytest.raises(CallFailed, match="broken.*after 3 tries"):
        asker(server, tmp_path, retries=2).ask("Which pet?", Pet)
    assert len(server.bodies) == 3
    server.replies = [GOOD]
    assert asker(server, tmp_path).ask("Which pet?", Pet) == Pet(name="Rex", age=3)


def test_a_wrong_key_says_what_to_check_but_not_the_key(server, tmp_path, monkeypatch):
    """Not even if the server repeats it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.replies = [lambda body: Status(401, f"bad key {server.keys[-1]}")]
    with pytest.raises(CallFailed, match="status 401 for model 'm'.*OPENAI_API_KEY.*bad key") as failure:
        asker(server, tmp_path).ask("Which pet?", Pet)
    assert server.keys == ["Bearer sk-secret"] and "secret" not in repr(failure.value)
    assert not (tmp_path / "answers.jsonl").exists()


def test_an_address_where_nothing_listens(tmp_path):
    down = OpenAIModel("http://127.0.0.1:9/v1", "m", retries=1, backoff=0.01, timeout=1.0)
    with pytest.raises(CallFailed, match="127.0.0.1:9.*after 2 tries"):
        Asker(down, tmp_path / "a.jsonl", 10_000).ask("Which pet?", Pet)


@pytest.mark.parametrize(
    ("address", "says"), [("localhost:8000/v1", "localhost:8000/v1"), ("http://me:word@host/v1", "must not hold a key")]
)
def test_an_address_that_cannot_be_one_is_refused_at_once(address, says):
    with pytest.raises(InputError, match=says) as failure:
        OpenAIModel(address, "m")
    assert "word" not in str(failure.value)


def test_finished_requests_are_not_asked_again(server, tmp_path):
    asker(server, tmp_path).ask("Which pet?", Pet)
    server.replies = [completion("nothing")]
    later = asker(server, tmp_path)
    assert later.ask("Which pet?", Pet) == Pet(name="Rex", age=3) and len(server.bodies) == 1
    assert later.ask("Which pet?", Pet, seed=1) == Failure("not JSON")  # another opinion is another request
    count = len(server.bodies)
    assert asker(server, tmp_path).ask("Which pet?", Pet, seed=1) == Failure("not JSON") and len(server.bodies) == count


def test_a_ledger_that_was_cut_off_loses_its_last_line_only(server, tmp_path):
    one = asker(server, tmp_path)
    one.ask("first", Pet)
    one.ask("second", Pet)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    later = asker(server, tmp_path)
    later.ask("first", Pet)
    assert len(server.bodies) == 2
    assert later.ask("second", Pet) == Pet(name="Rex", age=3) and len(server.bodies) == 3
    assert all(json.loads(line) for line in path.read_text().splitlines())
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(InputError, match="answers.jsonl:1.*Remove this line"):
        asker(server, tmp_path)


def test_the_cap_on_tokens_holds_over_runs_and_bad_answers(server, tmp_path):
    server.replies = [completion("nothing", tokens=300)]
    one = asker(server, tmp_path, token_cap=1500)
    with pytest.raises(BudgetSpent, match="Raise the cap"):
        for i in range(100):
            one.ask(f"pet {i}", Pet)
    count = len(server.bodies)
    assert one.spent == 300 * count <= 1500 and count >= 3
    with pytest.raises(BudgetSpent):  # a new run starts with what was spent
        asker(server, tmp_path, token_cap=1500).ask("one more", Pet)
    assert len(server.bodies) == count
    server.replies = [GOOD]
    assert asker(server, tmp_path, token_cap=9000).ask("one more", Pet) == Pet(name="Rex", age=3)


# --- maker and judge on top -------------------------------------------------------------------

STORY = "A farmer fills 3 boxes with 12 eggs each. 6 eggs break. Half of the rest are sold for $2 each. How much money?"
TRACE = (
    "The boxes hold 3 * 12 = 36 eggs.\nAfter 6 broke there are 36 - 6 = 30 eggs.\n"
    "He sells half of the 30 eggs, so 30 / 2 = 15 eggs.\nHe earns 15 * $2 = $30"
)
SLIP = (
    TRACE.replace("= 30 eggs", "= 28 eggs")
    .replace("the 30 eggs, so 30 / 2 = 15", "the 28 eggs, so 28 / 2 = 14")
    .replace("15 * $2 = $30", "14 * $2 = $28")
)
PROBLEM = Problem(
    problem_id="p", source="hand", domain="math", task_type="t", problem=STORY, reference_solution=TRACE, answer="30"
)


def test_the_maker_asks_for_one_kind_and_its_trace_passes_the_checks(server, tmp_path):
    answer = {"reasoning": SLIP + "\n", "changed_place": "line 2", "why_it_is_a_flaw": "36 - 6 is 30"}
    server.replies = [completion(json.dumps(answer))]
    flaw = ask_for_flaw(asker(server, tmp_path), PROBLEM, TRACE, "arithmetic_slip")
    assert flaw == Flaw(SLIP, 3 / 4)
    assert reject_reason(PROBLEM, TRACE, flaw.text, "arithmetic_slip") is None
    prompt = question(server.bodies[0])
    assert "arithmetic_slip" in prompt and STORY in prompt and TRACE in prompt


def scores(overall, **changed):
    names = (
        "problem_understanding",
        "solution_strategy",
        "step_coherence",
        "calculation_correctness",
        "answer_support",
    )
    return completion(json.dumps({**dict.fromkeys(names, 9), **changed, "overall": overall, "reason": "so"}))


def test_a_judge_maps_scores_to_labels_and_total(server, tmp_path):
    server.replies = [scores(7, calculation_correctness=3, answer_support=10, step_coherence=0)]
    judged = judge_by_model(asker(server, tmp_path))(PROBLEM, SLIP)
    assert isinstance(judged, RubricJudgement) and (judged.overall, judged.reason) == (7, "so")
    assert judged.rubric.labels == {
        "problem_understanding": 4,
        "solution_strategy": 4,
        "step_coherence": 0,
        "calculation_correctness": 1,
        "answer_support": 4,
    }
    assert judged.rubric.total == 0.7


@pytest.mark.parametrize("bad", [scores(11), scores(-1), scores(7.5), scores("8"), scores(7, step_coherence=None)])
def test_scores_outside_the_schema_are_no_judgement(server, tmp_path, bad):
    server.replies = [bad]
    assert judge_by_model(asker(server, tmp_path))(PROBLEM, SLIP) == Failure("breaks the schema")


def test_calibration_of_a_judge_behind_an_endpoint(server, tmp_path):
    """It knows the slip from the reference, gives the other flaw full marks, and wavers by its seed."""
    group = Group.model_validate(group_record())  # 3 + 2 = 5; flawed: 3 - 2 = 1, 3 + 2 = 6

    def reply(body):
        prompt = question(body)
        return scores(10 if "= 5" in prompt or "= 1" in prompt else 4 + 2 * (body["seed"] % 2))

    server.replies = [reply]
    shown = calibrate(judge_by_model(asker(server, tmp_path)), [group], repeats=2)
    assert shown["saturation_rate"] == 4 / 6 and shown["saturation_rate_negatives"] == 2 / 4
    assert shown["pair_accuracy"] == 0.5 and shown["ties"] == 0.5 and shown["group_accuracy"] == 0
    assert shown["agreement"] == 1 and shown["total_spread"] == pytest.approx(0.1 / 3)  # 0.4 and 0.6 once in three
    assert shown["failure_rate"] == 0 and shown["judged"] == 6


@pytest.fixture(scope="module")
def tiny():
    """A real Qwen2 with random weights: what it writes is noise."""
    tokenizer = train_tokenizer([STORY, TRACE, "reasoning overall reason"] * 4, 400)
    shape = Qwen2Shape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.1,
    )
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=24, batch_tokens=4096)
    return LocalModel(Sampler(new_qwen2(tokenizer, shape, 0), tokenizer, sampling), "tiny")


def test_noise_of_a_local_model_is_rejected_with_a_reason(tiny, tmp_path):
    local = Asker(tiny, tmp_path / "a.jsonl", 1_000_000, attempts=2)
    made = [ask_for_flaw(local, PROBLEM, TRACE, kind) for kind in ("arithmetic_slip", "lost_event")]
    judged = [judge_by_model(local)(PROBLEM, TRACE, repeat) for repeat in range(2)]
    assert all(answer in (Failure("not JSON"), Failure("breaks the schema")) for answer in made + judged)
    assert local.spent > 4 * 2 * 24
    shown = calibrate(judge_by_model(local), [Group.model_validate(group_record())], repeats=1)
    assert shown["failure_rate"] == 1 and shown["pair_accuracy"] != shown["pair_accuracy"]  # nan: nothing to count
