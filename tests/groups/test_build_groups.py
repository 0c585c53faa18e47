"""The builder: streaming, resumable, split, files, card; the loader of released data; the strict validator."""

import json
import random
import re
import tracemalloc
from collections import Counter

import pyarrow.parquet as pq
import pytest
from common import DATA, group_record, has_path

from tracelift_lib.executor.structured import Asker, BudgetSpent, Failure, LocalModel, Reply
from tracelift_lib.groups import group_files
from tracelift_lib.groups.builder import build
from tracelift_lib.groups.by_model import judge_by_model, propose_by_model
from tracelift_lib.groups.cli import main
from tracelift_lib.groups.group_files import load_groups, violations
from tracelift_lib.groups.group_maker import BuildSettings, make_group, propose_exact
from tracelift_lib.groups.judge import judge_by_truth
from tracelift_lib.groups.kinds import Flaw, kinds_of
from tracelift_lib.groups.schema import split_train_dev
from tracelift_lib.groups.seeds import LeakageError, LeakageGuard, SeedSettings, load_seeds
from tracelift_lib.groups.truth import true_rubric
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.problems.files import InputError

GSM = [
    (
        "A farmer fills 3 boxes with 12 eggs each. 6 eggs break. Half of the rest are sold for $5 each. How much "
        "money?",
        "The boxes hold 3 * 12 = <<3*12=36>>36 eggs.\nAfter 6 broke there are 36 - 6 = <<36-6=30>>30 eggs.\n"
        "He sells half of the 30 eggs, so 30 / 2 = <<30/2=15>>15 eggs.\nHe earns 15 * $5 = $<<15*5=75>>75\n#### 75",
    ),
    (
        "Ann has 8 cows and 14 hens. She sells 9 animals for $20 each. What does she get?",
        "9 * 20 = <<9*20=180>>180\n#### 180",
    ),
]
MBPP_TEXT = "Write a function to add up all the even numbers of a list and double the total."
MBPP_CODE = (
    "def f(a):\r\n    total = 0\r\n    for x in a:\r\n        if x % 2 == 0:\r\n            total += x\r\n"
    "    total = total * 2\r\n    return total"
)


@pytest.fixture
def data(tmp_path):
    """A small local folder of seeds, laid out like the public one."""
    folder = tmp_path / "data"
    for name in ("gsm8k", "mbpp"):
        (folder / name).mkdir(parents=True)
    (folder / "gsm8k" / "train.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in GSM)
    )
    rows = [
        {
            "task_id": 600,
            "text": MBPP_TEXT,
            "code": MBPP_CODE,
            "test_setup_code": "",
            "test_list": ["assert f([1, 2, 4]) == 12", "assert f([3]) == 0"],
        }
    ]
    (folder / "mbpp" / "mbpp.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def tiny(n, source="tiny_world", **more):
    return BuildSettings(seeds=SeedSettings(source=source, limit=n), judge="ground_truth", **more)


def build_tiny(n, out, **more):
    return build(tiny(n, **more), out, LeakageGuard(), judge=judge_by_truth)


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "report.json"}


@pytest.mark.parametrize(("source", "domain"), [("tiny_world", "math"), ("tiny_code", "code")])
def test_a_build_writes_groups_in_both_forms_with_a_card_and_nothing_else(tmp_path, source, domain):
    report = build_tiny(60, tmp_path / "out", source=source)
    assert set(files(tmp_path / "out")) == {"train.jsonl", "train.parquet", "dev.jsonl", "dev.parquet", "README.md"}
    for split in ("train", "dev"):
        lines = list(load_groups(tmp_path / "out" / f"{split}.jsonl"))
        rows = list(load_groups(tmp_path / "out" / f"{split}.parquet"))
        assert lines == rows and len(lines) == report["groups"][split]
        assert all(g.domain == domain and len(g.negative_bank) >= 4 for g in lines)
        assert all(true_rubric(g.as_problem(), c.reasoning) == c.rubric for g in lines for c in g.negative_bank)
    assert list(violations([tmp_path / "out" / "train.jsonl", tmp_path / "out" / "dev.jsonl"])) == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert source in card and "ground truth" in card and all(kind in card for kind in kinds_of(domain))
    assert sum(report["groups"].values()) >= 40


