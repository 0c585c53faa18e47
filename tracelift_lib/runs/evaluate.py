"""`tracelift evaluate`: any planner and any executor on benchmark sets. docs/add_a_benchmark.md has examples.

    tracelift evaluate --planner none,reference,run:tiny/tracelift --executor run:tiny --sets gsm8k,svamp --limit 100

Everything is kept under --out: a command that was killed and is given again goes on, and nothing is asked twice. No
stage of a preset is made or changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd

from tracelift_lib.evaluation import benchmark_tables as tables
from tracelift_lib.evaluation.benchmark_sets import LoadedSet, load_set, set_names
from tracelift_lib.evaluation.benchmarks import (
    ALONE,
    REFERENCE,
    Policy,
    evaluate_set,
    limits_of,
    sampling_facts,
    usable,
)
from tracelift_lib.executor.backends import LocalBackend, ServerBackend
from tracelift_lib.executor.client import CallFailed
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.problems.files import InputError, file_sha256, git_revision, write_json
from tracelift_lib.problems.hub import HUB_ERRORS, explain
from tracelift_lib.problems.records import MissingSet
from tracelift_lib.runs import report, store
from tracelift_lib.runs.code_hash import hashes
from tracelift_lib.runs.pipeline import WARM_START, Run
from tracelift_lib.runs.stages import policies
from tracelift_lib.verifier.verdicts import Verifier

RUN = "run:"
SAMPLED = (0.7, 0.5)  # temperatures of planner and executor for several samples (docs/method.md section 6)
TOKENS = {"planner": 512, "math": 256, "code": 768}  # as there
MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Options:
    """How all is drawn; None: what the run's preset says, or else SAMPLED and TOKENS."""

    samples: int = 1
    seed: int = 0
    temperature: float | None = None
    executor_temperature: float | None = None
    top_p: float | None = None
    planner_tokens: int | None = None
    executor_tokens: int | None = None
    code_tokens: int | None = None
    batch_tokens: int = 8192
    style: str | None = None

    def sampling(self, kind: str, own: Sampling | None) -> Sampling:
        """The effective settings of `planner`, or of an executor of domain `math` or `code`; one sample is greedy."""
        planner = kind == "planner"
        given, default = (self.temperature, SAMPLED[0]) if planner else (self.executor_temperature, SAMPLED[1])
        drawn = given if given is not None else own.temperature if own else default
        if given is None and self.samples == 1:
            drawn = 0.0
        wanted = self.planner_tokens if planner else self.executor_tokens
        wanted = self.code_tokens or wanted if kind == "code" else wanted
        usual = TOKENS[kind] if own is None or kind == "code" else own.max_new_tokens
        top_p = self.top_p if self.top_p is not None else own.top_p if own else 1.0
        return Sampling(drawn, top_p, wanted or usual, own.batch_tokens if own else self.batch_tokens)


# --- models -----------------------------------------------------------------------------------------------------------


def model_folder(named: str) -> tuple[Path, str]:
    """(folder, revision) of a model that is a folder here, or NAME or NAME@REVISION on the hub.

    Raises:
        InputError: there is none; says what to do.
    """
    path = Path(named)
    if path.exists():
        if not (path / "config.json").exists() and not (path / "adapter_config.json").exists():
            raise InputError(f"{named}: no config.json; a model folder must hold what save_pretrained writes")
        weights = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
        return path, hashlib.sha256("".join(map(file_sha256, weights)).encode()).hexdigest()[:12]
    name, _, revision = named.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=MODEL_FILES)
    except huggingface_hub.errors.HFValidationError:
        raise InputError(f"{named}: no such folder, and no name of a model on the hub (OWNER/NAME)") from None
    except HUB_ERRORS as error:
        local = "name a local folder with the model"
        raise InputError(explain(error, name, revision or None, "model", local)) from None
    return Path(folder), Path(folder).name


def _run_of(preset: str, run: Run | None) -> Run:
    """`run` if it is of this preset: it may have overrides and another seed."""
    return run if run and run.preset.name == preset else Run(preset)


