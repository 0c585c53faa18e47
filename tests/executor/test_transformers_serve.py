"""The server backend against `transformers serve` with a tiny model: a real server that ignores n."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from common import story

from tracelift_lib.executor.backends import ServerBackend
from tracelift_lib.executor.frozen import Executor, SelfTestError
from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampling
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.problems.prompts import PromptLimits
from tracelift_lib.verifier.verdicts import Verifier

for module in ("fastapi", "uvicorn"):
    pytest.importorskip(module, reason="transformers serve needs the extra transformers[serving]")

A = story(3, ("+", 2), problem_id="a")
START_SECONDS = 120


def save_model(folder):
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
    model = new_qwen2(tokenizer, shape, seed=0)
    model.generation_config.update(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, name of the model)."""
    folder = tmp_path_factory.mktemp("served")
    save_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from transformers.cli.transformers import main; main()",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait()


def wait_for(url, process, log):
    for _ in range(START_SECONDS * 5):
        if process.poll() is not None:
            pytest.fail(f"transformers serve ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url) as reply:
                return json.load(reply)
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")


@pytest.fixture(params=[1.0, 0.0], ids=["samples", "greedy"])
def executor(request, served):
    url, model = served
    settings = ServerBackendSettings(kind="server", base_urls=[url], model=model, concurrency=2, retries=0)
    backend = ServerBackend(settings, Sampling(request.param, 1.0, 6, 1))
    yield Executor(backend, "short", PromptLimits(), Verifier())
    backend.close()


def test_a_server_that_ignores_n_still_gives_n_samples(executor):
    (answers,) = executor.answer([A], ["help"], 4, seed=0)
    assert len(answers) == 4 and (len(set(answers)) > 1) == (executor.backend.sampling.temperature > 0)
    assert executor.verdicts([A], [None], 2, seed=0).shape == (1, 2)


def test_the_self_test_tells_sampling_from_greedy(executor):
    if executor.backend.sampling.temperature > 0:
        executor.self_test([A])
    else:
        with pytest.raises(SelfTestError, match="generation_config"):
            executor.self_test([A])
