"""Presets: one code path, several sizes.

A preset is a YAML file in `presets/`; it is data, never a branch in the code. Every key is checked: an unknown key or a
wrong type is an error that says what is allowed. Then the whole is checked: what the notebooks of the preset will ask
for must be there, so that a run does not fail after hours.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import yaml
from pydantic import ValidationError

from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.problems.settings import Section
from tracelift_lib.runs.settings import Preset
from tracelift_lib.runs.stages import STAGES, WARM_START, Needs, lacking, with_upstream

PRESET_FOLDER = PROJECT / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str, seed: int | None = None, overrides: dict[str, Any] | None = None) -> Preset:
    """The preset `name` with `seed` and dotted `overrides` (such as `{"execution.k": 5}`) put in.

    Raises:
        InputError: no such preset, an unknown key, a value of the wrong type, or something that one of its notebooks
            needs is not there; names the key and what to do.
    """
    data = _read_yaml(name)
    for key, value in (overrides or {}).items():
        _put(data, key, value, name)
    if seed is not None:
        data["seed"] = seed
    try:
        preset = Preset.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(name, error)) from None
    if wrong := [*_senseless(preset, name), *_unmet(preset)]:
        raise InputError(f"preset {name} is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    return preset


def variant(name: str, seed: int | None = None, overrides: dict[str, Any] | None = None) -> str:
    """Name of a run's output folders: the preset, marked if its seed or values were changed."""
    changed_seed = seed is not None and seed != _read_yaml(name)["seed"]
    return name + (f"-seed{seed}" if changed_seed else "") + ("-custom" if overrides else "")


# --- reading ----------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is there twice", node.value[i][0].start_mark
                )
        return super().construct_mapping(node, deep)


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
    except yaml.YAMLError as error:
        raise InputError(f"--override {text!r}: the value is not valid YAML ({error})") from None
    try:  # YAML reads 1e-3 as text, people mean a number
        return key, float(parsed) if isinstance(parsed, str) else parsed
    except ValueError:
        return key, parsed


