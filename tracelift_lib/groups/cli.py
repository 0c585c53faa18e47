"""`tracelift groups`: TraceLift-Groups from public seeds, and a check of files that others built."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from tracelift_lib.executor.client import CallFailed
from tracelift_lib.executor.structured import Asker, BudgetSpent, LocalModel, OpenAIModel
from tracelift_lib.groups.builder import build, guard_of
from tracelift_lib.groups.by_model import judge_by_model, propose_by_model
from tracelift_lib.groups.group_files import violations
from tracelift_lib.groups.group_maker import BuildSettings, propose_exact
from tracelift_lib.groups.judge import judge_by_truth
from tracelift_lib.groups.seeds import SOURCES, SeedSettings
from tracelift_lib.groups.truth import SOURCES_WITH_TRUTH
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.problems.files import InputError
from tracelift_lib.sandbox.host import SandboxError

BY_MODEL = ("openai", "local")


def main(arguments: list[str] | None = None) -> int:
    """Builds groups or validates files. Returns the exit status: 1 if the build or a check failed."""
    options = _options(arguments)
    try:
        if options.validate:
            return _validate(options.validate)
        report = _build(options)
    except (InputError, ValidationError, BudgetSpent, CallFailed, SandboxError) as error:
        print(error, file=sys.stderr)
        return 1
    made = ", ".join(f"{n} {split}" for split, n in report["groups"].items())
    print(f"{options.out}: {made} groups; see README.md there")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tracelift groups", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--source", choices=SOURCES, help="where the seed problems come from")
    add("--data", dest="folder", type=Path, help="folder with <source>/<file>; without it the hub is asked")
    add("--out", type=Path, help="folder for the groups")
    add("--limit", type=int, help="number of seeds (needed for the generated sources, which do not end)")
    add("--every", type=int, default=1, help="take every n-th seed")
    add("--seed", type=int, default=0, help="of generated problems and of the flaws that are drawn")
    add("--test", type=int, default=0, help="make a test split from so many seeds, the last ones")
    add("--min-negatives", type=int, default=4, help="drop groups with fewer flawed traces")
    add("--drop-leaked", action="store_true", help="leave seeds out that are test problems, instead of refusing")
    add("--maker", choices=("exact", *BY_MODEL), default="exact", help="who writes the flawed traces")
    add("--judge", choices=("programmatic", "ground_truth", *BY_MODEL), help="by default one that needs no model")
    add("--endpoint", help="address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    add("--model", default="", help="model name at the endpoint, or the folder of a local model")
    add("--token-cap", type=int, default=1_000_000, help="tokens that the model may cost, over all runs into --out")
    add("--validate", type=Path, nargs="+", metavar="FILE", help="check .jsonl files strictly instead of building")
    return parser.parse_args(arguments)


def _build(options: argparse.Namespace) -> dict:
    if not (options.source and options.out):
        raise InputError("say --source and --out to build, or --validate to check files")
    if options.limit is None and SOURCES[options.source].generated:
        raise InputError(f"--limit is needed: {options.source} does not end")
    options.judge = options.judge or ("ground_truth" if options.source in SOURCES_WITH_TRUTH else "programmatic")
    options.seeds = SeedSettings.model_validate(options, from_attributes=True)
    settings = BuildSettings.model_validate(options, from_attributes=True)
    asker = _asker(options)
    propose = propose_by_model(asker) if options.maker in BY_MODEL else propose_exact
    judge = judge_by_model(asker) if options.judge in BY_MODEL else None
    if options.judge == "ground_truth":
        judge = judge_by_truth
    return build(settings, options.out, guard_of(options.seeds), propose, judge)


def _asker(options: argparse.Namespace) -> Asker | None:
    """The language model that maker or judge need; answers are kept beside the build, in `<out>.answers.jsonl`."""
    wanted = {options.maker, options.judge} & set(BY_MODEL)
    if not wanted:
        return None
    if len(wanted) > 1 or not options.model or ("openai" in wanted) != bool(options.endpoint):
        raise InputError("a language model needs --model, and openai an --endpoint; maker and judge use the same one")
    if options.endpoint:
        model = OpenAIModel(options.endpoint, options.model)
    else:
        sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=1024, batch_tokens=16384)
        model = LocalModel(Sampler(load_model(options.model), load_tokenizer(options.model), sampling), options.model)
    return Asker(model, options.out.with_suffix(".answers.jsonl"), options.token_cap)


def _validate(files: list[Path]) -> int:
    found = 0
    for violation in violations(files):
        print(violation)
        found += 1
    print(f"{found} violations" if found else f"no violations in {', '.join(map(str, files))}", file=sys.stderr)
    return 1 if found else 0
