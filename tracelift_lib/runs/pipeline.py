"""The stages of the companion: what each makes, from what, and which notebook makes it.

A notebook opens a `Run`, makes its own stages and asks for those of earlier notebooks:

    run = Run("tiny")
    groups = run.make("groups")      # built now, resumed, or found
    model = run.need("executor")     # found, or an error that names the notebook that makes it
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from tracelift_lib.evaluation.natural_measures import score_traces
from tracelift_lib.evaluation.natural_sets import load_natural, sample_problems
from tracelift_lib.evaluation.planner_evaluation import evaluate_planner
from tracelift_lib.executor.backends import Backend, LocalBackend, ServerBackend, derived_seed
from tracelift_lib.executor.frozen import Executor, verifier_of
from tracelift_lib.groups.builder import build, guard_of
from tracelift_lib.groups.group_files import load_groups
from tracelift_lib.groups.group_maker import BuildSettings, build_group
from tracelift_lib.groups.schema import Candidate, Group, dimensions, split_train_dev
from tracelift_lib.groups.seeds import SeedSettings, symbolic_splits
from tracelift_lib.groups.settings import PublicSeeds, ReleasedGroups
from tracelift_lib.models import base
from tracelift_lib.models.generation import Sampler, Sampling, token_log_likelihoods
from tracelift_lib.models.loading import fetch, load_model, load_tokenizer
from tracelift_lib.planner.reward_engine import RewardEngine, truth_judge
from tracelift_lib.planner.rewards import NEEDS, compares
from tracelift_lib.planner.settings import ReferenceStart, WarmStart
from tracelift_lib.planner.training import load_policy, rank_folder, train_planner
from tracelift_lib.planner.warm_start import warm_start
from tracelift_lib.problems import tinycode, tinyworld
from tracelift_lib.problems.files import PROJECT, WORK, InputError, data_folder, read_jsonl, write_json
from tracelift_lib.problems.problem import Problem, load_gsm8k
from tracelift_lib.problems.prompts import as_chat, planner_prompt, wrap_trace
from tracelift_lib.problems.settings import GSM8K
from tracelift_lib.reward_model.metrics import score_groups
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.remote import RemoteScorer
from tracelift_lib.reward_model.scorer import Scorer, TraceScorer
from tracelift_lib.reward_model.training import train_reward_model
from tracelift_lib.runs import gpu_budget, store
from tracelift_lib.runs.parallel import run_in_processes
from tracelift_lib.runs.presets import Preset, load_preset, variant

SCORING_LENGTH = 3072  # tokens; method.md section 5


class Run:
    """A preset with its seed and overrides, and the stages made for it so far."""

    def __init__(self, preset: str, seed: int | None = None, overrides: dict[str, Any] | None = None):
        self.arguments = (preset, seed, overrides)
        self.preset: Preset = load_preset(*self.arguments)
        self.variant = variant(*self.arguments)
        self.folder = store.home() / "runs" / self.preset.name
        self.on_build: Callable[[Path], None] = lambda out: None  # called before a stage is built in its folder
        if self.preset.threads:
            torch.set_num_threads(self.preset.threads)
        if torch.cuda.is_available() and self.preset.planner_training and self.has("planner"):
            self.check_gpu()

    def check_gpu(self) -> None:
        """Refuse a run that the GPU has no room for, as soon as the models' shapes are known. Raises InputError."""
        local = self.preset.execution.backend.kind == "local" and self.has("executor")
        gpu_budget.check(self.preset, self.need("planner").path, self.need("executor").path if local else None)

    def make(self, stage: str, **instance: Any) -> store.Artifact:
        """The finished stage: found if it is there, otherwise built (or resumed) now.

        Raises:
            store.MissingArtifact: a stage it depends on has not been made.
        """
        return self._get(stage, instance, build=True)

    def make_all(self, stage: str, instances: list[dict[str, Any]]) -> list[store.Artifact]:
        """`make` for several instances of a stage, side by side on a CPU, in turn on a GPU."""
        missing = [i for i in instances if not self.has(stage, **i)]
        if missing and not torch.cuda.is_available():
            steps, logged = STAGES[stage].steps(self.preset)
            folders = [self._place(stage, i)[0] for i in missing]
            run_in_processes(
                _make_in_worker,
                [(self.arguments, stage, i) for i in missing],
                steps * len(missing),
                lambda: sum(steps if (f / store.MANIFEST).exists() else len(list(f.glob(logged))) for f in folders),
                f"{stage}: {len(missing)} runs",
            )
        return [self.make(stage, **i) for i in instances]

    def need(self, stage: str, **instance: Any) -> store.Artifact:
        """A stage of an earlier notebook.

        Raises:
            store.MissingArtifact: it has not been made yet; the message names the notebook that makes it.
        """
        return self._get(stage, instance, build=False)

    def has(self, stage: str, **instance: Any) -> bool:
        """True if the stage is there and up to date."""
        try:
            self.need(stage, **instance)
        except store.MissingArtifact:
            return False
        return True

    def problems(self, split: str) -> list[Problem]:
        """The problems of one split, from the stage `problems`."""
        path = self.need("problems").path / f"{split}.jsonl"
        return [Problem.model_validate(record) for _, record in read_jsonl(path)]

    def groups(self, split: str) -> list[Group]:
        """The groups of one split, from the stage `groups`."""
        return list(load_groups(self.need("groups").path / f"{split}.jsonl"))

    def executor(self) -> Executor:
        """The frozen executor, loaded, or asked over HTTP."""
        local = self.preset.execution.backend.kind == "local"
        e = self.preset.execution
        sampling = Sampling(e.temperature, e.top_p, e.max_new_tokens, e.batch_tokens)
        if local:
            folder = self.need("executor").path
            backend: Backend = LocalBackend(Sampler(load_model(folder), load_tokenizer(folder), sampling))
        else:
            backend = ServerBackend(e.backend, sampling)
        return Executor(backend, self.preset.prompt_style, self.preset.limits, verifier_of(e))

    def scorer(self) -> TraceScorer:
        """What gives q in rewards and evaluations: the trained Reasoning RM, or the service that the preset names."""
        remote = self.preset.execution.scorer
        if remote is None:
            return self.reward_model()
        return RemoteScorer(remote.url, remote.max_length, remote.batch_size, remote.timeout)

    def reward_model(self) -> Scorer:
        """The trained Reasoning RM, loaded."""
        folder = self.need("reward_model").path / "model"
        return Scorer.from_folder(folder, self.preset.execution.batch_tokens, SCORING_LENGTH)

    def planner(self, policy: dict[str, Any] | None = None) -> Sampler:
        """The warm start (`policy` None) or a trained planner (`{"arm": ..., "seed": ...}`), drawing as in training."""
        start = self.need("planner").path
        trained = self.need("planner_training", **policy).path if policy else None
        t = self.preset.planner_training
        sampling = Sampling(t.temperature, t.top_p, t.max_completion, self.preset.execution.batch_tokens)
        return Sampler(load_policy(start, trained), load_tokenizer(start), sampling)

    def policies(self) -> list[dict[str, Any]]:
        """Every (arm, seed) of the preset."""
        t = self.preset.planner_training
        return [{"arm": arm, "seed": seed} for arm in t.arms for seed in t.seeds]

    def _place(self, name: str, instance: dict[str, Any]) -> tuple[Path, dict[str, store.Artifact], dict[str, Any]]:
        """Folder of a stage, the stages it depends on, and the settings that decide its result."""
        stage = STAGES[name]
        config = {"seed": self.preset.seed, **stage.config(self.preset), **instance}
        upstream, keys = {}, {}
        for other, other_instance in stage.needs(self.preset, instance):
            artifact = self._get(other, other_instance, build=False)
            label = "/".join([other, *map(str, other_instance.values())])
            upstream[label], keys[label] = artifact, artifact.path.name
        return self.folder / name / store.key_of(name, stage.version, config, keys), upstream, config

    def _get(self, name: str, instance: dict[str, Any], build: bool) -> store.Artifact:
        stage = STAGES[name]
        folder, upstream, config = self._place(name, instance)
        found = store.find(folder, upstream)
        if found:
            return found
        if not build:
            raise store.MissingArtifact(
                f"stage {name!r}{f' {instance}' if instance else ''} of preset {self.preset.name!r} is missing or "
                f"was made from other inputs. Notebook {stage.notebook} makes it: run that first "
                f"(or `make reproduce PRESET={self.preset.name}` for all)."
            )
        description = {
            "stage": name,
            "version": stage.version,
            "preset": self.preset.name,
            "seed": self.preset.seed,
            "config": config,
        }

        def begin(out: Path) -> None:
            self.on_build(out)
            stage.build(self, out, **instance)

        return store.make(folder, upstream, begin, description, self.preset.min_free_gb)


