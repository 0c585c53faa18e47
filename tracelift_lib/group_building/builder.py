"""TraceLift-Groups from public seeds: seeds → flawed traces → checks → rubric → files, one group at a time.

    python -m tracelift_lib.group_building --source gsm8k --data FOLDER --out FOLDER
    python -m tracelift_lib.group_building --validate FILE [FILE ...]

Memory does not grow with the number of seeds, and a run that was interrupted goes on after the last finished seed: each
seed's outcome is one line of `work/progress.jsonl`, from which the files are written at the end. method.md section 3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import get_args

import numpy as np
from tqdm.auto import tqdm

from tracelift_lib import store
from tracelift_lib.group_building.data_card import data_card
from tracelift_lib.group_building.group_files import GroupWriter, violations
from tracelift_lib.group_building.group_maker import BuildSettings, Propose, make_group, propose_by_model, propose_exact
from tracelift_lib.group_building.judge import GroundTruthJudge, Judge, ModelJudge
from tracelift_lib.group_building.llm import Asker, BudgetSpent, EndpointError, LocalModel, OpenAIModel
from tracelift_lib.group_building.plans import statement
from tracelift_lib.group_building.seeds import (
    ENDLESS,
    LeakageError,
    LeakageGuard,
    SeedSettings,
    Source,
    benchmark_problems,
    load_seeds,
    normalise,
)
from tracelift_lib.groups import DEV_SHARE, SPLIT_SEED
from tracelift_lib.problems import InputError
from tracelift_lib.sandbox import SandboxError

PROGRESS, SETTINGS, REPORT = "work/progress.jsonl", "work/settings.json", "report.json"


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
        BudgetSpent, EndpointError: a language model cannot be asked further; run again to go on.
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
    store.write_json(noted, mine)
    return out / PROGRESS


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
        "revision": store.git_revision(),
    }
    (out / "README.md").write_text(data_card(report), encoding="utf-8")
    store.write_json(out / REPORT, report)
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


# --- command line -----------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command of the module docstring. Returns the exit status: 1 if the build or a check failed."""
    options = _options(arguments)
    try:
        if options.validate:
            return _validate(options.validate)
        if not (options.source and options.out):
            raise InputError("say --source and --out to build, or --validate to check files")
        report = _build_from(options)
    except (InputError, LeakageError, BudgetSpent, EndpointError, SandboxError) as error:
        print(error, file=sys.stderr)
        return 1
    made = ", ".join(f"{n} {split}" for split, n in report["groups"].items())
    print(f"{options.out}: {made} groups; see README.md there")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tracelift_lib.group_building", description=__doc__.split("\n\n")[0]
    )
    add = parser.add_argument
    add("--source", choices=get_args(Source))
    add("--data", type=Path, help="local folder with <source>/<file>; without it the hub is asked")
    add("--out", type=Path)
    add("--limit", type=int, help="number of seeds (needed for the generated sources, which do not end)")
    add("--every", type=int, default=1, help="take every n-th seed")
    add("--seed", type=int, default=0)
    add("--test", type=int, default=0, help="make a test split from so many seeds, the last ones")
    add("--min-negatives", type=int, default=4)
    add("--drop-leaked", action="store_true", help="leave seeds out that are test problems, instead of refusing")
    add("--maker", choices=("exact", "openai", "local"), default="exact")
    add("--judge", choices=("programmatic", "ground_truth", "openai", "local"), help="default: needs no model")
    add("--endpoint", help="address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    add("--model", default="", help="model name at the endpoint, or the folder of a local model")
    add("--token-cap", type=int, default=1_000_000)
    add("--validate", type=Path, nargs="+", metavar="FILE", help="check .jsonl files strictly")
    return parser.parse_args(arguments)


def _build_from(options: argparse.Namespace) -> dict:
    seeds = SeedSettings(
        source=options.source, folder=options.data, limit=options.limit, every=options.every, seed=options.seed
    )
    options.judge = options.judge or ("ground_truth" if options.source.startswith("tiny_") else "programmatic")
    if options.limit is None and options.source in ENDLESS:
        raise InputError(f"--limit is needed: {options.source} does not end")
    settings = BuildSettings(
        seeds=seeds,
        min_negatives=options.min_negatives,
        test=options.test,
        drop_leaked=options.drop_leaked,
        maker=options.maker,
        judge=options.judge,
        model=options.model,
    )
    asker = _asker(options)
    guard = guard_of(seeds)
    propose = propose_exact if options.maker == "exact" else propose_by_model(asker)
    judge = {"programmatic": None, "ground_truth": GroundTruthJudge()}.get(options.judge) or (
        ModelJudge(asker) if options.judge in ("openai", "local") else None
    )
    return build(settings, options.out, guard, propose, judge)


def _asker(options: argparse.Namespace) -> Asker | None:
    """The language model that maker or judge need; answers are kept beside the build, in `<out>.answers.jsonl`."""
    wanted = {options.maker, options.judge} & {"openai", "local"}
    if not wanted:
        return None
    if len(wanted) > 1 or not options.model or ("openai" in wanted) != bool(options.endpoint):
        raise InputError("a language model needs --model, and openai an --endpoint; maker and judge use the same one")
    if "openai" in wanted:
        model = OpenAIModel(options.endpoint, options.model)
    else:
        from tracelift_lib.generation import Sampler, Sampling
        from tracelift_lib.models import load_model, load_tokenizer

        sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=1024, batch_tokens=16384)
        model = LocalModel(Sampler(load_model(options.model), load_tokenizer(options.model), sampling), options.model)
    return Asker(model, options.out.with_suffix(".answers.jsonl"), options.token_cap)


def _validate(files: list[Path]) -> int:
    number = 0
    for violation in violations(files):
        print(violation)
        number += 1
    print(f"{number} violations" if number else f"no violations in {', '.join(map(str, files))}", file=sys.stderr)
    return 1 if number else 0
