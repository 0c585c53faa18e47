"""Planner training in several processes: `accelerate launch -m tracelift_lib.runs.launch --preset tiny --run ARM:SEED`.

Every process has the whole training loop, its own part of a step's completions and their rewards; torch.distributed
puts their gradients together. Only the first goes through the store: it holds the lock, and writes weights, log and
manifest. The others wait to be told in which folder a run is built, or that it is there already. All nodes must see one
file system.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from tracelift_lib.planner.rewards import ARMS
from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.runs import store
from tracelift_lib.runs.pipeline import STAGES, Run
from tracelift_lib.runs.presets import read_override

STAGE = "planner_training"
CONFIGS = PROJECT / "presets" / "accelerate"
TAIL = 40  # last lines of a launch that failed, in its error
PATIENCE = datetime.timedelta(hours=2)  # for the slowest process: another one's lock, a server that answers late


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tracelift launch", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", required=True)
    parser.add_argument("--preset-seed", type=int, help="another seed than the preset's")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="value in YAML")
    parser.add_argument("--run", nargs="+", required=True, metavar="ARM:SEED", help="trained one after the other")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # its own cpu:0, cpu:1 ... make torch.load of a checkpoint fail
    try:
        policies = [_policy(text) for text in options.run]  # refuse bad input before the processes are connected
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        overrides = dict(map(read_override, options.override))
        overrides.setdefault("planner_training.processes", state.num_processes)
        run = Run(options.preset, options.preset_seed, overrides)
        for policy in policies:
            make_together(run, state, **policy)
    except (InputError, store.MissingArtifact) as error:
        print(error, file=sys.stderr)
        return 2
    state.destroy_process_group()
    return 0


def _policy(text: str) -> dict[str, Any]:
    """Arm and seed of `ARM:SEED` on the command line. Raises InputError."""
    arm, _, seed = text.partition(":")
    if arm not in ARMS or not seed.isdecimal():
        raise InputError(f"--run {text!r}: write ARM:SEED, e.g. tracelift:0; arms are {', '.join(ARMS)}")
    return {"arm": arm, "seed": int(seed)}


def make_together(run: Run, state: PartialState, **instance: Any) -> None:
    """The stage, made by all processes of the launch at once, or found."""
    if not state.is_main_process:
        folder = _told_by_the_first(None)
        if folder:
            STAGES[STAGE].build(run, Path(folder), **instance)
        return
    told: list[Path] = []

    def tell(out: Path) -> None:
        told.append(out)
        _told_by_the_first(str(out))

    run.on_build = tell
    run.make(STAGE, **instance)
    if not told:  # it was there
        _told_by_the_first("")


def _told_by_the_first(word: str | None) -> str | None:
    return broadcast_object_list([word])[0]


def train_in_processes(
    run: Run, instances: Sequence[dict[str, Any]], config: str = "cpu_2processes"
) -> list[store.Artifact]:
    """The runs of planner training of a notebook, in as many processes as its preset says, in a launch of their own.

    Args:
        config: name of a file in presets/accelerate.
    Raises:
        RuntimeError: the launch failed; holds the end of what it wrote.
    """
    where = ["--config_file", str(CONFIGS / f"{config}.yaml")]
    where += ["--num_processes", str(run.preset.planner_training.processes)]
    preset, preset_seed, overrides = run.arguments[:3]
    missing = [f"{i['arm']}:{i['seed']}" for i in instances if not run.has(STAGE, **i)]
    if missing:
        command = [sys.executable, "-m", "accelerate.commands.launch", *where, "-m", "tracelift_lib.runs.launch"]
        command += ["--preset", preset, "--run", *missing]
        command += ["--preset-seed", str(preset_seed)] * (preset_seed is not None)
        for key, value in (overrides or {}).items():
            command += ["--override", f"{key}={json.dumps(value)}"]  # which is YAML too
        _run(command)
    return [run.need(STAGE, **instance) for instance in instances]


def _run(command: list[str]) -> None:
    paths = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    said: deque[str] = deque(maxlen=TAIL)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:  # as it comes: a training takes hours
            print(line, end="", flush=True)
            said.append(line)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\nended with status {process.returncode}:\n{''.join(said)}")


if __name__ == "__main__":
    sys.exit(main())