def _read_yaml(name: str, extended_by: tuple[str, ...] = ()) -> dict:
    path = PRESET_FOLDER / f"{name}.yaml"
    if name in extended_by:
        raise InputError(f"{path}: extends itself ({' -> '.join([*extended_by, name])}); end the circle")
    if not path.exists():
        raise InputError(f"unknown preset {name!r}; there are: {', '.join(preset_names())}")
    try:
        data = yaml.load(path.read_text(), _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no keys; a preset is a YAML mapping such as presets/tiny.yaml")
    base = data.pop("extends", None)
    return _merge(_read_yaml(base, (*extended_by, name)), data) if base else data


def _merge(base: dict, change: dict) -> dict:
    """`base` with `change` laid over it, section by section."""
    both = {key for key in base if isinstance(base[key], dict) and isinstance(change.get(key), dict)}
    return base | change | {key: _merge(base[key], change[key]) for key in both}


def _put(data: dict, key: str, value: Any, name: str) -> None:
    *parents, last = key.split(".")
    place, model = data, Preset
    for i, part in enumerate([*parents, last]):
        fields = _fields(model, place)
        if fields is not None and part not in fields:
            near = difflib.get_close_matches(part, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"preset {name}: unknown override key {key!r}: no {part!r} here{hint} "
                f"Keys here: {', '.join(sorted(fields))}"
            )
        if i == len(parents):
            place[part] = value
            return
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise InputError(f"preset {name}: override key {key!r}: {part!r} is a value, not a section")
        model = fields[part] if fields else None


def _fields(model: Any, place: dict) -> dict[str, Any] | None:
    """Field name -> section class (or None) of the section `model`; None if any key may stand here."""
    candidates = [m for m in _sections(model) if all(place.get(t) in _tags(m, t) for t in TAGS & set(m.model_fields))]
    if not candidates:
        return None
    return {n: f.annotation for m in candidates for n, f in m.model_fields.items()}


def _sections(annotation: Any) -> list[type[Section]]:
    """The Section classes in a type annotation, looking into unions and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for part in getattr(annotation, "__args__", ()) for s in _sections(part)]


TAGS = {"source", "kind"}  # keys that tell the sections of a union apart


def _tags(section: type[Section], tag: str) -> tuple:
    field_of_tag = section.model_fields[tag]
    return (*field_of_tag.annotation.__args__, *([None] if not field_of_tag.is_required() else []))


def _explain(name: str, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        whole = problem["type"] == "missing" or isinstance(problem["input"], dict)
        secret = "key" in f"{where} {problem['msg']}"  # somebody may have put one there
        got = "" if whole or secret else f" (got {problem['input']!r})"
        lines.append(f"  {where}: {problem['msg']}{got}")
    return f"preset {name} is not valid:\n" + "\n".join(lines)


# --- the whole --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What a notebook asks for beside the stages that it makes: `holds` are keys and what they must hold."""

    stages: Needs = field(default_factory=list)
    sections: tuple[str, ...] = ()
    holds: dict[str, tuple[str, ...]] = field(default_factory=dict)


LESSONS = {
    "00": Lesson([("planner", {})], ("planner_training",), {"problems.sizes": ("dev",)}),
    "02": Lesson(sections=("evaluation",)),
    "05": Lesson([("executor", {})]),
    "06": Lesson(
        [("reward_model", {}), ("baseline", {}), ("planner_training", {"arm": "exec_only", "seed": 0})],
        ("evaluation",),
        {"problems.sizes": ("test",)},
    ),
    "07": Lesson(holds={"planner_training.arms": ("exec_only",)}),
    "12": Lesson(
        [(name, {}) for name in ("executor", "rm_scores", "uplift", "baseline")] + [("evaluation", WARM_START)],
        holds={"planner_training.arms": ("exec_only", "tracelift"), "evaluation.splits": ("test",)},
    ),
}


def _senseless(preset: Preset, name: str) -> Iterator[str]:
    """Values that no run can use, whatever its notebooks are."""
    if preset.name != name:
        yield f"name: {preset.name!r} in {name}.yaml; write name: {name}, which is the folder of its results"
    numbers = {path.name[:2] for path in (PROJECT / "notebooks").glob("[0-9][0-9]_*.py")}
    for number in sorted(set(preset.leaves_out) - numbers):
        yield f"leaves_out: no notebook {number!r}; there are {', '.join(sorted(numbers))}"
    for key in ("planner_training.arms", "planner_training.seeds", "evaluation.splits"):
        values = _value(preset, key)
        if values is not None and (not values or len(set(values)) < len(values)):
            yield f"{key}: {values} must name at least one, and none twice"
    for key in ("executor.mix", "planner.habits"):
        shares = _value(preset, key)
        if shares is not None and not any(shares.values()):
            yield f"{key}: {shares} must have a share above 0"


def _unmet(preset: Preset) -> Iterator[str]:
    """What the notebooks of this preset would ask for in vain, with those that do."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for number, name, instance in _asked_for(preset):
        missing = list(lacking(preset, name, instance)) or _unmade(preset, number, name, instance)
        for line in missing:
            wanted[line].add(number)
    for number in set(LESSONS) - set(preset.leaves_out):
        lesson = LESSONS[number]
        for line in [f"{name}: is null; add this section" for name in lesson.sections if not getattr(preset, name)]:
            wanted[line].add(number)
        for key, names in lesson.holds.items():
            held = _value(preset, key)
            for name in [n for n in names if held is not None and n not in held]:
                wanted[f"{key}: has no {name!r}, only {', '.join(map(str, held))}; add it"].add(number)
    for line, numbers in wanted.items():
        yield f"{line} (for notebooks {', '.join(sorted(numbers))}), or say under leaves_out why these are not run"


def _asked_for(preset: Preset) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(number of a notebook that is run, stage and instance that it makes or needs)."""
    asked = [(stage.notebook[:2], name, i) for name, stage in STAGES.items() for i in stage.instances(preset)]
    asked += [(number, *need) for number, lesson in LESSONS.items() for need in lesson.stages]
    return (one for one in asked if one[0] not in preset.leaves_out)


def _unmade(preset: Preset, number: str, name: str, instance: dict[str, Any]) -> list[str]:
    """Stages that no notebook up to `number` makes."""
    lines = []
    for stage, _ in with_upstream(preset, name, instance):
        makers = [notebook[:2] for notebook in STAGES[stage].makers(preset)]
        if not any(maker <= number and maker not in preset.leaves_out for maker in makers):
            lines.append(f"leaves_out: notebook {makers[0]} makes stage {stage!r}; do not leave it out")
    return lines


def _value(preset: Preset, key: str) -> Any:
    """The value of a dotted key; None if a part of it is."""
    return reduce(lambda section, part: getattr(section, part, None), key.split("."), preset)
