"""The cells tagged `grpo` of notebook 04 against TRL's GRPOTrainer: advantages, loss, gradients, trained weights."""

import copy
import math
from types import SimpleNamespace

import jupytext
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.loading import load_model
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.models.supervised import trainer_arguments
from tracelift_lib.runs.run_notebooks import NOTEBOOKS

PROMPT, LENGTH, TOLERANCE = 3, 8, 1e-5
FORMS = ("grpo", "dapo", "dr_grpo")
# Four groups of four; the second has no variance.
REWARDS = [0.9, 0.1, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0, -0.3, 0.2, 0.7, 0.65]


def grpo_source():
    cells = jupytext.read(NOTEBOOKS / "04_grpo_from_scratch.py").cells
    return "\n\n".join(c.source for c in cells if "grpo" in c.metadata.get("tags", []))


@pytest.fixture
def notebook():
    """The tagged cells, executed with nothing but torch in reach; functions as attributes."""
    namespace = {"torch": torch}
    exec(grpo_source(), namespace)
    return SimpleNamespace(namespace=namespace, **{k: v for k, v in namespace.items() if not k.startswith("__")})


class Recording(GRPOTrainer):
    """Keeps each generated batch in its order, before the trainer shuffles it."""

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.batches = [*getattr(self, "batches", []), {k: v.clone() for k, v in batch.items()}]
        return batch


@pytest.fixture
def make_trainer(tmp_path):
    """TRL on a tiny random Qwen2: 4 prompts of 3 tokens, 4 completions each; known rewards; plain gradient descent."""
    tokenizer = train_tokenizer(["some text"], 300)
    shape = Qwen2Shape(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    new_qwen2(tokenizer, shape, seed=0).save_pretrained(tmp_path / "start")  # TRL loads the reference from there
    few = set(tokenizer("abcd")["input_ids"]) | {tokenizer.eos_token_id}  # so that the end is drawn now and then

    def make(**settings):
        config = GRPOConfig(
            output_dir=str(tmp_path),
            num_generations=4,
            max_completion_length=LENGTH,
            temperature=1.0,
            epsilon=0.2,
            epsilon_high=0.28,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            report_to=[],
            seed=1,
            generation_kwargs={"suppress_tokens": sorted(set(range(len(tokenizer))) - few)},
            **{"per_device_train_batch_size": 16, "max_steps": 1, **settings, **trainer_arguments()},
        )
        return Recording(
            model=load_model(tmp_path / "start"),
            processing_class=tokenizer,
            args=config,
            reward_funcs=lambda completions, **_: REWARDS[: len(completions)],
            train_dataset=Dataset.from_list([{"prompt": text} for text in ("abc", "bcd", "dcb", "cba")]),
        )

    return make


def logits_of(model):
    """A Hugging Face model as the notebook sees one: tokens -> logits."""
    return lambda tokens: model(input_ids=tokens).logits


def fixed_batch(trainer):
    """A batch as TRL lays it out: lengths 1 to 8, advantages of both signs, ratios on both sides of the clip."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8] * 2)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.randint(0, 250, (16, PROMPT + LENGTH), generator=draw)
    with torch.no_grad():
        logps = logits_of(trainer.model)(ids)[:, PROMPT - 1 : -1].log_softmax(-1)
        logps = logps.gather(-1, ids[:, PROMPT:, None])[..., 0]
    noise = torch.randn(2, 16, LENGTH, generator=draw)
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(16, PROMPT, dtype=torch.long),
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
        "advantages": torch.randn(16, generator=draw),
        "old_per_token_logps": logps + 0.4 * noise[0],
        "ref_per_token_logps": logps + 0.6 * noise[1],
    }


def ours(notebook, model, batch, form, **settings):
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    logps = notebook.token_logps(logits_of(model), tokens, LENGTH)
    return notebook.grpo_loss(
        logps,
        batch["old_per_token_logps"],
        batch["completion_mask"],
        batch["advantages"],
        form,
        LENGTH,
        low=0.2,
        high=0.28,
        ref_logps=batch["ref_per_token_logps"],
        **settings,
    )


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def assert_equal(loss, other, model):
    """Losses and gradients agree to 1e-5 absolutely, and relative to the largest entry."""
    a, b = gradient(loss, model), gradient(other, model)
    assert abs(loss.item() - other.item()) <= TOLERANCE * min(1, abs(other.item()))
    assert b.abs().max() > 1e-3  # there is something to compare
    assert (a - b).abs().max() <= TOLERANCE * min(1, b.abs().max())


@pytest.mark.parametrize("beta, corrected", [(0.0, True), (0.3, True), (0.3, False)])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_equal_trl(notebook, make_trainer, form, beta, corrected):
    trainer = make_trainer(loss_type=form, beta=beta, use_bias_correction_kl=corrected)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = fixed_batch(trainer)
    theirs = trainer._compute_loss(trainer.model, batch)
    assert_equal(ours(notebook, trainer.model, batch, form, beta=beta, corrected=corrected), theirs, trainer.model)
    assert min(trainer._metrics["train"][f"clip_ratio/{side}_mean"][0] for side in ("low", "high")) > 0.05


@pytest.mark.parametrize("form", FORMS)
def test_accumulated_micro_batches_of_trl_make_the_whole_batch(notebook, make_trainer, form):
    """TRL divides each of two micro-batches so that their gradients add to the one of the whole batch."""
    trainer = make_trainer(loss_type=form, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.train()
    batch = fixed_batch(trainer)
    halves = [{k: v if v.ndim == 0 else v[rows] for k, v in batch.items()} for rows in (slice(0, 8), slice(8, 16))]
    theirs = sum(trainer._compute_loss(trainer.model, half) for half in halves)
    assert_equal(ours(notebook, trainer.model, batch, form), theirs, trainer.model)


@pytest.mark.parametrize(
    "form, scale_rewards, beta", [("grpo", "group", 0.0), ("dapo", "group", 0.1), ("dr_grpo", "none", 0.0)]
)
def test_a_training_run_of_trl_ends_at_the_same_weights(notebook, make_trainer, form, scale_rewards, beta):
    """One sampled batch, four gradient steps on it: TRL's `train` against `grpo_step` on the same tokens."""
    epochs, rate = 4, 0.1
    trainer = make_trainer(
        loss_type=form,
        beta=beta,
        scale_rewards=scale_rewards,
        num_iterations=epochs,
        max_steps=epochs,
        learning_rate=rate,
    )
    model = copy.deepcopy(trainer.model)
    start = [p.detach().clone() for p in model.parameters()]
    if beta:  # a reference that is not the sampler
        with torch.no_grad():
            for p in trainer.ref_model.parameters():
                p.mul_(1.1)
    trainer.train()
    (batch,) = trainer.batches
    prompts = batch["prompt_ids"][::4]
    lengths = batch["completion_mask"].sum(1)
    assert prompts.shape == (4, PROMPT) and batch["prompt_mask"].all()  # no padding: grpo_step has none
    assert len(set(lengths.tolist())) > 2
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = notebook.completion_mask(batch["completion_ids"], trainer.processing_class.eos_token_id)
    assert torch.equal(mask, batch["completion_mask"].float())
    advantages = notebook.group_advantages(torch.tensor(REWARDS).view(4, 4), scale_rewards == "group")
    torch.testing.assert_close(advantages.flatten(), batch["advantages"], atol=TOLERANCE, rtol=0)

    notebook.namespace["sample"] = lambda *_: (tokens, mask)
    notebook.grpo_step(
        logits_of(model),
        torch.optim.SGD(model.parameters(), rate),
        prompts,
        lambda *_: torch.tensor(REWARDS),
        generations=4,
        length=tokens.shape[1] - PROMPT,
        end=None,
        epochs=epochs,
        scale=scale_rewards == "group",
        form=form,
        reference=logits_of(trainer.ref_model) if beta else None,
        beta=beta,
        low=0.2,
        high=0.28,
    )
    moved = max((p - q).abs().max() for p, q in zip(model.parameters(), start))
    assert moved > 1e-2
    for mine, theirs in zip(model.parameters(), trainer.model.parameters()):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)
    log = [row for row in trainer.state.log_history if "clip_ratio/region_mean" in row]
    assert log[0]["clip_ratio/region_mean"] == 0 and log[-1]["clip_ratio/region_mean"] > 0  # the clip took part


