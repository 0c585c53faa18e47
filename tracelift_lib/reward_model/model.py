"""The Reasoning Reward Model: five rubric heads and a total head on any backbone (paper section 5).

Weights are named `model.*`, `dimension_heads.N.*` and `total_head.*`, settings `rm_*`, and the input is
`prompts.reward_model_text`, as in the released checkpoints, so those load with `from_pretrained`.
Training is in rm_training.py, the scoring service in rm_server.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, set_seed

from tracelift_lib.problems.files import InputError
from tracelift_lib.reward_model.config import RewardModelConfig, four_bit_settings
from tracelift_lib.reward_model.losses import Scores, expected_labels
from tracelift_lib.reward_model.token_tree import TokenTree

NUM_LABELS = 5
HEAD = re.compile(r"(dimension_heads\.\d+|total_head)\.(?:modules_to_save\.\w+\.)?(weight|bias)$")


class ReasoningRewardModel(PreTrainedModel):
    """q(x, z) = (derived + total) / 2 on the last non-padding token (method.md section 5).

    derived = Σ_i w_i · E[label_i] / 4, total = sigmoid(total_head). The backbone may run in bf16; the heads are kept
    and computed in fp32, because in bf16 two scores that differ by less than 0.004 could not be told apart.
    """

    config_class = RewardModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["dimension_heads", "total_head"]

    def __init__(self, config: RewardModelConfig, body: PreTrainedModel | None = None):
        """Random weights; with `body`, a loaded backbone, only the heads are random."""
        super().__init__(config)
        self.model = AutoModel.from_config(config.backbone) if body is None else body
        for module in body.modules() if body else ():
            module._is_hf_initialized = True
        labels = config.rm_num_labels
        self.dimension_heads = nn.ModuleList(nn.Linear(config.hidden_size, labels) for _ in config.rm_dimension_names)
        self.total_head = nn.Linear(config.hidden_size, 1)
        self.departure_head: nn.Linear | None = None  # see `rm_training.train_reward_model`
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> ReasoningRewardModel:
        """Load a checkpoint (folder or hub name) whose config.json has the `rm_*` keys beside the backbone's own.

        A local folder may hold a LoRA adapter instead; see `from_adapter`.
        """
        if (Path(folder) / "adapter_config.json").exists():
            return cls.from_adapter(folder, **kwargs)
        model, loading = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        if loading["missing_keys"]:  # transformers would fill them with random weights and only warn
            raise InputError(f"{folder}: no weights for {', '.join(sorted(loading['missing_keys']))}; not a whole RM")
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
        from peft import PeftConfig, PeftModel

        base = backbone or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        config = RewardModelConfig.from_pretrained(folder, dtype=dtype)
        model = cls(config, AutoModel.from_pretrained(base, dtype=dtype))
        heads = _head_weights(Path(folder))
        expected = [name for name in model.state_dict() if not name.startswith("model.")]
        if missing := [name for name in expected if name not in heads]:
            raise InputError(f"{folder}: no weights for {', '.join(missing)} in its safetensors files; not a whole RM")
        model.load_state_dict(heads, strict=False)
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()

    @classmethod
    def from_backbone(
        cls,
        folder: str | Path,
        dimensions: Sequence[str],
        seed: int,
        new_layers: int = 0,
        dtype: torch.dtype = torch.float32,
        four_bit: bool = False,
    ) -> ReasoningRewardModel:
        """New heads on a causal LM's body, whose LM head is dropped; `new_layers` untrained layers between them.

        `four_bit` loads the body in 4-bit NF4 (bitsandbytes), for training with LoRA on a GPU.
        """
        backbone = AutoConfig.from_pretrained(folder)
        if new_layers:
            depth = backbone.num_hidden_layers + new_layers
            backbone = backbone.from_dict(backbone.to_dict() | {"num_hidden_layers": depth, "layer_types": None})
        config = RewardModelConfig(
            **backbone.to_dict() | {"dtype": dtype},
            rm_dimension_names=list(dimensions),
            rm_dimension_weights=[1 / len(dimensions)] * len(dimensions),
            rm_num_labels=NUM_LABELS,
            rm_use_total_head=True,
        )
        quantization = {"quantization_config": four_bit_settings()} if four_bit else {}
        body = AutoModel.from_pretrained(folder, dtype=dtype, **quantization)
        set_seed(seed)
        if new_layers:
            model = cls(config)
            model.model.load_state_dict(body.state_dict(), strict=False)
        else:
            model = cls(config, body)
        model.is_loaded_in_4bit = four_bit  # PEFT asks for it
        model.config.name_or_path = str(folder)  # an adapter names its base model
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        problem_ids: Tensor | None = None,
        problem_mask: Tensor | None = None,
    ) -> Scores:
        """Score token ids (B, T); padding may stand on either side.

        With `problem_ids` (G, P), padded on the left, `input_ids` go on after them: B / G traces a problem, which is
        read once for all of them.
        """
        cache, full_mask = None, attention_mask
        if problem_ids is not None:
            cache = self.model(input_ids=problem_ids, attention_mask=problem_mask, use_cache=True).past_key_values
            traces = len(input_ids) // len(problem_ids)
            cache.batch_repeat_interleave(traces)
            full_mask = torch.cat([problem_mask.repeat_interleave(traces, 0), attention_mask], 1)
        output = self.model(
            input_ids=input_ids,
            attention_mask=full_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=self.departure_head is not None,
        )
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * positions).argmax(-1)
        pooled = output.last_hidden_state[torch.arange(len(last), device=last.device), last]
        scores = self.heads(pooled)
        if self.departure_head is not None:
            hidden = output.hidden_states[self.departure_layer]
            scores.departures = self.departure_head(F.rms_norm(hidden, hidden.shape[-1:])).squeeze(-1)
        return scores

    def heads(self, pooled: Tensor) -> Scores:
        """Scores of B traces from the hidden states (B, hidden_size) of their last tokens."""
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.to(next(self.total_head.parameters()).dtype)
            logits = torch.stack([head(pooled) for head in self.dimension_heads], dim=1)
            total = torch.sigmoid(self.total_head(pooled).squeeze(-1))
        weights = torch.tensor(self.config.rm_dimension_weights, dtype=logits.dtype, device=logits.device)
        derived = (expected_labels(logits) * weights).sum(-1) / (self.config.rm_num_labels - 1)
        return Scores(logits, total, (derived + total) / 2)

    def score_trees(self, trees: Sequence[TokenTree]) -> Scores:
        """Scores of all texts of some token trees, tree after tree."""
        width, device = max(len(tree.ids) for tree in trees), self.device
        shape = (len(trees), width)
        ids, depths = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        blocked = torch.full((len(trees), 1, width, width), torch.finfo(self.model.dtype).min, dtype=self.model.dtype)
        for row, tree in enumerate(trees):
            n = len(tree.ids)
            ids[row, :n], depths[row, :n] = torch.tensor(tree.ids), torch.tensor(tree.depths)
            blocked[row, 0, :n, :n].masked_fill_(torch.from_numpy(tree.visible()), 0)
        output = self.model(
            input_ids=ids.to(device), attention_mask=blocked.to(device), position_ids=depths.to(device), use_cache=False
        )
        ends = torch.tensor([row * width + end for row, tree in enumerate(trees) for end in tree.ends], device=device)
        return self.heads(output.last_hidden_state.flatten(0, 1)[ends])


def _head_weights(folder: Path) -> dict[str, Tensor]:
    """The heads' tensors in the safetensors files of a folder, under their plain names."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                if match := HEAD.search(name):
                    found[f"{match[1]}.{match[2]}"] = file.get_tensor(name)
    return found
