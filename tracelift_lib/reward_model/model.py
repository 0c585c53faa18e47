"""The Reasoning Reward Model: five rubric heads and a total head on any backbone (paper section 5).

Weights are named `model.*`, `dimension_heads.N.*` and `total_head.*`, and config.json holds the backbone's settings
with the `rm_*` ones beside them, as in the released checkpoints, so those load with `from_pretrained`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.utils import ModelOutput, is_bitsandbytes_available

from tracelift_lib.models.loading import load_tokenizer
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import OPEN
from tracelift_lib.reward_model.losses import Scores, expected_labels

HEAD = re.compile(r"(dimension_heads\.\d+|total_head)\.(?:modules_to_save\.\w+\.)?(weight|bias)$")


@dataclass
class Reading:
    """What `Doubt` needs of a forward pass, and what it leaves behind.

    Attributes:
        ids: (B, T) tokens. parents: (B, T), the place of the token before each token of a trace; -1 for `before`, or
            outside of traces, where nothing is doubted. None: those of whole RM texts (`trace_parents`).
        before: (B, 1, hidden_size), the `last` of a pass that this one goes on from.
        log_p: (B, T), how likely the layers below held each token. last: their hidden state of the last token.
    """

    ids: Tensor
    parents: Tensor | None = None
    before: Tensor | None = None
    log_p: Tensor | None = None
    last: Tensor | None = None


class Doubt(nn.Module):
    """Tells the layers above, at each token, how much the language model below would have written another one.

    (1 - p) * direction is added to every hidden state, in proportion to its size, so that it shows beside any; p is the
    probability that the backbone, by its final norm and its (tied) embeddings, gave this token. To compare its own
    guess with what stands there is what a small backbone does not learn from a few thousand groups. Source: ours.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.direction = nn.Parameter(torch.randn(config.hidden_size))

    def forward(self, hidden: Tensor, reading: Reading, embeddings: Tensor) -> Tensor:
        before = torch.zeros_like(hidden[:, :1]) if reading.before is None else reading.before
        guessing = torch.cat([before, hidden], 1).take_along_dim(reading.parents[..., None] + 1, 1)
        log_p = F.linear(self.norm(guessing), embeddings).float().log_softmax(-1)
        log_p = log_p.gather(-1, reading.ids[..., None]).squeeze(-1)
        reading.log_p = log_p if reading.before is not None else log_p.masked_fill(reading.parents < 0, 0.0)
        reading.last = hidden[:, -1:]
        doubt = (1 - reading.log_p.exp()[..., None]).to(hidden.dtype)
        size = (hidden.square().mean(-1, keepdim=True) + self.norm.eps).sqrt()
        return hidden + doubt * size * self.direction


