"""The stages: what each makes, from what, and which notebook makes it. pipeline.py has them made.

A notebook makes its own stages and asks for those of earlier ones. `stage_graph`: all that a preset's notebooks make.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from tracelift_lib.evaluation.natural_measures import score_traces
from tracelift_lib.evaluation.natural_sets import load_natural, load_own, sample_problems
from tracelift_lib.evaluation.planner_evaluation import evaluate_planner
from tracelift_lib.evaluation.settings import OwnSet
from tracelift_lib.executor.backends import derived_seed
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.groups.builder import build, guard_of
from tracelift_lib.groups.group_files import load_groups
from tracelift_lib.groups.group_maker import BuildSettings, build_group
from tracelift_lib.groups.schema import Candidate, Group, dimensions, split_train_dev
from tracelift_lib.groups.seeds import SeedSettings, symbolic_splits
from tracelift_lib.groups.settings import PublicSeeds
from tracelift_lib.models import base
from tracelift_lib.models.generation import token_log_likelihoods
from tracelift_lib.models.loading import fetch, load_model, load_tokenizer
from tracelift_lib.models.settings import SupervisedTraining, TrainedModel
from tracelift_lib.planner.judges import judge_of
from tracelift_lib.planner.log import OTHER_PROCESS
from tracelift_lib.planner.prediction import Simulation, measure_habits, predict
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.planner.rewards import ARMS, NEEDS, compares
from tracelift_lib.planner.training import train_planner
from tracelift_lib.planner.warm_start import warm_start
from tracelift_lib.problems import tinycode, tinyworld
from tracelift_lib.problems.files import PROJECT, WORK, InputError, data_folder, file_sha256, write_json
from tracelift_lib.problems.problem import Problem, load_gsm8k
from tracelift_lib.problems.prompts import as_chat, planner_prompt, wrap_trace
from tracelift_lib.problems.settings import GSM8K
from tracelift_lib.reward_model.metrics import score_groups
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.training import train_reward_model
from tracelift_lib.runs import base_models, store
from tracelift_lib.runs.code_hash import hashes
from tracelift_lib.runs.settings import Preset
from tracelift_lib.verifier.verify_math import check_problems

if TYPE_CHECKING:
    from tracelift_lib.runs.pipeline import Run

Instance = dict[str, Any]  # which of a stage's results: {} where it has one, else {"arm": ..., "seed": ...}
Needs = list[tuple[str, Instance]]
WARM_START: Instance = {"arm": "warm_start", "seed": 0}


def _fields(preset: Preset, *names: str) -> dict[str, Any]:
    """The named fields as plain JSON values; of `execution` what decides results, of `scorer` which model it is."""
    whole = preset.model_dump(mode="json", include=set(names) | {"execution"})
    for name in ("packages", "prelude"):  # as they always are, they make no other result
        if whole["execution"][name] == type(preset.execution).model_fields[name].default:
            del whole["execution"][name]
    scorer, backend = whole["execution"].pop("scorer"), whole["execution"]["backend"]
    del whole["execution"]["min_failures"]  # whether a run is stopped is no part of its result
    if whole["execution"]["failed"] == "no_reward":  # as it was before that setting
        del whole["execution"]["failed"]
    decisive = ("kind", "model", "api", *(["extra_body"] if backend.get("extra_body") else []))
    whole["execution"]["backend"] = {k: v for k, v in backend.items() if k in decisive}
    if scorer:  # where and how patiently a server is asked is no part of the result
        whole["scorer"] = {k: v for k, v in scorer.items() if k in ("model", "max_length")}
    return {name: whole[name] for name in names if name in whole}


def _once(*names: str) -> Needs:
    """Stages that have one result each."""
    return [(name, {}) for name in names]


class Stage:
    """How one stage is made; each has a class below.

    Attributes:
        notebook: makes it.
        code: rooms of the library that make it, or files of them: `store.make` records their hashes.
        sections: fields of the preset that decide its result.
        required: sections of the preset that must not be null.
        splits: of the problems, which it reads if it needs that stage.
        also_made_by: other notebooks, which make it if the preset needs it there.
    """

    notebook: str
    code: tuple[str, ...]
    sections: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    also_made_by: tuple[str, ...] = ()
    version = 1

    def config(self, preset: Preset) -> dict[str, Any]:
        """The part of the preset that decides the result."""
        return _fields(preset, *self.sections)

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        """The stages that it is made from."""
        return []

    def instances(self, preset: Preset) -> list[Instance]:
        """The results that its notebook makes."""
        return [{}]

    def progress(self, preset: Preset) -> tuple[int, str]:
        """The number of steps of one instance, and what files in its folder show those done."""
        return 1, store.MANIFEST

    def source(self) -> dict[str, str]:
        """Hashes of the code that makes it."""
        classes = type(self).mro()[: -len(Stage.mro())]  # with what several stages have in common
        return hashes(*self.code, *(f"runs/stages.py:{c.__name__}" for c in classes))

    def build(self, run: Run, out: Path, **instance: Any) -> None:
        """Make it in the folder `out`; called again after an interruption."""
        raise NotImplementedError


def _scorer_stage(preset: Preset) -> list[str]:
    return [] if preset.execution.scorer else ["reward_model"]


def _executor_stage(preset: Preset) -> list[str]:
    return ["executor"] if preset.local_executor else []


def _backbone_stage(preset: Preset) -> str:
    """The model under the RM; without an RM, the executor."""
    return preset.reward_model.backbone if preset.reward_model else "executor"


def write_jsonl(path: Path, records: list[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


GENERATED = {"tiny_world": tinyworld, "tiny_code": tinycode}


class Problems(Stage):
    notebook, also_made_by = "00_start_here", ("01_build_groups", "03_executor_uplift")
    code, sections = ("problems", "groups/seeds.py"), ("problems",)

    def build(self, run: Run, out: Path) -> None:
        p = run.preset.problems
        if p.source in GENERATED:
            generate = GENERATED[p.source].generate_splits
            splits = generate(p.sizes, p.steps, p.max_number, p.max_value, run.preset.seed, shortcut=p.shortcut or {})
        elif p.source == "gsm_symbolic":
            splits = symbolic_splits(p.sizes, run.preset.seed)
        else:
            splits = _gsm8k_splits(p, run.preset.seed)
        for split, problems in splits.items():
            if p.source not in GENERATED:
                check_problems(problems)
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


class Model(Stage):
    """Weights, trained here or fetched.

    Attributes:
        section: of the preset, which says what model it is.
        trained_from: stages, if it is trained here.
    """

    splits = ("train",)
    section: str
    trained_from: tuple[str, ...]

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        trained = isinstance(preset.value(self.section), SupervisedTraining)
        return _once(*self.trained_from) if trained else []

    def build(self, run: Run, out: Path) -> None:
        if base_models.take(out, self.source()):
            return
        source, style, seed = run.preset.value(self.section), run.preset.prompt_style, run.preset.seed
        if isinstance(source, TrainedModel):
            base.train_base(source, run.problems("train"), style, seed, out)
        elif isinstance(source, SupervisedTraining):
            warm_start(source, run.need("executor").path, run.problems("train"), style, seed, out)
        else:
            fetch(source, out)


class SecondExecutor(Model):
    """Another model, from another seed, that answers with traces that were never written for it."""

    notebook, code = "07_evaluate", ("models",)
    sections, section, trained_from = ("second_executor", "prompt_style"), "second_executor", ("problems",)
    required = ("second_executor",)

    def instances(self, preset: Preset) -> list[Instance]:
        return [{}] if preset.second_executor else []

    def build(self, run: Run, out: Path) -> None:
        if base_models.take(out, self.source()):
            return
        preset = run.preset
        base.train_base(preset.second_executor, run.problems("train"), preset.prompt_style, preset.seed + 1, out)


class ExecutorModel(Model):
    notebook, also_made_by = "00_start_here", ("02_train_reward_model", "03_executor_uplift")
    code, sections = ("models",), ("executor", "prompt_style")
    section, trained_from = "executor", ("problems",)


class PlannerModel(Model):
    notebook, also_made_by = "00_start_here", ("02_train_reward_model", "05_train_planner_lora")
    code, sections = ("models", "planner/warm_start.py"), ("planner", "prompt_style")
    section, trained_from, required = "planner", ("problems", "executor"), ("planner",)


class Groups(Stage):
    notebook, code, sections = "01_build_groups", ("groups",), ("groups",)
    required, splits = ("groups",), ("train", "test")

    def config(self, preset: Preset) -> dict[str, Any]:
        """The section `groups`; without `seeds` where groups come from the preset's own problems.

        Nor an empty `leave_out`, so that results of before that setting stay valid.
        """
        section = super().config(preset)
        if not preset.groups.leave_out:
            del section["groups"]["leave_out"]
        if _own_groups(preset):
            del section["groups"]["seeds"]
        return section

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return _once("problems") if _own_groups(preset) else []

    def build(self, run: Run, out: Path) -> None:
        """{train,dev,test}.jsonl; of public seeds the same as parquet, the builder's report.json and its data card."""
        g, kept = run.preset.groups, {}
        if isinstance(g.seeds, PublicSeeds):
            return _groups_of_seeds(run, out)
        for split in ("train", "test"):
            small: Counter[str] = Counter()
            large = _large_enough(_groups_of(run, split), g.min_negatives, small)
            kept[split] = list(islice(large, g.sizes[split]))
            if small:
                print(
                    f"groups: {small.total()} of {split} have fewer than {g.min_negatives} flawed traces "
                    f"(groups.min_negatives) and are left out, {len(kept[split])} are kept",
                    flush=True,
                )
        by_id = {group.problem_id: group for group in kept["train"]}
        for split, ids in zip(("train", "dev"), split_train_dev(by_id)):
            kept[split] = [by_id[i] for i in ids]
        fewer = (group.without(g.leave_out) for group in kept["train"])
        kept["train"] = [group for group in fewer if len(group.negative_bank) >= g.min_negatives]
        for split, groups in kept.items():
            write_jsonl(out / f"{split}.jsonl", [group.to_record() for group in groups])


