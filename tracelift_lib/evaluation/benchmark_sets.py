"""Benchmark sets: each is one YAML file in sets/, or a file of the user's; docs/add_a_benchmark.md has an example.

A row that cannot be used (no answer, an answer that the verifier cannot read, tests that are no Python) is left out and
told, with its id and place; the others are evaluated. A set of which no row can be used is an error.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from tracelift_lib.groups.seeds import symbolic_splits
from tracelift_lib.problems.code_sets import humaneval_problem, mbpp_plus_problem, mbpp_problem
from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.files import InputError, data_folder, file_sha256
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import TEMPLATES, PromptStyle, Templates
from tracelift_lib.problems.records import DataSet, MissingSet, file_records, find_files, hub_records
from tracelift_lib.problems.settings import Section
from tracelift_lib.verifier.verdicts import Verifier

REGISTRY = Path(__file__).with_name("sets")
PAGE = "docs/add_a_benchmark.md"
DATA_ENDINGS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
GENERATED = 200  # problems of a set that is made on the spot


class Hub(Section):
    """Where the set is on the Hugging Face hub. `files`: JSON Lines in it, where it has a loading script."""

    name: str
    config: str | None = None
    revision: str
    splits: list[str] = ["test"]
    files: list[str] = []


class Tests(Section):
    """Fields that hold the tests of a program; a dotted name looks into a field, also one that holds JSON as text."""

    code: str | None = Field(None, description="asserts: one text, or a list of them")
    setup: str | None = None
    entry_point: str | None = None
    preamble: str | None = None
    inputs: str | None = Field(None, description="standard input and output: a list of inputs")
    outputs: str | None = None


class Fields(Section):
    """Which field of a row holds what; a text with {field} in it puts fields together."""

    id: str | None = Field(None, description="null: the row's number")
    problem: str = "problem"
    answer: str = "answer"
    answer_pattern: str | None = Field(None, description="regular expression; the answer is group 1 of its last match")
    answer_boxed: bool = Field(False, description="the answer is what the last \\boxed{} of the field holds")
    answer_remove: str = Field("", description="characters taken out of the answer, such as the commas in 1,200")
    reference: str | None = Field(None, description="reference trace")
    reference_remove: str | None = Field(None, description="regular expression of what is taken out of it")
    tests: Tests | None = None


class Prompt(Section):
    """What the executor and the planner are asked; without it the words of problems/prompts.yaml."""

    answer_form: str | None = Field(None, description="in place of 'the final number'")
    planner: str | None = None
    executor: str | None = None
    executor_with_trace: str | None = None


class BenchmarkSet(Section):
    """What is known about a set; its name is that of the file."""

    name: str
    title: str
    domain: Literal["math", "code"]
    licence: str
    home: str = Field("", description="where people find it")
    files: list[str] = Field([], description="patterns of local files; the first that is there counts")
    hub: Hub | None = None
    loader: Literal["fields", "own", "humaneval", "mbpp", "mbpp_plus", "livecodebench", "gsm_symbolic"] = "fields"
    fields: Fields = Fields()
    where: dict[str, str | int | list] = Field({}, description="field -> value, list of values, or [from, to]")
    rule: str = Field("strict", description="how the final answer is read (verifier/verify_math.py)")
    prompt: Prompt = Prompt()

    def templates(self, style: PromptStyle) -> Templates:
        """The prompts of the set. Raises InputError for one that does not show what it must."""
        texts = TEMPLATES[style][self.domain].model_dump()
        if self.prompt.answer_form:
            texts = {key: text.replace("the final number", self.prompt.answer_form) for key, text in texts.items()}
        texts |= {key: text for key, text in self.prompt.model_dump(exclude={"answer_form"}).items() if text}
        for key, text in texts.items():
            shown = {"problem": "P", "trace": "T"}
            try:
                text.format(**shown)
            except (KeyError, IndexError, ValueError) as error:
                raise InputError(f"set {self.name}: prompt.{key}: {error!r}; write {{{{ and }}}} for braces") from None
            for name in ("problem", "trace") if key == "executor_with_trace" else ("problem",):
                if f"{{{name}}}" not in text:
                    raise InputError(f"set {self.name}: prompt.{key}: does not show {{{name}}}; put it in")
        return Templates(**texts)


@dataclass
class LoadedSet:
    """A set with its problems.

    Attributes:
        refused: (problem id, place, reason) of rows that cannot be used.
        source: where they come from: {"file": SHA-256} or the hub's revision.
    """

    set: BenchmarkSet
    problems: list[Problem]
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)


# --- the registry -----------------------------------------------------------------------------------------------------


def set_names() -> list[str]:
    return sorted(path.stem for path in REGISTRY.glob("*.yaml"))


def read_set(named: str) -> tuple[BenchmarkSet, Path | None]:
    """The set of this name in the registry, of a YAML file, or of a data file in the documented layout; and its folder.

    Raises:
        InputError: there is none, or a field is missing, unknown or of another type; names file, field and what to do.
    """
    path = Path(named)
    if named in set_names():
        return _parse(REGISTRY / f"{named}.yaml"), None
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _parse(path), path.resolve().parent
    if path.name.endswith(DATA_ENDINGS) and path.is_file():
        name = re.sub(r"(\.\w+)+$", "", path.name)
        first = next((row for _, row in file_records(path)), {})
        domain = "code" if "tests" in first else "math"
        facts = {"title": named, "licence": "not stated", "files": [path.name], "loader": "own"}
        return BenchmarkSet(name=name, domain=domain, **facts), path.resolve().parent
    raise InputError(
        f"no set {named!r}: it is neither one of {', '.join(set_names())} nor a file "
        f"({', '.join(DATA_ENDINGS)}, .yaml); {PAGE} shows how to add one"
    )


def _parse(path: Path) -> BenchmarkSet:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise InputError(f"{path}: holds no keys; a set is a YAML mapping such as {REGISTRY / 'svamp.yaml'}")
        return BenchmarkSet(name=path.stem, **data)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{path}: not a valid YAML mapping: {error}") from None
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"]))
        sections = {"fields": Fields, "prompt": Prompt, "hub": Hub, "tests": Tests}
        inside = sections.get(str(found["loc"][-2]) if len(found["loc"]) > 1 else "", BenchmarkSet)
        keys = ", ".join(name for name in inside.model_fields if name != "name" or inside is Hub)
        raise InputError(f"{path}: field {where}: {found['msg']}. Fields here: {keys}; see {PAGE}") from None


# --- loading ----------------------------------------------------------------------------------------------------------


def load_set(named: str, data: str | Path | None = None, limit: int | None = None, seed: int = 0) -> LoadedSet:
    """A set's usable problems, from the folder `data` or $TRACELIFT_DATA, else from the hub.

    limit: so many of them, drawn by a hash of seed and id: a larger limit keeps what a smaller one has.

    Raises:
        MissingSet: neither folder nor hub has it. InputError: a damaged file, or no usable row.
    """
    spec, beside = read_set(named)
    if spec.loader == "gsm_symbolic":
        problems = symbolic_splits({"test": max(GENERATED, limit or 0)}, seed)["test"]
        loaded = LoadedSet(spec, [_of_set(p, spec, str(i)) for i, p in enumerate(problems)], source={"seed": seed})
    else:
        rows, source = _rows(spec, beside, data_folder(data))
        loaded = LoadedSet(spec, [], source=source)
        _fill(loaded, rows)
    if not loaded.problems:
        what = f"{loaded.refused[0][1]}: {loaded.refused[0][2]}" if loaded.refused else "no row fits `where`"
        raise InputError(f"set {spec.name}: no usable row. The first: {what}. {PAGE} has the layout")
    loaded.problems.sort(key=lambda p: hashlib.sha256(f"{seed}\0{p.problem_id}".encode()).digest())
    del loaded.problems[limit or len(loaded.problems) :]
    return loaded


def _rows(spec: BenchmarkSet, beside: Path | None, data: Path | None) -> tuple[Iterator[tuple[str, dict]], dict]:
    """(place, row) of all rows and where they come from."""
    for folder in [f for f in (beside, data) if f]:
        for pattern in [p for name in spec.files for p in (name, Path(name).name)]:
            if paths := find_files(folder, pattern):
                if not paths[0].is_file():
                    raise InputError(f"set {spec.name}: {paths[0]} is a folder, not a file")
                return (r for p in paths for r in file_records(p)), {p.name: file_sha256(p) for p in paths}
    looked = f"{' or '.join(spec.files)} (or .gz) in {data or 'a folder (--data, or $TRACELIFT_DATA)'}"
    if spec.hub is None:
        raise MissingSet(f"set {spec.name}: no {looked}, and it names no hub; get it from {spec.home or 'its makers'}")
    if data:
        raise MissingSet(
            f"set {spec.name}: no {looked}; put it there (from {spec.home}), or leave --data out to use the hub"
        )
    if spec.hub.files:
        rows = _hub_files(spec)
    else:
        rows = hub_records(
            DataSet("", spec.hub.name, spec.hub.config, spec.hub.revision, tuple(spec.hub.splits)), looked
        )
    return rows, {"hub": spec.hub.name, "revision": spec.hub.revision}


def _hub_files(spec: BenchmarkSet) -> Iterator[tuple[str, dict]]:
    import huggingface_hub

    from tracelift_lib.problems.hub import HUB_ERRORS, explain

    for name in spec.hub.files:
        try:
            path = huggingface_hub.hf_hub_download(spec.hub.name, name, revision=spec.hub.revision, repo_type="dataset")
        except HUB_ERRORS as error:
            local = f"put {spec.files[0]} into a folder and name it with --data"
            raise MissingSet(explain(error, spec.hub.name, spec.hub.revision, "data set", local)) from None
        yield from file_records(Path(path))


def _fill(loaded: LoadedSet, rows: Iterator[tuple[str, dict]]) -> None:
    """Put every row of the set into `problems` or `refused`."""
    spec, seen, verifier = loaded.set, set(), Verifier(loaded.set.rule)
    for number, (place, row) in enumerate(rows):
        own = str(number)
        try:
            if not _wanted(row, spec.where):
                continue
            own = str(row["id"] if spec.loader == "own" and "id" in row else own)
            own = _text(value_of(row, spec.fields.id), spec.fields.id) if spec.fields.id else own
            problem = _of_set(LOADERS[spec.loader](row, spec), spec, own)
            if problem.problem_id in seen:
                raise ValueError(f"the id {own!r} is there twice; make ids unique, or leave fields.id out")
            _check_truth(problem, verifier)
            seen.add(problem.problem_id)
            loaded.problems.append(problem)
        except (LookupError, ValueError, TypeError, AttributeError, SyntaxError, StopIteration) as error:
            said = error.args[0] if error.args else repr(error)
            loaded.refused.append((f"{spec.name}-{own}", place, said if isinstance(said, str) else repr(error)))


def _of_set(problem: Problem, spec: BenchmarkSet, own: str) -> Problem:
    return problem.model_copy(update={"problem_id": f"{spec.name}-{own}", "source": spec.name, "domain": spec.domain})


def _check_truth(problem: Problem, verifier: Verifier) -> None:
    """Raises ValueError if no answer to the problem could ever be judged."""
    if problem.domain == "code":
        read_tests(problem.metadata, "tests")
    elif not problem.answer.strip():
        raise ValueError("field answer: is empty; give the final answer")
    else:
        verifier.verify([problem], [""])


def _wanted(row: dict, where: dict[str, Any]) -> bool:
    for name, wanted in where.items():
        value = value_of(row, name)
        if isinstance(wanted, list) and len(wanted) == 2 and all(isinstance(w, int) for w in wanted):
            if not wanted[0] <= int(value) <= wanted[1]:
                return False
        elif value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


# --- rows to problems -------------------------------------------------------------------------------------------------


def value_of(row: dict, name: str) -> Any:
    """The value of a field, of a dotted name inside one, or a text with {field} put together from several.

    Raises:
        LookupError: there is no such field; names those that there are.
    """
    if "{" in name and name not in row:
        return re.sub(r"\{([^{}]+)\}", lambda m: _text(value_of(row, m[1]), m[1]), name)
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    if rest and head in row:
        inner = json.loads(row[head]) if isinstance(row[head], str) else row[head]
        if isinstance(inner, dict):
            return value_of(inner, rest)
    raise LookupError(f"field {name!r}: is not there; the row has {', '.join(map(repr, row)) or 'no fields'}")


def _text(value: Any, name: str) -> str:
    """A value as text: whole floats without .0, lists line by line. Raises ValueError for null, objects, booleans."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, list):
        return "\n".join(_text(part, name) for part in value)
    if value is None or isinstance(value, (bool, dict)):
        raise ValueError(f"field {name!r}: holds {json.dumps(value)[:60]}, not a text or a number")
    return str(value)


