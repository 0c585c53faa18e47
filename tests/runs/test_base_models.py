"""Base models from files of the repository: the same as those trained here, checked, and for the presets of today."""

import json

import pytest

from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.problems.files import InputError, file_sha256
from tracelift_lib.runs import base_models, store
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset
from tracelift_lib.runs.stages import key_of

FAST = {"executor.steps": 2, "executor.batch_size": 2}


def executor_in(home, monkeypatch):
    """The executor of preset check, a few steps of it, made in a home of its own."""
    monkeypatch.setenv("TRACELIFT_HOME", str(home))
    run = Run("check", overrides=FAST)
    run.make("problems")
    return run.make("executor")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """One trained executor, kept."""
    monkeypatch.setattr(base_models, "KEPT", tmp_path / "base_models")
    trained = executor_in(tmp_path / "trained", monkeypatch)
    assert store.ORIGIN not in trained.manifest["files"]
    return trained, base_models.keep(trained.path)


def weights(artifact):
    return {name: file_sha256(artifact.path / name) for name in artifact.manifest["files"] if name != store.ORIGIN}


def test_a_kept_model_is_taken_and_is_the_one_that_training_gives(kept, tmp_path, monkeypatch, capsys):
    trained, folder = kept
    taken = executor_in(tmp_path / "taken", monkeypatch)
    assert weights(taken) == weights(trained) and "taken from base_models/" in capsys.readouterr().out
    assert taken.json(store.ORIGIN) == trained.manifest and taken.cost() == trained.cost()
    monkeypatch.setenv("BASE", "trained")
    again = executor_in(tmp_path / "again", monkeypatch)
    assert store.ORIGIN not in again.manifest["files"]
    assert file_sha256(again.path / "model.safetensors") == file_sha256(folder / "model.safetensors")


def test_a_damaged_file_is_named(kept, tmp_path, monkeypatch):
    (kept[1] / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"executor-\w+/model.safetensors: missing, or not .*BASE=trained"):
        executor_in(tmp_path / "taken", monkeypatch)


def test_other_code_than_todays_is_said(kept, tmp_path, monkeypatch, capsys):
    origin = json.loads((kept[1] / store.ORIGIN).read_text())
    origin["code"] |= {"models/base.py": "another"}
    (kept[1] / store.ORIGIN).write_text(json.dumps(origin))
    executor_in(tmp_path / "taken", monkeypatch)
    assert "trained by other code than today's" in capsys.readouterr().out


def test_an_unknown_choice_is_refused(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("BASE", "download")
    with pytest.raises(InputError, match="BASE=download: say BASE=trained"):
        executor_in(tmp_path / "taken", monkeypatch)


@pytest.mark.parametrize(("preset", "stage"), [(p, s) for p in ("tiny", "tiny_code") for s in ("executor", "planner")])
def test_the_models_of_the_repository_are_those_of_todays_presets(preset, stage, tmp_path, monkeypatch):
    """A change of a preset gives another key: then the models must be trained and kept anew, or go."""
    monkeypatch.delenv("BASE", raising=False)
    out = tmp_path / stage / key_of(load_preset(preset), stage, {})
    out.mkdir(parents=True)
    assert base_models.take(out, {})
    assert load_model(out).config.vocab_size >= len(load_tokenizer(out))


def test_no_other_models_lie_in_the_repository():
    named = {
        f"{stage}-{key_of(load_preset(preset), stage, {})}"
        for preset in ("tiny", "tiny_code")
        for stage in base_models.STAGES
        if load_preset(preset).value(stage) is not None
    }
    assert {p.name for p in base_models.KEPT.iterdir()} == named