def _large_enough(groups: Iterable[Group], least: int, small: Counter[str]) -> Iterator[Group]:
    """Groups with `least` flawed traces; `small` counts the others."""
    for group in groups:
        if len(group.negative_bank) >= least:
            yield group
        else:
            small[group.problem_id] += 1


def _own_groups(preset: Preset) -> bool:
    """Whether groups are made of the preset's own problems, whose test split the executor answers too."""
    return preset.groups is not None and preset.groups.seeds is None


def _groups_of_seeds(run: Run, out: Path) -> None:
    """Test groups come from the last seeds, so from problems that no other split has."""
    g, test = run.preset.groups, run.preset.groups.sizes["test"]
    limit, every, seed = g.sizes["train"] + test, g.seeds.every, run.preset.seed
    seeds = SeedSettings(source=g.seeds.source, folder=data_folder(), limit=limit, every=every, seed=seed)
    settings = BuildSettings(seeds=seeds, min_negatives=g.min_negatives, test=test, drop_leaked=g.seeds.drop_leaked)
    build(settings, out, guard_of(seeds))


def _groups_of(run: Run, split: str) -> Iterable[Group]:
    """Groups for a split that others have released, or of the preset's own problems.

    Released dev groups, which no released model has learned from, are our test; our dev is a tenth of train.
    """
    g = run.preset.groups
    if g.seeds is None:
        return (build_group(p, run.preset.seed) for p in run.problems(split)[: g.sizes[split]])
    where = str(PROJECT / g.seeds.where) if (PROJECT / g.seeds.where).exists() else g.seeds.where
    return load_groups(where, "dev" if split == "test" else "train", g.seeds.revision)