def _from_fields(row: dict, spec: BenchmarkSet) -> Problem:
    f = spec.fields
    tests = _tests(row, f.tests) if f.tests else None
    reference = _text(value_of(row, f.reference), f.reference) if f.reference else ""
    if f.reference_remove:
        reference = re.sub(f.reference_remove, "", reference)
    answer = "" if spec.domain == "code" else _answer(_text(value_of(row, f.answer), f.answer), f)
    return _problem(spec, _text(value_of(row, f.problem), f.problem), answer, reference.strip(), tests)


def _answer(text: str, f: Fields) -> str:
    if f.answer_pattern:
        found = list(re.finditer(f.answer_pattern, text))
        if not found:
            raise ValueError(f"field {f.answer!r}: answer_pattern {f.answer_pattern!r} is not in it")
        text = found[-1][1]
    if f.answer_boxed:
        start, depth = text.rfind("\\boxed{") + 7, 1
        if start < 7:
            raise ValueError(f"field {f.answer!r}: no \\boxed{{}} in it (answer_boxed)")
        end = start
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        text = text[start : end - 1]
    return text.translate({ord(c): None for c in f.answer_remove}).strip()


def _tests(row: dict, t: Tests) -> dict[str, Any]:
    """The tests of a program as problems/code_tests.py has them."""
    if t.inputs:
        given, wanted = (_list(value_of(row, name)) for name in (t.inputs, t.outputs or "outputs"))
        pairs = zip(given, wanted, strict=True)
        return {
            "style": "stdio",
            "cases": [{"input": _text(i, t.inputs), "output": _text(o, "outputs")} for i, o in pairs],
        }
    named = {"setup": t.setup, "entry_point": t.entry_point, "preamble": t.preamble}
    texts = {key: _text(value_of(row, name), name) for key, name in named.items() if name}
    return {"style": "asserts", "code": _list(value_of(row, t.code or "tests")), **texts}


