"""The planner's trainer: which one, why, and Unsloth's arguments against Unsloth's own source.

That source is the installed package, or the wheel in the folder that UNSLOTH_WHEELS names; nothing of it is run:

    pip download --no-deps unsloth==2026.10.7 --dest build/wheels && UNSLOTH_WHEELS=build/wheels pytest tests/planner/test_unsloth.py
"""  # noqa: E501

import ast
import importlib.metadata
import importlib.util
import os
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
import trl
from common import story

from tracelift_lib.models.base import train_tokenizer
from tracelift_lib.planner import training
from tracelift_lib.planner import unsloth as planner_backend
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.planner.unsloth import load_with_unsloth
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import PromptLimits
from tracelift_lib.runs import colab
from tracelift_lib.runs.pipeline import STAGES
from tracelift_lib.runs.presets import load_preset, preset_names

LOADER, MODEL, TRAINER = "unsloth/models/loader.py", "unsloth/models/llama.py", "unsloth/models/rl.py"


def settings(**changes):
    return load_preset("colab").planner_training.model_copy(update={"backend": "unsloth", **changes})


# --- arguments ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsloth():
    """(version, file name -> text) of unsloth's source."""
    wheels = list(Path(os.environ.get("UNSLOTH_WHEELS", "nowhere")).glob("unsloth-*.whl"))
    if wheels:
        with zipfile.ZipFile(wheels[0]) as archive:
            return wheels[0].name.split("-")[1], {n: archive.read(n).decode() for n in (LOADER, MODEL, TRAINER)}
    spec = importlib.util.find_spec("unsloth")
    if spec is None:
        pytest.skip("unsloth is not installed, and UNSLOTH_WHEELS names no folder with its wheel")
    root = Path(spec.submodule_search_locations[0]).parent
    return importlib.metadata.version("unsloth"), {n: (root / n).read_text() for n in (LOADER, MODEL, TRAINER)}


def named_parameters(source, cls, function):
    """(all, required) parameters that a static method names; *args and **kwargs do not count."""
    body = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls).body
    spec = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function).args
    names = [a.arg for a in spec.args]
    return set(names) | {a.arg for a in spec.kwonlyargs}, names[: len(names) - len(spec.defaults)]


def fake_gpu(monkeypatch, capability, installed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(planner_backend, "find_spec", lambda name: name if name in installed else None)


def load(monkeypatch, settings, vllm, seed=0, prompts=("a b c", "a b c d e", "a")):
    """(model, arguments of loading, of the adapter): what unsloth's FastLanguageModel is asked for, without a GPU."""
    asked = {}

    class FastLanguageModel:
        def from_pretrained(**arguments):
            asked["loading"] = arguments
            return "model", "tokenizer"

        def get_peft_model(model, **arguments):
            asked["adapter"] = arguments
            return f"adapted {model}"

    def tokenizer(texts, add_special_tokens):
        return {"input_ids": [text.split() for text in texts]}

    fake_gpu(monkeypatch, (8, 0), ["unsloth", *["vllm"] * vllm])
    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=FastLanguageModel))
    model = load_with_unsloth(Path("m"), settings, seed, prompts, tokenizer)
    return model, asked["loading"], asked["adapter"]


def test_the_source_is_of_the_pinned_version(unsloth):
    assert f"unsloth=={unsloth[0]}" in colab.requirements("unsloth")


@pytest.mark.parametrize("vllm", [True, False])
def test_unsloth_knows_every_argument(unsloth, monkeypatch, vllm):
    _, loading, adapter = load(monkeypatch, settings(), vllm)
    known, required = named_parameters(unsloth[1][LOADER], "FastLanguageModel", "from_pretrained")
    assert set(loading) <= known and set(required) <= set(loading)
    tree = ast.parse(unsloth[1][LOADER])
    bases = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "FastLanguageModel").bases
    assert [ast.unparse(b) for b in bases] == ["FastLlamaModel"]  # get_peft_model is that class's
    known, required = named_parameters(unsloth[1][MODEL], "FastLlamaModel", "get_peft_model")
    assert set(adapter) <= known and set(required) == {"model"}


def test_unsloth_puts_its_trainer_and_config_into_trl(unsloth):
    """Why training.py must look both up in `trl` at the time of use."""
    for name in ("RLTrainer_name", "RLConfig_name"):
        assert f'f"trl.{{{name}}} = created_module.Unsloth{{{name}}}"' in unsloth[1][TRAINER]