class RewardModel(Stage):
    notebook, code, sections = "02_train_reward_model", ("reward_model",), ("reward_model",)
    required = ("reward_model",)

    def config(self, preset: Preset) -> dict[str, Any]:
        """The section; without `total_head` where there is one, so that results of before that setting stay valid."""
        section = super().config(preset)
        if preset.reward_model.total_head:
            del section["reward_model"]["total_head"]
        return section

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return _once("groups", preset.reward_model.backbone)

    def build(self, run: Run, out: Path) -> None:
        """`model`, a whole checkpoint; with LoRA also `adapter`, from which it was merged."""
        settings, seed = run.preset.reward_model, run.preset.seed
        backbone = run.need(settings.backbone).path
        tokenizer, groups = load_tokenizer(backbone), run.groups("train")
        frozen = torch.bfloat16 if settings.lora and settings.precision == "bf16" else torch.float32
        model = ReasoningRewardModel.from_backbone(
            backbone,
            dimensions(groups[0].domain),
            seed,
            settings.new_layers,
            settings.lm_weight > 0,
            frozen,
            settings.four_bit,
            settings.total_head,
        )
        log = train_reward_model(
            model, tokenizer, groups, run.groups("dev"), settings, seed, out / WORK / "trainer", out / "adapter"
        )
        if settings.lora:  # merged into the backbone as it is on disk: into 4-bit weights it would be rounded
            model = ReasoningRewardModel.from_adapter(out / "adapter", backbone, frozen)
        model.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        write_json(out / "log.json", log)


