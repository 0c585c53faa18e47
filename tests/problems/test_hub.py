"""Models and data from the hub: pinned, explained when they are unavailable, and the local folders that replace them.

The errors are those that huggingface_hub and datasets themselves raise at a server on loopback that answers as the hub.
"""

import ast
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import datasets
import datasets.config
import httpx
import huggingface_hub.constants
import pytest
import yaml

from tracelift_lib.evaluation.natural_sets import load_natural
from tracelift_lib.groups.group_files import load_groups
from tracelift_lib.groups.seeds import GSM8K_REVISION
from tracelift_lib.models.loading import fetch
from tracelift_lib.models.settings import HubModel
from tracelift_lib.problems.code_sets import CONTESTS_REVISION, MBPP_REVISION, load_mbpp
from tracelift_lib.problems.files import DATA_VARIABLE, PROJECT, InputError
from tracelift_lib.problems.problem import load_gsm8k
from tracelift_lib.runs.presets import PRESET_FOLDER, load_preset

COMMIT = re.compile(r"[0-9a-f]{40}")
LLAMA = HubModel(source="hub", model_id="meta-llama/Llama-3.1-8B-Instruct", revision="0" * 40)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A function that makes a server on loopback the hub, which answers everything with one status and error code."""
    servers = []

    def answer(status, code=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}" if self.command == "GET" else b"")

            do_HEAD = do_POST = do_GET

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        point_to(f"http://127.0.0.1:{server.server_port}")

    def point_to(address):
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[template.index("/{repo_id}") :]
        )
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)

    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    answer.point_to = point_to
    yield answer
    for server in servers:
        server.shutdown()


def message(tmp_path, source=LLAMA):
    with pytest.raises(InputError) as caught:
        fetch(source, tmp_path / "out")
    assert source.model_id in str(caught.value) and "'folder'" in str(caught.value)  # which, and how to do without
    return str(caught.value)


def test_a_gated_model_says_where_the_licence_is(hub, tmp_path):
    hub(403, "GatedRepo")
    text = message(tmp_path)
    assert "gated" in text and "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct" in text
    assert "licence" in text and "hf auth login" in text and "HF_TOKEN" in text


def test_gated_without_any_token(hub, tmp_path):
    hub(401, "GatedRepo")
    assert "gated" in message(tmp_path)


@pytest.mark.parametrize("status", [401, 404])
def test_a_model_that_is_not_there(hub, tmp_path, status):
    hub(status, "RepoNotFound")
    text = message(tmp_path)
    assert "no such model" in text and "private" in text and "gated" not in text


def test_a_revision_that_is_not_there(hub, tmp_path):
    hub(404, "RevisionNotFound")
    text = message(tmp_path)
    assert "has no such revision" in text and "0" * 40 in text and "correct the preset" in text


def test_a_token_that_may_not(hub, tmp_path):
    hub(403)
    text = message(tmp_path)
    assert "refused your token" in text and "403" in text


def test_no_network(hub, tmp_path):
    hub.point_to("http://127.0.0.1:9")  # nobody listens there
    assert "cannot be reached" in message(tmp_path)


def test_offline_mode(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in message(tmp_path)


# --- a model in the hub's cache, and what is fetched --------------------------------------------

QWEN = HubModel(source="hub", model_id="Qwen/Tiny", revision="1" * 40)


def fill_cache(tmp_path, **files):
    """The cache as huggingface_hub keeps it: blobs, and links to them under the revision."""
    repo = tmp_path / "cache" / "models--Qwen--Tiny"
    snapshot = repo / "snapshots" / QWEN.revision
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, (name, text) in enumerate(files.items()):
        (repo / "blobs" / str(number)).write_text(text)
        (snapshot / name).symlink_to(repo / "blobs" / str(number))
    return {"tokenizer.json": "{}", **files}


@pytest.mark.parametrize("offline", [True, False])
def test_a_cached_model_is_used_where_the_hub_is_out_of_reach(hub, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    hub.point_to("http://127.0.0.1:9")  # nobody listens there
    fill_cache(tmp_path, **{"config.json": "{}", "model.safetensors": "w", "pytorch_model.bin": "pickle"})
    fetch(QWEN, tmp_path / "out")
    found = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(found) == {"config.json", "model.safetensors"} and not any(p.is_symlink() for p in found.values())


@pytest.mark.parametrize("have", [["part-1"], []])
def test_a_cached_model_that_lacks_weights_is_not_used(hub, tmp_path, have):
    hub.point_to("http://127.0.0.1:9")
    index = json.dumps({"weight_map": {"a": "part-1", "b": "part-2"}})
    fill_cache(tmp_path, **{"config.json": "{}", "model.safetensors.index.json": index}, **dict.fromkeys(have, "w"))
    assert "cannot be reached" in message(tmp_path, QWEN)


def test_neither_pickles_nor_other_formats_are_fetched(tmp_path, monkeypatch):
    """The patterns as huggingface_hub applies them, on a repository that has everything."""
    there = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    other = ["pytorch_model.bin", "original/consolidated.00.pth", "original/params.json", "onnx/model.onnx", "run.py"]
    other += ["original/x.safetensors", "training_args.bin", "model.gguf", "README.md"]

    def snapshot_download(model_id, revision, local_dir, **patterns):
        local_dir.mkdir()
        for name in huggingface_hub.utils.filter_repo_objects(there + other, **patterns):
            (local_dir / name).write_text("")
        (local_dir / "model.safetensors").write_text("w")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    fetch(QWEN, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*there, "model.safetensors"}


def test_a_model_without_safetensors_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, local_dir, **__: local_dir.mkdir())
    with pytest.raises(InputError, match="Qwen/Tiny.*no config.json with safetensors.*'folder'"):
        fetch(QWEN, tmp_path / "out")


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no"), httpx.ReadTimeout("late"), httpx.RemoteProtocolError("cut")]
)
def test_errors_of_httpx_are_explained_too(tmp_path, monkeypatch, error):
    """A refused or lost connection comes as httpx's own error, which is no OSError."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "cannot be reached" in message(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    groups, natural = lambda: list(load_groups("ScottHan/TraceLift-Groups")), lambda: load_natural("prmbench", None)
    for load in (lambda: load_gsm8k(None, "test", "0" * 40), groups, natural):
        with pytest.raises(InputError, match="cannot be reached"):
            load()


