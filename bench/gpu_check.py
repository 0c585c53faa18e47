"""Checks and measurements on one GPU: `bench/gpu_check.sh OUT_FOLDER [--dry]`. What is measured is in gpu_parts.py.

Each part is a process of its own with a time limit; `OUT/gpu_check.csv` gets every figure as soon as it is there, and
`OUT/logs/PART.log` what the part printed. A part that fails, or takes too long, is recorded with its message and the
next one begins. Called again with the same folder, only parts run that have not ended well.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COLUMNS = (
    "part",
    "quantity",
    "value",
    "unit",
    "settings",
    "hardware",
    "torch",
    "transformers",
    "trl",
    "date",
    "revision",
)
STATUS, OK = "status", "ok"  # the row that ends a part; its settings hold the message of a failure
AHEAD = 2  # processes that load their libraries while a part before them measures
LOADING_SECONDS = 120  # at most, until a process has loaded its libraries
LEAST_SECONDS = 20  # with less time left no further part is begun
DRY_PATIENCE = 4  # limits of a dry run: its CPU may be busy with other work
READY = "libraries loaded"


@dataclass(frozen=True)
class Part:
    """A function of gpu_parts.py with its arguments.

    Attributes:
        seconds: limit, from the moment when the libraries are loaded.
        gpu: False: it runs with the GPU hidden, beside the other such parts and before all the rest.
    """

    work: str
    seconds: int
    arguments: tuple[str, ...] = ()
    gpu: bool = True


# The most valuable figures first: the time may end before the list does.
PARTS = {
    "reference": Part("reference", 150, gpu=False),
    "tokenizers": Part("tokenizers", 150, gpu=False),
    "right-generation": Part("right_generation", 60),
    "right-planner": Part("right_planner", 90),
    "right-reward-model": Part("right_reward_model", 60),
    "precision": Part("precision", 60),
    "step-0.5B-lora": Part("step", 120, ("0.5B", "lora")),
    "reward-0.5B": Part("reward", 90, ("0.5B",)),
    "against-trl-0.5B": Part("against_trl", 120, ("0.5B",)),
    "step-1.5B-lora": Part("step", 120, ("1.5B", "lora")),
    "step-0.5B-full": Part("step", 120, ("0.5B", "full")),
    "step-1.5B-full": Part("step", 120, ("1.5B", "full")),
    "step-135M-lora": Part("step", 120, ("135M", "lora")),
    "reward-1.5B": Part("reward", 90, ("1.5B",)),
    "four-bit": Part("four_bit", 60),
    "step-135M-full": Part("step", 120, ("135M", "full")),
    "reward-135M": Part("reward", 90, ("135M",)),
    "server-transformers": Part("server", 90, ("transformers", "0.5B")),
    "server-transformers-batching": Part("server", 90, ("transformers-batching", "0.5B")),
    "server-vllm": Part("server", 180, ("vllm", "0.5B")),
    "training": Part("training", 600),
}


# --- results ----------------------------------------------------------------------------------


class Results:
    """`gpu_check.csv` of a folder."""

    def __init__(self, out: Path):
        self.path = out / "gpu_check.csv"

    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def status(self, part: str) -> str | None:
        """How a part ended; None if it has not."""
        return next((r["value"] for r in self.rows() if r["part"] == part and r["quantity"] == STATUS), None)

    def forget(self, part: str) -> None:
        """Drop the rows of a part that is run again."""
        rows = [row for row in self.rows() if row["part"] != part]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)

    def add(self, part: str, quantity: str, value: object, unit: str = "", settings: str = "") -> None:
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts = facts_of_this_process()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([part, quantity, shown, unit, settings, *facts[:4], now, facts[4]])


@cache
def facts_of_this_process() -> tuple[str, str, str, str, str]:
    """Hardware, versions of torch, transformers and trl, revision of the code.

    A copy without .git takes the revision from $GPU_CHECK_REVISION. The process that only starts the parts leaves
    hardware and revision empty: to find them it would have to load torch.
    """
    hardware, revision = "", os.environ.get("GPU_CHECK_REVISION", "")
    if "torch" in sys.modules:
        from tracelift_lib.runs import store

        hardware, revision = store.hardware(), revision or store.git_revision()
    return hardware, *map(version, ("torch", "transformers", "trl")), revision


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# --- one part, in its own process -------------------------------------------------------------


def run_part(name: str, out: Path, dry: bool) -> None:
    """Load the libraries, wait for a line on the standard input, measure; the last row says how it ended."""
    from bench import gpu_parts

    print(READY, flush=True)
    sys.stdin.readline()
    results, part, start = Results(out), PARTS[name], time.monotonic()
    check = gpu_parts.Check(out / "work", dry, lambda *row: results.add(name, *row))
    try:
        getattr(gpu_parts, part.work)(check, *part.arguments)
        status, message = OK, ""
    except gpu_parts.NotRun as missing:
        status, message = "not run", str(missing)
    except Exception as error:
        traceback.print_exc()
        status, message = "failed", f"{type(error).__name__}: {error}"[:500]
    results.add(name, "seconds", time.monotonic() - start, "s")
    results.add(name, STATUS, status, "", message)


def command_of(name: str, out: Path, dry: bool) -> list[str]:
    return [sys.executable, "-m", "bench.gpu_check", str(out), "--part", name, *["--dry"] * dry]


class Started:
    """A part's process, which loads its libraries and then waits."""

    def __init__(self, name: str, out: Path, dry: bool):
        self.name, self.part, self.results = name, PARTS[name], Results(out)
        self.seconds = self.part.seconds * (DRY_PATIENCE if dry else 1)
        self.log = out / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        hidden = {} if self.part.gpu and not dry else {"CUDA_VISIBLE_DEVICES": ""}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command_of(name, out, dry),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **hidden},
                start_new_session=True,  # servers that it starts end with it
            )

    def go(self) -> None:
        """Let it measure, as soon as its libraries are loaded; if they never are, `finish` says so."""
        self.results.forget(self.name)
        limit = time.monotonic() + LOADING_SECONDS
        while READY not in self.log.read_text() and self.process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        try:
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def finish(self, seconds: float) -> str:
        """Wait for at most so long; the status in which the part ended."""
        try:
            code = self.process.wait(max(seconds, 1.0))
            ended = f"ended with code {code}: {self.last_line()}"
        except subprocess.TimeoutExpired:
            ended = f"still at work after {seconds:.0f} s: {self.last_line()}"
        self.kill()
        if self.results.status(self.name) is None:
            self.results.add(self.name, STATUS, "failed", "", ended)
        return self.results.status(self.name)

    def last_line(self) -> str:
        return (self.log.read_text().strip().splitlines() or ["(it said nothing)"])[-1][:300]

    def kill(self) -> None:
        """End the process and all that it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


# --- all parts --------------------------------------------------------------------------------


def run_all(names: Sequence[str], out: Path, dry: bool, minutes: float) -> None:
    """The parts in their order, as many as the time allows; those without the GPU first, side by side."""
    end, results = time.monotonic() + 60 * minutes, Results(out)
    left = [name for name in names if results.status(name) != OK]
    waiting: list[Started] = []
    try:
        groups = [[n for n in left if not PARTS[n].gpu], *([n] for n in left if PARTS[n].gpu)]
        for group in filter(None, groups):
            ahead = left[: len(group) + AHEAD]
            waiting += [Started(n, out, dry) for n in ahead if n not in [s.name for s in waiting]]
            if time.monotonic() > end - LEAST_SECONDS:
                print(f"no time left for {', '.join(left)}", flush=True)
                return
            run_together(waiting[: len(group)], end)
            waiting, left = waiting[len(group) :], left[len(group) :]
    finally:
        for started in waiting:
            started.kill()


def run_together(parts: Sequence[Started], end: float) -> None:
    """Let these parts go, wait for them, print how each ended."""
    begun = time.monotonic()
    for started in parts:
        started.go()
    gone = time.monotonic()
    for started in parts:
        seconds = min(gone + started.seconds, end) - time.monotonic()
        print(f"{started.name}: {started.finish(seconds)}, {time.monotonic() - begun:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench/gpu_check.sh", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--only", help="names of parts, with commas between: " + ", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="no part goes on beyond that (default: 8)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.part:
        return run_part(asked.part, asked.out, asked.dry)
    names = asked.only.split(",") if asked.only else list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no process is left behind
    run_all([name for name in PARTS if name in names], asked.out.resolve(), asked.dry, asked.minutes)


if __name__ == "__main__":
    main()
