"""The graph of stages: what is remade when, and what is missing. Most tests put stand-ins for the builders."""

import contextlib
import copy
import hashlib
import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from common import DATA

from tracelift_lib.groups import builder
from tracelift_lib.groups.group_files import violations
from tracelift_lib.groups.group_maker import make_group
from tracelift_lib.groups.schema import Group, dimensions, split_train_dev
from tracelift_lib.groups.seeds import LeakageError
from tracelift_lib.groups.truth import is_faithful
from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.runs import code_hash, pipeline, stages, store
from tracelift_lib.runs.pipeline import STAGES, WARM_START, Run
from tracelift_lib.runs.store import MissingArtifact

EXEC, LIFT = {"arm": "exec_only", "seed": 0}, {"arm": "tracelift", "seed": 1}
ALL = {  # every stage in the order of the notebooks; the last ones once an arm
    "problems": ("problems", {}),
    "executor": ("executor", {}),
    "planner": ("planner", {}),
    "groups": ("groups", {}),
    "reward_model": ("reward_model", {}),
    "rm_scores": ("rm_scores", {}),
    "uplift": ("uplift", {}),
    "baseline": ("baseline", {}),
    "train exec_only": ("planner_training", EXEC),
    "train tracelift": ("planner_training", LIFT),
    "second_executor": ("second_executor", {}),
    "eval start": ("evaluation", WARM_START),
    "eval exec_only": ("evaluation", EXEC),
    "eval tracelift": ("evaluation", LIFT),
}
TRAINED = {"train exec_only", "train tracelift", "eval exec_only", "eval tracelift"}
EVALS = {"eval start", "eval exec_only", "eval tracelift"}
RM = {"reward_model", "rm_scores", "train tracelift"} | EVALS  # what depends on the reward model


counter = itertools.count()


def stand_in(name, built):
    """A builder that notes what it was asked for. Each build writes something else, as if made at another time."""

    def build(stage, run, out, **instance):
        built.append((name, instance))
        (out / "content.txt").write_text(str(next(counter)))

    return build


def put_stand_ins(patch, home):
    built = []
    for name, stage in STAGES.items():
        patch.setattr(type(stage), "build", stand_in(name, built))
    patch.setenv("TRACELIFT_HOME", str(home))
    return built


def make_all(run):
    return {label: run.make(name, **instance) for label, (name, instance) in ALL.items()}


def labels(builds):
    return {label for label, entry in ALL.items() if entry in builds}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A home in which every stage of preset check was made once by stand-ins; (home, what was built)."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("world")
        built = put_stand_ins(patch, home)
        make_all(Run("check"))
        return home, built


@pytest.fixture
def builds(monkeypatch, world):
    """Stand-ins in that home: the list of (stage, instance) that this test builds. For tests that only add to it."""
    return put_stand_ins(monkeypatch, world[0])


@pytest.fixture
def builds_in_copy(monkeypatch, world, tmp_path):
    """The same in a copy of that home, for tests that damage it."""
    shutil.copytree(world[0], tmp_path / "copy")
    return put_stand_ins(monkeypatch, tmp_path / "copy")


# --- what decides a result --------------------------------------------------------------------


def test_nothing_is_made_twice(world, builds):
    assert len(world[1]) == len(ALL) and labels(world[1]) == set(ALL)
    make_all(Run("check"))
    assert builds == []