def _make_in_worker(arguments: tuple, stage: str, instance: dict[str, Any]) -> None:
    Run(*arguments).make(stage, **instance)


Needs = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """How one stage is made. `config` is the part of the preset that decides its result.

    `steps` gives the number of steps of one instance, and what files in its folder show those done.
    """

    notebook: str
    build: Callable[..., None]
    config: Callable[[Preset], dict[str, Any]]
    needs: Callable[[Preset, dict[str, Any]], Needs] = field(default=lambda preset, instance: [])
    version: int = 1
    steps: Callable[[Preset], tuple[int, str]] = field(default=lambda preset: (1, store.MANIFEST))


def _section(*names: str) -> Callable[[Preset], dict[str, Any]]:
    """The named preset fields as plain JSON values."""
    return lambda preset: {name: preset.model_dump(mode="json")[name] for name in names}


def _execution(preset: Preset) -> dict[str, Any]:
    """The section `execution`, without the RM's service and where and how patiently a server is asked."""
    section = preset.model_dump(mode="json")["execution"]
    section["backend"] = {k: v for k, v in section["backend"].items() if k in ("kind", "model", "api")}
    del section["scorer"]
    return {"execution": section}


def _scorer_config(preset: Preset) -> dict[str, Any]:
    """Which model scores, if not the preset's own; nothing about where it is asked."""
    remote = preset.execution.scorer
    return {"scorer": remote.model_dump(include={"model", "max_length"})} if remote else {}