class RewardModelScores(Stage):
    notebook, code, sections = "02_train_reward_model", ("reward_model",), ("prompt_style",)
    required = ("reward_model",)

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return _once("groups", "reward_model", preset.reward_model.backbone)

    def build(self, run: Run, out: Path) -> None:
        """The RM's scores of every trace of the held-out groups, beside the backbone's own likelihood of the trace."""
        scorer, backbone = run.reward_model(), run.need(run.preset.reward_model.backbone).path
        language_model, tokenizer = load_model(backbone), load_tokenizer(backbone)
        style, batch_tokens, parts = run.preset.prompt_style, run.preset.execution.batch_tokens, []
        for split in ("dev", "test"):
            groups = run.groups(split)
            traces = [(g, c.reasoning) for g in groups for c in g.candidates]
            prompts = [as_chat(planner_prompt(g.as_problem(), style), tokenizer) for g, _ in traces]
            wrapped = [wrap_trace(z) for _, z in traces]
            likelihood = [
                v.mean() for v in token_log_likelihoods(language_model, tokenizer, prompts, wrapped, batch_tokens)
            ]
            rows = score_groups(scorer, groups, f"scoring {split}")
            parts.append(rows.assign(split=split, log_likelihood=likelihood, characters=[len(z) for _, z in traces]))
        pd.concat(parts, ignore_index=True).to_parquet(out / "scores.parquet", index=False)


def _own_set(own: OwnSet) -> dict[str, Any]:
    """What decides the scores of a file of the user's own; without the file, nothing that any result could have."""
    path = PROJECT / Path(own.file).expanduser()
    return own.model_dump(exclude={"file"}) | {"sha256": file_sha256(path) if path.is_file() else None}


NATURAL_CHUNK = 32  # traces scored between two saves


class NaturalErrors(Stage):
    notebook = "02_train_reward_model"
    code = ("evaluation/natural_sets.py", "evaluation/natural_measures.py")
    required = ("natural_errors",)

    def config(self, preset: Preset) -> dict[str, Any]:
        """How many resamples a table takes later decides no score, nor does where a file of one's own lies."""
        sets = preset.natural_errors.sets if preset.natural_errors else {}
        decides = {n: _own_set(value) if isinstance(value, OwnSet) else value for n, value in sets.items()}
        return {"sets": decides, **_fields(preset, "prompt_style")}

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return _once(_backbone_stage(preset), *["reward_model"] * bool(preset.reward_model))

    def instances(self, preset: Preset) -> list[Instance]:
        return [{}] if preset.natural_errors else []

    def build(self, run: Run, out: Path) -> None:
        """scores.parquet: every prefix of the sampled natural traces under each score."""
        settings, seed, style = run.preset.natural_errors, run.preset.seed, run.preset.prompt_style
        traces = []
        for name, value in settings.sets.items():
            if isinstance(value, OwnSet):
                own = load_own(name, value.file, value.format, value.domain, value.task_type)
                traces += sample_problems(own, value.problems, seed)
            else:
                traces += sample_problems(load_natural(name, data_folder()), value, seed)
        backbone = run.need(_backbone_stage(run.preset)).path
        model, tokenizer = load_model(backbone), load_tokenizer(backbone)
        scorer = run.reward_model() if run.preset.reward_model else None

        def rows_of(chunk: list, start: int) -> pd.DataFrame:
            return score_traces(chunk, model, tokenizer, scorer, style, settings.batch_tokens, 100_003 * seed + start)

        rows = _rows_by_chunk(out, "traces", traces, NATURAL_CHUNK, "natural errors: traces", rows_of)
        rows.to_parquet(out / "scores.parquet", index=False)


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


