"""Peak memory of building groups, at several numbers of seeds: it must not grow with them.

    python bench/group_memory.py [N ...]        # default: 1000 10000 100000 tiny-world seeds, one process each

Prints one line a size (seeds, groups, seconds, peak resident memory in MB) and writes them to
paper_figures/group_memory.csv, which docs/groups.md quotes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from tracelift_lib.groups.builder import build
from tracelift_lib.groups.group_maker import BuildSettings
from tracelift_lib.groups.judge import judge_by_truth
from tracelift_lib.groups.seeds import LeakageGuard, SeedSettings
from tracelift_lib.problems.files import PROJECT
from tracelift_lib.runs import store


def measure(seeds: int) -> dict:
    """Build from this many tiny-world seeds in this process."""
    settings = BuildSettings(seeds=SeedSettings(source="tiny_world", limit=seeds), judge="ground_truth")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = build(settings, Path(folder), LeakageGuard(), judge=judge_by_truth)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seeds": seeds,
        "groups": sum(report["groups"].values()),
        "seconds": round(time.monotonic() - start, 1),
        "peak_mb": round(peak, 1),
    }


def measure_apart(seeds: int) -> dict:
    """The same in a fresh process, so that sizes do not share a peak."""
    command = [sys.executable, __file__, "--one", str(seeds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        rows = []
        for size in map(int, sys.argv[1:] or ["1000", "10000", "100000"]):
            rows.append(measure_apart(size))
            print(json.dumps(rows[-1]), flush=True)
        table = pd.DataFrame(rows).assign(hardware=store.hardware(), revision=store.git_revision())
        table.to_csv(PROJECT / "paper_figures" / "group_memory.csv", index=False)