def _scorer_stage(preset: Preset) -> list[str]:
    return [] if preset.execution.scorer else ["reward_model"]


def _groups_config(preset: Preset) -> dict[str, Any]:
    """The section `groups`; without `seeds` where groups come from the preset's own problems."""
    section = _section("groups")(preset)
    if _own_groups(preset):
        del section["groups"]["seeds"]
    return section


def _own_groups(preset: Preset) -> bool:
    """Whether groups are made of the preset's own problems, whose test split the executor answers too."""
    return preset.groups is not None and preset.groups.seeds is None


def _executor_stage(preset: Preset) -> list[str]:
    """A local executor is a stage's model; one behind a server is not ours to make."""
    return ["executor"] if preset.execution.backend.kind == "local" else []


def _after(*stages: str) -> Callable[[Preset, dict[str, Any]], Needs]:
    return lambda preset, instance: [(name, {}) for name in stages]


def write_jsonl(path: Path, records: list[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


GENERATED = {"tiny_world": tinyworld, "tiny_code": tinycode}


def _build_problems(run: Run, out: Path) -> None:
    p = run.preset.problems
    if p.source in GENERATED:
        splits = GENERATED[p.source].generate_splits(p.sizes, p.steps, p.max_number, p.max_value, run.preset.seed)
    elif p.source == "gsm_symbolic":
        splits = symbolic_splits(p.sizes, run.preset.seed)
    else:
        splits = _gsm8k_splits(p, run.preset.seed)
    for split, problems in splits.items():
        write_jsonl(out / f"{split}.jsonl", [problem.model_dump() for problem in problems])


def _gsm8k_splits(source: GSM8K, seed: int) -> dict[str, list[Problem]]:
    """Problems of each split, drawn at random; `rl` has problems of GSM8K train that the split train has not."""
    folder, splits = Path(source.folder) if source.folder else None, {}
    for split in sorted(source.sizes, key=["train", "rl", "test"].index):
        problems = load_gsm8k(folder, "test" if split == "test" else "train", source.revision)
        if split == "rl":
            taken = {p.problem for p in splits.get("train", [])}
            problems = [p for p in problems if p.problem not in taken]
        size = min(source.sizes[split], len(problems))
        splits[split] = random.Random(seed).sample(problems, size)
    return splits


def _build_executor(run: Run, out: Path) -> None:
    source = run.preset.executor
    if source.source == "train":
        base.train_base(source, run.problems("train"), run.preset.prompt_style, run.preset.seed, out)
    else:
        fetch(source, out)


def _build_planner(run: Run, out: Path) -> None:
    source = run.preset.planner
    if isinstance(source, WarmStart | ReferenceStart):
        start = run.need("executor").path
        warm_start(source, start, run.problems("train"), run.preset.prompt_style, run.preset.seed, out)
    else:
        fetch(source, out)


def _build_groups(run: Run, out: Path) -> None:
    """{train,dev,test}.jsonl; of public seeds also the same as parquet, the builder's report.json and its data card."""
    match run.preset.groups.seeds:
        case None:
            _groups_of_problems(run, out)
        case PublicSeeds():
            _groups_of_seeds(run, out)
        case ReleasedGroups():
            _released_groups(run, out)


def _groups_of_seeds(run: Run, out: Path) -> None:
    """Test groups come from the last seeds, so from problems that no other split has."""
    g, folder = run.preset.groups, data_folder()
    seeds = SeedSettings(
        source=g.seeds.source,
        folder=folder,
        limit=g.sizes["train"] + g.sizes["test"],
        every=g.seeds.every,
        seed=run.preset.seed,
    )
    settings = BuildSettings(
        seeds=seeds, min_negatives=g.min_negatives, test=g.sizes["test"], drop_leaked=g.seeds.drop_leaked
    )
    work = out / WORK / "groups"
    build(settings, work, guard_of(seeds))
    for path in work.iterdir():
        shutil.copy(path, out)


def _released_groups(run: Run, out: Path) -> None:
    """Released dev groups, which no released model has learned from, are our test; our dev is a tenth of train."""
    g, r = run.preset.groups, run.preset.groups.seeds
    where = str(PROJECT / r.where) if (PROJECT / r.where).exists() else r.where
    kept = {}
    for split, released in (("train", "train"), ("test", "dev")):
        large = (x for x in load_groups(where, released, r.revision) if len(x.negative_bank) >= g.min_negatives)
        kept[split] = list(islice(large, g.sizes[split]))
    _write_groups(out, **kept)


def _groups_of_problems(run: Run, out: Path) -> None:
    g, kept = run.preset.groups, {}
    for split in ("train", "test"):
        built = [build_group(p, run.preset.seed) for p in run.problems(split)[: g.sizes[split]]]
        kept[split] = [x for x in built if len(x.negative_bank) >= g.min_negatives]
    _write_groups(out, **kept)


def _write_groups(out: Path, train: list[Group], test: list[Group]) -> None:
    """{train,dev,test}.jsonl; dev is a tenth of `train`."""
    by_id = {group.problem_id: group for group in train}
    train_ids, dev_ids = split_train_dev(by_id)
    splits = {"train": [by_id[i] for i in train_ids], "dev": [by_id[i] for i in dev_ids], "test": test}
    for split, groups in splits.items():
        write_jsonl(out / f"{split}.jsonl", [group.to_record() for group in groups])


def _build_reward_model(run: Run, out: Path) -> None:
    """`model`, a whole checkpoint; with LoRA also `adapter`, from which it was merged."""
    settings, seed = run.preset.reward_model, run.preset.seed
    backbone = run.need(settings.backbone).path
    tokenizer = load_tokenizer(backbone)
    groups, dev_groups = run.groups("train"), run.groups("dev")
    frozen = torch.bfloat16 if settings.lora and settings.precision == "bf16" else torch.float32
    model = ReasoningRewardModel.from_backbone(
        backbone, dimensions(groups[0].domain), seed, settings.new_layers, frozen, settings.four_bit
    )
    log = train_reward_model(
        model, tokenizer, groups, dev_groups, settings, seed, out / WORK / "trainer", out / "adapter"
    )
    if settings.lora:  # merged into the backbone as it is on disk: into 4-bit weights it would be rounded
        model = ReasoningRewardModel.from_adapter(out / "adapter", backbone, frozen)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    write_json(out / "log.json", log)


def _build_rm_scores(run: Run, out: Path) -> None:
    """The RM's scores of every trace of the held-out groups, beside the backbone's own likelihood of the trace."""
    scorer, backbone = run.reward_model(), run.need(run.preset.reward_model.backbone).path
    language_model, tokenizer = load_model(backbone), load_tokenizer(backbone)
    parts = []
    for split in ("dev", "test"):
        groups = run.groups(split)
        traces = [(g, c.reasoning) for g in groups for c in [*g.positive_pool, *g.negative_bank]]
        prompts = [as_chat(planner_prompt(g.as_problem(), run.preset.prompt_style), tokenizer) for g, _ in traces]
        texts, batch_tokens = [wrap_trace(z) for _, z in traces], run.preset.execution.batch_tokens
        values = token_log_likelihoods(language_model, tokenizer, prompts, texts, batch_tokens)
        likelihood = [value.mean() for value in values]
        rows = score_groups(scorer, groups, f"scoring {split}")
        parts.append(rows.assign(split=split, log_likelihood=likelihood, characters=[len(z) for _, z in traces]))
    pd.concat(parts, ignore_index=True).to_parquet(out / "scores.parquet", index=False)


NATURAL_CHUNK = 32  # traces scored between two saves


def _build_natural_errors(run: Run, out: Path) -> None:
    """scores.parquet: every prefix of the sampled natural traces under each score (natural_errors.score_traces)."""
    settings, seed = run.preset.natural_errors, run.preset.seed
    traces = [
        t
        for name, problems in settings.sets.items()
        for t in sample_problems(load_natural(name, data_folder()), problems, seed)
    ]
    backbone = run.need(_backbone_stage(run.preset)).path
    model, tokenizer = load_model(backbone), load_tokenizer(backbone)
    scorer = run.reward_model() if run.preset.reward_model else None
    _rows_by_chunk(
        out,
        "traces",
        traces,
        NATURAL_CHUNK,
        "natural errors: traces",
        lambda chunk, start: score_traces(
            chunk, model, tokenizer, scorer, run.preset.prompt_style, settings.batch_tokens, 100_003 * seed + start
        ),
    ).to_parquet(out / "scores.parquet", index=False)


def _rows_by_chunk(
    out: Path, name: str, items: list, size: int, title: str, rows_of: Callable[[list, int], pd.DataFrame]
) -> pd.DataFrame:
    """`rows_of(chunk, index of its first item)` of all chunks; each is saved, so an interrupted stage goes on."""
    parts = []
    (out / WORK).mkdir(exist_ok=True)
    with tqdm(total=len(items), desc=title) as bar:
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            part = out / WORK / f"{name}-{start:05d}.parquet"
            if not part.exists():
                rows_of(chunk, start).to_parquet(part.with_suffix(".tmp"), index=False)
                part.with_suffix(".tmp").rename(part)
            parts.append(pd.read_parquet(part))
            bar.update(len(chunk))
    return pd.concat(parts, ignore_index=True)


def _backbone_stage(preset: Preset) -> str:
    """The model under the RM; without an RM, the executor."""
    return preset.reward_model.backbone if preset.reward_model else "executor"


def _natural_config(preset: Preset) -> dict[str, Any]:
    """What decides the scores; how many resamples a table takes later does not."""
    sets = preset.natural_errors.sets if preset.natural_errors else {}
    return {"sets": sets, **_section("prompt_style")(preset)}


BASELINE_CHUNK = 256
UPLIFT_CHUNK = 16  # problems answered between two saves: an interrupted run loses at most one chunk


def _build_uplift(run: Run, out: Path) -> None:
    """Verdicts of the executor on test problems: without trace, with the reference, with each flawed trace.

    Every chunk has its own seed and file, so a resumed run gives what an uninterrupted one does.
    """
    e, seed = run.preset.execution, run.preset.seed
    problems = run.problems("test")[: e.problems]
    banks = {g.problem_id: g.negative_bank for g in run.groups("test")} if _own_groups(run.preset) else {}
    executor = run.executor()
    executor.self_test(problems[:4])
    _rows_by_chunk(
        out,
        "problems",
        problems,
        UPLIFT_CHUNK,
        "executor: problems",
        lambda chunk, start: _uplift_rows(executor, chunk, banks, e.baseline_samples, 100_003 * seed + start),
    ).to_parquet(out / "verdicts.parquet", index=False)


def _uplift_rows(
    executor: Executor, problems: list[Problem], banks: dict[str, list[Candidate]], n: int, seed: int
) -> pd.DataFrame:
    """One row an answer: problem_id, condition, trace, sample, answer, success."""
    cases: list[tuple[Problem, str, str | None]] = [(p, "none", None) for p in problems]
    cases += [(p, "reference", p.reference_solution) for p in problems]
    cases += [(p, c.negative_kind, c.reasoning) for p in problems for c in banks.get(p.problem_id, [])]
    answers = executor.answer([p for p, _, _ in cases], [z for _, _, z in cases], n, seed)
    rows = [(p, condition, trace, i, y) for (p, condition, trace), ys in zip(cases, answers) for i, y in enumerate(ys)]
    success = executor.successes([p for p, *_ in rows], [y for *_, y in rows])
    table = pd.DataFrame(rows, columns=["problem_id", "condition", "trace", "sample", "answer"])
    return table.assign(problem_id=[p.problem_id for p, *_ in rows], success=success)


def _build_baseline(run: Run, out: Path) -> None:
    """No-trace verdicts of every training problem: a property of the frozen executor, so drawn once.

    What a server draws does not depend on the other requests, so it is saved and resumed in chunks; this process draws
    all at once.
    """
    problems, executor, e = run.problems("rl"), run.executor(), run.preset.execution
    executor.self_test(problems[:4])
    size, baseline = len(problems) if e.backend.kind == "local" else BASELINE_CHUNK, {}
    for start in range(0, len(problems), size):
        chunk = problems[start : start + size]
        part = out / WORK / f"baseline-{start:06d}.json"
        if not part.exists():
            name = f"baseline, problems {start + 1} to {start + len(chunk)} of {len(problems)}"
            verdicts = executor.verdicts(chunk, [None] * len(chunk), e.baseline_samples, run.preset.seed + 1, name)
            part.parent.mkdir(exist_ok=True)
            write_json(part, {p.problem_id: v.tolist() for p, v in zip(chunk, verdicts)})
        baseline |= json.loads(part.read_text())
    write_json(out / "baseline.json", baseline)


def _build_planner_training(run: Run, out: Path, arm: str, seed: int) -> None:
    """One run; in a launch of several processes every one of them comes here (launch.py)."""
    if torch.cuda.is_available():
        run.check_gpu()
    preset, needs, rank = run.preset, NEEDS[arm], launched_as(run.preset.planner_training.processes)
    cached = preset.execution.baseline == "cached"
    engine = RewardEngine(
        arm=arm,
        k=preset.execution.k,
        executor=run.executor(),
        s_run=preset.execution.s_run,
        ties=preset.execution.ties,
        scorer=run.scorer() if "q" in needs else None,
        judge=truth_judge if "j" in needs else None,
        problems={p.problem_id: p for p in run.problems("rl")},
        baseline=run.need("baseline").json("baseline.json") if cached and compares(arm) else None,
        seed=derived_seed(seed, rank) if rank else seed,  # else all would draw the same numbers
        max_failure_rate=preset.execution.max_failure_rate,
        log_folder=out / WORK / "rollouts" / (rank_folder(rank) if rank else ""),
    )
    start = run.need("planner").path
    train_planner(
        start, load_tokenizer(start), engine, preset.planner_training, preset.prompt_style, preset.limits, seed, out
    )


NO_PART_IN_RESULT = {"arms", "seeds", "collapse"}


def launched_as(processes: int) -> int:
    """Rank of this process among the `processes` that a launcher has started.

    Raises:
        InputError: they are not as many.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != processes:
        raise InputError(
            f"planner_training.processes is {processes}, but {started} run: start them with "
            f"`accelerate launch --num_processes {processes} -m tracelift_lib.runs.launch` (notebook 06)"
        )
    return int(os.environ.get("RANK", 0))


def _training_config(preset: Preset) -> dict[str, Any]:
    """All that decides one training run; not the preset's other arms and seeds, nor what would have stopped it.

    Settings at their default are left out, so that results stay valid when a later version offers more of them.
    """
    training = preset.planner_training.model_dump(mode="json", exclude=NO_PART_IN_RESULT, exclude_defaults=True)
    sections = _section("prompt_style", "limits")(preset)
    return {**sections, **_execution(preset), **_scorer_config(preset), "planner_training": training}


def _needs_of_arm(preset: Preset, instance: dict[str, Any]) -> Needs:
    needs = NEEDS[instance["arm"]]
    cached = preset.execution.baseline == "cached"
    stages = ["problems", *_executor_stage(preset), "planner"]
    stages += _scorer_stage(preset) * ("q" in needs) + ["baseline"] * (cached and compares(instance["arm"]))
    return [(name, {}) for name in stages]


WARM_START = {"arm": "warm_start", "seed": 0}


def _build_evaluation(run: Run, out: Path, arm: str, seed: int) -> None:
    """Sampled traces of one policy on every evaluation split, with success, faithfulness, quality, length."""
    policy = {"arm": arm, "seed": seed}
    planner = run.planner(None if policy == WARM_START else policy)
    executor, scorer = run.executor(), run.scorer()
    parts = []
    for split in run.preset.evaluation.splits:
        rows = evaluate_planner(
            planner,
            executor,
            scorer,
            run.problems(split),
            run.preset.evaluation.traces,
            run.preset.prompt_style,
            run.preset.limits,
            run.preset.seed,
        )
        parts.append(rows.assign(split=split, arm=arm, seed=seed))
    pd.concat(parts).to_parquet(out / "rows.parquet", index=False)


def _evaluation_config(preset: Preset) -> dict[str, Any]:
    """All that decides an evaluation; planners draw as in training, so that way to draw counts too."""
    sampling = preset.planner_training.model_dump(include={"temperature", "top_p", "max_completion"})
    sections = _section("evaluation", "prompt_style", "limits")(preset)
    return {**_execution(preset), **_scorer_config(preset), **sections, "planner_sampling": sampling}


def _needs_of_evaluation(preset: Preset, instance: dict[str, Any]) -> Needs:
    trained = [] if instance == WARM_START else [("planner_training", instance)]
    stages = ("problems", *_executor_stage(preset), "planner", *_scorer_stage(preset))
    return [(name, {}) for name in stages] + trained


STAGES: dict[str, Stage] = {
    "problems": Stage("00_start_here", _build_problems, _section("problems")),
    "executor": Stage(
        "00_start_here",
        _build_executor,
        _section("executor", "prompt_style"),
        lambda preset, instance: [("problems", {})] if preset.executor.source == "train" else [],
    ),
    "planner": Stage(
        "00_start_here",
        _build_planner,
        _section("planner", "prompt_style"),
        lambda preset, instance: (
            [("problems", {}), ("executor", {})] if preset.planner.source in ("executor", "reference_traces") else []
        ),
    ),
    "groups": Stage(
        "01_build_groups",
        _build_groups,
        _groups_config,
        lambda preset, instance: [("problems", {})] if _own_groups(preset) else [],
    ),
    "reward_model": Stage(
        "02_train_reward_model",
        _build_reward_model,
        _section("reward_model"),
        lambda preset, instance: [("groups", {}), (preset.reward_model.backbone, {})],
    ),
    "rm_scores": Stage(
        "02_train_reward_model",
        _build_rm_scores,
        _section("prompt_style"),
        lambda preset, instance: [("groups", {}), ("reward_model", {}), (preset.reward_model.backbone, {})],
    ),
    "natural_errors": Stage(
        "02_train_reward_model",
        _build_natural_errors,
        _natural_config,
        lambda preset, instance: [
            (name, {}) for name in (_backbone_stage(preset), *(["reward_model"] if preset.reward_model else []))
        ],
    ),
    "uplift": Stage(
        "03_executor_uplift",
        _build_uplift,
        lambda preset: {**_execution(preset), **_section("prompt_style", "limits")(preset)},
        lambda preset, instance: [
            (name, {}) for name in ("problems", *_executor_stage(preset), *(["groups"] if _own_groups(preset) else []))
        ],
    ),
    "baseline": Stage(
        "03_executor_uplift",
        _build_baseline,
        lambda preset: {**_execution(preset), **_section("prompt_style", "limits")(preset)},
        lambda preset, instance: [(name, {}) for name in ("problems", *_executor_stage(preset))],
    ),
    "planner_training": Stage(
        "05_train_planner_lora",
        _build_planner_training,
        _training_config,
        _needs_of_arm,
        version=2,
        steps=lambda preset: (preset.planner_training.steps, f"{WORK}/rollouts/*.json"),
    ),
    "evaluation": Stage("07_evaluate", _build_evaluation, _evaluation_config, _needs_of_evaluation),
}
