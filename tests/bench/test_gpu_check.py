"""The GPU bench on a CPU: parts are recorded, a failed one stops nothing, and only what is missing is run again."""

import os
import subprocess
import sys

import pytest
from common import PROJECT

from bench import gpu_check, gpu_parts
from bench.gpu_check import PARTS, Results, Started


def test_a_part_through_the_shell_script(tmp_path):
    command = [str(PROJECT / "bench" / "gpu_check.sh"), str(tmp_path), "--dry", "--only", "tokenizers"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = Results(tmp_path)
    log = (tmp_path / "logs" / "tokenizers.log").read_text()
    assert done.stdout.startswith("tokenizers: ok") and results.status("tokenizers") == "ok", log
    row = results.rows()[0]
    assert row["quantity"] == "tokenizer" and float(row["value"]) > 300 and all(row[name] for name in gpu_check.COLUMNS)


def test_time_and_share_of_each_phase_of_a_step(tmp_path):
    figures = {}
    check = gpu_parts.Check(tmp_path, True, lambda quantity, value, *_: figures.update({quantity: value}))
    gpu_parts.tokenizers(check)
    gpu_parts.step(check, "0.5B", "lora")
    shares = [figures[f"{phase}, share of a step"] for phase in ("generation", "rewards", "update")]
    assert sum(shares) == pytest.approx(1, abs=0.05) and min(shares) > 0
    assert (
        figures["executor samples"] > 0 and figures["checkpoint"] > 0 and figures["estimate of gpu_budget: total"] > 0
    )


def test_a_part_says_what_it_lacks(tmp_path):
    check = gpu_parts.Check(tmp_path, True, print)
    with pytest.raises(gpu_parts.NotRun, match="reference"):
        gpu_parts.right_planner(check)
    with pytest.raises(gpu_parts.NotRun, match="tokenizers"):
        gpu_parts.reward(check, "0.5B")


def test_only_parts_that_have_not_ended_well_run_and_in_their_order(tmp_path, monkeypatch):
    results, begun = Results(tmp_path), []
    results.forget("nothing")
    for part, status in (
        ("reference", "ok"),
        ("tokenizers", "failed"),
        ("precision", "ok"),
        ("step-0.5B-full", "not run"),
    ):
        results.add(part, gpu_check.STATUS, status, "", "a reason")

    class Recorded(Started):
        def __init__(self, name, out, dry):
            self.name, self.seconds, self.results = name, 9, Results(out)

        def go(self):
            begun.append(self.name)
            self.results.forget(self.name)

        def finish(self, seconds):
            self.results.add(self.name, "figure", 0.25, "s")
            self.results.add(self.name, gpu_check.STATUS, "ok")
            return "ok"

    monkeypatch.setattr(gpu_check, "Started", Recorded)
    gpu_check.run_all(list(PARTS), tmp_path, False, 1.0)
    assert begun == [name for name in PARTS if name not in ("reference", "precision")]
    assert all(results.status(name) == "ok" for name in PARTS)
    assert len([row for row in results.rows() if row["part"] == "tokenizers"]) == 2


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; print('far', flush=True); time.sleep(60)", "still at work after 1 s: far"),
        ("raise SystemExit('no such device')", "ended with code 1: no such device"),
    ],
)
def test_a_part_that_hangs_or_dies_is_recorded(tmp_path, monkeypatch, program, message):
    program = f"print({gpu_check.READY!r}, flush=True); {program}"
    monkeypatch.setattr(gpu_check, "command_of", lambda *_: [sys.executable, "-c", program])
    started = Started("precision", tmp_path, False)
    started.go()
    assert started.finish(1.0) == "failed"
    (row,) = Results(tmp_path).rows()
    assert row["settings"] == message and started.process.returncode is not None


def test_an_unknown_part_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main([str(tmp_path), "--only", "setp-0.5B-lora"])
    assert "no part setp-0.5B-lora" in capsys.readouterr().err
