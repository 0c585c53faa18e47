"""TraceLift-Groups from public seeds: seeds → flawed traces → checks → rubric → files, one group at a time.

    python -m tracelift_lib.build_groups --source gsm8k --data FOLDER --out FOLDER
    python -m tracelift_lib.build_groups --validate FILE [FILE ...]

Memory does not grow with the number of seeds, and a run that was interrupted goes on after the last finished seed: each
seed's outcome is one line of `work/progress.jsonl`, from which the files are written at the end. method.md section 3.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from tqdm.auto import tqdm

from tracelift_lib import behaviour, store
from tracelift_lib.checks import reject_reason
from tracelift_lib.code_makers import flawed_plans
from tracelift_lib.data_card import data_card
from tracelift_lib.group_files import GroupWriter, violations
from tracelift_lib.groups import DEV_SHARE, SPLIT_SEED, Group, Rubric, dimensions, perturb
from tracelift_lib.judge import GroundTruthJudge, Judge, Judgement, ModelJudge, candidate, programmatic_judgement
from tracelift_lib.kinds import Flaw, kinds_of
from tracelift_lib.llm import Asker, BudgetSpent, EndpointError, Failure, LocalModel, OpenAIModel
from tracelift_lib.llm_maker import ask_for_flaw
from tracelift_lib.plans import Unsupported, parse_program, reference_plan, statement
from tracelift_lib.problems import InputError, Problem
from tracelift_lib.seeds import LeakageError, LeakageGuard, SeedSettings, benchmark_problems, load_seeds
from tracelift_lib.text_makers import flawed_texts

TRIES = 4  # versions of a kind that are looked at before it is given up for a problem
PROGRESS, SETTINGS, REPORT = "work/progress.jsonl", "work/settings.json", "report.json"

Propose = Callable[
    [Problem, str, random.Random], "dict[str, list[Flaw | Failure]]"
]  # (problem, reference, rng) → by kind


class BuildSettings(BaseModel):
    """What decides the result. `min_negatives`: groups with fewer distinct flawed traces are dropped (the paper: 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seeds: SeedSettings
    min_negatives: int = 4
    drop_leaked: bool = False
    maker: Literal["exact", "openai", "local"] = "exact"
    judge: Literal["programmatic", "ground_truth", "openai", "local"] = "programmatic"
    model: str = ""


# --- proposals --------------------------------------------------------------------------------


def propose_exact(problem: Problem, reference: str, rng: random.Random) -> dict[str, list[Flaw | Failure]]:
    """Up to TRIES versions of each kind by the exact makers; of programs only those whose flaw shows when they run."""
    if is_generated(problem):
        made = {kind: perturb(problem, kind, rng) for kind in kinds_of(problem.domain)}
        return {kind: [Flaw(text, 0.5)] if text else [] for kind, text in made.items()}
    make = flawed_texts if problem.domain == "math" else flawed_plans
    versions = {kind: make(problem, kind) for kind in kinds_of(problem.domain)}
    drawn = {kind: rng.sample(flaws, min(TRIES, len(flaws))) for kind, flaws in versions.items()}
    return _that_show(problem, drawn) if behaviour.calls_in_tests(problem) else drawn


def _that_show(problem: Problem, drawn: dict[str, list[Flaw]]) -> dict[str, list[Flaw | Failure]]:
    try:
        reference = ast.unparse(parse_program(problem.reference_solution))
    except Unsupported:
        return drawn
    programs = list(dict.fromkeys(f.program for flaws in drawn.values() for f in flaws if f.program))
    given = dict(zip([reference, *programs], behaviour.outcomes(problem, [reference, *programs])))
    return {
        kind: [
            flaw
            if flaw.program is None or behaviour.shows(given[reference], given[flaw.program], kind == "missing_step")
            else Failure("flaw does not show when run")
            for flaw in flaws
        ]
        for kind, flaws in drawn.items()
    }


def propose_by_model(asker: Asker) -> Propose:
    """One version of each kind by a language model."""

    def propose(problem: Problem, reference: str, rng: random.Random) -> dict[str, list[Flaw | Failure]]:
        return {kind: [ask_for_flaw(asker, problem, reference, kind)] for kind in kinds_of(problem.domain)}

    return propose


# --- one group --------------------------------------------------------------------------------


def reference_trace(problem: Problem) -> str:
    """The sound trace of a seed: its worked solution, or the plan of its program. Raises Unsupported."""
    has_trace = problem.domain == "math" or is_generated(problem)
    return problem.reference_solution if has_trace else reference_plan(problem)


def is_generated(problem: Problem) -> bool:
    """Whether the problem is of the tiny world, which knows every true step."""
    return problem.source.startswith("tiny_")


def make_group(
    problem: Problem, settings: BuildSettings, propose: Propose, judge: Judge | None
) -> tuple[Group | None, Counter[str]]:
    """The group of one seed, or None; and counts of "kind|outcome", where outcome is `kept` or why not.

    Without `judge` rubrics are programmatic: the reference gets full marks, a flaw what its kind's definition says.
    """
    counts: Counter[str] = Counter()
    try:
        reference = reference_trace(problem)
    except Unsupported as error:
        return None, Counter({f"reference|{error}": 1})
    rng = random.Random(f"{settings.seeds.seed}:{problem.problem_id}")
    proposals = propose(problem, reference, rng)
    kept: dict[str, Flaw] = {}
    for kind, versions in proposals.items():
        if not versions:
            counts[f"{kind}|no place for it"] += 1
        for flaw in versions:
            reason = flaw.reason if isinstance(flaw, Failure) else None
            reason = reason or reject_reason(problem, reference, flaw.text, kind, [f.text for f in kept.values()])
            counts[f"{kind}|{reason or 'kept'}"] += 1
            if reason is None:
                kept[kind] = flaw
                break
    judged = _judge_all(problem, reference, kept, judge, counts)
    if judged is None or len(judged) - 1 < settings.min_negatives:
        counts["group|too few negatives" if judged else "group|reference not judged"] += 1
        return None, counts
    counts["group|kept"] += 1
    return _assemble(problem, reference, kept, judged), counts


def _judge_all(
    problem: Problem, reference: str, kept: dict[str, Flaw], judge: Judge | None, counts: Counter[str]
) -> dict[str, Judgement] | None:
    """Judgements of the reference (key "") and of each kind; a negative without one is left out."""
    names = dimensions(problem.domain)
    full = Judgement(
        Rubric(labels=dict.fromkeys(names, 4), total=1.0), 10.0, "reference trace: full marks by definition"
    )
    if judge is None:
        kinds = kinds_of(problem.domain)
        return {"": full} | {kind: programmatic_judgement(kinds[kind], flaw, names) for kind, flaw in kept.items()}
    judged = {}
    for kind, text in {"": reference, **{kind: flaw.text for kind, flaw in kept.items()}}.items():
        if kind == "" and problem.domain == "math":  # as released: reference math traces get full marks
            judged[kind] = full
            continue
        given = judge.judge(problem, text)
        if isinstance(given, Failure):
            counts[f"{kind or 'reference'}|judge: {given.reason}"] += 1
        else:
            judged[kind] = given
    return judged if "" in judged else None


def _assemble(problem: Problem, reference: str, kept: dict[str, Flaw], judged: dict[str, Judgement]) -> Group:
    return Group(
        problem_id=problem.problem_id,
        source=problem.source,
        task_type=problem.task_type,
        problem=problem.problem,
        reference_solution=problem.reference_solution,
        positive_pool=[candidate(reference, None, judged[""])],
        negative_bank=[candidate(flaw.text, kind, judged[kind]) for kind, flaw in kept.items() if kind in judged],
        metadata={**problem.metadata, "answer": problem.answer},
    )


# --- all groups -------------------------------------------------------------------------------


def build(
    settings: BuildSettings,
    out: Path,
    guard: LeakageGuard,
    propose: Propose = propose_exact,
    judge: Judge | None = None,
) -> dict:
    """Build into `out`: {train,dev}.{jsonl,parquet}, README.md (the data card), report.json. Returns the report.

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
    hashes = np.fromiter(
        (_split_hash(line["group"]["problem_id"]) for line in _read_progress(progress) if line["group"]),
        dtype=np.uint64,
    )
    cut = round(DEV_SHARE * len(hashes))
    limit = np.partition(hashes, cut)[cut] if cut < len(hashes) else 0  # the first hash that is not dev
    counts: Counter[str] = Counter()
    totals: dict[str, list[float]] = {}
    domain = settings.seeds.domain
    with GroupWriter(out / "train", domain) as train, GroupWriter(out / "dev", domain) as dev:
        for line in _read_progress(progress):
            counts.update(line["counts"])
            if line["group"]:
                (dev if _split_hash(line["group"]["problem_id"]) < limit else train).write(line["group"])
                for trace in chain(line["group"]["positive_pool"], line["group"]["negative_bank"]):
                    _add(totals.setdefault(trace.get("negative_kind", "reference"), [0, 0.0]), trace["rubric"]["total"])
    report = {
        "settings": settings.model_dump(mode="json"),
        "groups": {"train": train.count, "dev": dev.count},
        "outcomes": _by_kind(counts),
        "mean_total": {kind: round(s / n, 4) for kind, (n, s) in sorted(totals.items())},
        "traces": {kind: n for kind, (n, _) in sorted(totals.items())},
        "benchmark_problems_kept_out": benchmarks,
        "revision": store.git_revision(),
    }
    (out / "README.md").write_text(data_card(report), encoding="utf-8")
    store.write_json(out / REPORT, report)
    return report


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
    except (InputError, LeakageError, BudgetSpent, EndpointError) as error:
        print(error, file=sys.stderr)
        return 1
    made = report["groups"]
    print(f"{options.out}: {made['train']} train and {made['dev']} dev groups; see README.md there")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tracelift_lib.build_groups", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--source", choices=("tiny_world", "gsm_symbolic", "gsm8k", "mbpp", "contests"))
    add("--data", type=Path, help="local folder with <source>/<file>; without it the hub is asked")
    add("--out", type=Path)
    add("--limit", type=int, help="number of seeds (needed for tiny_world and gsm_symbolic, which do not end)")
    add("--every", type=int, default=1, help="take every n-th seed")
    add("--seed", type=int, default=0)
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
    options.judge = options.judge or ("ground_truth" if options.source == "tiny_world" else "programmatic")
    if options.limit is None and options.source in ("tiny_world", "gsm_symbolic"):
        raise InputError(f"--limit is needed: {options.source} does not end")
    settings = BuildSettings(
        seeds=seeds,
        min_negatives=options.min_negatives,
        drop_leaked=options.drop_leaked,
        maker=options.maker,
        judge=options.judge,
        model=options.model,
    )
    asker = _asker(options)
    generated = options.source in ("tiny_world", "gsm_symbolic") and options.data is None
    guard = LeakageGuard(() if generated else benchmark_problems(options.data))
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


if __name__ == "__main__":
    sys.exit(main())
