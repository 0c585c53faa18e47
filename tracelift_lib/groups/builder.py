"""TraceLift-Groups from public seeds: seeds → flawed traces → checks → rubric → files, one group at a time.

    python -m tracelift_lib.group_building --source gsm8k --data FOLDER --out FOLDER
    python -m tracelift_lib.group_building --validate FILE [FILE ...]

Memory does not grow with the number of seeds, and a run that was interrupted goes on after the last finished seed: each
seed's outcome is one line of `work/progress.jsonl`, from which the files are written at the end. method.md section 3.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from tracelift_lib.groups.flaws.plans import statement
from tracelift_lib.groups.group_maker import BuildSettings, Propose, make_group, propose_exact
from tracelift_lib.groups.judge import Judge
from tracelift_lib.groups.seeds import ENDLESS, LeakageGuard, SeedSettings, benchmark_problems, load_seeds
from tracelift_lib.groups.splits import PROGRESS, REPORT, SETTINGS, _finished, _write_files
from tracelift_lib.problems.files import InputError, write_json

# --- all groups -------------------------------------------------------------------------------


def build(
    settings: BuildSettings,
    out: Path,
    guard: LeakageGuard,
    propose: Propose = propose_exact,
    judge: Judge | None = None,
) -> dict:
    """Build into `out`: {train,dev}.{jsonl,parquet}, README.md (the data card), report.json. Returns the report.

    With `settings.test` also test.{jsonl,parquet}, from seeds that no group of the other splits uses.

    Raises:
        LeakageError: seeds are test problems and `drop_leaked` is off; nothing is built.
        InputError: seeds are malformed, or `out` holds the work of other settings.
        BudgetSpent, CallFailed: a language model cannot be asked further; run again to go on.
    """
    if (out / REPORT).exists():
        report = json.loads((out / REPORT).read_text())
        if report["settings"] == settings.model_dump(mode="json"):
            return report
        raise InputError(f"{out}: holds groups of other settings; choose another folder")
    progress = _open_work(settings, out)
    if not settings.drop_leaked:
        guard.check(load_seeds(settings.seeds))
    done = _finished(progress)
    seeds = tqdm(load_seeds(settings.seeds), desc="groups", unit=" seeds", total=settings.seeds.limit, mininterval=1)
    with progress.open("a", encoding="utf-8") as file:
        for problem in islice(seeds, done, None):
            if leak := guard.match(statement(problem)):  # only with drop_leaked; else the check above has stopped us
                group, counts = None, Counter({f"leaked|{problem.problem_id} is {leak[0]} ({leak[1]} match)": 1})
            else:
                group, counts = make_group(problem, settings, propose, judge)
            line = {"group": group.to_record() if group else None, "counts": counts}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    report = _write_files(settings, out, progress, len(guard))
    shutil.rmtree(out / "work")
    return report


def guard_of(seeds: SeedSettings) -> LeakageGuard:
    """The benchmarks to keep out of these seeds; generated problems need none, unless a folder has some."""
    generated = seeds.source in ENDLESS and seeds.folder is None
    return LeakageGuard(() if generated else benchmark_problems(seeds.folder, seeds.source))


def _open_work(settings: BuildSettings, out: Path) -> Path:
    """The progress file of a new or interrupted build with these settings."""
    (out / "work").mkdir(parents=True, exist_ok=True)
    mine, noted = settings.model_dump(mode="json"), out / SETTINGS
    if noted.exists() and json.loads(noted.read_text()) != mine:
        raise InputError(f"{out}: holds an unfinished build with other settings; finish it, or choose another folder")
    write_json(noted, mine)
    return out / PROGRESS