def read_executor(named: str, options: Options, run: Run | None = None) -> tuple[Executor, str]:
    """The executor and its revision: a folder, a hub name, `run:PRESET`, or `http://HOST/v1#MODEL` of a server."""
    style, verifier = options.style, Verifier()
    if named.startswith(RUN):
        run = _run_of(named.removeprefix(RUN).split("/")[0], run)
        executor = run.executor()
        revision = run.need("executor").digest[:12] if run.preset.local_executor else run.preset.execution.backend.model
        return replace(executor, style=style or executor.style), revision
    limits = limits_of("math", None)
    if named.startswith("http"):
        url, _, model = named.partition("#")
        if not model:
            raise InputError(f"--executor {named}: name the served model too, as in {url}#MODEL")
        settings = ServerBackendSettings(kind="server", base_urls=[url], model=model)
        backend = ServerBackend(settings, options.sampling("math", None))
        return Executor(backend, style or "instruct", limits, verifier), model
    folder, revision = model_folder(named)
    sampler = Sampler(load_model(folder), load_tokenizer(folder), options.sampling("math", None))
    return Executor(LocalBackend(sampler), style or "instruct", limits, verifier), revision


def read_policies(named: str, options: Options, run: Run | None = None) -> Iterator[Policy]:
    """The policies of one word of --planner, one after another: those of `run:PRESET/ARM` are its seeds."""
    if named in ("none", "reference"):
        yield Policy(ALONE if named == "none" else REFERENCE)
    elif named.startswith(RUN):
        preset, _, which = named.removeprefix(RUN).partition("/")
        run = _run_of(preset, run)
        for policy in _chosen(run, which, named):
            planner = run.planner(None if policy == WARM_START else policy)
            sampler = replace(planner, sampling=options.sampling("planner", planner.sampling))
            yield Policy(f"{preset}/{policy['arm']}", policy["seed"], sampler, _revision(run, policy))
    else:
        folder, revision = model_folder(named)
        sampling = options.sampling("planner", None)
        yield Policy(
            Path(named).name or named, 0, Sampler(load_model(folder), load_tokenizer(folder), sampling), revision
        )


def _chosen(run: Run, which: str, named: str) -> list[dict[str, Any]]:
    arm, _, seed = which.partition("/")
    there = [WARM_START, *policies(run.preset)]
    found = [p for p in there if p["arm"] == (arm or "warm_start") and seed in ("", str(p["seed"]))]
    if not found:
        names = ", ".join(f"{p['arm']}/{p['seed']}" for p in there)
        raise InputError(f"--planner {named}: preset {run.preset.name} has no such planner; there are {names}")
    return found


def _revision(run: Run, policy: dict[str, Any]) -> str:
    """Of a trained planner's weights; that of the warm start if no step of the training had a gradient."""
    start = run.need("planner").digest[:12]
    if policy == WARM_START:
        return start
    trained = run.need("planner_training", **policy)
    norms = pd.read_csv(trained.path / "steps.csv").get("grad_norm", pd.Series([1.0]))
    return trained.digest[:12] if (norms > 0).any() else start


# --- the evaluation ---------------------------------------------------------------------------------------------------


def evaluate(
    planners: Sequence[str],
    executor: str,
    loaded: Sequence[LoadedSet],
    options: Options,
    out: Path,
    run: Run | None = None,
) -> pd.DataFrame:
    """All rows of all policies on all sets, kept under `out` with a manifest.json.

    run: that of words `run:PRESET...`, if it has overrides or a seed of its own.

    Raises:
        InputError: a planner, executor or set is not there. CallFailed: a server gave no answer; call again to go on.
    """
    start, parts, facts = time.monotonic(), [], []
    asked, executor_revision = read_executor(executor, options, run)
    own = asked.backend.sampler.sampling if isinstance(asked.backend, LocalBackend) else None
    limits = asked.limits if executor.startswith(RUN) else None
    code = {"verifier_version": _hash(hashes("verifier", "sandbox")), "code_revision": git_revision()}
    for named in planners:
        for policy in read_policies(named, options, run):
            if policy.planner is not None:
                sampling = sampling_facts(policy.planner)
                facts.append({"policy": policy.name, "seed": policy.seed, "revision": policy.revision, **sampling})
            for one in loaded:
                part = usable(one, policy)
                fit = _with_sampling(asked, options.sampling(one.set.domain, own if executor.startswith(RUN) else None))
                identity = _identity(part, policy, fit, executor_revision, options, limits)
                folder = out / "parts" / f"{policy.name.replace('/', '-')}-{policy.seed}" / f"{one.set.name}-{identity}"
                made_by = {"executor_revision": executor_revision, **code}
                common = (options.samples, options.seed, folder, made_by, limits)
                parts.append(evaluate_set(part, policy, fit, *common))
    rows = pd.concat(parts, ignore_index=True)
    out.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(out / "answers.parquet", index=False)
    manifest = {
        "planners": facts,
        "executor": _executor_facts(executor, asked, executor_revision, loaded, options, own),
        "sets": {one.set.name: _set_facts(one) for one in loaded},
        "options": asdict(options),
        "style": asked.style,
        "limits": {one.set.name: asdict(limits_of(one.set.domain, limits)) for one in loaded},
        "seconds": round(time.monotonic() - start, 1),
        "revision": " ".join(sorted(rows["code_revision"].unique())),
    }
    write_json(out / "manifest.json", manifest | {"hardware": store.hardware(), "packages": store.versions()})
    return rows


