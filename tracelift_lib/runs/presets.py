"""Presets: one code path, several sizes.

A preset is a YAML file in `presets/`; it is data, never a branch in the code. Every key is checked: an unknown key or a
wrong type is an error that says what is allowed. Then the whole is checked: what the notebooks of the preset will ask
for must be there, so that a run does not fail after hours.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ConfigDict, RootModel, ValidationError

from tracelift_lib.evaluation.benchmark_sets import read_set, set_names
from tracelift_lib.planner.rewards import NEEDS
from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.problems.settings import Section, TinyWorld
from tracelift_lib.runs.settings import Preset
from tracelift_lib.runs.stages import STAGES, Instance, lacking, missing, policies, result_of, with_upstream

PRESET_FOLDER = PROJECT / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(
    name: str, seed: int | None = None, overrides: dict[str, Any] | None = None, changed: str | None = None
) -> Preset:
    """The preset `name` with `seed`, dotted `overrides` (as `{"execution.k": 5}`) and its variant `changed` put in.

    Raises:
        InputError: no such preset, an unknown key, a value of the wrong type, or something that one of its notebooks
            needs is not there; names the key and what to do.
    """
    data = _read_yaml(name)
    for key, value in (overrides or {}).items():
        _put(data, key, value)
    for key, value in (data.pop("variants")[changed] if changed else {}).items():
        _put(data, key, value)
    if seed is not None:
        data["seed"] = seed
    try:
        preset = Preset.model_validate(data)
        wrong = [
            *_contradictions(preset, name),
            *(_untrainable(preset) if changed else [*_unmet(preset), *_unknown_benchmarks(preset)]),
        ]
    except ValidationError as error:
        wrong = list(_explain(error))
    if wrong:
        put_in = f" with {', '.join(overrides)} set" if overrides else ""
        where = f"variant {changed!r} of preset {name}" if changed else f"preset {name}"
        raise InputError(f"{where}{put_in} is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    for other in preset.variants if "08" not in preset.leaves_out else ():
        load_preset(name, seed, overrides, other)
    return preset


def variant(name: str, seed: int | None = None, overrides: dict[str, Any] | None = None) -> str:
    """Name of a run's output folders: the preset, marked if its seed or values were changed."""
    changed_seed = seed is not None and seed != _read_yaml(name)["seed"]
    return name + (f"-seed{seed}" if changed_seed else "") + ("-custom" if overrides else "")


# --- reading ----------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; YAML would silently keep the last one.

    Takes 5e-6 for a number, as YAML 1.2 and JSON do; PyYAML's rules are of YAML 1.1, which wants a point in it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is there twice", node.value[i][0].start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_override(text: str) -> tuple[str, Any]:
    """Key and value of `KEY=VALUE` on a command line; the value is YAML.

    Raises:
        InputError: no KEY=VALUE, or no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--override {text!r}: write KEY=VALUE, e.g. execution.k=5")
    try:
        parsed = yaml.load(value, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--override {text!r}: the value is not valid YAML ({error})") from None
    return key, parsed


def _read_yaml(name: str, extended_by: tuple[str, ...] = ()) -> dict:
    path = PRESET_FOLDER / f"{name}.yaml"
    if name in extended_by:
        raise InputError(f"{path}: extends itself ({' -> '.join([*extended_by, name])}); end the circle")
    if not path.exists():
        raise InputError(f"unknown preset {name!r}; there are: {', '.join(preset_names())}")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no keys; a preset is a YAML mapping such as presets/tiny.yaml")
    base = data.pop("extends", None)
    if not base:
        return data
    inherited = _read_yaml(base, (*extended_by, name)) | {"variants": {}}  # sized for that preset alone
    return _merge(inherited, data)


def _merge(base: dict, change: dict) -> dict:
    """`base` with `change` laid over it, section by section."""
    both = {key for key in base if isinstance(base[key], dict) and isinstance(change.get(key), dict)}
    return base | change | {key: _merge(base[key], change[key]) for key in both}


def _put(data: dict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for i, part in enumerate(parents):
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise InputError(f"override key {key!r}: {'.'.join(parents[: i + 1])} is a value, not a section")
    data[last] = value


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            known, unknown = sorted(_keys_beside(problem["loc"])), problem["loc"][-1]
            near = "".join(f" did you mean {name!r}?" for name in difflib.get_close_matches(unknown, known, 1))
            yield f"{where}: unknown key {unknown!r};{near} Keys here: {', '.join(known)}"
            continue
        whole = problem["type"] == "missing" or isinstance(problem["input"], dict)
        secret = "key" in f"{where} {problem['msg']}"  # somebody may have put one there
        yield f"{where}: {problem['msg']}" + ("" if whole or secret else f" (got {problem['input']!r})")


def _keys_beside(loc: tuple) -> set[str]:
    """Keys of the section in which an error is; `loc` has keys, and after a union's key which of its sections it is."""
    sections = [Preset]
    for part in loc[:-1]:
        inside = [s for m in sections if part in m.model_fields for s in _sections(m.model_fields[part].annotation)]
        tagged = [m for m in sections if any(part in get_args(f.annotation) for f in m.model_fields.values())]
        sections = inside or tagged or sections  # the last: a key of a table
    return {name for section in sections for name in section.model_fields}


