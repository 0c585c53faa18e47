"""Seed problems for TraceLift-Groups, one loader for all sources, and the guard against leakage.

Sources (docs/method.md section 3; those marked * are ours): the generated stories* and programs*, reasoning-gym's
gsm_symbolic*, GSM8K train, MBPP train (task ids 511 to 1000), and a contest set with stdin/stdout tests in the layout
of deepmind/code_contests. A loader holds one problem at a time, so memory does not grow with the number of seeds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from tqdm.auto import tqdm

from tracelift_lib.groups.flaws.plans import statement
from tracelift_lib.problems import tinycode, tinyworld
from tracelift_lib.problems.code_sets import read_contests, read_mbpp
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem, gsm8k_trace, read_gsm8k
from tracelift_lib.problems.records import file_records, find_files, reading
from tracelift_lib.problems.settings import Positive, Section
from tracelift_lib.verifier.answers import expected_number
from tracelift_lib.verifier.verify_math import check_problems

Source = Literal["tiny_world", "tiny_code", "gsm_symbolic", "gsm8k", "mbpp", "contests"]
GSM8K_REVISION = "cc7b047b6e5bb11b4f1af84efc572db110a51b3c"


class SeedSettings(Section):
    """Which seeds. `folder` is laid out as `<source>/<file>`; without it the pinned revision comes from the hub."""

    source: Source
    folder: Path | None = Field(None, exclude=True)  # where the same data lie on this machine decides nothing
    limit: Positive | None = None
    every: Positive = Field(1, description="take every n-th seed (the paper: every second of GSM8K train)")
    seed: int = 0


def load_seeds(settings: SeedSettings) -> Iterator[Problem]:
    """The seeds of a source, one at a time, in a fixed order.

    Math: `reference_solution` is the reference trace. Code: it is the reference program, `metadata["tests"]` the tests.

    Raises:
        InputError: a file, record or hub answer is not as expected, or an expected answer cannot be read; names where.
    """
    end = None if settings.limit is None else settings.limit * settings.every
    for problem in islice(SOURCES[settings.source].read(settings, "train"), 0, end, settings.every):
        check_problems([problem])
        yield problem


def _tiny(settings: SeedSettings, split: str) -> Iterator[Problem]:
    """Endless stories or programs; the split is part of each one's seed, so a test problem is another draw."""
    world, largest = (tinyworld, (20, 99)) if settings.source == "tiny_world" else (tinycode, (9, 20))
    for number in count():
        rng = random.Random(f"{settings.seed}:{split}:{number}")
        name = f"{settings.source.removesuffix('_world').replace('_', '-')}-{split}-{settings.seed}-{number:07d}"
        yield world.generate_problem(rng, 3 + number % 3, *largest, name)


def _gsm_symbolic(settings: SeedSettings, split: str) -> Iterator[Problem]:
    """A million templated GSM8K-like problems; their worked solution is the trace. Test items have seeds of their own.

    The templates go back to problems of GSM8K *test* with other numbers and names: not for models to be tested on it.
    """
    import reasoning_gym

    size = 1_000_000
    first = settings.seed + (size if split == "test" else 0)
    items = reasoning_gym.create_dataset("gsm_symbolic", size=size, seed=first)
    for number in range(size):
        item = items[number]
        trace, final = gsm8k_trace(item["metadata"]["answer_cot"])
        yield Problem(
            problem_id=f"gsm-symbolic-{split}-{settings.seed}-{number:07d}",
            source="gsm_symbolic",
            domain="math",
            task_type="math_word_problem",
            problem=item["question"],
            reference_solution=trace,
            answer=str(item["answer"]),
            metadata={"stated": final},
        )


def symbolic_splits(sizes: dict[str, int], seed: int) -> dict[str, list[Problem]]:
    """So many gsm_symbolic problems of each split: test from the seeds of test items, the others share out the rest.

    No text is in two splits, nor twice in one. Problems whose worked solution ends in another number than reasoning-gym
    states as their answer are left out.
    """
    settings = SeedSettings(source="gsm_symbolic", seed=seed)
    seen: set[str] = set()

    def fresh(split: str) -> Iterator[Problem]:
        for problem in _gsm_symbolic(settings, split):
            text = normalise(problem.problem)
            agree = expected_number(problem.answer) == expected_number(problem.metadata["stated"])
            if agree and text not in seen:
                seen.add(text)
                yield problem

    streams = {kind: fresh(kind) for kind in ("train", "test")}
    return {split: list(islice(streams.get(split, streams["train"]), size)) for split, size in sorted(sizes.items())}


class SeedSource(NamedTuple):
    """`read` gives the problems of a split; those of a generated source do not end."""

    domain: Literal["math", "code"]
    licence: str
    read: Callable[[SeedSettings, str], Iterator[Problem]]
    generated: bool = False