def test_the_split_is_the_one_of_the_method(tmp_path, monkeypatch):
    monkeypatch.setattr(group_files, "BATCH", 20)
    build_tiny(70, tmp_path / "out")
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").metadata.num_row_groups == 4  # 63 groups as a stream
    read = {s: [g.problem_id for g in load_groups(tmp_path / "out", s)] for s in ("train", "dev")}
    train, dev = split_train_dev(read["train"] + read["dev"])
    assert set(read["dev"]) == set(dev) and set(read["train"]) == set(train) and len(dev) == 7


def test_groups_without_enough_negatives_are_dropped_and_every_outcome_is_counted(tmp_path):
    report = build_tiny(40, tmp_path / "out", min_negatives=7)
    kept = sum(report["groups"].values())
    assert 0 < kept < 40 and report["outcomes"]["group"] == {"kept": kept, "too few negatives": 40 - kept}
    for kind in kinds_of("math"):
        assert sum(report["outcomes"][kind].values()) == 40
    assert report["traces"] == {"reference": kept, **dict.fromkeys(kinds_of("math"), kept)}


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_an_interrupted_build_goes_on_after_the_last_finished_seed(tmp_path, stop):
    """Killed at a seed, with half a line written: the result is that of one go, and no finished seed is done twice."""
    build_tiny(20, tmp_path / "whole")
    seen = []

    def propose(problem, reference, rng):
        seen.append(problem.problem_id)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return propose_exact(problem, reference, rng)

    with pytest.raises(KeyboardInterrupt):
        build(tiny(20), tmp_path / "parts", LeakageGuard(), propose, judge_by_truth)
    progress = tmp_path / "parts" / "work" / "progress.jsonl"
    with progress.open("ab") as file:
        file.write(b'{"group": {"problem_id": "ti')
    build(tiny(20), tmp_path / "parts", LeakageGuard(), propose, judge_by_truth)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    assert max(Counter(seen).values()) == 2 and sum(n == 2 for n in Counter(seen).values()) == 1


def test_a_finished_build_is_not_made_again_and_other_settings_are_refused(tmp_path):
    report = build_tiny(20, tmp_path / "out")

    def never(problem, reference, rng):
        raise AssertionError("made again")

    assert build(tiny(20), tmp_path / "out", LeakageGuard(), never) == report
    with pytest.raises(InputError, match="other settings"):
        build_tiny(21, tmp_path / "out")
    (tmp_path / "half" / "work").mkdir(parents=True)
    (tmp_path / "half" / "work" / "settings.json").write_text("{}")
    with pytest.raises(InputError, match="unfinished build"):
        build_tiny(20, tmp_path / "half")


def test_seeds_that_are_test_problems_are_refused_by_name_or_dropped_and_listed(tmp_path):
    leaked = list(load_seeds(SeedSettings(source="tiny_world", limit=10)))[3]
    guard = LeakageGuard([("bench-9", leaked.problem.upper())])
    with pytest.raises(LeakageError, match=rf"1 seeds .*\n  {leaked.problem_id} is bench-9 \(normalised match\)\n"):
        build(tiny(10), tmp_path / "out", guard, judge=judge_by_truth)
    assert not list((tmp_path / "out").rglob("*.jsonl"))
    report = build(tiny(10, drop_leaked=True), tmp_path / "dropped", guard, judge=judge_by_truth)
    assert report["outcomes"]["leaked"] == {f"{leaked.problem_id} is bench-9 (normalised match)": 1}
    assert leaked.problem_id not in {
        g.problem_id for s in ("train", "dev") for g in load_groups(tmp_path / "dropped", s)
    }
    assert "1 left out" in (tmp_path / "dropped" / "README.md").read_text()