def test_arguments_say_what_the_preset_says(monkeypatch):
    s = settings(precision="fp16", lora_r=8, lora_dropout=0.0)
    model, loading, adapter = load(monkeypatch, s, vllm=True, seed=3)
    assert model == "adapted model" and loading["model_name"] == "m"
    assert loading["dtype"] == torch.float16 and loading["max_lora_rank"] == 8
    assert not loading["load_in_4bit"] and loading["load_in_16bit"] and loading["random_state"] == 3
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (8, s.lora_alpha, 0.0)
    assert adapter["random_state"] == 3
    assert "gpu_memory_utilization" not in load(monkeypatch, s, vllm=False)[1]


# --- which one ----------------------------------------------------------------------------------


def test_without_a_gpu_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_with_unsloth(Path("m"), settings(), 0, [], None) is None
    line = "planner training with plain transformers: Unsloth needs a GPU and there is none\n"
    assert capsys.readouterr().out == line


def test_the_default_says_nothing(capsys):
    assert load_with_unsloth(Path("m"), settings(backend="transformers"), 0, [], None) is None
    assert capsys.readouterr().out == ""


def test_a_package_that_is_missing_is_named(monkeypatch):
    fake_gpu(monkeypatch, (8, 0), [])
    assert "unsloth is not installed" in planner_backend.why_no_unsloth()
    assert "vllm is not installed" in planner_backend.why_no_vllm()


def test_an_unsloth_that_cannot_be_imported_is_no_crash(monkeypatch):
    fake_gpu(monkeypatch, (8, 0), ["unsloth"])
    monkeypatch.setitem(sys.modules, "unsloth", None)  # what makes Python raise ImportError
    assert "cannot be imported" in planner_backend.why_no_unsloth()


def test_vllm_is_left_out_on_a_t4(monkeypatch):
    fake_gpu(monkeypatch, (7, 5), ["vllm"])
    assert "7.5" in planner_backend.why_no_vllm()
    fake_gpu(monkeypatch, (8, 9), ["vllm"])
    assert planner_backend.why_no_vllm() is None


@pytest.mark.parametrize("vllm", [True, False])
def test_length_is_that_of_the_longest_prompt_and_completion(monkeypatch, capsys, vllm):
    _, loading, adapter = load(monkeypatch, settings(max_completion=50), vllm)
    assert loading["max_seq_length"] == adapter["max_seq_length"] == 55
    assert loading["fast_inference"] is vllm
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and ("with vLLM" in line if vllm else "without vLLM: vllm is not installed" in line)


def test_training_takes_the_trainer_that_is_in_trl(monkeypatch, tmp_path):
    """As it has to be after unsloth has replaced it."""

    class Replaced(Exception):
        pass

    class OtherTrainer:
        def __init__(self, **arguments):
            raise Replaced(arguments["model"], arguments["peft_config"])

    monkeypatch.setattr(trl, "GRPOTrainer", OtherTrainer)
    monkeypatch.setattr(training, "load_with_unsloth", lambda *rest: "adapted")
    problems = {name: story(3, ("+", 2), problem_id=name) for name in "ab"}
    engine = types.SimpleNamespace(reward=RewardEngine.reward, problems=problems)
    plan, tokenizer = load_preset("check").planner_training, train_tokenizer(["some text"], 300)
    with pytest.raises(Replaced) as caught:
        training.train_planner(tmp_path, tokenizer, engine, plan, "short", PromptLimits(), 0, tmp_path)
    assert caught.value.args == ("adapted", None)  # the adapter is there: the trainer must not add another
    config = types.SimpleNamespace()
    monkeypatch.setattr(trl, "GRPOConfig", lambda **arguments: config)
    assert training.grpo_config(plan, 0, tmp_path) is config


# --- the preset's field ---------------------------------------------------------------------------


def test_the_default_changes_no_key():
    """Results from before the field was there stay valid; with Unsloth they are others."""
    for name in preset_names():
        preset = load_preset(name)
        if preset.planner_training and not preset.variants:  # one of them may train all weights, which Unsloth does not
            config = STAGES["planner_training"].config
            plain = load_preset(name, overrides={"planner_training.backend": "transformers"})
            other = load_preset(name, overrides={"planner_training.backend": "unsloth"})
            assert "backend" not in config(plain)["planner_training"]
            assert config(other)["planner_training"]["backend"] == "unsloth"


def test_unsloth_with_the_whole_model_is_refused():
    with pytest.raises(InputError, match="backend unsloth trains an adapter"):
        load_preset("check", overrides={"planner_training.backend": "unsloth", "planner_training.parameters": "full"})
