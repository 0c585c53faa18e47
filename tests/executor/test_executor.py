"""The executor's prompts and verdicts, with a stand-in for the model, and with a real one in this process."""

import asyncio
import threading
from collections import Counter
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from common import story

from tracelift_lib.executor.backends import LocalBackend
from tracelift_lib.executor.client import CallFailed
from tracelift_lib.executor.frozen import Executor, SelfTestError
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.problems.prompts import PromptLimits
from tracelift_lib.verifier.verdicts import Verdict, Verifier


class FakeBackend:
    """Answers by a function of (prompt, number of the sample); an exception instead of a text fails the call."""

    name = "fake"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def submit(self, prompts, n, seed):
        self.asked.append((list(prompts), n, seed))
        return [self._future([self.answer(p, i) for i in range(n)]) for p in prompts]

    @staticmethod
    def _future(texts):
        future = Future()
        failures = [t for t in texts if isinstance(t, Exception)]
        future.set_exception(failures[0]) if failures else future.set_result(texts)
        return future


def executor(answer, rule="strict", limits=None, verifier=None):
    return Executor(FakeBackend(answer), "short", limits or PromptLimits(), verifier or Verifier(rule))


A, B = story(3, ("+", 2), problem_id="a"), story(4, ("*", 2), problem_id="b")  # answers 5 and 8


def test_verdicts_have_a_row_a_pair_and_a_column_a_sample():
    """Right only for problem a with a trace, and there in samples 0 and 2."""
    e = executor(lambda p, i: "Answer: 5" if "(story a)" in p and "help" in p and i != 1 else "Answer: 9")
    table = e.verdicts([A, A, B, B], ["help", None, "help", None], 3, seed=1)
    assert table.shape == (4, 3) and table.dtype == int
    assert table.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_each_answer_is_held_against_its_own_problem():
    e = executor(lambda p, i: f"Answer: {(5, 8)[i]}")
    assert e.verdicts([A, B], [None, None], 2, seed=1).tolist() == [[1, 0], [0, 1]]


def test_the_rule_of_the_preset_decides():
    assert executor(lambda p, i: "it is 5").verdicts([A], ["z"], 1, 0).tolist() == [[0]]
    assert executor(lambda p, i: "it is 5", "last_number").verdicts([A], ["z"], 1, 0).tolist() == [[1]]


def test_nothing_asked_nothing_answered():
    assert executor(lambda p, i: "").verdicts([], [], 4, seed=0).shape == (0, 4)


def test_problems_and_traces_must_pair():
    """A missing trace must not shift the others, nor drop the last problem in silence."""
    for problems, traces in (([A, B], ["z"]), ([A], ["z", "y"]), ([A], [])):
        with pytest.raises(ValueError):
            executor(lambda p, i: "").answer(problems, traces, 1, seed=0)
        with pytest.raises(ValueError):
            executor(lambda p, i: "").verdicts(problems, traces, 1, seed=0)


def test_the_executor_never_reads_the_answer_or_the_reference():
    e = executor(lambda p, i: "x")
    e.answer([A.model_copy(update={"answer": "777", "reference_solution": "SECRET"})], [None], 1, seed=0)
    (prompt,) = e.backend.asked[0][0]
    assert "777" not in prompt and "SECRET" not in prompt


def test_the_limits_of_the_preset_cut_its_prompts():
    e = executor(lambda p, i: "x", limits=PromptLimits(problem=8, trace=3))
    e.answer([A], ["abcdef"], 1, seed=0)
    (prompt,) = e.backend.asked[0][0]
    assert "Mia has " in prompt and "Mia has 3" not in prompt and "abc" in prompt and "abcd" not in prompt


def test_a_code_problem_is_asked_for_a_program():
    e = executor(lambda p, i: "x")
    assert e.prompt(A, None) != e.prompt(A.model_copy(update={"domain": "code"}), None)


def test_a_failed_call_is_an_error_outside_of_training():
    e = executor(lambda p, i: CallFailed("executor", "broken") if "(story b)" in p else "Answer: 5")
    with pytest.raises(CallFailed, match="broken"):
        e.verdicts([A, B], [None, None], 2, seed=0)


def test_self_test_refuses_an_executor_that_does_not_sample():
    with pytest.raises(SelfTestError, match="temperature"):
        executor(lambda p, i: f"always the same for {len(p)}").self_test([A, B])


def test_self_test_accepts_one_that_differs_anywhere():
    """Some prompts may be answered with certainty; one that varies is enough."""
    e = executor(lambda p, i: f"Answer: {i}" if "(story b)" in p else "Answer: 5")
    e.self_test([A, B])
    prompts, n, _ = e.backend.asked[0]
    assert n >= 4 and not any("<reasoning>" in p for p in prompts)
    assert np.shape(e.answer([A], [None], 2, 0)) == (1, 2)


# --- verifying while others are still asked ---------------------------------------------------


def judged(e, problems, traces, n, seconds=None):
    return asyncio.run(e.verified(problems, traces, n, 0, Counter() if seconds is None else seconds))


