"""Processes of their own for tests that kill them or connect several: `start(work, *arguments)`.

They are forks of a server that has imported torch, transformers and TRL once; a new Python takes ten seconds of CPU
time until it has. The server itself computes nothing, so no thread or random state comes with a fork.
"""

import multiprocessing
import os

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tracelift_lib.runs.pipeline", "trl.trainer.grpo_trainer", "trl.trainer.sft_trainer"])


def start(work, *arguments, log=os.devnull, environment=os.environ):
    """The running process; `work` is a function of a module's top level, `log` the file that gets what it writes."""
    process = SERVER.Process(target=_work, args=(work, arguments, str(log), dict(environment)))
    process.start()
    return process


def _work(work, arguments, log, environment):
    with open(log, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    work(*arguments)
