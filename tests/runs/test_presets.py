"""Presets are checked data: every key, every type, and errors that say what is allowed."""

import pytest
import yaml
from common import PROJECT

from tracelift_lib.problems.files import InputError
from tracelift_lib.runs import presets
from tracelift_lib.runs.presets import load_preset, preset_names, read_override, variant
from tracelift_lib.runs.stages import STAGES, key_of, label_of, result_of, stage_graph

FILES = sorted((PROJECT / "presets").glob("*.yaml"))


def flat(data, prefix=""):
    """Dotted key -> value of all leaves."""
    result = {}
    for key, value in data.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_preset_file_is_valid_and_holds_what_it_says(path):
    """Each value that stands in the file stands in the preset; so does what it takes over and does not change."""
    preset = load_preset(path.stem)
    assert preset.name == path.stem and preset.description
    data = yaml.safe_load(path.read_text())
    base = data.pop("extends", None)
    loaded, own = flat(preset.model_dump(mode="json")), flat(data)
    assert {key: loaded[key] for key in own} == own
    if base:
        inherited = flat(yaml.safe_load((PROJECT / "presets" / f"{base}.yaml").read_text()))
        inherited.pop("extends", None)
        for key, value in inherited.items():
            if key not in own and key in loaded:
                assert loaded[key] == value, key


def test_the_presets_are_the_files():
    assert preset_names() == [p.stem for p in FILES] and {"check", "tiny"} <= set(preset_names())
    assert load_preset("check").is_result is False and load_preset("tiny").is_result is True


def test_shares_of_a_mix_add_up():
    """Not needed by the code, which weighs them, but a share should be read as one."""
    for name in preset_names():
        p = load_preset(name)
        for section, field in ((p.executor, "mix"), (p.planner, "habits")):
            if hasattr(section, field):
                assert sum(getattr(section, field).values()) == pytest.approx(1), (name, field)


def test_unknown_preset_names_those_there_are():
    with pytest.raises(InputError) as caught:
        load_preset("tniy")
    assert "tniy" in str(caught.value) and all(name in str(caught.value) for name in preset_names())


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", 7),
        ("min_free_gb", 0.5),
        ("execution.k", 5),
        ("execution.temperature", 0.9),
        ("execution.answer", "last_number"),
        ("execution.baseline", "fresh"),
        ("execution.s_run", "merged"),
        ("execution.style", "coderl"),
        ("executor.shape.hidden_size", 48),
        ("executor.mix.plan", 0.1),
        ("planner.steps", 3),
        ("problems.sizes.train", 99),
        ("problems.max_number", 12),
        ("planner_training.arms", ["exec_only", "tracelift", "no_uplift"]),
        ("reward_model.dimension_loss", "mse"),
        ("limits.problem", 100),
        ("limits.trace", 50),
        ("simulated_groups", 77),
        ("threads", 2),
    ],
)
def test_overrides_change_exactly_their_value(key, value):
    before = flat(load_preset("check").model_dump(mode="json"))
    after = flat(load_preset("check", overrides={key: value}).model_dump(mode="json"))
    assert before[key] != value
    assert after == before | {key: value}


SERVER = {"kind": "server", "base_urls": ["http://localhost:8000/v1"], "model": "m"}


def test_the_executor_may_be_behind_a_server():
    assert load_preset("check").execution.backend.kind == "local"
    backend = load_preset("check", overrides={"execution.backend": SERVER}).execution.backend
    assert backend.model_dump().items() >= (SERVER | {"api": "chat", "api_key_env": None}).items()
    keys = {f"execution.backend.{key}": value for key, value in SERVER.items()}
    assert load_preset("check", overrides=keys).execution.backend == backend