class Answers(Stage):
    """What the executor's answers decide."""

    notebook, code = "03_executor_uplift", ("executor", "verifier")
    sections = ("execution", "prompt_style", "limits")

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return _once("problems", *_executor_stage(preset))


UPLIFT_CHUNK = 16  # problems answered between two saves: an interrupted run loses at most one chunk


class Uplift(Answers):
    splits = ("test",)

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return super().needs(preset, instance) + _once(*["groups"] * _own_groups(preset))

    def build(self, run: Run, out: Path) -> None:
        """Verdicts of the executor on test problems: without trace, with the reference, with each flawed trace.

        Every chunk has its own seed and file, so a resumed run gives what an uninterrupted one does.
        """
        e, seed = run.preset.execution, run.preset.seed
        problems = run.problems("test")[: e.problems]
        banks = {g.problem_id: g.negative_bank for g in run.groups("test")} if _own_groups(run.preset) else {}
        executor = run.executor()
        executor.self_test(problems[:4])

        def rows_of(chunk: list[Problem], start: int) -> pd.DataFrame:
            return _uplift_rows(executor, chunk, banks, e.baseline_samples, 100_003 * seed + start)

        rows = _rows_by_chunk(out, "problems", problems, UPLIFT_CHUNK, "executor: problems", rows_of)
        rows.to_parquet(out / "verdicts.parquet", index=False)


def _uplift_rows(
    executor: Executor, problems: list[Problem], banks: dict[str, list[Candidate]], n: int, seed: int
) -> pd.DataFrame:
    """One row for each answer: problem_id, condition, trace, sample, answer, success."""
    cases: list[tuple[Problem, str, str | None]] = [(p, "none", None) for p in problems]
    cases += [(p, "reference", p.reference_solution) for p in problems]
    cases += [(p, c.negative_kind, c.reasoning) for p in problems for c in banks.get(p.problem_id, [])]
    answers = executor.answer([p for p, _, _ in cases], [z for _, _, z in cases], n, seed)
    rows = [(p, condition, trace, i, y) for (p, condition, trace), ys in zip(cases, answers) for i, y in enumerate(ys)]
    success = executor.successes([p for p, *_ in rows], [y for *_, y in rows])
    table = pd.DataFrame(rows, columns=["problem_id", "condition", "trace", "sample", "answer"])
    return table.assign(problem_id=[p.problem_id for p, *_ in rows], success=success)


BASELINE_CHUNK = 256


def _training_split(preset: Preset) -> dict[str, str]:
    """The split that planners train on; nothing at its default, so that older results stay valid."""
    t = preset.planner_training
    return t.model_dump(include={"split"}, exclude_defaults=True) if t else {}


class Baseline(Answers):
    splits = ("rl",)

    def instances(self, preset: Preset) -> list[Instance]:
        return [{}] if preset.planner_training and "05" not in preset.leaves_out else []

    def config(self, preset: Preset) -> dict[str, Any]:
        return super().config(preset) | _training_split(preset)

    def build(self, run: Run, out: Path) -> None:
        """No-trace verdicts of every training problem: a property of the frozen executor, so drawn once.

        What a server draws does not depend on the other requests, so it is saved and resumed in chunks; this process
        draws all at once.
        """
        problems, n = run.problems(run.preset.planner_training.split), run.preset.execution.baseline_samples
        executor = run.executor()
        executor.self_test(problems[:4])

        def rows_of(chunk: list[Problem], start: int) -> pd.DataFrame:
            verdicts = executor.verdicts(chunk, [None] * len(chunk), n, run.preset.seed + 1, "baseline")
            return pd.DataFrame({"problem_id": [p.problem_id for p in chunk], "verdicts": verdicts.tolist()})

        size = len(problems) if run.preset.local_executor else BASELINE_CHUNK
        rows = _rows_by_chunk(out, "baseline", problems, size, "baseline: problems", rows_of)
        write_json(out / "baseline.json", {i: v.tolist() for i, v in zip(rows["problem_id"], rows["verdicts"])})