def _sections(annotation: Any) -> list[type[Section]]:
    """The Section classes in a type annotation, looking into unions and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for part in get_args(annotation) for s in _sections(part)]


# --- the whole --------------------------------------------------------------------------------


class Lesson(Section):
    """What a notebook asks for beside the stages that it makes; lessons.yaml says more."""

    results: list[str] = []
    keys: dict[str, list[str]] = {}


class Lessons(RootModel[dict[str, Lesson]]):
    """By number of notebook; the title is what an error names."""

    model_config = ConfigDict(title="lessons.yaml")


LESSONS = Lessons.model_validate(yaml.load(Path(__file__).with_name("lessons.yaml").read_text(), _Loader)).root


def _contradictions(preset: Preset, name: str) -> Iterator[str]:
    """What no run can use, whatever its notebooks are: key, what is wrong, what to do."""
    own = isinstance(preset.problems, TinyWorld)  # then every true step of a trace is known
    if preset.name != name:
        yield f"name: {preset.name!r} in {name}.yaml; write name: {name}, which is the folder of its results"
    if preset.results not in preset_names():
        yield f"results_of: no preset {preset.results!r}; there are {', '.join(preset_names())}"
    for number in sorted(set(preset.leaves_out) - set(_numbers())):
        yield f"leaves_out: no notebook {number!r}; there are {', '.join(_numbers())}"
    for key in ("planner_training.arms", "planner_training.seeds", "evaluation.splits"):
        values = preset.value(key)
        if values is not None and (not values or len(set(values)) < len(values)):
            yield f"{key}: {values} must name at least one, and none twice"
    for split in set(preset.value("evaluation.splits") or []) - set(preset.problems.sizes):
        yield f"evaluation.splits: {split!r} is no split of problems.sizes ({', '.join(preset.problems.sizes)})"
    training = preset.value("planner_training.split")
    if training is not None and training not in preset.problems.sizes:
        yield f"planner_training.split: {training!r} is no split of problems.sizes ({', '.join(preset.problems.sizes)})"
    for key in ("executor.mix", "planner.habits"):
        shares = preset.value(key)
        if shares is not None and not any(shares.values()):
            yield f"{key}: {shares} must have a share above 0"
    if preset.value("planner.source") == "executor" and not own:
        yield "planner.source: executor mixes habits into known true steps; take reference_traces for these problems"
    if preset.groups and preset.groups.seeds is None and not own:
        yield "groups.seeds: null takes known true steps; name public seeds for these problems, as {source: gsm8k}"
    for arm in preset.value("planner_training.arms") or []:
        if "j" in NEEDS[arm] and not own:
            yield f"planner_training.arms: {arm} judges by known true steps; leave it out for these problems"


def _numbers() -> list[str]:
    """Of all notebooks."""
    return sorted(path.name[:2] for path in (PROJECT / "notebooks").glob("[0-9][0-9]_*.py"))


def _unmet(preset: Preset) -> Iterator[str]:
    """What the notebooks of this preset would ask for in vain, with those that do."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for number in sorted(set(_numbers()) - set(preset.leaves_out)):
        lesson = LESSONS.get(number, Lesson())
        results = [(name, i) for name, s in STAGES.items() if s.notebook[:2] == number for i in s.instances(preset)]
        for result in [*results, *map(result_of, lesson.results)]:
            for line in list(lacking(preset, *result)) or _unmade(preset, number, *result):
                wanted[line].add(number)
        for line in missing(preset, lesson.keys):
            wanted[line].add(number)
    for line, numbers in wanted.items():
        yield f"{line} (for notebooks {', '.join(sorted(numbers))}), or say under leaves_out why these are not run"


def _unknown_benchmarks(preset: Preset) -> Iterator[str]:
    """Planners of the section `benchmarks` that are not trained here, and sets that are not there."""
    known = {"none", "reference", "warm_start", *(preset.value("planner_training.arms") or [])}
    for word in sorted(set(preset.value("benchmarks.planners") or []) - known):
        yield f"benchmarks.planners: {word!r} is none of {', '.join(sorted(known))}"
    for name in preset.value("benchmarks.sets") or {}:
        with contextlib.suppress(InputError):
            read_set(name)
            continue
        yield f"benchmarks.sets: no set {name!r}; there are {', '.join(set_names())}, or name a file"


def _untrainable(preset: Preset) -> Iterator[str]:
    """What a variant lacks for notebook 08, which trains and evaluates its policies and asks for nothing else."""
    wanted = [line for policy in policies(preset) for line in lacking(preset, "evaluation", policy)]
    yield from dict.fromkeys(wanted)


def _unmade(preset: Preset, number: str, name: str, instance: Instance) -> Iterator[str]:
    """Stages that no notebook up to `number` makes."""
    for upstream, _ in with_upstream(preset, name, instance):
        stage = STAGES[upstream]
        makers = {notebook[:2] for notebook in (stage.notebook, *stage.also_made_by)} - set(preset.leaves_out)
        if upstream == "executor" and not preset.local_executor:
            makers.discard("03")
        if not any(maker <= number for maker in makers):
            yield f"leaves_out: notebook {stage.notebook[:2]} makes stage {upstream!r}; do not leave it out"