@pytest.mark.parametrize(
    "change, word",
    [
        ({"colour": "red"}, "colour"),
        ({"base_urls": []}, "base_urls"),
        ({"base_urls": ["localhost:8000"]}, "address"),
        ({"base_urls": ["http://user:sk-1@host/v1"]}, "api_key_env"),
        ({"api_key": "sk-1"}, "api_key"),
        ({"kind": "cloud"}, "kind"),
        ({"model": None}, "model"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"api": "responses"}, "api"),
        ({"backoff": 0}, "backoff"),
    ],
)
def test_a_wrong_backend_is_refused_and_named(change, word):
    with pytest.raises(InputError, match=word) as caught:
        load_preset("check", overrides={"execution.backend": SERVER | change})
    assert "sk-1" not in str(caught.value)


def test_an_unknown_key_of_the_backend_in_use_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'timeout'"):
        load_preset("check", overrides={"execution.backend": SERVER, "execution.backend.timout": 5.0})
    with pytest.raises(InputError, match="execution.backend: .* 'kind'"):
        load_preset("check", overrides={"execution.backend.model": "m"})


def test_the_released_reward_needs_as_many_runs_on_both_sides():
    """Its coefficient compares counts of K and K."""
    arm = {"planner_training.arms": ["exec_only", "tracelift", "released_code"]}
    with pytest.raises(InputError, match="baseline_samples"):
        load_preset("check", overrides=arm)
    assert load_preset("check", overrides=arm | {"execution.baseline": "fresh"}).execution.baseline == "fresh"
    assert load_preset("check", overrides=arm | {"execution.baseline_samples": 3}).execution.baseline == "cached"


def test_a_tie_table_has_a_value_for_every_count():
    ties = {"execution.ties": [0.0, 0.0, 0.0, 0.0]}
    assert load_preset("check", overrides=ties).execution.ties == [0.0] * 4
    with pytest.raises(InputError, match="K = 5 needs 6"):
        load_preset("check", overrides=ties | {"execution.k": 5})


def test_several_overrides_and_the_seed():
    p = load_preset("check", seed=11, overrides={"execution.k": 5, "planner.steps": 3})
    assert (p.seed, p.execution.k, p.planner.steps) == (11, 5, 3)
    assert load_preset("check", seed=0).seed == 0 and load_preset("check").execution.k == 3  # nothing is kept


def test_a_section_may_be_left_out_with_the_notebooks_that_need_it():
    out = {"leaves_out": dict.fromkeys(("02", "05", "06", "07", "08", "10", "12"), "no reward model")}
    assert load_preset("check", overrides=out | {"reward_model": None}).reward_model is None


@pytest.mark.parametrize(
    "key, meant",
    [
        ("sede", "seed"),
        ("executon.k", "execution"),
        ("execution.temprature", "temperature"),
        ("planner_training.generation", "generations"),
        ("problems.max_numbr", "max_number"),  # in a union
        ("executor.vocab", "vocab_size"),
        ("executor.shape.hidden", "hidden_size"),  # a section in a section of a union
        ("planner.habbits", "habits"),
        ("reward_model.epoch", "epochs"),
    ],
)
def test_unknown_override_keys_are_refused_with_the_nearest(key, meant):
    with pytest.raises(InputError) as caught:
        load_preset("check", overrides={key: 1})
    message = str(caught.value)
    assert key in message and f"did you mean {meant!r}" in message


@pytest.mark.parametrize(
    "key", ["zzz", "execution.zzz", "executor.shape.zzz", "problems.folder", "limits.zzz", "", "execution."]
)
def test_unknown_override_keys_are_refused_even_without_one(key):
    """`problems.folder` belongs to another member of the union than this preset has."""
    with pytest.raises(InputError) as caught:
        load_preset("check", overrides={key: 1})
    assert "did you mean" not in str(caught.value) or key == "problems.folder"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"groups.leave_out": ["stale_values"]}, "unknown kind 'stale_values'; these problems have wrong_operation, "),
        ({"groups.leave_out": ["missing_step"]}, "unknown kind 'missing_step'"),  # of the other domain
        ({"groups.leave_out": ["stale_value"], "groups.seeds": {"source": "gsm8k"}}, "groups.seeds to null"),
    ],
)
def test_only_kinds_of_the_presets_own_problems_can_be_left_out(change, message):
    with pytest.raises(InputError, match=message):
        load_preset("check", overrides=change)