def _with_sampling(executor: Executor, sampling: Sampling) -> Executor:
    """The same model, drawing otherwise."""
    backend = executor.backend
    if isinstance(backend, LocalBackend):
        return replace(executor, backend=LocalBackend(replace(backend.sampler, sampling=sampling)))
    backend.sampling = sampling
    return executor


def _identity(
    loaded: LoadedSet, policy: Policy, executor: Executor, revision: str, options: Options, limits: Any
) -> str:
    """A hash of all that decides an output: outputs of other settings are kept apart."""
    drawn = (
        executor.backend.sampler.sampling if isinstance(executor.backend, LocalBackend) else executor.backend.sampling
    )
    whole = {
        "set": loaded.set.model_dump(exclude={"title", "licence", "home", "files", "hub"}),
        "source": loaded.source,
        "planner": [policy.revision, asdict(policy.planner.sampling) if policy.planner else None],
        "executor": [revision, asdict(drawn)],
        "samples": options.samples,
        "seed": options.seed,
        "style": executor.style,
        "limits": asdict(limits_of(loaded.set.domain, limits)),
    }
    return _hash(whole)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _executor_facts(
    named: str, executor: Executor, revision: str, loaded: Sequence[LoadedSet], o: Options, own
) -> dict:
    local = isinstance(executor.backend, LocalBackend)
    own = own if named.startswith(RUN) else None
    by_domain = {d: asdict(o.sampling(d, own)) for d in sorted({one.set.domain for one in loaded})}
    model = sampling_facts(executor.backend.sampler) if local else {"server": executor.backend.name}
    facts = {key: model[key] for key in ("dtype", "parameters", "server") if key in model}
    return {"named": named, "revision": revision, **facts, "sampling": by_domain}


def _set_facts(loaded: LoadedSet) -> dict[str, Any]:
    spec = loaded.set
    facts = {"title": spec.title, "licence": spec.licence, "rule": spec.rule, "source": loaded.source}
    refused = [dict(zip(("id", "place", "reason"), r)) for r in loaded.refused]
    return {**facts, "problems": len(loaded.problems), "refused": refused}


def evaluate_preset(run: Run, data: str | None = None) -> tuple[pd.DataFrame, list[LoadedSet], dict[str, str], Path]:
    """The section `benchmarks` of a preset: (rows, sets, name -> why a set is not there, folder of results).

    Raises:
        InputError: the preset has no such section, or none of its sets is there.
        store.MissingArtifact: a model has not been made; names the notebook that makes it.
    """
    b = run.preset.benchmarks
    if b is None:
        raise InputError(
            f"preset {run.preset.name}: benchmarks: is null; add this section, or name --planner and --sets"
        )
    loaded, absent = [], {}
    for name, limit in b.sets.items():
        try:
            loaded.append(load_set(name, data, limit, run.preset.seed))
        except MissingSet as error:
            absent[name] = str(error)
    if not loaded:
        raise InputError(next(iter(absent.values())))
    words = [w if w in ("none", "reference") else f"{RUN}{run.preset.name}/{w}" for w in b.planners]
    drawn = b.model_dump(exclude={"sets", "planners"})
    out = store.home() / "runs" / run.preset.results / "benchmarks"
    rows = evaluate(words, f"{RUN}{run.preset.name}", loaded, Options(seed=run.preset.seed, **drawn), out, run)
    return rows, loaded, absent, out


