"""TraceLift-Groups from public seeds: seeds → flawed traces → checks → rubric → files, one group at a time.

Only problem ids are held in memory, and a run that was interrupted goes on after the last finished seed: each seed's
outcome is one line of `work/progress.jsonl`, from which the files are written at the end. docs/method.md section 3.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
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
COPY = "copy of a test problem"


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
    mine, progress = settings.model_dump(mode="json"), out / PROGRESS
    if (out / REPORT).exists():
        report = json.loads((out / REPORT).read_text())
        if report["settings"] == mine:
            return report
        raise InputError(f"{out}: holds groups of other settings; choose another folder")
    if (out / SETTINGS).exists() and json.loads((out / SETTINGS).read_text()) != mine:
        raise InputError(f"{out}: holds an unfinished build with other settings; finish it, or choose another folder")
    progress.parent.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, mine)
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


# --- files ------------------------------------------------------------------------------------


def _write_files(settings: BuildSettings, out: Path, progress: Path, benchmarks: int) -> dict:
    groups = dict.fromkeys(("train", "dev", "test") if settings.test else ("train", "dev"), 0)
    counts, traces, totals = Counter(), Counter(), Counter()
    with ExitStack() as stack:
        files = {split: stack.enter_context((out / f"{split}.jsonl").open("w", encoding="utf-8")) for split in groups}
        for split, (_, line) in zip(_splits(progress, settings.test), read_jsonl(progress)):
            counts.update(line["counts"])
            if split == COPY:
                counts.update({f"group|{COPY}": 1, "group|kept": -1})
            if split not in groups:
                continue
            groups[split] += 1
            files[split].write(json.dumps(line["group"], ensure_ascii=False) + "\n")
            for trace in [*line["group"]["positive_pool"], *line["group"]["negative_bank"]]:
                kind = trace.get("negative_kind", "reference")
                traces[kind] += 1
                totals[kind] += trace["rubric"]["total"]
    for split in groups:
        write_parquet(out / f"{split}.jsonl", SOURCES[settings.seeds.source].domain)
    report = {
        "settings": settings.model_dump(mode="json"),
        "groups": groups,
        "outcomes": _by_kind(+counts),
        "mean_total": {kind: round(totals[kind] / n, 4) for kind, n in sorted(traces.items())},
        "traces": dict(sorted(traces.items())),
        "benchmark_problems_kept_out": benchmarks,
        "revision": git_revision(),
    }
    (out / "README.md").write_text(data_card(report), encoding="utf-8")
    write_json(out / REPORT, report)
    return report


def _by_kind(counts: Counter[str]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = defaultdict(dict)
    for name, n in sorted(counts.items()):
        kind, _, outcome = name.partition("|")
        table[kind][outcome] = n
    return table


def _splits(progress: Path, test: int) -> list[str | None]:
    """The split of each seed: the last `test` seeds are test, a tenth of the others, by SHA-256, is dev.

    None for a seed without a group, COPY for one of train or dev whose problem is, normalised, in test.
    """
    groups = (line["group"] for _, line in read_jsonl(progress))
    known = [(group["problem_id"], hash(normalise(group["problem"]))) if group else None for group in groups]
    first_test = len(known) - test
    test_texts = {seed[1] for seed in known[first_test:] if seed}
    dev = set(split_train_dev(seed[0] for seed in known[:first_test] if seed)[1])

    def split(number: int, name: str, text: int) -> str:
        if number >= first_test:
            return "test"
        return COPY if text in test_texts else "dev" if name in dev else "train"

    return [split(number, *seed) if seed else None for number, seed in enumerate(known)]
