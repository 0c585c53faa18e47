"""`tracelift groups`: TraceLift-Groups from public seeds, and a check of files that others built."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from tracelift_lib.executor.client import CallFailed
from tracelift_lib.executor.structured import Asker, BudgetSpent, LocalModel, OpenAIModel
from tracelift_lib.groups.builder import build, guard_of
from tracelift_lib.groups.group_files import violations
from tracelift_lib.groups.group_maker import BuildSettings, propose_by_model, propose_exact
from tracelift_lib.groups.judge import GroundTruthJudge, ModelJudge
from tracelift_lib.groups.seeds import ENDLESS, LeakageError, SeedSettings, Source
from tracelift_lib.problems.files import InputError
from tracelift_lib.sandbox.host import SandboxError

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
    except (InputError, LeakageError, BudgetSpent, CallFailed, SandboxError) as error:
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
        from tracelift_lib.models.generation import Sampler, Sampling
        from tracelift_lib.models.loading import load_model, load_tokenizer

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