def _evaluated_splits(preset: Preset) -> list[str]:
    return preset.evaluation.splits if preset.evaluation else []


HOW_IT_ANSWERS = ("temperature", "top_p", "max_new_tokens", "answer", "style", "backend")


class Habits(Answers):
    """What the warm start does, on the training problems and those of every evaluation split."""

    notebook, code = "05_train_planner_lora", ("planner/prediction.py", "groups/habits.py", "groups/truth.py")
    sections = ("prompt_style", "limits")
    required, splits = ("prediction", "planner_training"), ("rl",)

    def config(self, preset: Preset) -> dict[str, Any]:
        """How it is measured; neither K nor how trainings use it."""
        measured = preset.prediction.model_dump(include={"problems", "traces", "runs"})
        sampling = preset.planner_training.model_dump(include={"temperature", "top_p", "max_completion"})
        execution = _fields(preset, "execution")["execution"]
        drawn = {key: execution[key] for key in HOW_IT_ANSWERS}
        own = {"prediction": measured, "planner_sampling": sampling, "execution": drawn}
        return super().config(preset) | own | {"splits": _evaluated_splits(preset)} | _training_split(preset)

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return super().needs(preset, instance) + _once("planner", *_scorer_stage(preset))

    def instances(self, preset: Preset) -> list[Instance]:
        return [{}] if preset.prediction else []

    def build(self, run: Run, out: Path) -> None:
        """habits.parquet: rows of `measure_habits`, with their split; the training problems are `rl`."""
        p, preset, parts = run.preset.prediction, run.preset, []
        planner, executor, scorer = run.planner(), run.executor(), run.scorer()
        splits = {"rl": preset.planner_training.split} | {split: split for split in _evaluated_splits(preset)}
        for i, (name, split) in enumerate(splits.items()):
            problems, seed = run.problems(split)[: p.problems], 1000 * preset.seed + 10 * i
            rows = measure_habits(
                planner, executor, scorer, problems, p.traces, p.runs, preset.prompt_style, preset.limits, seed
            )
            parts.append(rows.assign(split=name))
        pd.concat(parts, ignore_index=True).to_parquet(out / "habits.parquet", index=False)


class Predicted(Stage):
    notebook, required = "05_train_planner_lora", ("prediction", "planner_training")
    code = ("planner/prediction.py", "planner/theory.py", "planner/rewards.py")

    def config(self, preset: Preset) -> dict[str, Any]:
        """What the simulated trainings need to know of the real ones."""
        t, e = preset.planner_training, preset.execution
        training = t.model_dump(include={"steps", "problems_per_step", "generations", "judge_saturation"})
        return {
            "step_size": preset.prediction.step_size,
            "trainings": preset.prediction.trainings,
            "planner_training": training,
            "execution": e.model_dump(include={"k", "baseline", "baseline_samples"}),
        }

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        return _once("habits")

    def instances(self, preset: Preset) -> list[Instance]:
        return [{}] if preset.prediction else []

    def build(self, run: Run, out: Path) -> None:
        """prediction.parquet: `predict` for every arm that this preset can pay."""
        rows = pd.read_parquet(run.need("habits").path / "habits.parquet").query("split == 'rl'")
        parts = [
            predict(rows, simulation_of(run.preset, arm), run.preset.prediction.trainings, run.preset.seed).assign(
                arm=arm
            )
            for arm in tqdm(ARMS, desc="predicted arms")
            if arm != "released_code" or run.preset.execution.baseline == "fresh"
        ]
        pd.concat(parts, ignore_index=True).to_parquet(out / "prediction.parquet", index=False)