def test_a_group_of_a_real_shape_by_hand(data):
    settings = BuildSettings(seeds=SeedSettings(source="gsm8k", folder=data))
    seeds = list(load_seeds(settings.seeds))
    group, counts = make_group(seeds[0], settings, propose_exact, None)
    assert {c.negative_kind for c in group.negative_bank} >= {
        "wrong_operation",
        "arithmetic_slip",
        "misread_quantity",
        "lost_event",
        "unsupported_leap",
    }
    assert group.positive_pool[0].rubric.total == 1 and group.metadata["answer"] == "75"
    assert all("programmatic" in c.rubric_reason for c in group.negative_bank) and counts["group|kept"] == 1
    none, counts = make_group(seeds[1], settings, propose_exact, None)  # one calculation: too few places
    assert none is None and counts["group|too few negatives"] == 1


def test_code_negatives_are_those_whose_flaw_shows_when_run(data):
    settings = BuildSettings(seeds=SeedSettings(source="mbpp", folder=data))
    (seed,) = load_seeds(settings.seeds)
    group, counts = make_group(seed, settings, propose_exact, None)
    assert group.domain == "code" and len(group.negative_bank) >= 4
    versions = propose_exact(seed, group.positive_pool[0].reasoning, random.Random(1))
    for kind, flaws in versions.items():
        for flaw in flaws:
            if isinstance(flaw, Flaw) and flaw.program and kind != "missing_step":
                scope = {}
                exec(flaw.program, scope)
                assert [scope["f"]([1, 2, 4]), scope["f"]([3])] != [12, 0]
    assert any(isinstance(f, Failure) for fs in versions.values() for f in fs)  # the factor of 0 does not show


def test_a_maker_that_fails_or_repeats_itself_is_counted_by_reason(data):
    settings = BuildSettings(seeds=SeedSettings(source="gsm8k", folder=data))
    seed = next(load_seeds(settings.seeds))

    def propose(problem, reference, rng):
        good = reference.replace("15 * $5 = $75", "15 * $5 = $76")
        return {
            "arithmetic_slip": [Flaw(good, 0.25)],
            "lost_event": [Failure("refused")],
            "stale_value": [Flaw(good, 0.5)],
            "swapped_events": [Flaw("...", 0.1)],
            "misread_quantity": [],
        }

    group, counts = make_group(seed, settings, propose, None)
    assert group is None and counts == {
        "arithmetic_slip|kept": 1,
        "lost_event|refused": 1,
        "stale_value|duplicate": 1,
        "swapped_events|empty": 1,
        "misread_quantity|no place for it": 1,
        "group|too few negatives": 1,
    }


def test_a_judge_that_fails_leaves_the_trace_out(data):
    def silent(problem, trace, repeat):
        return Failure("not JSON")

    settings = BuildSettings(seeds=SeedSettings(source="gsm8k", folder=data))
    group, counts = make_group(next(load_seeds(settings.seeds)), settings, propose_exact, silent)
    assert group is None and counts["arithmetic_slip|judge: not JSON"] == 1 and counts["group|too few negatives"] == 1
    (code,) = load_seeds(SeedSettings(source="mbpp", folder=data))
    group, counts = make_group(code, settings, propose_exact, silent)  # code references are judged too
    assert group is None and counts["reference|judge: not JSON"] == 1 and counts["group|reference not judged"] == 1