SOURCES: dict[str, SeedSource] = {
    "tiny_world": SeedSource("math", "generated, Apache-2.0", _tiny, generated=True),
    "tiny_code": SeedSource("code", "generated, Apache-2.0", _tiny, generated=True),
    "gsm_symbolic": SeedSource("math", "generated by reasoning-gym, Apache-2.0", _gsm_symbolic, generated=True),
    "gsm8k": SeedSource("math", "MIT", lambda s, split: read_gsm8k(s.folder, split, GSM8K_REVISION, streaming=True)),
    "mbpp": SeedSource("code", "CC-BY-4.0", lambda s, split: read_mbpp(s.folder, split, streaming=True)),
    "contests": SeedSource("code", "CC-BY-4.0", lambda s, split: read_contests(s.folder, split, streaming=True)),
}


# --- leakage ----------------------------------------------------------------------------------


class LeakageError(InputError):
    """Seeds are in a benchmark's test split; the message lists them."""


def normalise(text: str) -> str:
    """A problem text without what copies differ in: case, white space, punctuation, how numbers are written."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    text = re.sub(r"(\d+)\.0+\b", r"\1", text)
    text = re.sub(r"(\d+\.\d*?[1-9])0+\b", r"\1", text)
    text = re.sub(r"\.(?!\d)", " ", text)
    return " ".join(re.sub(r"[^\w.]|_", " ", text).split())


class LeakageGuard:
    """The test problems of benchmarks, to be kept out of the seeds. Holds one hash a problem, not the text."""

    def __init__(self, benchmarks: Iterable[tuple[str, str]] = ()):
        """`benchmarks`: (id, problem text)."""
        self._exact: dict[int, str] = {}
        self._normalised: dict[int, str] = {}
        for name, text in benchmarks:
            self._exact[hash(text)] = name
            self._normalised[hash(normalise(text))] = name

    def __len__(self) -> int:
        return len(self._exact)

    def match(self, seed: Problem) -> str | None:
        """ "ID is BENCHMARK-ID (exact match)", or normalised, if the seed is a test problem."""
        text = statement(seed)
        if name := self._exact.get(hash(text)):
            return f"{seed.problem_id} is {name} (exact match)"
        name = self._normalised.get(hash(normalise(text)))
        return f"{seed.problem_id} is {name} (normalised match)" if name else None

    def check(self, seeds: Iterable[Problem]) -> None:
        """Raises LeakageError that lists every seed which is a test problem."""
        leaks = [found for seed in tqdm(seeds, "leakage", unit=" seeds", mininterval=1) if (found := self.match(seed))]
        if leaks:
            raise LeakageError(
                f"{len(leaks)} seeds are in a benchmark's test split; a model trained on them could not be tested on "
                "it:\n"
                + "".join(f"  {leak}\n" for leak in leaks)
                + "Leave them out (--drop-leaked), or mend the source."
            )


BENCHMARK_FILES = {  # in a local folder, also with .gz: the field that holds the problem
    "math500/math500_test.json": "problem",
    "math500/test.jsonl": "problem",
    "processbench/gsm8k.json": "problem",
    "processbench/math.json": "problem",
    "humaneval/HumanEval.jsonl": "prompt",
    "apps/selected150.jsonl": "description",
}
TEST_SPLITS = {"gsm8k": "test.jsonl", "mbpp": "mbpp.jsonl", "contests": "test.jsonl"}


def benchmark_problems(folder: Path | None, needed: str | None = None) -> Iterator[tuple[str, str]]:
    """(id, text) of every test problem in `folder`, laid out as docs/running.md says; what is absent is named.

    Without a folder the test splits of GSM8K, MBPP and the source that is `needed` come from the hub. Covers GSM8K
    test, MATH-500, ProcessBench, HumanEval, MBPP 11 to 510, APPS and code_contests test.

    Raises:
        InputError: `folder` lacks the test split of the source that is `needed`, so its seeds cannot be checked.
    """
    absent = []
    for source, file in TEST_SPLITS.items():
        here = find_files(folder, f"{source}/{file}") if folder else source in ("gsm8k", "mbpp", needed)
        if here:
            problems = SOURCES[source].read(SeedSettings(source=source, folder=folder), "test")
            yield from ((problem.problem_id, statement(problem)) for problem in problems)
        elif source == needed:
            raise InputError(f"{folder / source}: no {file} or {file}.gz, to keep its problems out")
        else:
            absent.append(f"{source}/{file}")
    for file, field in BENCHMARK_FILES.items():
        paths = find_files(folder, file) if folder else []
        absent += [file] * (not paths)
        for place, row in chain.from_iterable(map(file_records, paths)):
            with reading(place, f"the field {field!r}, to keep this problem out of the seeds"):
                yield place, row[field]
    if absent:
        where = f"not in {folder}" if folder else "not read without a folder of data"
        print(f"leakage guard: seeds are not compared with {', '.join(absent)} ({where})", flush=True)