def _list(value: Any) -> list:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    return value if isinstance(value, list) else [value]


def _own(row: dict, spec: BenchmarkSet) -> Problem:
    """A row of a user's own file: id, problem, answer or tests, reference_solution; nothing else."""
    known = {"id", "problem", "answer", "tests", "reference_solution"}
    if unknown := sorted(row.keys() - known):
        raise ValueError(
            f"field {unknown[0]!r}: is unknown; there are {', '.join(sorted(known))}. For a file with other fields "
            "write a YAML file that says which is which"
        )
    answer = "" if spec.domain == "code" else _text(value_of(row, "answer"), "answer")
    tests = value_of(row, "tests") if spec.domain == "code" else None
    return _problem(
        spec, _text(value_of(row, "problem"), "problem"), answer, row.get("reference_solution") or "", tests
    )


def _problem(spec: BenchmarkSet, text: str, answer: str, reference: str, tests: dict | None) -> Problem:
    if not text.strip():
        raise ValueError("field problem: is empty")
    kind = {"asserts": "function", "stdio": "stdio"}.get((tests or {}).get("style", ""), "math_word_problem")
    return Problem(
        problem_id="",
        source=spec.name,
        domain=spec.domain,
        task_type=kind,
        problem=text.strip(),
        reference_solution=reference,
        answer=answer,
        metadata={"tests": tests} if tests else {},
    )


