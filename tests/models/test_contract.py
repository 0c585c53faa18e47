"""The sampling contract over made-up checkpoints: training, evaluation and the executor see the same."""

import pytest
import torch
import trl
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3NextConfig, Qwen3NextForCausalLM

from tracelift_lib.executor.backends import LocalBackend
from tracelift_lib.models import contract
from tracelift_lib.models.base import CHAT_TEMPLATE, new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampler, Sampling, token_log_likelihoods
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.models.settings import HubModel, Qwen2Shape
from tracelift_lib.planner import training
from tracelift_lib.problems.prompts import as_chat

SHAPE = Qwen2Shape(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.4,
)
TEXTS = ["Mia has 3 coins. Mia buys 4 more coins. How many coins does Mia have now?", "Today is 26 Jul 2024. <think>"]
PROMPTS = ["How many coins does Mia have now?", "Mia has 3 coins."]
DATED = "{{ strftime_now('%d %b %Y') if date_string is not defined else date_string }}\n" + CHAT_TEMPLATE
ON_THE_DAY = "{{ strftime_now('%d %b %Y') }}\n" + CHAT_TEMPLATE
THINKING = CHAT_TEMPLATE + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
WITH_BOS = "{{ bos_token }}" + CHAT_TEMPLATE


def add_bos(tokenizer):
    """As Llama's and Gemma's tokenizers do: every text gets BOS."""
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])


def checkpoint(folder, kind):
    """A model folder with one habit of real checkpoints."""
    tokenizer = train_tokenizer(TEXTS * 5, 300)
    if kind.startswith("bos"):
        add_bos(tokenizer)
    model = new_qwen2(tokenizer, SHAPE, seed=1)
    templates = {
        "dated": DATED,
        "on the day": ON_THE_DAY,
        "thinking": THINKING,
        "bos": WITH_BOS,
        "bos, no template": None,
    }
    tokenizer.chat_template = templates.get(kind, CHAT_TEMPLATE)
    if kind == "no pad":
        tokenizer.pad_token = None
    own = {
        "penalty": {
            "repetition_penalty": 1.1,
            "top_k": 3,
            "typical_p": 0.5,
            "do_sample": True,
            "no_repeat_ngram_size": 2,
        }
    }
    for name, value in own.get(kind, {}).items():
        setattr(model.generation_config, name, value)
    if kind == "two EOS":
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, other_stop(tokenizer)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def other_stop(tokenizer):
    return tokenizer.convert_tokens_to_ids("<|endoftext|>")


def trainer_of(folder, tmp_path, tokenizer):
    """The trainer that `train_planner` makes, without a run around it."""
    return training.contract_trainer()(
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=2, max_completion_length=8,
            temperature=0.7, top_p=0.9, report_to=[], use_cpu=True, bf16=False,
        ),
        model=AutoModelForCausalLM.from_pretrained(folder),  # as others load it, with the settings of the checkpoint
        processing_class=tokenizer,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
    )  # fmt: skip


def seen_by_generate(model, monkeypatch):
    """The prepared settings and tokens of every `generate` from now on."""
    seen = []
    prepare = type(model)._prepare_generation_config

    def recorded(self, *args, **kwargs):
        prepared = prepare(self, *args, **kwargs)
        seen.append(prepared[0])
        return prepared

    monkeypatch.setattr(type(model), "_prepare_generation_config", recorded)
    return seen


