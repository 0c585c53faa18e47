"""A run of a preset: its stages made, resumed or found, and what they hold loaded.

A notebook opens a `Run`, makes its own stages and asks for those of earlier notebooks:

    run = Run("tiny")
    groups = run.make("groups")      # built now, resumed, or found
    model = run.need("executor")     # found, or an error that names the notebook that makes it
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tracelift_lib.executor.backends import Backend, LocalBackend, ServerBackend
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.groups.group_files import load_groups
from tracelift_lib.groups.schema import Group
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.planner.training import load_policy
from tracelift_lib.problems.files import InputError, read_jsonl
from tracelift_lib.problems.problem import Problem
from tracelift_lib.reward_model.remote import RemoteScorer
from tracelift_lib.reward_model.scorer import Scorer, TraceScorer
from tracelift_lib.runs import gpu_budget, store
from tracelift_lib.runs.parallel import run_in_processes
from tracelift_lib.runs.presets import load_preset, variant
from tracelift_lib.runs.settings import Preset
from tracelift_lib.runs.stages import (
    STAGES,
    WARM_START,
    config_of,
    key_of,
    label_of,
    lacking,
    policies,
    stage_graph,
    with_upstream,
)
from tracelift_lib.sandbox.host import Allowed
from tracelift_lib.verifier.verdicts import Verifier

__all__ = ["STAGES", "WARM_START", "Run", "stage_graph", "stale_lines"]
SCORING_LENGTH = 3072  # tokens; docs/method.md section 5


class Run:
    """A preset with its seed, overrides and perhaps a variant of it (`changed`), and the stages made for it so far."""

    def __init__(
        self, preset: str, seed: int | None = None, overrides: dict[str, Any] | None = None, changed: str | None = None
    ):
        self.arguments = (preset, seed, overrides, changed)
        self.preset: Preset = load_preset(*self.arguments)
        self.variant = variant(preset, seed, overrides)
        self.folder = store.home() / "runs" / self.preset.results
        self.on_build: Callable[[Path], None] = lambda out: None  # called before a stage is built in its folder
        if self.preset.threads:
            torch.set_num_threads(self.preset.threads)
        if torch.cuda.is_available() and self.preset.planner_training and self.has("planner"):
            self.check_gpu()

    def check_gpu(self) -> None:
        """Refuse a run that the GPU has no room for, as soon as the models' shapes are known. Raises InputError."""
        local = self.preset.local_executor and self.has("executor")
        gpu_budget.check(self.preset, self.need("planner").path, self.need("executor").path if local else None)

    # --- stages -------------------------------------------------------------------------------

    def make(self, stage: str, **instance: Any) -> store.Artifact:
        """The finished stage: found if it is there, otherwise built (or resumed) now.

        One that other code has made than today's is named and kept; with STALE=rebuild it is built again.

        Raises:
            InputError: the preset lacks something that the stage needs; names the key.
            store.MissingArtifact: a stage it depends on has not been made.
        """
        for line in lacking(self.preset, stage, instance):
            raise InputError(f"preset {self.preset.name} cannot make stage {stage!r}: {line}")
        folder, upstream = self.folder_of(stage, **instance), self._upstream(stage, instance)
        found, code = store.find(folder, upstream), STAGES[stage].source()
        if found and (files := store.changed_code(found, code)):
            _say_once(stale_line(label_of(stage, instance), files))
        if found and not store.must_rebuild(found, code):
            return found
        description = {
            "stage": stage,
            "version": STAGES[stage].version,
            "preset": self.preset.name,
            "seed": self.preset.seed,
            "config": config_of(self.preset, stage, instance),
            "code": code,
        }

        def begin(out: Path) -> None:
            self.on_build(out)
            STAGES[stage].build(self, out, **instance)

        return store.make(folder, upstream, begin, description, self.preset.min_free_gb)

    def make_all(self, stage: str, instances: list[dict[str, Any]]) -> list[store.Artifact]:
        """`make` for several instances of a stage, side by side on a CPU, in turn on a GPU."""
        return make_side_by_side(stage, [(self, instance) for instance in instances])

    def changed(self, name: str) -> Run:
        """This run with the values of a variant of its preset; what the variant does not change, both share."""
        return Run(*self.arguments[:3], changed=name)

    def make_variants(self) -> dict[tuple[str, str, int], store.Artifact]:
        """Train and evaluate every policy of every variant: (variant, arm, seed) -> its evaluation."""
        runs = {name: self.changed(name) for name in self.preset.variants}
        policies = [(name, policy) for name, run in runs.items() for policy in run.policies()]
        for name, policy in policies:
            for stage, instance in with_upstream(runs[name].preset, "evaluation", policy):
                if not instance:
                    runs[name].make(stage)
        calls = [(runs[name], policy) for name, policy in policies]
        make_side_by_side("planner_training", calls)
        evaluated = make_side_by_side("evaluation", calls)
        return {(name, *policy.values()): files for (name, policy), files in zip(policies, evaluated)}

    def need(self, stage: str, **instance: Any) -> store.Artifact:
        """A stage of an earlier notebook.

        Raises:
            store.MissingArtifact: it has not been made yet; the message names the notebook that makes it.
        """
        found = store.find(self.folder_of(stage, **instance), self._upstream(stage, instance))
        if found:
            return found
        raise store.MissingArtifact(
            f"stage {stage!r}{f' {instance}' if instance else ''} of preset {self.preset.name!r} is missing or "
            f"was made from other inputs. Notebook {STAGES[stage].notebook} makes it: run that first "
            f"(or `make reproduce PRESET={self.preset.name}` for all)."
        )

    def has(self, stage: str, **instance: Any) -> bool:
        """True if the stage is there and up to date, so that `make` would only find it."""
        try:
            found = self.need(stage, **instance)
        except store.MissingArtifact:
            return False
        return not store.must_rebuild(found, STAGES[stage].source())

    def folder_of(self, stage: str, **instance: Any) -> Path:
        """Where a stage's result is or will be."""
        return self.folder / stage / key_of(self.preset, stage, instance)

    def _upstream(self, stage: str, instance: dict[str, Any]) -> dict[str, store.Artifact]:
        """What a stage is made from, by label."""
        needs = STAGES[stage].needs(self.preset, instance)
        return {label_of(name, other): self.need(name, **other) for name, other in needs}

    # --- what stages hold ---------------------------------------------------------------------

    def problems(self, split: str) -> list[Problem]:
        """The problems of one split, from the stage `problems`."""
        path = self.need("problems").path / f"{split}.jsonl"
        return [Problem.model_validate(record) for _, record in read_jsonl(path)]

    def groups(self, split: str) -> list[Group]:
        """The groups of one split, from the stage `groups`."""
        return list(load_groups(self.need("groups").path / f"{split}.jsonl"))

    def executor(self, stage: str = "executor") -> Executor:
        """The frozen executor, loaded, or asked over HTTP; or the `second_executor`, which is always loaded."""
        e = self.preset.execution
        sampling = Sampling(e.temperature, e.top_p, e.max_new_tokens, e.batch_tokens)
        if self.preset.local_executor or stage != "executor":
            folder = self.need(stage).path
            backend: Backend = LocalBackend(Sampler(load_model(folder), load_tokenizer(folder), sampling))
        else:
            backend = ServerBackend(e.backend, sampling)
        verifier = Verifier(e.answer, e.style, Allowed(tuple(e.packages), e.prelude))
        return Executor(backend, self.preset.prompt_style, self.preset.limits, verifier)

    def scorer(self) -> TraceScorer:
        """What gives q in rewards and evaluations: the trained Reasoning RM, or the service that the preset names."""
        remote = self.preset.execution.scorer
        if remote is None:
            return self.reward_model()
        return RemoteScorer(**remote.model_dump(exclude={"model"}))

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

    def moved(self, arm: str) -> bool:
        """Whether any step of any training of this arm had a gradient; without one it is the warm start itself."""
        logs = [self.need("planner_training", **p).path / "steps.csv" for p in self.policies() if p["arm"] == arm]
        return any((pd.read_csv(log).get("grad_norm", pd.Series(0.0)) > 0).any() for log in logs)

    def policies(self) -> list[dict[str, Any]]:
        """Every (arm, seed) of the preset."""
        return policies(self.preset)


