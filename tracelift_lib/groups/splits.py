"""Train, dev and test files of built groups, and the progress of a build on disk."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np

from tracelift_lib.groups.data_card import data_card
from tracelift_lib.groups.group_files import GroupWriter
from tracelift_lib.groups.group_maker import BuildSettings
from tracelift_lib.groups.schema import DEV_SHARE, SPLIT_SEED
from tracelift_lib.groups.seeds import normalise
from tracelift_lib.problems.files import git_revision, write_json

PROGRESS, SETTINGS, REPORT = "work/progress.jsonl", "work/settings.json", "report.json"


def _finished(progress: Path) -> int:
    """How many seeds are done; a last line that was cut off is removed."""
    if not progress.exists():
        return 0
    done = offset = 0
    with progress.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(offset)
                break
            done, offset = done + 1, offset + len(line)
    return done


def _read_progress(progress: Path) -> Iterator[dict]:
    with progress.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_files(settings: BuildSettings, out: Path, progress: Path, benchmarks: int) -> dict:
    split_of = _splits(progress, settings.test)
    counts: Counter[str] = Counter()
    totals: dict[str, list[float]] = {}
    with ExitStack() as files:
        names = ("train", "dev", "test") if settings.test else ("train", "dev")
        writers = {n: files.enter_context(GroupWriter(out / n, settings.seeds.domain)) for n in names}
        for number, line in enumerate(_read_progress(progress)):
            counts.update(line["counts"])
            if not (group := line["group"]):
                continue
            if (split := split_of(number, group)) is None:
                counts.update({"group|kept": -1, "group|copy of a test problem": 1})
                continue
            writers[split].write(group)
            for trace in chain(group["positive_pool"], group["negative_bank"]):
                _add(totals.setdefault(trace.get("negative_kind", "reference"), [0, 0.0]), trace["rubric"]["total"])
    report = {
        "settings": settings.model_dump(mode="json"),
        "groups": {name: writer.count for name, writer in writers.items()},
        "outcomes": _by_kind(counts),
        "mean_total": {kind: round(s / n, 4) for kind, (n, s) in sorted(totals.items())},
        "traces": {kind: n for kind, (n, _) in sorted(totals.items())},
        "benchmark_problems_kept_out": benchmarks,
        "revision": git_revision(),
    }
    (out / "README.md").write_text(data_card(report), encoding="utf-8")
    write_json(out / REPORT, report)
    return report


def _splits(progress: Path, test: int) -> Callable[[int, dict], str | None]:
    """Gives the split of a seed's group: the last `test` seeds are test, a tenth of the others, by SHA-256, is dev.

    None for a group of train or dev whose problem is, normalised, one of test.
    """
    first_test = _finished(progress) - test
    made = ((number, line["group"]) for number, line in enumerate(_read_progress(progress)) if line["group"])
    test_texts: set[int] = set()
    hashes = array("Q")
    for number, group in made:
        if number < first_test:
            hashes.append(_split_hash(group["problem_id"]))
        else:
            test_texts.add(hash(normalise(group["problem"])))
    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    cut = round(DEV_SHARE * len(ordered))
    limit = ordered[cut] if cut < len(ordered) else 0  # the first hash that is not dev

    def split_of(number: int, group: dict) -> str | None:
        if number >= first_test:
            return "test"
        if test_texts and hash(normalise(group["problem"])) in test_texts:
            return None
        return "dev" if _split_hash(group["problem_id"]) < limit else "train"

    return split_of


def _add(sums: list[float], value: float) -> None:
    sums[0] += 1
    sums[1] += value


def _split_hash(problem_id: str) -> int:
    """The first 64 bits of the SHA-256 that `groups.split_train_dev` orders by: enough to tell any two ids apart."""
    return int.from_bytes(hashlib.sha256(f"{SPLIT_SEED}:{problem_id}".encode()).digest()[:8], "big")


def _by_kind(counts: Counter[str]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for name, n in sorted(counts.items()):
        kind, _, outcome = name.partition("|")
        table.setdefault(kind, {})[outcome] = n
    return table