def test_contest_programs_run_in_the_sandbox_only(sandbox, tmp_path):
    """A program of a stranger is put in words, damaged and run, but not here: this one would remove the file."""
    victim = tmp_path / "victim"
    victim.write_text("here")
    program = (
        f"import os\nn = int(input())\ntotal = 0\nfor i in range(1, n + 1):\n    if i % 3 == 0:\n        total += i\n"
        f"if os.path.exists({str(victim)!r}):\n    os.remove({str(victim)!r})\nprint(total * 2)"
    )
    tests = {"input": ["7\n"], "output": ["18\n"]}
    (tmp_path / "data" / "contests").mkdir(parents=True)
    row = {
        "name": "A",
        "description": "Add up the multiples of three up to n, doubled.",
        "public_tests": tests,
        "private_tests": tests,
        "solutions": {"language": [3], "solution": [program]},
    }
    (tmp_path / "data" / "contests" / "train.jsonl").write_text(json.dumps(row) + "\n")
    settings = BuildSettings(seeds=SeedSettings(source="contests", folder=tmp_path / "data"))
    group, counts = make_group(next(load_seeds(settings.seeds)), settings, propose_exact, None)
    assert victim.exists() and counts["group|kept"] == 1
    lines = group.positive_pool[0].reasoning.split("\n")
    assert lines[:3] == [
        "We read the input, work the result out and print it.",
        "- Set n to the next line of the input as a whole number.",
        "- Set total to 0.",
    ]
    assert lines[-1] == "- Print (total times 2)." and len(group.negative_bank) >= 6


# --- language models ---


class Scripted:
    """A model that answers by `reply(prompt)`; it stands for any backend of structured.Asker."""

    name, max_tokens = "scripted", 100

    def __init__(self, reply):
        self.reply, self.calls = reply, 0

    def complete(self, prompt, schema, seed):
        self.calls += 1
        return self.reply(prompt)


def test_a_build_by_a_language_model_stops_at_the_cap_and_goes_on_without_paying_twice(tmp_path, data):
    def reply(prompt):
        trace = prompt.split("Reasoning:\n")[1].split("\n\nAnswer with")[0]
        kind = re.search(r"Kind of flaw: (\w+)", prompt)[1]
        flawed = {
            "arithmetic_slip": trace.replace("15 * $5 = $75", "15 * $5 = $76"),
            "wrong_operation": trace.replace("15 * $5 = $75", "15 + $5 = $20"),
            "misread_quantity": trace.replace("15 * $5 = $75", "15 * $6 = $90"),
            "unsupported_leap": "\n".join(trace.split("\n")[1:]),
            "lost_event": "Something else entirely about the weather of yesterday and tomorrow in that distant town.",
        }.get(kind)
        text = json.dumps({"reasoning": flawed, "changed_place": "p", "why_it_is_a_flaw": "w"}) if flawed else "Sorry!"
        return Reply(text, 200)

    settings = BuildSettings(seeds=SeedSettings(source="gsm8k", folder=data, limit=1), maker="openai", model="scripted")
    ledger, model = tmp_path / "answers.jsonl", Scripted(reply)
    with pytest.raises(BudgetSpent):
        build(settings, tmp_path / "out", LeakageGuard(), propose_by_model(Asker(model, ledger, 1500, attempts=1)))
    assert 0 < model.calls < 7
    report = build(
        settings, tmp_path / "out", LeakageGuard(), propose_by_model(Asker(model, ledger, 99_000, attempts=1))
    )
    assert model.calls == 7 and sum(report["groups"].values()) == 1
    assert report["outcomes"]["lost_event"] == {"off topic": 1} and report["outcomes"]["stale_value"] == {"not JSON": 1}
    assert "by the language model scripted" in (tmp_path / "out" / "README.md").read_text()