def make_side_by_side(stage: str, calls: list[tuple[Run, dict[str, Any]]]) -> list[store.Artifact]:
    """`make` of instances of one stage in several runs, each in a process of its own on a CPU, in turn on a GPU."""
    missing = [(run, instance) for run, instance in calls if not run.has(stage, **instance)]
    if missing and not torch.cuda.is_available():
        folders = {run.folder_of(stage, **i): STAGES[stage].progress(run.preset) for run, i in missing}

        def done() -> int:
            return sum(
                n if (f / store.MANIFEST).exists() else len(list(f.glob(log))) for f, (n, log) in folders.items()
            )

        run_in_processes(
            _make_in_worker,
            [(run.arguments, stage, i) for run, i in missing],
            sum(n for n, _ in folders.values()),
            done,
            f"{stage}: {len(missing)} runs",
        )
    return [run.make(stage, **instance) for run, instance in calls]


def _make_in_worker(arguments: tuple, stage: str, instance: dict[str, Any]) -> None:
    Run(*arguments).make(stage, **instance)


def stale_lines(preset: Preset) -> list[str]:
    """A line for each result of the preset on disk that other code has made than today's."""
    lines = []
    for label, (name, instance) in stage_graph(preset).items():
        folder = store.home() / "runs" / preset.results / name / key_of(preset, name, instance)
        with contextlib.suppress(store.CorruptArtifact, FileNotFoundError):
            artifact = store.Artifact(folder, store.read_manifest(folder))
            if files := store.changed_code(artifact, STAGES[name].source()):
                lines.append(stale_line(label, files))
    return lines


def stale_line(label: str, files: list[str]) -> str:
    """What to say of a result of other code: which, and which files have changed since."""
    what = "built again" if store.rebuilds_stale() else "kept; STALE=rebuild builds it again"
    return f"stage {label}: {', '.join(files)} changed since it was made; {what}"


@functools.cache
def _say_once(line: str) -> None:
    print(line, flush=True)