def test_no_error_message_holds_the_token(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub(401, "GatedRepo")
    assert "hf_secret" not in message(tmp_path)


@pytest.mark.parametrize(
    "load, name",
    [
        (lambda: load_gsm8k(None, "test", "0" * 40), "openai/gsm8k"),
        (lambda: load_mbpp(revision="0" * 40), "google-research-datasets/mbpp"),
    ],
)
def test_data_sets_are_explained_too(hub, monkeypatch, load, name):
    hub(403, "GatedRepo")
    with pytest.raises(InputError) as caught:
        load()
    text = str(caught.value)
    assert f"https://huggingface.co/datasets/{name}" in text and DATA_VARIABLE in text and "gated" in text


# --- pins -----------------------------------------------------------------------------------------


def mappings(value):
    """Every mapping in a YAML value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from mappings(part)


def test_every_hub_reference_of_a_preset_has_a_revision():
    found = 0
    for path in PRESET_FOLDER.glob("*.yaml"):
        preset = yaml.safe_load(path.read_text())
        preset.get("groups", {}).pop("seeds", None)  # theirs are pinned in the loader, see the next test
        for section in mappings(preset):
            if "model_id" in section or section.get("source") in ("hub", "gsm8k"):
                found += 1
                assert COMMIT.fullmatch(section.get("revision", "")), f"{path.name}: no commit pinned in {section}"
    assert found >= 7  # colab and paper: two models and a data set each; smol: a data set


def test_every_seed_source_has_a_revision():
    assert all(COMMIT.fullmatch(revision) for revision in (GSM8K_REVISION, MBPP_REVISION, CONTESTS_REVISION))


def test_no_call_in_the_library_asks_the_hub_without_a_revision():
    """`load_dataset` and `snapshot_download` are always told one, here or by who calls."""
    calls = 0
    for path in (PROJECT / "tracelift_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node, "func", None) and ast.unparse(node.func).split(".")[-1]
            if called in ("load_dataset", "snapshot_download", "hf_hub_download"):
                calls += 1
                assert "revision" in {k.arg for k in node.keywords}, f"{path.name}:{node.lineno}"
    assert calls >= 2  # data sets and models


# --- without the hub ------------------------------------------------------------------------------


def test_every_model_of_preset_colab_can_come_from_a_folder(hub, tmp_path):
    hub.point_to("http://127.0.0.1:9")
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    keys = [f"{role}.folder" for role in ("executor", "planner")]
    preset = load_preset("colab", overrides=dict.fromkeys(keys, str(folder)))
    for role in (preset.executor, preset.planner):
        out = tmp_path / "out"
        fetch(role, out)
        assert (out / "config.json").read_text() == "{}"


def test_data_come_from_the_folder_that_the_variable_names(hub, tmp_path, monkeypatch):
    hub.point_to("http://127.0.0.1:9")
    rows = {
        "gsm8k/test.jsonl": {"question": "2 + 2?", "answer": "It is 4.\n#### 4"},
        "mbpp/mbpp.jsonl": {
            "task_id": 11,
            "text": "Add one.",
            "code": "def f(x):\n    return x + 1",
            "test_setup_code": "",
            "test_list": ["assert f(1) == 2"],
            "challenge_test_list": [],
        },
    }
    for name, row in rows.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert [p.answer for p in load_gsm8k(None, "test", "0" * 40)] == ["4"]
    assert len(load_mbpp(revision="0" * 40)) == 1