def test_noise_of_a_local_model_makes_no_group_and_no_crash(tmp_path, data, capsys):
    tokenizer = train_tokenizer([MBPP_TEXT, MBPP_CODE, GSM[0][0], GSM[0][1]] * 4, 400)
    shape = Qwen2Shape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        initializer_range=0.1,
    )
    model = new_qwen2(tokenizer, shape, 0)
    model.generation_config.max_length = 64
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    asker = Asker(
        LocalModel(
            Sampler(load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model"), Sampling(1.0, 1.0, 16, 4096)),
            "tiny",
        ),
        tmp_path / "answers.jsonl",
        10**6,
        attempts=1,
    )
    settings = BuildSettings(seeds=SeedSettings(source="mbpp", folder=data), maker="local", judge="local", model="tiny")
    report = build(settings, tmp_path / "out", LeakageGuard(), propose_by_model(asker), judge_by_model(asker))
    assert report["groups"] == {"train": 0, "dev": 0}
    assert all(report["outcomes"][kind] == {"not JSON": 1} for kind in kinds_of("code"))
    assert report["outcomes"]["reference"] == {"judge: not JSON": 1}
    assert list(load_groups(tmp_path / "out")) == []


# --- command line -----------------------------------------------------------------------------


def test_the_command_builds_and_validates(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--source", "tiny_world", "--limit", "30", "--out", str(out), "--judge", "ground_truth"]) == 0
    assert "27 train, 3 dev groups" in capsys.readouterr().out
    assert main(["--validate", str(out / "train.jsonl"), str(out / "dev.jsonl")]) == 0
    assert main(["--validate", str(out / "train.jsonl"), str(out / "train.jsonl")]) == 1
    assert capsys.readouterr().out.count("is also in") == 27


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--source and --out"),
        (["--source", "tiny_world", "--out", "OUT"], "does not end"),
        (["--source", "gsm8k", "--out", "OUT", "--data", "OUT/none"], "no test.jsonl"),
        (["--source", "mbpp", "--out", "OUT", "--maker", "openai", "--model", "m"], "--endpoint"),
        (["--source", "mbpp", "--out", "OUT", "--judge", "local"], "--model"),
        (["--validate", "OUT/none.jsonl"], "no such file"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, arguments, says):
    assert main([a.replace("OUT", str(tmp_path)) for a in arguments]) == 1
    captured = capsys.readouterr().err
    assert re.search(says, captured) and "Traceback" not in captured


def test_memory_does_not_grow_with_the_number_of_seeds(tmp_path, monkeypatch):
    """Four times the seeds, at most 400 kB more at the peak (their records alone are more than twice that).
    bench/group_memory.py measures the whole process, up to 100,000 seeds."""
    monkeypatch.setattr(group_files, "BATCH", 20)
    build_tiny(30, tmp_path / "first")  # fills caches
    peaks = []
    for size in (30, 120):
        tracemalloc.start()
        build_tiny(size, tmp_path / str(size))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 400_000, peaks


# --- released data ----------------------------------------------------------------------------


def test_a_built_folder_loads_with_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from datasets import load_dataset

    build_tiny(30, tmp_path / "out")
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 27, "dev": 3}
    first = loaded["train"][0]
    assert first == next(pq.ParquetFile(tmp_path / "out" / "train.parquet").iter_batches(1)).to_pylist()[0]


def test_released_data_load_from_every_form(tmp_path):
    """Rows of a table have None where a record lacks a field, and may hold the other domain's dimensions."""
    record = group_record()
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (group,) = load_groups(path)
    gappy = json.loads(json.dumps(record))
    gappy["metadata"] = json.dumps(record["metadata"])
    for trace in [*gappy["positive_pool"], *gappy["negative_bank"]]:
        trace["rubric"] |= {"task_understanding": None, "non_leakage": None}
        trace.setdefault("rubric_label", None)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "dev.jsonl").write_text(json.dumps(gappy) + "\n")
    assert (
        list(load_groups(path))
        == list(load_groups(tmp_path))
        == list(load_groups(tmp_path / "table", "dev"))
        == [group]
    )
    with pytest.raises(InputError, match="none of test.jsonl"):
        list(load_groups(tmp_path, "test"))
    with pytest.raises(InputError, match="nobody/nothing.* name a file or folder"):  # the tests run offline
        list(load_groups("nobody/nothing"))
    record["negative_bank"][0]["rubric"]["step_coherence"] = 9
    path.write_text(json.dumps(group_record()) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(InputError) as error:
        list(load_groups(path))
    assert has_path(str(error.value), path, 2) and "negative_bank.0.rubric" in str(error.value)


# --- the validator ----------------------------------------------------------------------------


def spoil(**changes):
    record = group_record("p-2")
    for place, value in changes.items():
        *parents, last = place.split("__")
        target = record
        for part in parents:
            target = target[int(part) if part.isdigit() else part]
        if value is KeyError:
            del target[last]
        else:
            target[int(last) if last.isdigit() else last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("line", "field", "says"),
    [
        ('{"problem_id": "p', "record", "not valid JSON"),
        ("[1, 2]", "record", "valid dictionary"),
        ("", "record", "blank line"),
        ('{"a": 1, "a": 2}', "a", "twice"),
        (spoil(problem=KeyError), "problem", "Field required"),
        (spoil(problem_id=7), "problem_id", "string"),
        (spoil(extra=1), "extra", "Extra inputs"),
        (spoil(positive_pool=[]), "positive_pool", "at least 1"),
        (spoil(positive_pool__0__reasoning=""), "positive_pool.0.reasoning", "at least 1"),
        (spoil(positive_pool__0__reasoning="  "), "positive_pool.0.reasoning", "only white space"),
        (spoil(positive_pool__0__rubric__total=1.5), "positive_pool.0.rubric.total", "less than or equal to 1"),
        (
            spoil(positive_pool__0__rubric__step_coherence=5),
            "positive_pool.0.rubric.labels.step_coherence",
            "less than or equal to 4",
        ),
        (
            spoil(positive_pool__0__rubric__step_coherence="4"),
            "positive_pool.0.rubric.labels.step_coherence",
            "integer",
        ),
        (spoil(positive_pool__0__rubric__step_coherence=KeyError), "positive_pool.0.rubric", "neither the math ones"),
        (spoil(negative_bank__1__negative_kind=KeyError), "record", "needs a negative_kind"),
        (spoil(negative_bank__0__rubric_label="good"), "negative_bank.0.rubric_label", "'strong'"),
        (
            spoil(negative_bank__0__rubric_score_raw=9.0),
            "negative_bank.0.rubric.total",
            "0.45, but rubric_score_raw / 10 is 0.9",
        ),
        (
            spoil(negative_bank__0__reasoning="gets 2: 3 + 2 = 5."),
            "negative_bank.0.reasoning",
            "same text as positive_pool.0",
        ),
        (
            spoil(negative_bank__1__reasoning="gets 2:  3 - 2 = 1."),
            "negative_bank.1.reasoning",
            "same text as negative_bank.0",
        ),
        (spoil(positive_pool__0__negative_kind="wrong_operation"), "positive_pool.0.negative_kind", "has no kind"),
        (spoil(problem_id="p-1"), "problem_id", "is also in"),
    ],
)
def test_every_violation_is_explained_by_file_line_and_field(tmp_path, line, field, says):
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(group_record("p-1")) + "\n" + line + "\n" + json.dumps(group_record("p-3")) + "\n")
    found = list(violations([path]))
    assert len([v for v in found if v.startswith(f"{path}:2: {field}: ") and says in v]) == 1
    assert all(has_path(v, path, 2) for v in found)


def test_all_violations_of_a_line_are_listed_and_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_bytes(spoil(problem=KeyError, source=3, extra=1).encode() + b"\n\xff\xfe\n")
    found = [v.removeprefix(f"{path}:").split(": ")[:2] for v in violations([path])]
    assert sorted(found) == [["1", "extra"], ["1", "problem"], ["1", "source"], ["2", "record"]]


@pytest.mark.skipif(not DATA.exists(), reason="public data are not here")
@pytest.mark.parametrize(("source", "limit"), [("gsm8k", 30), ("mbpp", 8)])
def test_real_seeds_give_groups_offline(tmp_path, source, limit):
    settings = BuildSettings(seeds=SeedSettings(source=source, folder=DATA, limit=limit), drop_leaked=True)
    report = build(settings, tmp_path / "out", LeakageGuard())
    assert sum(report["groups"].values()) >= 0.6 * limit
    assert list(violations([tmp_path / "out" / "train.jsonl", tmp_path / "out" / "dev.jsonl"])) == []
