"""Work side by side: all of it done, one thread each, and stopped together."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tracelift_lib.runs.parallel import run_in_processes


def note_threads(path: Path):
    path.write_text(f"{torch.get_num_threads()} {os.getpid()}")


def fail_or_wait(path: Path, fails: bool):
    """The one fails as soon as the other has begun; that one waits to be interrupted, and saves."""
    other = path.with_name("waiting")
    if fails:
        while not other.exists():
            time.sleep(0.05)
        raise ValueError("no such trace")
    try:
        path.touch()
        time.sleep(60)
    except KeyboardInterrupt:
        path.with_name("saved").touch()
        raise


def finished(folder: Path):
    return lambda: len(list(folder.iterdir()))


def test_every_call_runs_in_another_process_on_one_thread(tmp_path):
    calls = [(tmp_path / str(i),) for i in range(3)]
    run_in_processes(note_threads, calls, 3, finished(tmp_path), "notes")
    noted = [path.read_text().split() for (path,) in calls]
    assert [threads for threads, _ in noted] == ["1"] * 3
    assert str(os.getpid()) not in {pid for _, pid in noted}


def test_a_failure_is_raised_and_stops_the_others_with_a_chance_to_save(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="no such trace"):
        run_in_processes(
            fail_or_wait, [(tmp_path / "waiting", False), (tmp_path / "failing", True)], 2, finished(tmp_path), "two"
        )
    assert (tmp_path / "saved").exists()


def test_an_interrupt_reaches_the_workers(tmp_path):
    """JupyterLab's stop button and `kill -INT` may reach this process alone."""

    def interrupt():
        while not (tmp_path / "waiting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(fail_or_wait, [(tmp_path / "waiting", False)], 1, finished(tmp_path), "one")
    assert (tmp_path / "saved").exists()