def control_and_same(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """The policy that others are compared with, and those whose model is its own."""
    control = rows["policy"].iloc[0]
    revisions = rows.groupby("policy")["planner_revision"].first()
    return control, [p for p in revisions.index if p != control and revisions[p] and revisions[p] == revisions[control]]


def write_tables(rows: pd.DataFrame, loaded: Sequence[LoadedSet], ks: Sequence[int], out: Path) -> str:
    """CSV files of all tables in `out`, and the summary (also summary.md), which is returned."""
    control, same = control_and_same(rows)
    found = {
        "shares": tables.shares(rows, ks),
        "comparisons": tables.comparisons(rows, control, same),
        "by_rule": tables.by_rule(rows),
        "outcomes": tables.outcomes(rows),
    }
    for name, table in found.items():
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.4f")
    titles = {
        "shares": "Success, 95 % intervals; lengths in tokens are those of well-formed traces",
        "comparisons": f"Less {control}, on the same problems; p_holm holds for the whole table",
        "by_rule": "The same answers under each answer rule",
    }
    text = []
    for name, title in titles.items():
        if len(found[name]):
            shown = found[name].map(lambda v: v if not isinstance(v, float) else "" if v != v else f"{v:.3f}")
            text.append(f"### {title}\n\n{report.markdown_table(shown)}")
    refused = [f"- {i} ({place}): {reason}" for one in loaded for i, place, reason in one.refused]
    if refused:
        text.append("### Left out: these problems cannot be judged\n\n" + "\n".join(refused))
    whole = "\n\n".join(text)
    (out / "summary.md").write_text(whole + "\n")
    return whole


# --- the command ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tracelift evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--preset", help="its section `benchmarks` says planners, sets and sampling; nothing else is needed")
    add("--planner", help="comma-separated: none, reference, a folder, NAME[@REVISION] on the hub, "
        "run:PRESET/ARM[/SEED]; the first is what the others are compared with")  # fmt: skip
    add("--executor", help="a folder, NAME[@REVISION] on the hub, run:PRESET, or http://HOST/v1#MODEL")
    add("--sets", help=f"comma-separated: {', '.join(set_names())}, or files (.jsonl, .yaml)")
    add("--data", help="folder with the sets; without it $TRACELIFT_DATA, else the hub")
    add("--limit", type=_positive, help="problems of each set, at most; a larger limit keeps what a smaller one did")
    add("--samples", type=_positive, default=1, help="traces and answers of each problem; 1 is greedy")
    add("--pass-at", default="1", help="comma-separated k of pass@k, at most --samples")
    add("--seed", type=int, default=0)
    add("--temperature", type=float, help="of the planner; 0: greedy")
    add("--executor-temperature", type=float, help="of the executor; 0: greedy")
    add("--top-p", type=float)
    add("--planner-tokens", type=_positive, help="of a trace, at most")
    add("--executor-tokens", type=_positive, help="of an answer, at most")
    add("--code-tokens", type=_positive, help="of a program, at most; default: --executor-tokens")
    add("--batch-tokens", type=_positive, default=8192)
    add("--style", choices=["short", "instruct"], help="of prompts; default: the run's, else instruct")
    add("--out", help="folder of results; the same command goes on where it was (build/benchmarks)")
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 if a server failed (again goes on), 2 for bad input (InputError)."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.preset:
        return _of_preset(given)
    if not (given.planner and given.executor and given.sets):
        parser.error("name --planner, --executor and --sets, or --preset")
    fields = Options.__dataclass_fields__
    options = Options(**{name: getattr(given, name) for name in fields})
    ks = [_positive(k) for k in given.pass_at.split(",")]
    if max(ks) > options.samples:
        raise InputError(f"--pass-at {max(ks)}: needs --samples {max(ks)} or more")
    if options.samples > 1 and 0 in (options.temperature, options.executor_temperature) and given.planner == "none":
        raise InputError("--samples with temperature 0: all samples would be the same; leave one of the two out")
    loaded = [load_set(name, given.data, given.limit, options.seed) for name in given.sets.split(",")]
    for one in loaded:
        print(
            f"{one.set.name}: {len(one.problems)} problems, {len(one.refused)} left out; {one.set.licence}", flush=True
        )
    out = store.home() / (given.out or "build/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    try:
        rows = evaluate(given.planner.split(","), given.executor, loaded, options, out)
    except CallFailed as failure:
        print(f"error: {failure}. What is answered is kept in {out}: the same command goes on")
        return 1
    print(write_tables(rows, loaded, ks, out))
    print(f"\n{out}: answers.parquet, manifest.json, summary.md and the tables as CSV")
    return 0


def _of_preset(given: argparse.Namespace) -> int:
    rows, loaded, absent, out = evaluate_preset(Run(given.preset), given.data)
    print(write_tables(rows, loaded, [1], out))
    for name, why in absent.items():
        print(f"\n{name}: not testable here: {why}")
    return 0
