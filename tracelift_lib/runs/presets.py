"""Presets: one code path, several sizes.

A preset is a YAML file in `presets/`; it is data, never a branch in the code. Every key is
checked: an unknown key or a wrong type is an error that says what is allowed. A section that a
preset leaves out (null) is a part of the pipeline that this size does not run.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from tracelift_lib.evaluation.settings import Evaluation, NaturalErrors
from tracelift_lib.executor.settings import Execution
from tracelift_lib.groups.settings import Groups
from tracelift_lib.models.settings import ModelSource
from tracelift_lib.planner.settings import PlannerSource, PlannerTraining
from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.problems.prompts import PromptLimits, PromptStyle
from tracelift_lib.problems.settings import GSM8K, GsmSymbolic, Positive, Section, TinyWorld
from tracelift_lib.reward_model.settings import RewardModelTraining

PRESET_FOLDER = PROJECT / "presets"


class Preset(Section):
    """Everything that decides what a run computes."""

    name: str
    description: str
    is_result: bool = Field(description="false: outputs are marked 'not a result'")
    seed: int
    min_free_gb: Annotated[float, Field(ge=0)] = 1.0
    threads: Positive | None = Field(None, description="of torch on a CPU; null: as many as it likes")
    leaves_out: dict[str, str] = Field({}, description="notebook number -> why this size has not got it")
    prompt_style: PromptStyle
    limits: PromptLimits = PromptLimits()
    problems: Annotated[TinyWorld | GSM8K | GsmSymbolic, Field(discriminator="source")]
    executor: ModelSource
    planner: PlannerSource | None = None
    groups: Groups | None = None
    reward_model: RewardModelTraining | None = None
    execution: Execution
    planner_training: PlannerTraining | None = None
    evaluation: Evaluation | None = None
    natural_errors: NaturalErrors | None = None
    simulated_groups: Positive = Field(50_000, description="groups that a simulation of notebooks 04 and 09 draws")

    @model_validator(mode="after")
    def _comparable(self) -> Preset:
        e, arms = self.execution, self.planner_training.arms if self.planner_training else []
        if "released_code" in arms and e.baseline == "cached" and e.baseline_samples != e.k:
            raise ValueError(
                "arm released_code compares K runs with K runs: set execution.baseline to fresh, or "
                f"execution.baseline_samples to k = {e.k}"
            )
        return self


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str, seed: int | None = None, overrides: dict[str, Any] | None = None) -> Preset:
    """The preset `name` with `seed` and dotted `overrides` (such as `{"execution.k": 5}`) put in.

    Raises:
        InputError: no such preset, an unknown key, or a value of the wrong type; names the key.
    """
    data = _read_yaml(name)
    for key, value in (overrides or {}).items():
        _put(data, key, value, name)
    if seed is not None:
        data["seed"] = seed
    try:
        return Preset.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(name, error)) from None


def variant(name: str, seed: int | None = None, overrides: dict[str, Any] | None = None) -> str:
    """Name of a run's output folders: the preset, marked if its seed or values were changed."""
    changed_seed = seed is not None and seed != load_preset(name).seed
    return name + (f"-seed{seed}" if changed_seed else "") + ("-custom" if overrides else "")


def _read_yaml(name: str) -> dict:
    path = PRESET_FOLDER / f"{name}.yaml"
    if not path.exists():
        raise InputError(f"unknown preset {name!r}; there are: {', '.join(preset_names())}")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no keys; a preset is a YAML mapping such as presets/tiny.yaml")
    base = data.pop("extends", None)
    return _merge(_read_yaml(base), data) if base else data


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
    field = section.model_fields[tag]
    return (*field.annotation.__args__, *([None] if not field.is_required() else []))


def _explain(name: str, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        whole = problem["type"] == "missing" or isinstance(problem["input"], dict)
        secret = "key" in f"{where} {problem['msg']}"  # somebody may have put one there
        got = "" if whole or secret else f" (got {problem['input']!r})"
        lines.append(f"  {where}: {problem['msg']}{got}")
    return f"preset {name} is not valid:\n" + "\n".join(lines)