@pytest.mark.parametrize("key", ["executor.mix.plann", "planner.habits.lazy", "groups.sizes.validation"])
def test_unknown_names_in_a_table_are_refused(key):
    with pytest.raises(InputError, match=key.split(".")[-1]):
        load_preset("check", overrides={key: 0.5 if "mix" in key or "habits" in key else 5})


@pytest.mark.parametrize(
    "key, value",
    [
        ("execution.k", "5"),
        ("execution.k", 2.5),
        ("execution.k", 0),
        ("execution.k", -1),
        ("execution.k", True),
        ("execution.k", None),
        ("execution.temperature", 0),
        ("execution.temperature", "hot"),
        ("execution.top_p", 1.5),
        ("execution.answer", "lenient"),
        ("execution.baseline", "none"),
        ("execution.s_run", "both"),
        ("execution.style", "lax"),
        ("execution.ties", [1, "a", 0, 0]),
        ("execution.backend", "server"),
        ("execution.max_failure_rate", 2),
        ("planner_training.arms", ["fastest"]),
        ("planner_training.arms", "tracelift"),
        ("planner_training.seeds", [0, "a"]),
        ("planner_training.generations", 1),
        ("problems.steps.train", [0]),
        ("problems.source", "imagenet"),
        ("executor.source", "nowhere"),
        ("reward_model.dimension_loss", "hinge"),
        ("seed", "x"),
        ("simulated_groups", 0),
        ("threads", 0),
        ("prompt_style", "long"),
        ("execution", 3),
        ("is_result", "yes"),
        ("problems.sizes.extra", 5),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_and_named(key, value):
    with pytest.raises(InputError) as caught:
        load_preset("check", overrides={key: value})
    assert key.split(".")[0] in str(caught.value)


def test_a_path_through_a_value_is_refused():
    with pytest.raises(InputError, match="execution.k is a value"):
        load_preset("check", overrides={"execution.k.x": 3})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of presets to write bad ones into; a copy of the real ones is in it."""
    for path in FILES:
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(presets, "PRESET_FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "change, words",
    [
        ("colour: red", ["colour"]),
        ("execution: {k: 3, colour: red}", ["execution.colour"]),
        ("planner: {stepz: 3}", ["stepz"]),
        ("problems: {source: gsm8k}", ["problems"]),
        ("execution: {k: many}", ["execution.k", "many"]),
    ],
)
def test_a_bad_preset_file_is_named_with_its_key(folder, change, words):
    (folder / "mine.yaml").write_text(f"extends: tiny\nname: mine\n{change}\n")
    with pytest.raises(InputError) as caught:
        load_preset("mine")
    assert all(word in str(caught.value) for word in ["mine", *words])


@pytest.mark.parametrize(
    "section, key", [(None, "executor"), (None, "execution"), ("execution", "k"), ("problems", "max_value")]
)
def test_a_missing_key_is_named(folder, section, key):
    data = yaml.safe_load((folder / "tiny.yaml").read_text())
    del (data[section] if section else data)[key]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError) as caught:
        load_preset("tiny")
    assert key in str(caught.value) and "required" in str(caught.value)


def test_broken_yaml_and_a_missing_base_are_named(folder):
    (folder / "mine.yaml").write_text("a: [1, 2\n")
    with pytest.raises(InputError, match="mine.yaml"):
        load_preset("mine")
    (folder / "mine.yaml").write_text("extends: nothing\nname: mine\n")
    with pytest.raises(InputError, match="nothing"):
        load_preset("mine")


def test_a_preset_in_another_encoding_is_named(folder):
    (folder / "latin.yaml").write_bytes("name: latin\ndescription: für alle\n".encode("latin-1"))
    with pytest.raises(InputError, match="latin.yaml: not UTF-8.*save it as UTF-8"):
        load_preset("latin")


def test_a_preset_that_is_nested_too_deeply_is_named(folder):
    (folder / "deep.yaml").write_text("name: " + "[" * 1000)
    with pytest.raises(InputError, match="deep.yaml: not valid YAML"):
        load_preset("deep")


@pytest.mark.parametrize("text", ["5e-6", "5E-6", "0.5e-5", ".5e-5", "+5e-6", "5.e-6", "5e-06", "0.000005"])
def test_numbers_are_read_as_json_and_yaml_1_2_have_them(text):
    """On the command line, inside a table, and in a file: PyYAML alone takes most of these for text."""
    assert read_override(f"a={text}") == ("a", 5e-6)
    assert read_override(f"a={{b: [{text}]}}") == ("a", {"b": [5e-6]})
    assert read_override(f"a={text!r}") == ("a", text)  # in quotes
    assert load_preset("check", overrides=dict([read_override(f"planner_training.learning_rate={text}")]))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n"], ids=["empty", "list", "text"])
def test_a_preset_file_that_holds_no_keys_is_named(folder, text):
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match="mine"):
        load_preset("mine")


def test_extending_changes_only_what_is_written(folder):
    (folder / "mine.yaml").write_text("extends: check\nname: mine\nexecution: {k: 9}\n")
    mine, check = (flat(load_preset(n).model_dump(mode="json")) for n in ("mine", "check"))
    check = {key: value for key, value in check.items() if not key.startswith("variants.")}
    assert mine == check | {"name": "mine", "execution.k": 9}


def test_variants_are_those_of_one_preset_and_not_of_what_extends_it(folder):
    """They are sized for it; a smaller preset would train all of them."""
    (folder / "mine.yaml").write_text("extends: check\nname: mine\nvariants: {one: {execution.k: 9}}\n")
    assert load_preset("check").variants and list(load_preset("mine").variants) == ["one"]
    with pytest.raises(InputError, match="execution.kk: unknown key"):
        load_preset("mine", overrides={"variants": {"one": {"execution.kk": 9}}})


def test_the_split_to_train_on_must_be_there():
    with pytest.raises(InputError, match="planner_training.split: 'nosuch' is no split of problems.sizes"):
        load_preset("check", overrides={"planner_training.split": "nosuch"})


def test_seed_zero_is_a_seed(folder):
    (folder / "mine.yaml").write_text("extends: check\nname: mine\nseed: 5\n")
    assert load_preset("mine").seed == 5 and load_preset("mine", seed=0).seed == 0
    assert variant("mine", 0) == "mine-seed0" and variant("mine", 5) == "mine"


def test_variant_names():
    """A run with another seed or other values must not overwrite the preset's own figures."""
    own = load_preset("check").seed
    assert variant("check") == variant("check", own) == variant("check", None, {}) == "check"
    assert variant("check", own + 3) == f"check-seed{own + 3}"
    assert variant("check", None, {"execution.k": 5}) == "check-custom"
    assert variant("check", own + 3, {"execution.k": 5}) == f"check-seed{own + 3}-custom"


# --- the whole preset -------------------------------------------------------------------------

MISSING = [  # preset, overrides, what the message must say
    ("check", {"reward_model": None}, ["reward_model: is null", "02, 05, 06, 07, 08, 12"]),
    ("check", {"planner": None}, ["planner: is null; add this section"]),
    ("check", {"groups": None}, ["groups: is null"]),
    ("check", {"evaluation": None}, ["evaluation: is null"]),
    ("check", {"planner_training": None}, ["planner_training: is null", "00, 05, 06, 07, 08, 10, 12"]),
    ("check", {"evaluation.splits": ["test", "nosuch"]}, ["evaluation.splits: 'nosuch' is no split of problems.sizes"]),
    ("check", {"evaluation.splits": []}, ["evaluation.splits: [] must name at least one"]),
    ("check", {"planner_training.arms": []}, ["planner_training.arms: [] must name at least one"]),
    (
        "check",
        {"planner_training.arms": ["exec_only", "tracelift", "exec_only"]},
        ["planner_training.arms", "none twice"],
    ),
    (
        "check",
        {"planner_training.arms": ["exec_only"]},
        ["planner_training.arms: has no 'tracelift'", "notebooks 08, 12"],
    ),
    (
        "check",
        {"planner_training.arms": ["tracelift"]},
        ["planner_training.arms: has no 'exec_only'", "07, 08, 10, 12"],
    ),
    ("check", {"planner_training.seeds": []}, ["planner_training.seeds"]),
    ("check", {"planner_training.seeds": [0, 1, 0]}, ["planner_training.seeds", "none twice"]),
    ("check", {"leaves_out": {"13": "no such notebook"}}, ["leaves_out: no notebook '13'", "00, 01"]),
    ("check", {"leaves_out": {"01": "no groups"}}, ["leaves_out: notebook 01 makes stage 'groups'", "02, 03"]),
    ("check", {"leaves_out": {"03": "no uplift"}}, ["leaves_out: notebook 03 makes stage 'baseline'", "05"]),
    ("check", {"planner.habits": {"full": 0.0}}, ["planner.habits"]),
    ("check", {"groups.sizes": {"train": 5}}, ["groups.sizes: has no 'test', only train; add `test: NUMBER`"]),
    ("check", {"name": "other"}, ["name: 'other' in check.yaml; write name: check"]),
    ("smol", {"problems.sizes": {"train": 9, "test": 5}}, ["problems.sizes: has no 'rl', only train, test; add `rl"]),
    ("smol", {"problems.sizes": {"rl": 9, "test": 5}}, ["problems.sizes: has no 'train'"]),
    ("smol", {"problems.sizes": {"rl": 9, "train": 5}}, ["problems.sizes: has no 'test'"]),
    ("smol", {"groups.seeds": None}, ["groups.seeds: null takes known true steps"]),
    ("smol", {"planner_training.arms": ["exec_only", "tracelift", "llm_judge"]}, ["planner_training.arms: llm_judge"]),
]


@pytest.mark.parametrize("name, overrides, words", MISSING, ids=[f"{n} {o}"[:60] for n, o, _ in MISSING])
def test_what_a_notebook_would_ask_for_in_vain_is_refused_when_the_preset_is_loaded(name, overrides, words):
    """Not after hours, in the notebook that needs it. The message has the key and what to do."""
    with pytest.raises(InputError) as caught:
        load_preset(name, overrides=overrides)
    assert all(word in str(caught.value) for word in [f"preset {name} with {next(iter(overrides))} set", *words])


def test_what_only_left_out_notebooks_need_may_be_missing():
    """Without training no split `rl`, no planner; with a scoring service no reward model for arms with q."""
    out = {"leaves_out": dict.fromkeys(("00", "05", "06", "07", "08", "10", "12"), "no training here")}
    sizes = {"problems.sizes": {"train": 9, "test": 5}}
    assert load_preset("smol", overrides=out | sizes | {"planner": None, "planner_training": None}).planner is None
    out = {"leaves_out": dict.fromkeys(("00", "02", "06", "12"), "a service scores")}
    service = {"reward_model": None, "execution.scorer": {"url": "http://localhost:1", "model": "m"}}
    assert load_preset("smol", overrides=out | service).reward_model is None
    with pytest.raises(
        InputError,
        match=r"reward_model: is null; add this section \(or .* execution.scorer.* \(for notebooks 05, 07, 08\)",
    ):
        load_preset("smol", overrides=out | {"reward_model": None})


@pytest.mark.parametrize(
    "key, value",
    [
        ("planner_training.learning_rate", float("nan")),
        ("execution.temperature", float("inf")),
        ("reward_model.weight_decay", float("-inf")),
        ("min_free_gb", float("inf")),
        ("seed", -1),
        ("seed", 2**40),
    ],
)
def test_numbers_are_finite_and_seeds_are_seeds(key, value):
    with pytest.raises(InputError, match=key):
        load_preset("check", overrides={key: value})


def test_a_key_that_is_there_twice_is_refused(folder):
    """YAML alone would keep the second and say nothing."""
    (folder / "mine.yaml").write_text("extends: tiny\nname: mine\nexecution:\n  k: 3\n  k: 5\n")
    with pytest.raises(InputError, match=r"mine.yaml.*'k' is there twice(.|\n)*line 5"):
        load_preset("mine")


def test_presets_that_extend_themselves_are_refused(folder):
    (folder / "mine.yaml").write_text("extends: mine\nname: mine\n")
    with pytest.raises(InputError, match="extends itself .mine -> mine"):
        load_preset("mine")
    (folder / "mine.yaml").write_text("extends: yours\nname: mine\n")
    (folder / "yours.yaml").write_text("extends: mine\nname: yours\n")
    with pytest.raises(InputError, match="extends itself .mine -> yours -> mine"):
        load_preset("mine")


def test_a_preset_without_a_name_of_its_own_is_refused(folder):
    """Its results would lie among those of the preset that it extends."""
    (folder / "mine.yaml").write_text("extends: tiny\n")
    with pytest.raises(InputError, match="name: 'tiny' in mine.yaml"):
        load_preset("mine")


def upstream(preset, result):
    """Labels of what a result is made from."""
    return {label_of(*need) for need in STAGES[result[0]].needs(preset, result[1])}


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_the_whole_graph_of_a_preset_can_be_walked(name):
    """Every stage that its notebooks make, with its key, after all that it is made from."""
    preset = load_preset(name)
    graph, before = stage_graph(preset), set()
    for label, result in graph.items():
        assert label == label_of(*result) and result == result_of(label)
        assert len(key_of(preset, *result)) == 12 and upstream(preset, result) <= before
        before.add(label)
    trained = {label for label in graph if label.startswith("planner_training/")}
    t = preset.planner_training
    runs_05 = "05" not in preset.leaves_out
    assert trained == ({f"planner_training/{a}/{s}" for a in t.arms for s in t.seeds} if runs_05 else set())
    assert ("baseline" in graph) is runs_05 and "uplift" in graph


def test_the_graph_of_check():
    check = load_preset("check")
    made_from = {label: upstream(check, result) for label, result in stage_graph(check).items()}
    assert made_from["reward_model"] == {"groups", "executor"}
    assert made_from["planner_training/tracelift/1"] == {"problems", "executor", "planner", "reward_model", "baseline"}
    assert made_from["planner_training/exec_only/0"] == {"problems", "executor", "planner"}
    assert "planner_training/exec_only/1" in made_from["evaluation/exec_only/1"]
    assert made_from["evaluation/warm_start/0"] == {
        "problems",
        "executor",
        "second_executor",
        "planner",
        "reward_model",
    }


# --- benchmarks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, words",
    [
        ({"sets": {"gsm9k": 5}}, "benchmarks.sets: no set 'gsm9k'; there are .*gsm8k"),
        (
            {"sets": {"gsm8k": 5}, "planners": ["none", "tracelif"]},
            "benchmarks.planners: 'tracelif' is none of .*tracelift",
        ),
    ],
)
def test_unknown_sets_and_planners_of_benchmarks_are_refused(value, words):
    with pytest.raises(InputError, match=words):
        load_preset("tiny", overrides={"benchmarks": value})


def test_benchmarks_change_no_key_of_a_stage():
    plain, more = (load_preset("tiny", overrides=o) for o in (None, {"benchmarks": {"sets": {"gsm8k": 5}}}))
    keys = [{label: key_of(p, *result) for label, result in stage_graph(p).items()} for p in (plain, more)]
    assert keys[0] == keys[1] and keys[0]