def _livecodebench(row: dict, spec: BenchmarkSet) -> Problem:
    """Public and private tests; a LeetCode problem's are calls of a method of its class Solution."""
    cases = [*json.loads(row["public_test_cases"]), *_private_tests(row["private_test_cases"])]
    text, starter = row["question_content"], row.get("starter_code") or ""
    if all(case["testtype"] == "stdin" for case in cases):
        tests = {"style": "stdio", "cases": [{"input": c["input"], "output": c["output"]} for c in cases]}
        return _problem(spec, text, "", "", tests)
    name = json.loads(row["metadata"])["func_name"]
    calls = [([json.loads(line) for line in c["input"].splitlines() if line], json.loads(c["output"])) for c in cases]
    code = [f"assert Solution().{name}(*{given!r}) == {wanted!r}" for given, wanted in calls]
    return _problem(
        spec, f"{text}\n\n{starter}".strip(), "", "", {"style": "asserts", "code": code, "entry_point": "Solution"}
    )


class _OnlyText(pickle.Unpickler):
    """Private tests are a pickled text; anything else in them is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"field 'private_test_cases': holds {module}.{name}, but only text is read")


def _private_tests(packed: str) -> list[dict]:
    try:
        return json.loads(packed)
    except json.JSONDecodeError:
        return json.loads(_OnlyText(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load())


LOADERS: dict[str, Callable[[dict, BenchmarkSet], Problem]] = {
    "fields": _from_fields,
    "own": _own,
    "humaneval": lambda row, spec: humaneval_problem(row),
    "mbpp": lambda row, spec: mbpp_problem(row),
    "mbpp_plus": lambda row, spec: mbpp_plus_problem(row),
    "livecodebench": _livecodebench,
}