DECISIVE = [*contract.NEUTRAL, "temperature", "top_p", "do_sample", "max_new_tokens", "pad_token_id", "eos_token_id"]
KINDS = ["penalty", "two EOS", "bos", "bos, no template", "dated", "on the day", "thinking", "no pad"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_evaluation_and_executor_see_the_same(tmp_path, monkeypatch, kind):
    folder = checkpoint(tmp_path / "model", kind)
    tokenizer = load_tokenizer(folder)
    if kind.startswith("bos"):
        add_bos(tokenizer)  # Qwen2's class loses this on loading; Llama's and Gemma's keep it
    sampler = Sampler(load_model(folder), tokenizer, Sampling(0.7, 0.9, 8, 4096))
    trainer = trainer_of(folder, tmp_path / "trainer", tokenizer)
    prompts = [as_chat(p, tokenizer) for p in PROMPTS]
    assert prompts == [LocalBackend(sampler).show(p) for p in PROMPTS]
    trained_on, _, _ = trainer._tokenize_prompts(prompts)
    assert trained_on == contract.token_ids(tokenizer, prompts)
    if kind.startswith("bos"):
        assert all(ids.count(tokenizer.bos_token_id) == 1 == (ids[0] == tokenizer.bos_token_id) for ids in trained_on)
    seen = seen_by_generate(sampler.model, monkeypatch)
    sampler.sample(prompts, 2, seed=0)
    trainer._generate_single_turn(trained_on, None, {})
    settings = [{name: getattr(config, name) for name in DECISIVE} for config in seen]
    stops = [sorted(s.pop("eos_token_id")) for s in settings]
    assert len(settings) >= 2 and all(s == settings[0] for s in settings)
    assert all(s == sorted(contract.stop_ids(sampler.model, tokenizer)) for s in stops)
    assert settings[0]["repetition_penalty"] == 1.0 and settings[0]["top_k"] == 0
    assert settings[0]["temperature"] == 0.7 and settings[0]["top_p"] == 0.9


def test_every_stop_ends_a_completion_in_training_and_here(tmp_path):
    """A model that always says its second end of sequence: one token, and no padding is trained on."""
    folder = checkpoint(tmp_path / "model", "two EOS")
    tokenizer = load_tokenizer(folder)
    trainer = trainer_of(folder, tmp_path / "trainer", tokenizer)
    stop = other_stop(tokenizer)
    for model in (trainer.model, sampled := load_model(folder)):
        model.lm_head = torch.nn.Linear(SHAPE.hidden_size, len(tokenizer))
        torch.nn.init.zeros_(model.lm_head.weight)
        torch.nn.init.constant_(model.lm_head.bias, -1e4)
        model.lm_head.bias.data[stop] = 1e4
    ids = contract.token_ids(tokenizer, ["Mia has 3 coins."])
    assert trainer._generate_single_turn(ids, None, {})[0] == [[stop]]
    assert Sampler(sampled, tokenizer, Sampling(0.7, 1.0, 8, 4096)).sample(["Mia has 3 coins."], 1, 0) == [[""]]


@given(st.lists(st.integers(0, 5), max_size=8), st.sets(st.integers(0, 5)))
def test_a_completion_ends_at_its_first_stop(tokens, stops):
    kept = contract.up_to_stop(tokens, sorted(stops))
    assert tokens[: len(kept)] == kept
    assert not stops & set(kept[:-1])
    assert kept == tokens or kept[-1] in stops


def test_prompts_are_the_same_on_every_day_and_without_thinking(tmp_path):
    for kind in ("dated", "on the day"):
        tokenizer = load_tokenizer(checkpoint(tmp_path / kind, kind))
        assert as_chat("Hi", tokenizer).startswith("26 Jul 2024\n")
    tokenizer = load_tokenizer(checkpoint(tmp_path / "thinking", "thinking"))
    assert "<think>" not in as_chat("Hi", tokenizer)
    tokenizer.init_kwargs["enable_thinking"] = True  # what HubModel.thinking leaves in the folder
    assert as_chat("Hi", tokenizer).endswith("<think>\n")


def test_the_switch_for_thinking_changes_keys_only_where_it_is_on():
    model = {"source": "hub", "model_id": "m", "revision": "r"}
    assert "thinking" not in HubModel(**model).model_dump()
    assert HubModel(**model, thinking=True).model_dump()["thinking"]


def test_thinking_that_the_prompt_opened_is_seen_to_be_thinking(tmp_path):
    """Cut off before it ends, it must not be read as an answer."""
    folder = checkpoint(tmp_path / "model", "thinking")
    tokenizer = load_tokenizer(folder)
    tokenizer.init_kwargs["enable_thinking"] = True
    sampler = Sampler(load_model(folder), tokenizer, Sampling(0.7, 1.0, 4, 4096))
    ((text,), (other,)) = sampler.sample([as_chat("Hi", tokenizer), "Hi"], 1, seed=0)
    assert text.startswith("<think>") and not other.startswith("<think>")


def test_the_log_likelihood_of_an_empty_completion_is_empty(tmp_path):
    folder = checkpoint(tmp_path / "model", "plain")
    values = token_log_likelihoods(load_model(folder), load_tokenizer(folder), ["Mia has", "Mia"], ["", "3 coins."], 99)
    assert len(values[0]) == 0 and len(values[1]) > 0


def test_hybrid_models_are_sampled_without_a_shared_prompt():
    """Their recurrent state cannot be copied for several completions."""
    tokenizer = train_tokenizer(TEXTS * 5, 300)
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=0, mlp_only_layers=[0, 1], initializer_range=0.4,
        layer_types=["linear_attention", "full_attention"], eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = contract.neutralise(Qwen3NextForCausalLM(config).eval())
    assert not contract.can_share_prompt(DynamicCache(config=config))
    sampler = Sampler(model, tokenizer, Sampling(1e-5, 1.0, 6, 4096))
    ids = torch.tensor(contract.token_ids(tokenizer, PROMPTS[:1]))
    with torch.no_grad():
        for _ in range(6):
            best = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, best.view(1, 1)], 1)
            if best == tokenizer.eos_token_id:
                break
    greedy = tokenizer.decode(ids[0, len(contract.token_ids(tokenizer, PROMPTS[:1])[0]) :], skip_special_tokens=True)
    assert sampler.sample(PROMPTS[:1], 2, seed=0) == [[greedy, greedy]]


# --- weights ----------------------------------------------------------------------------------


def trained_adapter(folder, out):
    """A bf16 checkpoint's adapter with changes as small as a run's at a learning rate of 5e-6."""
    torch.manual_seed(0)
    policy = get_peft_model(load_model(folder), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.004)
    policy.save_pretrained(out / training.SAVED["lora"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_weights_that_are_evaluated_are_those_that_were_trained(tmp_path, monkeypatch, dtype):
    folder = checkpoint(tmp_path / "model", "plain")
    trained_adapter(folder, tmp_path / "run")
    load = training.load_model
    monkeypatch.setattr(training, "load_model", lambda start: load(start).to(dtype))  # as a GPU loads a bf16 checkpoint
    ids = torch.tensor(contract.token_ids(load_tokenizer(folder), PROMPTS[:1]))

    def logits(model):
        with torch.no_grad():
            return model(input_ids=ids).logits.float()

    before = logits(training.load_model(folder))
    adapter = tmp_path / "run" / training.SAVED["lora"]
    in_training = logits(PeftModel.from_pretrained(training.load_model(folder), adapter).eval())
    evaluated = training.load_policy(folder, tmp_path / "run")
    change, change_in_training = logits(evaluated) - before, in_training - before
    assert change_in_training.abs().max() > 0
    assert (change - change_in_training).norm() <= 5e-3 * change_in_training.norm()  # merging rounds, too
    assert isinstance(evaluated, PeftModel) == (dtype == torch.bfloat16)
    Sampler(evaluated, load_tokenizer(folder), Sampling(0.7, 1.0, 4, 4096)).sample(PROMPTS, 2, seed=0)