def simulation_of(preset: Preset, arm: str) -> Simulation:
    """The tabular training that stands for a real one of this arm."""
    t, e = preset.planner_training, preset.execution
    return Simulation(
        arm=arm,
        k=e.k,
        baseline_samples=e.baseline_samples,
        fresh=e.baseline == "fresh",
        groups=t.problems_per_step,
        generations=t.generations,
        steps=t.steps,
        step_size=preset.prediction.step_size,
        saturation=t.judge_saturation,
    )


NO_PART_IN_RESULT = {"arms", "seeds", "collapse"}


class TrainedPlanner(Stage):
    notebook, code, version = "05_train_planner_lora", ("planner",), 2
    required, splits = ("planner_training",), ("rl",)

    def config(self, preset: Preset) -> dict[str, Any]:
        """All that decides one training run; not the preset's other arms and seeds, nor what would have stopped it.

        Settings at their default are left out, so that results stay valid when a later version offers more of them.
        """
        training = preset.planner_training.model_dump(mode="json", exclude=NO_PART_IN_RESULT, exclude_defaults=True)
        return _fields(preset, "prompt_style", "limits", "execution", "scorer") | {"planner_training": training}

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        arm, cached = instance["arm"], preset.execution.baseline == "cached"
        stages = ["problems", *_executor_stage(preset), "planner"]
        stages += _scorer_stage(preset) * ("q" in NEEDS[arm]) + ["baseline"] * (cached and compares(arm))
        return _once(*stages)

    def instances(self, preset: Preset) -> list[Instance]:
        return policies(preset)

    def progress(self, preset: Preset) -> tuple[int, str]:
        return preset.planner_training.steps, f"{WORK}/rollouts/*.json"

    def build(self, run: Run, out: Path, arm: str, seed: int) -> None:
        """One run; in a launch of several processes every one of them comes here (launch.py)."""
        if torch.cuda.is_available():
            run.check_gpu()
        preset, e = run.preset, run.preset.execution
        parts, rank = NEEDS[arm], launched_as(preset.planner_training.processes)
        cached = e.baseline == "cached"
        engine = RewardEngine(
            arm=arm,
            k=e.k,
            executor=run.executor(),
            s_run=e.s_run,
            ties=e.ties,
            scorer=run.scorer() if "q" in parts else None,
            judge=judge_of(arm, preset.planner_training.judge_saturation, seed),
            problems={p.problem_id: p for p in run.problems(preset.planner_training.split)},
            baseline=run.need("baseline").json("baseline.json") if cached and compares(arm) else None,
            seed=derived_seed(seed, rank) if rank else seed,  # else all would draw the same numbers
            max_failure_rate=e.max_failure_rate,
            min_failures=e.min_failures,
            failed=e.failed,
            log_folder=out / WORK / "rollouts" / (OTHER_PROCESS.format(rank) if rank else ""),
        )
        start, t = run.need("planner").path, preset.planner_training
        train_planner(start, load_tokenizer(start), engine, t, preset.prompt_style, preset.limits, seed, out)


def policies(preset: Preset) -> list[Instance]:
    """Every (arm, seed) of the preset; none if it trains no planner."""
    t = preset.planner_training
    return [{"arm": arm, "seed": seed} for arm in t.arms for seed in t.seeds] if t else []


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


class Evaluated(Stage):
    notebook, code = "07_evaluate", ("evaluation/planner_evaluation.py",)
    sections = ("evaluation", "prompt_style", "limits", "execution", "scorer")
    required = ("evaluation", "planner_training")

    def config(self, preset: Preset) -> dict[str, Any]:
        """All that decides an evaluation; planners draw as in training, so that way to draw counts too."""
        sampling = preset.planner_training.model_dump(include={"temperature", "top_p", "max_completion"})
        return super().config(preset) | {"planner_sampling": sampling}

    def needs(self, preset: Preset, instance: Instance) -> Needs:
        trained = [] if instance == WARM_START else [("planner_training", instance)]
        second = ["second_executor"] * bool(preset.second_executor)
        return _once("problems", *_executor_stage(preset), *second, "planner", *_scorer_stage(preset)) + trained

    def instances(self, preset: Preset) -> list[Instance]:
        return [WARM_START, *policies(preset)]

    def build(self, run: Run, out: Path, arm: str, seed: int) -> None:
        """Sampled traces of one policy on every evaluation split, with success, faithfulness, quality, length."""
        policy, p = {"arm": arm, "seed": seed}, run.preset
        planner = run.planner(None if policy == WARM_START else policy)
        executor, scorer, traces, parts = run.executor(), run.scorer(), p.evaluation.traces, []
        second = run.executor("second_executor") if p.second_executor else None
        for split in p.evaluation.splits:
            problems = run.problems(split)
            rows = evaluate_planner(
                planner, executor, scorer, problems, traces, p.prompt_style, p.limits, p.seed, second
            )
            parts.append(rows.assign(split=split, arm=arm, seed=seed))
        pd.concat(parts).to_parquet(out / "rows.parquet", index=False)