class ReasoningRewardModel(PreTrainedModel):
    """q(x, z) = (derived + total) / 2 on the last non-padding token (docs/method.md section 5).

    derived = Σ_i w_i · E[label_i] / 4, total = sigmoid(total_head); with `rm_use_total_head: false` there is no such
    head, and q = total = derived (section 9). The backbone may run in bf16; the heads are kept
    and computed in fp32, because in bf16 two scores that differ by less than 0.004 could not be told apart.
    """

    config_class = AutoConfig  # of the backbone's own class, with the `rm_*` settings as further attributes
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["dimension_heads", "total_head"]

    def __init__(self, config: PreTrainedConfig, body: PreTrainedModel | None = None):
        """Random weights; with `body`, a loaded backbone, only the heads are random.

        Raises:
            InputError: an `rm_*` setting is missing or does not fit the others; names it.
        """
        _check_settings(config)
        super().__init__(config)
        self.model = AutoModel.from_config(config) if body is None else body
        for module in body.modules() if body else ():
            module._is_hf_initialized = True
        self.dimension_heads = nn.ModuleList(
            nn.Linear(config.hidden_size, config.rm_num_labels) for _ in config.rm_dimension_names
        )
        self.total_head = nn.Linear(config.hidden_size, 1) if config.rm_use_total_head else None
        self.doubt: Doubt | None = None
        if getattr(config, "rm_doubt_layer", None) is not None:
            self.doubt = Doubt(config)
            self.model.layers[config.rm_doubt_layer].register_forward_pre_hook(self._add_doubt, with_kwargs=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        problem_ids: Tensor | None = None,
        problem_mask: Tensor | None = None,
    ) -> Scores:
        """Score token ids (B, T); padding may stand on either side.

        With `problem_ids` (G, P), padded on the left, `input_ids` continue them: B / G traces for each problem, which
        is read once for all of them.
        """
        cache, full_mask, reading = None, attention_mask, Reading(input_ids)
        if problem_ids is not None:
            problem = Reading(problem_ids, torch.full_like(problem_ids, -1))
            reading.parents = torch.arange(-1, input_ids.shape[1] - 1, device=input_ids.device).expand_as(input_ids)
            cache = self.read(problem, attention_mask=problem_mask, use_cache=True).past_key_values
            traces = len(input_ids) // len(problem_ids)
            cache.batch_repeat_interleave(traces)
            full_mask = torch.cat([problem_mask.repeat_interleave(traces, 0), attention_mask], 1)
            reading.before = None if problem.last is None else problem.last.repeat_interleave(traces, 0)
        output = self.read(reading, attention_mask=full_mask, past_key_values=cache, use_cache=cache is not None)
        last = attention_mask.cumsum(-1).argmax(-1)  # where the count of tokens first reaches its end
        scores = self.heads(output.last_hidden_state.take_along_dim(last[:, None, None], 1).squeeze(1))
        scores.log_p = reading.log_p
        return scores

    def read(self, reading: Reading, **inputs: Any) -> ModelOutput:
        """The backbone's output for the tokens of `reading`; with doubt, its results are noted there."""
        if self.doubt is not None:
            inputs["reading"] = reading
            reading.parents = self.trace_parents(reading.ids) if reading.parents is None else reading.parents
        return self.model(input_ids=reading.ids, **inputs)

    def trace_parents(self, ids: Tensor) -> Tensor:
        """(B, T), for whole RM texts: the place of the token before each token of the trace, -1 outside of it."""
        opening = torch.tensor(self.config.rm_doubt_after, device=ids.device)
        places, n = torch.arange(ids.shape[1], device=ids.device), len(opening)
        ends = F.pad(ids, (n, 0), value=-1).unfold(1, n, 1)[:, :-1].eq(opening).all(-1)  # the opening stands before it
        return torch.where(ends.cumsum(-1) > 0, places - 1, -1)

    def _add_doubt(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Before the layer that is the first to see it."""
        return (self.doubt(args[0], kwargs["reading"], self.model.embed_tokens.weight), *args[1:]), kwargs

    def heads(self, pooled: Tensor) -> Scores:
        """Scores of B traces from the hidden states (B, hidden_size) of their last tokens."""
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.to(next(self.dimension_heads.parameters()).dtype)
            logits = torch.stack([head(pooled) for head in self.dimension_heads], dim=1)
            total = None if self.total_head is None else torch.sigmoid(self.total_head(pooled).squeeze(-1))
        weights = logits.new_tensor(self.config.rm_dimension_weights)
        derived = (expected_labels(logits) * weights).sum(-1) / (self.config.rm_num_labels - 1)
        return Scores(logits, derived, derived) if total is None else Scores(logits, total, (derived + total) / 2)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> ReasoningRewardModel:
        """Load a checkpoint (folder or hub name) whose config.json has the `rm_*` keys beside the backbone's own.

        A local folder may hold a LoRA adapter instead; see `from_adapter`.

        Raises:
            InputError: a weight is missing, or an `rm_*` setting is missing or does not fit the others; names it.
        """
        if (Path(folder) / "adapter_config.json").exists():
            return cls.from_adapter(folder, **kwargs)
        model, loading = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        _require_all(loading["missing_keys"], folder)  # transformers would fill them at random and only warn
        return model

    @classmethod
    def from_adapter(
        cls, folder: str | Path, backbone: str | Path | None = None, dtype: torch.dtype = torch.float32
    ) -> ReasoningRewardModel:
        """The RM of a PEFT folder, with the adapter merged into the backbone's weights.

        The folder holds adapter_config.json, PEFT's weights, config.json with the `rm_*` keys, and the heads in any of
        its safetensors files: they are found by their names `dimension_heads.N.*` and `total_head.*`, whatever stands
        before those. `backbone` is used in place of the base model that adapter_config.json names.

        Raises:
            InputError: a head is missing.
        """
        base = backbone or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        config = AutoConfig.from_pretrained(folder, dtype=dtype)
        model = cls(config, AutoModel.from_pretrained(base, dtype=dtype))
        missing = model.load_state_dict(_head_weights(Path(folder)), strict=False).missing_keys
        _require_all([name for name in missing if not name.startswith("model.")], folder)
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()

    @classmethod
    def from_backbone(
        cls,
        folder: str | Path,
        dimensions: Sequence[str],
        seed: int,
        new_layers: int = 0,
        doubt: bool = False,
        dtype: torch.dtype = torch.float32,
        four_bit: bool = False,
        total_head: bool = True,
    ) -> ReasoningRewardModel:
        """New heads on a causal LM's body, whose LM head is dropped; `new_layers` untrained layers between them.

        With `doubt` the first of these sees what the causal LM made of each token. `four_bit` loads the body in 4-bit
        NF4 (bitsandbytes), for training with LoRA on a GPU.

        Raises:
            InputError: `doubt`, and the LM head is not tied to the embeddings.
        """
        settings = AutoConfig.from_pretrained(folder).to_dict() | {
            "dtype": dtype,
            "name_or_path": str(folder),  # an adapter names its base model
            "rm_dimension_names": list(dimensions),
            "rm_dimension_weights": [1 / len(dimensions)] * len(dimensions),
            "rm_num_labels": 5,
            "rm_use_total_head": total_head,
        }
        if doubt:
            if not settings["tie_word_embeddings"]:
                raise InputError(
                    f"{folder}: reward_model.lm_weight needs an LM head tied to the embeddings; set it to 0"
                )
            opening = load_tokenizer(folder)(OPEN + "\n", add_special_tokens=False)["input_ids"]
            settings |= {"rm_doubt_layer": settings["num_hidden_layers"], "rm_doubt_after": opening}
        if new_layers:
            settings |= {"num_hidden_layers": settings["num_hidden_layers"] + new_layers, "layer_types": None}
        config = AutoConfig.for_model(**settings)
        quantization = {"quantization_config": _four_bit_settings()} if four_bit else {}
        body = AutoModel.from_pretrained(folder, dtype=dtype, **quantization)
        set_seed(seed)
        model = cls(config, None if new_layers else body)
        if new_layers:
            model.model.load_state_dict(body.state_dict(), strict=False)
        if doubt:
            model.doubt.norm.load_state_dict(body.norm.state_dict())
        model.is_loaded_in_4bit = four_bit  # PEFT asks for it
        return model


def _check_settings(config: PreTrainedConfig) -> None:
    """Check the `rm_*` settings that stand beside a backbone's own in its config.json.

    Raises:
        InputError: an `rm_*` setting is missing or does not fit the others; names it.
    """
    for name in ("rm_dimension_names", "rm_dimension_weights", "rm_num_labels", "rm_use_total_head"):
        if getattr(config, name, None) is None:
            raise InputError(f"config.json has no {name}: not a Reasoning RM, or one of another layout")
    names, weights, labels = config.rm_dimension_names, config.rm_dimension_weights, config.rm_num_labels
    if not names or len(set(names)) != len(names):
        raise InputError(f"rm_dimension_names must be different names, at least one; got {names!r}")
    if len(weights) != len(names) or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-3):
        raise InputError(f"rm_dimension_weights must be {len(names)} numbers from 0 that add up to 1; got {weights!r}")
    if labels < 2:
        raise InputError(f"rm_num_labels must be at least 2; got {labels!r}")
    if not isinstance(config.rm_use_total_head, bool):
        raise InputError(f"rm_use_total_head must be true or false; got {config.rm_use_total_head!r}")


def _four_bit_settings() -> BitsAndBytesConfig:
    """How a backbone is loaded in 4 bits: NF4, double quantization."""
    if not (torch.cuda.is_available() and is_bitsandbytes_available()):
        raise InputError(
            "4-bit loading (reward_model.four_bit) needs a CUDA GPU and bitsandbytes (pip install bitsandbytes); "
            "without one of them set it to false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )


def _head_weights(folder: Path) -> dict[str, Tensor]:
    """The heads' tensors in the safetensors files of a folder, under their plain names."""
    weights = [item for path in sorted(folder.glob("*.safetensors")) for item in load_file(path).items()]
    return {f"{found[1]}.{found[2]}": tensor for name, tensor in weights if (found := HEAD.search(name))}


def _require_all(missing: Sequence[str], folder: str | Path) -> None:
    if missing:
        raise InputError(
            f"{folder}: no weights for {', '.join(sorted(missing))} in its safetensors files; not a whole RM"
        )
