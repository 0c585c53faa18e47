"""TraceLift-Groups from public seeds: seeds → flawed traces → checks → rubric → files, one group at a time.

Only problem ids are held in memory, and a run that was interrupted goes on after the last finished seed: each seed's
outcome is one line of `work/progress.jsonl`, from which the files are written at the end. docs/method.md section 3.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from tracelift_lib.groups.data_card import data_card
from tracelift_lib.groups.group_files import write_parquet
from tracelift_lib.groups.group_maker import BuildSettings, Propose, make_group, propose_exact
from tracelift_lib.groups.judge import Judge
from tracelift_lib.groups.schema import split_train_dev
from tracelift_lib.groups.seeds import SOURCES, LeakageGuard, SeedSettings, benchmark_problems, load_seeds, normalise
from tracelift_lib.problems.files import InputError, count_lines, git_revision, read_jsonl, write_json

PROGRESS, SETTINGS, REPORT = "work/progress.jsonl", "work/settings.json", "report.json"


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
    done = count_lines(progress)
    seeds = tqdm(load_seeds(settings.seeds), desc="groups", unit=" seeds", total=settings.seeds.limit, mininterval=1)
    with progress.open("a", encoding="utf-8") as file:
        for problem in islice(seeds, done, None):
            if leak := guard.match(problem):  # only with drop_leaked; else the check above has stopped us
                group, counts = None, Counter({f"leaked|{leak}": 1})
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
    unneeded = SOURCES[seeds.source].generated and seeds.folder is None
    return LeakageGuard(() if unneeded else benchmark_problems(seeds.folder, seeds.source))


# --- progress on disk -------------------------------------------------------------------------


def _open_work(settings: BuildSettings, out: Path) -> Path:
    """The progress file of a new or interrupted build with these settings."""
    (out / "work").mkdir(parents=True, exist_ok=True)
    mine, noted = settings.model_dump(mode="json"), out / SETTINGS
    if noted.exists() and json.loads(noted.read_text()) != mine:
        raise InputError(f"{out}: holds an unfinished build with other settings; finish it, or choose another folder")
    write_json(noted, mine)
    return out / PROGRESS


# --- files ------------------------------------------------------------------------------------


def _write_files(settings: BuildSettings, out: Path, progress: Path, benchmarks: int) -> dict:
    groups = dict.fromkeys(("train", "dev", "test") if settings.test else ("train", "dev"), 0)
    counts: Counter[str] = Counter()
    traces: Counter[str] = Counter()
    totals: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        files = {split: stack.enter_context((out / f"{split}.jsonl").open("w", encoding="utf-8")) for split in groups}
        for split, group, seed_counts in _with_splits(progress, settings.test):
            counts.update(seed_counts)
            if split is None:
                continue
            groups[split] += 1
            files[split].write(json.dumps(group, ensure_ascii=False) + "\n")
            for trace in [*group["positive_pool"], *group["negative_bank"]]:
                kind = trace.get("negative_kind", "reference")
                traces[kind] += 1
                totals[kind] += trace["rubric"]["total"]
    for split in groups:
        write_parquet(out / f"{split}.jsonl", settings.seeds.domain)
    report = {
        "settings": settings.model_dump(mode="json"),
        "groups": groups,
        "outcomes": _by_kind(counts),
        "mean_total": {kind: round(totals[kind] / n, 4) for kind, n in sorted(traces.items())},
        "traces": dict(sorted(traces.items())),
        "benchmark_problems_kept_out": benchmarks,
        "revision": git_revision(),
    }
    (out / "README.md").write_text(data_card(report), encoding="utf-8")
    write_json(out / REPORT, report)
    return report


def _by_kind(counts: Counter[str]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for name, n in sorted(counts.items()):
        kind, _, outcome = name.partition("|")
        table.setdefault(kind, {})[outcome] = n
    return table


def _with_splits(progress: Path, test: int) -> Iterator[tuple[str | None, dict | None, dict[str, int]]]:
    """(split, group, counts) of each seed: the last `test` seeds are test, a tenth of the others, by SHA-256, is dev.

    The split is None for a seed without a group, and for one of train or dev whose problem is, normalised, in test.
    """
    last = count_lines(progress) - test
    ids: list[str] = []
    test_texts: set[int] = set()  # hashes
    for number, line in read_jsonl(progress):
        if (group := line["group"]) and number <= last:
            ids.append(group["problem_id"])
        elif group:
            test_texts.add(hash(normalise(group["problem"])))
    dev = set(split_train_dev(ids)[1])
    for number, line in read_jsonl(progress):
        group, counts, split = line["group"], line["counts"], None
        if group and number > last:
            split = "test"
        elif group and hash(normalise(group["problem"])) in test_texts:
            counts["group|copy of a test problem"] = counts.pop("group|kept")
        elif group:
            split = "dev" if group["problem_id"] in dev else "train"
        yield split, group, counts