# --- what TRL cannot check --------------------------------------------------------------------


def test_mask_by_hand(notebook):
    """Up to and with the first end token; nothing of what was drawn after it, all of a completion without one."""
    completions = torch.tensor([[5, 0, 7, 0], [0, 0, 0, 0], [1, 2, 3, 4], [1, 2, 3, 0]])
    assert notebook.completion_mask(completions, 0).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1] * 4, [1] * 4]


def test_advantages_by_hand(notebook):
    """(3, 1): mean 2, standard deviation with G - 1 is sqrt 2."""
    rewards = torch.tensor([[3.0, 1.0], [5.0, 5.0]])
    assert notebook.group_advantages(rewards, scale=False).tolist() == [[1, -1], [0, 0]]
    a = 1 / (math.sqrt(2) + 1e-4)
    assert notebook.group_advantages(rewards).flatten().tolist() == pytest.approx([a, -a, 0, 0], abs=1e-6)


def test_samples_follow_the_policy(notebook):
    """A Markov policy over three tokens: groups stay with their prompt, and pairs occur as often as they should."""
    chances = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.25, 0.25, 0.5]])
    torch.manual_seed(0)
    tokens, mask = notebook.sample(lambda t: chances[t].log(), torch.tensor([[0, 1], [1, 2]]), 20_000, 2, end=0)
    assert tokens.shape == (40_000, 4) and torch.equal(mask, notebook.completion_mask(tokens[:, 2:], 0))
    for last, rows in ((1, tokens[:20_000]), (2, tokens[20_000:])):
        assert (rows[:, 1] == last).all()
        share = torch.bincount(3 * rows[:, 2] + rows[:, 3], minlength=9) / 20_000
        expected = (chances[last][:, None] * chances).flatten()
        assert ((share - expected).abs() <= 4.5 * (expected * (1 - expected) / 20_000).sqrt()).all()


def test_an_unknown_loss_form_is_refused(notebook):
    with pytest.raises(ValueError, match="bnpo"):
        notebook.average(torch.ones(1, 1), torch.ones(1, 1), "bnpo", 1)


def test_the_algorithm_is_about_sixty_lines():
    """Docstrings count, empty lines do not."""
    assert 55 <= len([line for line in grpo_source().splitlines() if line.strip()]) <= 65