def test_judgements_and_failures_stand_in_order():
    e = executor(lambda p, i: CallFailed("executor_timeout", "late") if "(story b)" in p else f"Answer: {5 + i}")
    one, two, three = judged(e, [A, B, A], ["z", "z", None], 2)
    assert one == three == [Verdict(1, 1.0, "right"), Verdict(0, 0.0, "wrong")]
    assert isinstance(two, CallFailed) and two.kind == "executor_timeout"


class BrokenVerifier:
    """Two ways to fail."""

    def verify(self, problems, answers):
        if problems[0].problem_id == "b":
            raise OSError("no room for a process")
        raise RuntimeError("problem a: the sandbox failed")


def test_a_verifier_that_fails_gives_failures():
    failures = judged(executor(lambda p, i: "", verifier=BrokenVerifier()), [A, B], [None, None], 2)
    assert [f.kind for f in failures] == ["verifier"] * 2
    assert "sandbox failed" in str(failures[0]) and "no room" in str(failures[1]) and "problem b" in str(failures[1])
    with pytest.raises(RuntimeError, match="problem a"):
        executor(lambda p, i: "", verifier=BrokenVerifier()).verdicts([A], [None], 2, seed=0)


def test_answers_are_verified_while_others_are_awaited():
    """The verifier of the first answer lets the second answer go on: neither waits for the end of the other's phase."""
    first_verified = threading.Event()

    class Waiting(FakeBackend):
        def submit(self, prompts, n, seed):
            early, late = Future(), Future()
            early.set_result(["Answer: 5"])

            def finish():
                late.set_result(["Answer: 8" if first_verified.wait(20) else "too late"])

            threading.Thread(target=finish).start()
            return [early, late]

    class Telling(Verifier):
        def verify(self, problems, answers):
            first_verified.set()
            return super().verify(problems, answers)

    seconds = Counter()
    e = Executor(Waiting(None), "short", PromptLimits(), Telling())
    one, two = judged(e, [A, B], [None, None], 1, seconds)
    assert one[0].success == two[0].success == 1 and seconds["executor"] > 0 and seconds["verifier"] > 0


def test_answers_must_pair_with_problems():
    with pytest.raises(ValueError):
        Verifier().verify([A, A], ["Answer: 5"])


# --- the model in this process ----------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler():
    tokenizer = train_tokenizer(["Solve. Mia has coins. How many coins does Mia have now? Answer: 0123456789"], 300)
    shape = Qwen2Shape(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return Sampler(new_qwen2(tokenizer, shape, seed=0).eval(), tokenizer, Sampling(1.0, 1.0, 6, 400))


def test_the_local_backend_is_the_sampler(sampler):
    """Same seed, same texts: with or without the thread, alone or after other work; the caller's random state stays."""
    prompts = ["one", "two coins", "three coins and more"]
    backend = LocalBackend(sampler)
    expected = sampler.sample([backend.show(p) for p in prompts], 3, seed=5)
    before = torch.get_rng_state()
    busy = backend.submit(prompts * 3, 2, seed=1)
    assert [f.result() for f in backend.submit(prompts, 3, seed=5)] == expected
    assert all(f.done() for f in busy) and torch.equal(torch.get_rng_state(), before)
    assert [f.result() for f in backend.submit(prompts, 3, seed=6)] != expected
    Executor(backend, "short", PromptLimits(), Verifier()).self_test([A])


def test_texts_are_delivered_batch_by_batch(sampler):
    """Two samples of each long prompt fill a batch of 400 tokens; what is delivered is what is returned."""
    seen = {}
    prompts = ["x" * 150, "y", "z" * 140]
    texts = sampler.sample(prompts, 2, seed=0, deliver=lambda i, t: seen.setdefault(i, (len(seen), t)))
    assert [seen[i][1] for i in range(3)] == texts and seen[1][0] == 0  # the shortest first


def test_a_model_that_fails_fails_every_call(sampler):
    class Broken(Sampler):
        def sample(self, *_, **__):
            raise RuntimeError("out of memory")

    broken = Broken(sampler.model, sampler.tokenizer, sampler.sampling)
    failures = [f.exception() for f in LocalBackend(broken).submit(["a", "b"], 1, seed=0)]
    assert [f.kind for f in failures] == ["executor"] * 2 and "out of memory" in str(failures[1])


def test_an_interrupted_caller_stops_the_model(sampler):
    """At the next batch: a notebook's next cell must not wait for answers that nobody reads."""
    delivered, started, ended = [], threading.Event(), threading.Event()

    class Watched(Sampler):
        def sample(self, prompts, n, seed, progress=None, deliver=None):
            def watch(i, texts):
                delivered.append(i)
                deliver(i, texts)

            started.wait()
            try:
                return super().sample(prompts, n, seed, progress, watch)
            finally:
                ended.set()

    backend = LocalBackend(Watched(sampler.model, sampler.tokenizer, sampler.sampling))
    futures = backend.submit(["x" * 150, "y" * 150, "z" * 150], 4, seed=0)  # three batches
    for future in futures:
        future.cancel()
    started.set()
    assert ended.wait(20) and len(delivered) == 1 and all(f.cancelled() for f in futures)