STAGES: dict[str, Stage] = {
    "problems": Problems(),
    "executor": ExecutorModel(),
    "planner": PlannerModel(),
    "groups": Groups(),
    "reward_model": RewardModel(),
    "rm_scores": RewardModelScores(),
    "natural_errors": NaturalErrors(),
    "uplift": Uplift(),
    "baseline": Baseline(),
    "habits": Habits(),
    "prediction": Predicted(),
    "planner_training": TrainedPlanner(),
    "second_executor": SecondExecutor(),
    "evaluation": Evaluated(),
}


# --- the graph --------------------------------------------------------------------------------


def label_of(name: str, instance: Instance) -> str:
    """A stage's result in words, such as `evaluation/tracelift/0`."""
    return "/".join([name, *map(str, instance.values())])


def result_of(label: str) -> tuple[str, Instance]:
    """Stage and instance of a label."""
    name, *policy = label.split("/")
    return name, {"arm": policy[0], "seed": int(policy[1])} if policy else {}


def config_of(preset: Preset, name: str, instance: Instance) -> dict[str, Any]:
    """All that decides a result beside the stages that it is made from."""
    return {"seed": preset.seed, **STAGES[name].config(preset), **instance}


def key_of(preset: Preset, name: str, instance: Instance) -> str:
    """Names a result: a hash of what decides it, and of the keys of what it is made from."""
    stage = STAGES[name]
    upstream = {label_of(*need): key_of(preset, *need) for need in stage.needs(preset, instance)}
    return store.key_of(name, stage.version, config_of(preset, name, instance), upstream)


def with_upstream(preset: Preset, name: str, instance: Instance) -> Iterator[tuple[str, Instance]]:
    """All that a result is made from, at any distance, and at last itself; some of it more than once."""
    for need in STAGES[name].needs(preset, instance):
        yield from with_upstream(preset, *need)
    yield name, instance


def missing(preset: Preset, wanted: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What keys of the preset lack: key, what is wrong, what to do.

    Args:
        wanted: dotted key -> what its value must hold, if it is not null; without any: it must not be null.
    """
    for key, names in wanted.items():
        held = preset.value(key)
        if held is None and not names:
            service = " (or name a service in execution.scorer, for planner training and evaluation)"
            yield f"{key}: is null; add this section" + (service if key == "reward_model" else "")
        for name in [name for name in names if held is not None and name not in held]:
            add = f"`{name}: NUMBER`" if isinstance(held, dict) else "it"
            yield f"{key}: has no {name!r}, only {', '.join(map(str, held))}; add {add}"


def lacking(preset: Preset, name: str, instance: Instance) -> Iterator[str]:
    """What the preset lacks for a result and for all that it is made from, as `missing` says it."""
    stage = STAGES[name]
    null = list(missing(preset, dict.fromkeys(stage.required, ())))
    needs = [] if null else stage.needs(preset, instance)  # without its sections they are not known
    yield from null
    if ("problems", {}) in needs:
        yield from missing(preset, {"problems.sizes": stage.splits})
    for need in needs:
        yield from lacking(preset, *need)


def stage_graph(preset: Preset) -> dict[str, tuple[str, Instance]]:
    """Label -> result, of all that the notebooks of the preset make; what it is made from comes before it."""
    return {
        label_of(*result): result
        for name, stage in STAGES.items()
        if stage.notebook[:2] not in preset.leaves_out
        for instance in stage.instances(preset)
        for result in with_upstream(preset, name, instance)
    }
