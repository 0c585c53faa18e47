"""Work side by side, one core each.

The models of the tiny world are too small for a second thread to pay: a second process does. Each worker keeps to one
thread whatever the number of cores, so the results do not depend on how many run at a time. Source: ours.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait

import torch
from tqdm.auto import tqdm


def run_in_processes(
    work: Callable[..., None], calls: list[tuple], total: int, done: Callable[[], int], name: str
) -> None:
    """`work(*call)` for each of `calls`, in as many processes as there are cores; a bar shows `done()` of `total`.

    After an interrupt, or when one call fails, the others are interrupted too, so that they can save what they have.

    Raises:
        The exception of the first call that failed.
    """
    spawn = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, len(calls))
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_quiet_single_thread) as pool:
        futures = [pool.submit(work, *call) for call in calls]
        try:
            with tqdm(total=total, desc=name) as bar:
                waiting = futures
                while waiting:
                    finished, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    bar.update(done() - bar.n)
        except BaseException:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGINT)
            pool.shutdown(cancel_futures=True)
            raise


def _quiet_single_thread() -> None:
    """One thread; bars of several workers at once could not be read, the caller shows one for all."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")