@pytest.mark.parametrize(
    "overrides, remade",
    [
        ({"problems.sizes.train": 201}, set(ALL)),
        ({"executor.steps": 21}, set(ALL) - {"problems", "groups", "second_executor"}),
        ({"prompt_style": "instruct"}, set(ALL) - {"problems", "groups"}),
        ({"planner.steps": 11}, {"planner"} | TRAINED | EVALS),
        ({"groups.min_negatives": 5}, {"groups", "uplift"} | RM),
        ({"groups.leave_out": ["stale_value"]}, {"groups", "uplift"} | RM),
        ({"reward_model.epochs": 7}, RM),
        ({"execution.k": 5}, {"uplift", "baseline"} | TRAINED | EVALS),
        ({"limits.trace": 99}, {"uplift", "baseline"} | TRAINED | EVALS),
        ({"planner_training.learning_rate": 0.5}, TRAINED),
        ({"planner_training.split": "dev"}, {"baseline"} | TRAINED),
        ({"evaluation.traces": 3}, EVALS),
        ({"planner_training.parameters": "full"}, TRAINED),
        # The planner draws as in training, so these decide what the evaluation of the warm start sees, too.
        ({"planner_training.temperature": 1.5}, TRAINED | EVALS),
        ({"planner_training.top_p": 0.5}, TRAINED | EVALS),
        ({"planner_training.max_completion": 16}, TRAINED | EVALS),
        # A list of arms and seeds says which runs there are, not what one of them gives. The rest is for people.
        (
            {
                "planner_training.arms": ["tracelift", "no_uplift", "exec_only"],
                "planner_training.seeds": [1, 0, 5],
                "description": "other words",
                "is_result": True,
                "min_free_gb": 0.001,
                "leaves_out": {"04": "a reason"},
                "simulated_groups": 5,
                "threads": 2,
            },
            set(),
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, dict) else "",
)
def test_a_changed_setting_remakes_what_it_decides_and_nothing_else(builds, overrides, remade):
    run = Run("check", overrides=overrides)
    assert run.preset != Run("check").preset
    make_all(run)
    assert labels(builds) == remade
    del builds[:]
    make_all(Run("check"))  # the former results are still there
    assert builds == []


def test_training_settings_at_their_default_do_not_name_the_results():
    """So results stay valid when a later version offers more settings; what is set otherwise counts."""
    config = STAGES["planner_training"].config
    assert config(Run("tiny").preset)["planner_training"] == {
        "steps": 30,
        "problems_per_step": 16,
        "generations": 8,
        "learning_rate": 2e-3,
        "temperature": 0.7,
        "max_completion": 72,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
    }
    other = Run("tiny", overrides={"planner_training.parameters": "full"}).preset
    assert config(other)["planner_training"]["parameters"] == "full"


def test_another_seed_remakes_everything(builds):
    make_all(Run("check", seed=5))
    assert labels(builds) == set(ALL)


def test_another_stage_version_remakes_it_and_what_depends_on_it(builds, monkeypatch):
    monkeypatch.setattr(type(STAGES["groups"]), "version", 99)
    make_all(Run("check"))
    assert labels(builds) == {"groups", "uplift"} | RM


@pytest.mark.parametrize(
    "label, remade",
    [
        ("problems", set(ALL)),
        ("groups", {"groups", "uplift"} | RM),
        ("baseline", {"baseline", "train tracelift", "eval tracelift"}),
        ("train exec_only", {"train exec_only", "eval exec_only"}),
    ],
)
def test_a_deleted_folder_is_remade_with_what_depends_on_it_and_nothing_else(builds_in_copy, label, remade):
    name, instance = ALL[label]
    made = {other: Run("check").need(ALL[other][0], **ALL[other][1]).digest for other in set(ALL) - remade}
    shutil.rmtree(Run("check").need(name, **instance).path)
    again = make_all(Run("check"))
    assert labels(builds_in_copy) == remade and len(builds_in_copy) == len(remade)
    assert {other: again[other].digest for other in made} == made


# --- code -------------------------------------------------------------------------------------


@pytest.fixture
def other_code(monkeypatch):
    """From here on two files that make groups, one of the sandbox and the class of the stage are not as they were."""
    real = code_hash.hashes
    changed = {"groups/truth.py", "groups/kinds.py", "sandbox/host.py", "runs/stages.py:Groups"}
    monkeypatch.setattr(
        stages, "hashes", lambda *places: {n: "f" * 16 if n in changed else h for n, h in real(*places).items()}
    )
    pipeline._say_once.cache_clear()


def test_a_stage_of_other_code_is_named_and_kept(builds_in_copy, other_code, capsys):
    make_all(Run("check"))
    make_all(Run("check"))
    line = "stage groups: groups/kinds.py, groups/truth.py, runs/stages.py:Groups changed since it was made; kept"
    said = capsys.readouterr().out
    assert builds_in_copy == [] and said.count("\n") == 1 and said.startswith(line) and "STALE=rebuild" in said
    assert pipeline.stale_lines(Run("check").preset) == [said.strip()]


def test_a_stage_of_other_code_is_rebuilt_when_asked_for(builds_in_copy, other_code, monkeypatch, capsys):
    monkeypatch.setenv("STALE", "rebuild")
    run = Run("check")
    assert not run.has("groups") and run.has("problems")
    make_all(run)
    assert labels(builds_in_copy) == {"groups", "uplift"} | RM and "built again" in capsys.readouterr().out
    assert run.has("groups") and pipeline.stale_lines(run.preset) == []
    del builds_in_copy[:]
    make_all(run)
    assert builds_in_copy == []


def test_what_a_preset_lacks_for_a_stage_is_named_before_it_is_made():
    """Preset paper leaves notebook 05 out, so that without a split `rl` it is valid; a launch asks for one."""
    with pytest.raises(
        InputError, match="(?s)preset paper .*planner_training.split: 'rl' is no split of problems.sizes"
    ):
        Run("paper", overrides={"problems.sizes": {"train": 3, "test": 3}}).make("planner_training", **EXEC)


# --- what is missing --------------------------------------------------------------------------


@contextlib.contextmanager
def without(label):
    """The stage's folder out of the way for a while."""
    name, instance = ALL[label]
    path = Run("check").need(name, **instance).path
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


@pytest.mark.parametrize(
    "gone, wanted, notebook",
    [
        ("problems", "groups", "00_start_here"),
        ("executor", "uplift", "00_start_here"),
        ("planner", "train exec_only", "00_start_here"),
        ("groups", "reward_model", "01_build_groups"),
        ("reward_model", "rm_scores", "02_train_reward_model"),
        ("reward_model", "train tracelift", "02_train_reward_model"),
        ("baseline", "train tracelift", "03_executor_uplift"),
        ("train exec_only", "eval exec_only", "05_train_planner_lora"),
    ],
)
def test_a_missing_upstream_names_its_notebook(builds, gone, wanted, notebook):
    """Whether the stage is asked for or is to be made: its upstream is never made in passing."""
    name, instance = ALL[wanted]
    with without(gone):
        for attempt in (Run("check").make, Run("check").need):
            with pytest.raises(MissingArtifact) as caught:
                attempt(name, **instance)
            assert notebook in str(caught.value) and f"stage {ALL[gone][0]!r}" in str(caught.value)
            assert "PRESET=check" in str(caught.value)
    assert builds == []


def test_what_is_needed_is_never_built_and_its_notebook_exists(builds):
    for label, (name, instance) in ALL.items():
        with without(label), pytest.raises(MissingArtifact) as caught:
            Run("check").need(name, **instance)
        assert STAGES[name].notebook in str(caught.value) and builds == []
        assert (PROJECT / "notebooks" / f"{STAGES[name].notebook}.py").exists()


def test_an_arm_needs_only_what_it_looks_at(builds):
    """exec_only trains without the reward model and without the baseline; tracelift does not."""
    run = Run("check", seed=77)
    for name in ("problems", "executor", "planner"):
        run.make(name)
    run.make("planner_training", **EXEC)
    assert run.has("planner_training", **EXEC) and not run.has("planner_training", **LIFT)
    with pytest.raises(MissingArtifact):
        run.make("planner_training", **LIFT)


def test_results_of_presets_and_variants_lie_apart(builds):
    run, other = Run("check"), Run("check", seed=3, overrides={"execution.k": 4})
    assert run.folder == store.home() / "runs" / "check"
    assert (run.variant, other.variant) == ("check", "check-seed3-custom")
    assert run.make("problems").path != other.make("problems").path


def test_every_arm_and_seed_is_a_policy():
    arms = ["tracelift", "exec_only", "no_uplift"]
    run = Run("check", overrides={"planner_training.arms": arms, "planner_training.seeds": [4, 7]})
    assert run.policies() == [{"arm": a, "seed": s} for a in arms for s in (4, 7)]


# --- the real builders that are quick ---------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Preset check with problems, executor and groups really built, in a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(tmp_path_factory.mktemp("home")))
        run = Run("check", overrides={"executor.steps": 2})
        run.make("problems")
        run.make("groups")
        run.make("executor")
        yield run


def test_problems_on_disk_are_those_of_the_preset(real):
    sizes = real.preset.problems.sizes
    splits = {split: real.problems(split) for split in sizes}
    assert {split: len(members) for split, members in splits.items()} == sizes
    assert all(is_faithful(p, p.reference_solution) for members in splits.values() for p in members)
    ids = [p.problem_id for members in splits.values() for p in members]
    assert len(set(ids)) == len(ids)


def test_groups_on_disk_come_from_their_own_splits(real):
    g = real.preset.groups
    train, dev, test = (real.groups(split) for split in ("train", "dev", "test"))
    known = {split: {p.problem_id for p in real.problems(split)} for split in ("train", "test")}
    assert {x.problem_id for x in [*train, *dev]} <= known["train"] and {x.problem_id for x in test} <= known["test"]
    assert not {x.problem_id for x in train} & {x.problem_id for x in dev}
    assert abs(len(dev) - 0.1 * (len(train) + len(dev))) <= 0.5
    assert 0 < len(train) + len(dev) <= g.sizes["train"] and 0 < len(test) <= g.sizes["test"]
    assert all(len(x.negative_bank) >= g.min_negatives for x in [*train, *dev, *test])


def test_a_kind_that_is_left_out_is_missing_in_train_groups_alone(real, tmp_path):
    """The other splits are as ever; a group that is left with too few flawed traces is dropped."""
    run, groups = copy.copy(real), real.preset.groups.model_copy(update={"leave_out": ["stale_value", "lost_event"]})
    run.preset = real.preset.model_copy(update={"groups": groups})
    STAGES["groups"].build(run, tmp_path)
    written = {
        s: [Group(**json.loads(line)) for line in (tmp_path / f"{s}.jsonl").open()] for s in ("train", "dev", "test")
    }
    assert [written[s] for s in ("dev", "test")] == [real.groups(s) for s in ("dev", "test")]
    expected = []
    for group in real.groups("train"):
        rest = [c for c in group.negative_bank if c.negative_kind not in ("stale_value", "lost_event")]
        expected += [(group.problem_id, rest)] * (len(rest) >= real.preset.groups.min_negatives)
    assert 0 < len(expected) < len(real.groups("train"))
    assert [(g.problem_id, g.negative_bank) for g in written["train"]] == expected


def test_a_trained_executor_loads_and_answers(real):
    executor = real.executor()
    problems = real.problems("test")[:2]
    table = executor.verdicts(problems, [None, problems[1].reference_solution], 3, seed=0)
    assert table.shape == (2, 3) and set(table.flat) <= {0, 1}
    log = real.need("executor").json("log.json")
    assert any("loss" in row for row in log)
    assert executor.backend.sampler.sampling.temperature == real.preset.execution.temperature
    assert (executor.verifier.rule, executor.verifier.style) == (
        real.preset.execution.answer,
        real.preset.execution.style,
    )
    assert executor.limits == real.preset.limits and executor.verdict(problems[0], f"Answer: {problems[0].answer}") == 1


def test_deleting_the_groups_leaves_the_executor_alone(real):
    names = ("problems", "executor", "groups")
    before = {name: (real.need(name).path / "manifest.json").stat().st_mtime_ns for name in names}
    content = {split: (real.need("groups").path / f"{split}.jsonl").read_text() for split in ("train", "dev", "test")}
    shutil.rmtree(real.need("groups").path)
    for name in names:
        real.make(name)
    after = {name: (real.need(name).path / "manifest.json").stat().st_mtime_ns for name in names}
    assert [name for name in before if before[name] != after[name]] == ["groups"]
    assert content == {split: (real.need("groups").path / f"{split}.jsonl").read_text() for split in content}


def test_the_manifest_of_a_stage_holds_its_slice_of_the_preset(real):
    manifest = json.loads((real.need("groups").path / "manifest.json").read_text())
    assert (manifest["stage"], manifest["preset"], manifest["seed"]) == ("groups", "check", real.preset.seed)
    groups = real.preset.groups.model_dump(mode="json", exclude={"seeds", "leave_out"})
    assert manifest["config"] == {"seed": real.preset.seed, "groups": groups}
    assert manifest["upstream"] == {"problems": real.need("problems").digest}


# --- groups from public seeds and released ones -----------------------------------------------

SEEDS = {"groups.sizes": {"train": 30, "test": 12}, "executor.steps": 2}


def group_run(**seeds):
    return Run("check", overrides=SEEDS | {"groups.seeds": seeds})


@pytest.fixture(scope="module")
def symbolic(tmp_path_factory):
    """A run whose groups are built from gsm_symbolic, without any other stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("TRACELIFT_DATA", raising=False)
        run = group_run(source="gsm_symbolic")
        run.make("groups")
        yield run


def test_groups_of_public_seeds_are_split_by_problem(symbolic):
    """Test groups come from the last seeds; of the others a tenth is dev, by the rule of the method."""
    folder = symbolic.need("groups").path
    assert {p.name for p in folder.iterdir()} == {
        *(f"{split}.{kind}" for split in ("train", "dev", "test") for kind in ("jsonl", "parquet")),
        "report.json",
        "README.md",
        "manifest.json",
    }
    made = {split: [g.problem_id for g in symbolic.groups(split)] for split in ("train", "dev", "test")}
    numbers = {split: [int(i.rsplit("-", 1)[1]) for i in ids] for split, ids in made.items()}
    assert set(numbers["train"] + numbers["dev"]) <= set(range(30)) and set(numbers["test"]) <= set(range(30, 42))
    assert split_train_dev(made["train"] + made["dev"])[1] == sorted_by_split(made["dev"])
    assert min(len(ids) for ids in made.values()) >= 1 and len(made["train"]) > 5
    assert all(len(g.negative_bank) >= 4 for split in made for g in symbolic.groups(split))
    assert symbolic.need("groups").json("report.json")["groups"] == {s: len(ids) for s, ids in made.items()}
    assert list(violations(folder / f"{split}.jsonl" for split in made)) == []


def sorted_by_split(ids):
    return sorted(ids, key=lambda i: hashlib.sha256(f"18:{i}".encode()).hexdigest())


def test_groups_of_public_seeds_need_no_problems_and_uplift_does_not_depend_on_them(symbolic):
    assert symbolic.need("groups").manifest["upstream"] == {}
    assert not symbolic.has("problems")
    assert [name for name, _ in STAGES["uplift"].needs(symbolic.preset, {})] == ["problems", "executor"]


def test_a_setting_of_the_seeds_is_part_of_the_key(symbolic):
    assert not group_run(source="gsm_symbolic", every=2).has("groups")
    assert not group_run(source="gsm_symbolic", drop_leaked=True).has("groups")


@pytest.fixture
def seed_folder(tmp_path, monkeypatch):
    """GSM8K-like data named by TRACELIFT_DATA: 42 train problems of three steps, of which the 4th is also in test."""

    def record(n):
        a, b = 3 + n, 10 + 2 * n
        question = f"Ann has {a} boxes with {b} eggs each. {a + 1} eggs break and she buys {b + 3} more. How many now?"
        answer = (
            f"The boxes hold {a} * {b} = <<{a}*{b}={a * b}>>{a * b} eggs.\n"
            f"After the fall there are {a * b} - {a + 1} = {a * b - a - 1} eggs.\n"
            f"With the new ones there are {a * b - a - 1} + {b + 3} = {a * b - a + b + 2} eggs.\n"
            f"#### {a * b - a + b + 2}"
        )
        return {"question": question, "answer": answer}

    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(42)), ("test", [3, 100])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record(n)) + "\n" for n in numbers))
    monkeypatch.setenv("TRACELIFT_DATA", str(folder.parent))
    monkeypatch.setenv("TRACELIFT_HOME", str(tmp_path / "home"))
    return folder


def test_seeds_that_a_benchmark_tests_are_refused_or_left_out(seed_folder):
    with pytest.raises(LeakageError, match="gsm8k-train-00003 is gsm8k-test-00000"):
        group_run(source="gsm8k").make("groups")
    run = group_run(source="gsm8k", drop_leaked=True)
    run.make("groups")
    made = {g.problem_id for split in ("train", "dev", "test") for g in run.groups(split)}
    assert made == {f"gsm8k-train-{n:05d}" for n in range(42) if n != 3}
    assert run.need("groups").json("report.json")["outcomes"]["leaked"] == {
        "gsm8k-train-00003 is gsm8k-test-00000 (exact match)": 1
    }
    assert str(seed_folder.parent) not in (run.need("groups").path / "report.json").read_text()


def test_a_train_seed_that_is_a_test_seed_again_makes_no_group(seed_folder):
    lines = (seed_folder / "train.jsonl").read_text().splitlines()
    lines[40] = lines[7].replace("Ann has", "ann  has")
    (seed_folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    run = group_run(source="gsm8k", drop_leaked=True)
    run.make("groups")
    ids = {split: {g.problem_id for g in run.groups(split)} for split in ("train", "dev", "test")}
    assert "gsm8k-train-00040" in ids["test"] and "gsm8k-train-00007" not in ids["train"] | ids["dev"]
    assert run.need("groups").json("report.json")["outcomes"]["group"] == {"kept": 40, "copy of a test problem": 1}


def test_an_interrupted_build_of_groups_goes_on(seed_folder, monkeypatch):
    def broken(problem, *rest, **more):
        if problem.problem_id == "gsm8k-train-00020":
            raise KeyboardInterrupt
        seen.append(problem.problem_id)
        return make_group(problem, *rest, **more)

    seen, run = [], group_run(source="gsm8k", drop_leaked=True)
    monkeypatch.setattr(builder, "make_group", broken)
    with pytest.raises(KeyboardInterrupt):
        run.make("groups")
    assert len(seen) == 19
    monkeypatch.setattr(
        builder, "make_group", lambda problem, *rest: seen.append(problem.problem_id) or make_group(problem, *rest)
    )
    run.make("groups")
    assert len(seen) == len(set(seen)) == 41


def test_released_groups_are_a_source(symbolic, tmp_path, monkeypatch):
    """From parquet files; released dev groups are the held-out ones, and dev is a tenth of released train."""
    released = tmp_path / "released"
    released.mkdir()
    for split in ("train", "dev"):
        shutil.copy(symbolic.need("groups").path / f"{split}.parquet", released)
    monkeypatch.setenv("TRACELIFT_HOME", str(tmp_path / "home"))
    run = Run(
        "check",
        overrides={
            "groups.sizes": {"train": 10, "test": 2},
            "groups.seeds": {"source": "released", "where": str(released)},
        },
    )
    run.make("groups")
    first = [g.problem_id for g in symbolic.groups("train")][:10]
    assert [g.problem_id for g in run.groups("test")] == [g.problem_id for g in symbolic.groups("dev")][:2]
    train, dev = split_train_dev(first)
    assert [[g.problem_id for g in run.groups(split)] for split in ("train", "dev")] == [train, dev] and len(dev) == 1


def test_reward_model_and_its_scores_on_groups_of_public_seeds(symbolic):
    """Nothing of the tiny world is asked for: the likelihood's prompts and the RM's texts come from the groups."""
    for name in ("problems", "executor", "reward_model"):
        symbolic.make(name)
    scores = pd.read_parquet(symbolic.make("rm_scores").path / "scores.parquet")
    held_out = [g for split in ("dev", "test") for g in symbolic.groups(split)]
    assert len(scores) == sum(1 + len(g.negative_bank) for g in held_out)
    assert np.isfinite(scores[["q", "log_likelihood"]]).all(axis=None) and scores["q"].between(0, 1).all()


@pytest.mark.skipif(not DATA.exists(), reason="public data not here")
@pytest.mark.parametrize("source, refused", [("gsm8k", 0), ("mbpp", 3)])
def test_groups_of_the_real_public_sets(source, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACELIFT_HOME", str(tmp_path))
    monkeypatch.setenv("TRACELIFT_DATA", str(DATA))
    run = Run(
        "check",
        overrides={"groups.sizes": {"train": 50, "test": 12}, "groups.seeds": {"source": source, "drop_leaked": True}},
    )
    run.make("groups")
    report = run.need("groups").json("report.json")
    assert sum(report["groups"].values()) >= 25 and report["groups"]["test"] >= 4
    assert sum(report["outcomes"].get("leaked", {}).values()) <= refused
    assert {g.domain for g in run.groups("test")} == {"math" if source == "gsm8k" else "code"}


# --- builders with stand-ins for the models ---------------------------------------------------


class FakeScorer:
    def score(self, problems, traces, progress=None):
        return np.array([len(z) / 1000 for z in traces]), np.tile(np.arange(5.0), (len(traces), 1))


def test_rm_scores_hold_every_trace_beside_its_gold(real, tmp_path, monkeypatch):
    """Columns of a dimension must speak of the same dimension: the expected label of dimension i is i here."""
    monkeypatch.setattr(real, "reward_model", lambda: FakeScorer(), raising=False)
    STAGES["rm_scores"].build(real, tmp_path)
    table = pd.read_parquet(tmp_path / "scores.parquet")
    groups = [(s, g) for s in ("dev", "test") for g in real.groups(s)]
    candidates = [(s, g, c) for s, g in groups for c in [*g.positive_pool, *g.negative_bank]]
    assert len(table) == len(candidates)
    for row, (split, g, c) in zip(table.to_dict("records"), candidates):
        assert (row["split"], row["problem_id"], row["kind"]) == (split, g.problem_id, c.negative_kind or "reference")
        assert row["q"] == pytest.approx(len(c.reasoning) / 1000) and row["gold_total"] == c.rubric.total
        for i, name in enumerate(dimensions("math")):
            assert row[f"gold_{name}"] == c.rubric.labels[name] and row[f"expected_{name}"] == i


def test_a_preset_says_how_many_threads_torch_uses():
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            Run("check", overrides={"threads": threads})
            assert torch.get_num_threads() == threads
        torch.set_num_threads(2)
        Run("smol")  # names none
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
