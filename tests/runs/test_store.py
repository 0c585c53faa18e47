"""Stages on disk: found again, resumed, remade, never half read."""

import errno
import json
import multiprocessing
import os
import shutil
import time
from collections import namedtuple

import pytest

from tracelift_lib.problems.files import PROJECT, InputError, file_sha256, write_json
from tracelift_lib.runs import store
from tracelift_lib.runs.store import Artifact, CorruptArtifact, OutOfSpace, find, key_of, make

DESCRIPTION = {"stage": "demo", "version": 1, "preset": "p", "seed": 3, "config": {"a": 1}}


class Build:
    """Writes two files and counts how often it ran."""

    def __init__(self, text="hello"):
        self.text, self.runs = text, 0

    def __call__(self, out):
        self.runs += 1
        (out / "data.txt").write_text(self.text)
        (out / "deep").mkdir(exist_ok=True)
        (out / "deep" / "more.json").write_text("[1]")


def made(folder, build=None, upstream=None, code=None, **change):
    description = DESCRIPTION | ({"code": code} if code else {})
    return make(folder, upstream or {}, build or Build(), description, **{"min_free_gb": 0, **change})


# --- making and finding -----------------------------------------------------------------------


def test_what_was_made_is_found_and_not_made_again(tmp_path):
    build = Build()
    first = made(tmp_path / "s", build)
    assert find(tmp_path / "s", {}) == first
    second = made(tmp_path / "s", build)
    assert build.runs == 1 and second.manifest == first.manifest and second.digest == first.digest
    assert second.path == tmp_path / "s" and (second.path / "data.txt").read_text() == "hello"
    assert first.json("deep/more.json") == [1]


def test_nothing_there_is_not_found(tmp_path):
    assert find(tmp_path / "s", {}) is None
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "data.txt").write_text("half of it")
    assert find(tmp_path / "s", {}) is None


def test_the_manifest_says_how_it_was_made(tmp_path):
    """The fields that design section 3 lists."""
    up = made(tmp_path / "up")
    manifest = json.loads((made(tmp_path / "s", upstream={"up": up}).path / "manifest.json").read_text())
    assert {key: manifest[key] for key in DESCRIPTION} == DESCRIPTION  # config slice and seed among them
    assert manifest["upstream"] == {"up": file_sha256(tmp_path / "up" / "manifest.json")}
    assert manifest["files"] == {
        name: {"size": (tmp_path / "s" / name).stat().st_size, "sha256": file_sha256(tmp_path / "s" / name)}
        for name in ("data.txt", "deep/more.json")
    }
    assert {"torch", "transformers", "trl", "peft", "datasets", "accelerate"} <= set(manifest["packages"])
    assert len(manifest["code_sha256"]) == 64 and manifest["revision"] and manifest["hardware"] and manifest["finished"]
    assert manifest["seconds"] >= 0 and 0 < manifest["peak_memory_gb"] < 1000
    assert str(os.cpu_count()) in manifest["hardware"]


def test_the_work_folder_is_gone_when_a_stage_is_finished(tmp_path):
    def build(out):
        assert (out / "work").is_dir()
        (out / "work" / "checkpoint").write_text("x")
        (out / "result").write_text("y")

    artifact = made(tmp_path / "s", build)
    assert set(artifact.manifest["files"]) == {"result"} and not (tmp_path / "s" / "work").exists()


def test_the_manifest_is_written_last(tmp_path):
    def build(out):
        assert not (out / "manifest.json").exists()
        (out / "result").write_text("y")

    artifact = made(tmp_path / "s", build)
    assert (artifact.path / "manifest.json").stat().st_mtime_ns >= (artifact.path / "result").stat().st_mtime_ns


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_keys_hash_all_that_decides():
    base = ("stage", 1, {"a": 1, "b": [1, 2]}, {"up": "k"})
    key = key_of(*base)
    assert len(key) == 12 and set(key) <= set("0123456789abcdef")
    assert key == key_of("stage", 1, {"b": [1, 2], "a": 1}, {"up": "k"})  # the order of the keys is no content
    others = [
        ("other", *base[1:]),
        (base[0], 2, *base[2:]),
        (*base[:2], {"a": 2, "b": [1, 2]}, base[3]),
        (*base[:2], {"a": 1, "b": [2, 1]}, base[3]),
        (*base[:3], {"up": "l"}),
        (*base[:3], {"down": "k"}),
        (*base[:3], {}),
    ]
    assert len({key, *(key_of(*other) for other in others)}) == 8


# --- upstream ---------------------------------------------------------------------------------


def test_a_stage_is_remade_when_what_it_depends_on_was_remade(tmp_path):
    build = Build()
    up = made(tmp_path / "up", Build("old"))
    made(tmp_path / "s", build, {"up": up})
    shutil.rmtree(tmp_path / "up")
    new = made(tmp_path / "up", Build("new"))
    assert find(tmp_path / "s", {"up": new}) is None
    again = made(tmp_path / "s", build, {"up": new})
    assert build.runs == 2 and again.manifest["upstream"] == {"up": new.digest}
    assert find(tmp_path / "s", {"up": new}) == again
    assert find(tmp_path / "s", {}) is None and find(tmp_path / "s", {"other": new}) is None


def test_files_of_the_former_result_do_not_stay(tmp_path):
    def first(out):
        (out / "old-only.txt").write_text("x")

    made(tmp_path / "s", first)
    artifact = made(tmp_path / "s", Build(), {"up": made(tmp_path / "up")})
    assert not (tmp_path / "s" / "old-only.txt").exists() and "old-only.txt" not in artifact.manifest["files"]


# --- code -------------------------------------------------------------------------------------

CODE, OTHER = {"room/a.py": "1", "room/b.py": "2"}, {"room/a.py": "1", "room/b.py": "3", "room/c.py": "4"}


def test_a_result_of_other_code_is_kept_unless_asked_otherwise(tmp_path, monkeypatch):
    first, build = made(tmp_path / "s", Build("old"), code=CODE), Build("new")
    assert store.changed_code(first, CODE) == []
    assert store.changed_code(first, OTHER) == ["room/b.py", "room/c.py"]
    assert store.changed_code(first, {"room/a.py": "1"}) == ["room/b.py"]  # a file that is gone
    assert made(tmp_path / "s", build, code=OTHER) == first and build.runs == 0
    monkeypatch.setenv("STALE", "rebuild")
    assert made(tmp_path / "s", build, code=CODE) == first and build.runs == 0  # its own code: nothing to build
    again = made(tmp_path / "s", build, code=OTHER)
    assert build.runs == 1 and (again.path / "data.txt").read_text() == "new" and again.manifest["code"] == OTHER
    assert made(tmp_path / "s", build, code=OTHER) == again and build.runs == 1


def test_of_a_result_without_a_record_of_its_code_nothing_is_known(tmp_path, monkeypatch):
    """Results of earlier versions of this project are kept, whatever is asked."""
    first, build = made(tmp_path / "s"), Build()
    monkeypatch.setenv("STALE", "rebuild")
    assert store.changed_code(first, CODE) == []
    assert made(tmp_path / "s", build, code=CODE) == first and build.runs == 0


def test_an_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv("STALE", "rebuld")
    with pytest.raises(InputError, match="STALE=rebuld.*STALE=rebuild"):
        store.rebuilds_stale()


# --- damage -----------------------------------------------------------------------------------


def truncate(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


DAMAGE = {
    "manifest cut off": truncate,
    "manifest empty": lambda f: (f / "manifest.json").write_text(""),
    "manifest is binary": lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest is null": lambda f: (f / "manifest.json").write_text("null"),
    "manifest is a list": lambda f: (f / "manifest.json").write_text("[]"),
    "manifest is a number": lambda f: (f / "manifest.json").write_text("5"),
    "manifest without files": lambda f: write_json(
        f / "manifest.json", {k: v for k, v in json.loads((f / "manifest.json").read_text()).items() if k != "files"}
    ),
    "file missing": lambda f: (f / "data.txt").unlink(),
    "file missing in a folder": lambda f: (f / "deep" / "more.json").unlink(),
    "file shorter": lambda f: (f / "data.txt").write_text("hell"),
    "file changed, same size": lambda f: (f / "data.txt").write_text("hellO"),
    "file is a folder": lambda f: ((f / "data.txt").unlink(), (f / "data.txt").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_never_read(tmp_path, damage):
    """Neither found nor silently made again: a person must know, and the message says what to delete."""
    folder = made(tmp_path / "s").path
    damage(folder)
    build = Build()
    for attempt in (lambda: find(folder, {}), lambda: made(folder, build)):
        with pytest.raises(CorruptArtifact) as caught:
            attempt()
        assert f"Delete the folder {folder}" in str(caught.value)
    assert build.runs == 0
    shutil.rmtree(folder)
    made(folder, build)
    assert build.runs == 1 and find(folder, {})


def test_damage_after_a_first_look_is_noticed(tmp_path):
    """Files may be hashed once a process only as long as they are not touched."""
    folder = made(tmp_path / "s").path
    assert find(folder, {}) and find(folder, {})
    (folder / "data.txt").write_text("hellO")
    os.utime(folder / "data.txt", (2e9, 2e9))
    with pytest.raises(CorruptArtifact):
        find(folder, {})


def test_only_the_damaged_file_is_named(tmp_path):
    folder = made(tmp_path / "s").path
    (folder / "deep" / "more.json").write_text("[2]")
    with pytest.raises(CorruptArtifact, match="more.json differs"):
        find(folder, {})


# --- interruption -----------------------------------------------------------------------------


class Interrupted(Exception):
    pass


class InTwoParts:
    """Makes a checkpoint in its work folder and stops; goes on from it if it is there."""

    def __init__(self):
        self.log = []

    def __call__(self, out):
        checkpoint = out / "work" / "half"
        if checkpoint.exists():
            self.log.append("resumed")
            (out / "result").write_text(checkpoint.read_text() + " and the rest")
            return
        self.log.append("begun")
        checkpoint.write_text("half")
        raise Interrupted


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_an_interrupted_build_is_resumed(tmp_path, error, monkeypatch):
    monkeypatch.setitem(globals(), "Interrupted", error)
    build, up = InTwoParts(), made(tmp_path / "up")
    with pytest.raises(error):
        made(tmp_path / "s", build, {"up": up})
    assert find(tmp_path / "s", {"up": up}) is None  # not half read
    artifact = made(tmp_path / "s", build, {"up": up})
    assert build.log == ["begun", "resumed"]
    assert (artifact.path / "result").read_text() == "half and the rest"
    assert set(artifact.manifest["files"]) == {"result"}


def test_work_from_other_inputs_is_dropped(tmp_path):
    build = InTwoParts()
    with pytest.raises(Interrupted):
        made(tmp_path / "s", build, {"up": made(tmp_path / "up")})
    shutil.rmtree(tmp_path / "up")
    new = made(tmp_path / "up", Build("new"))
    with pytest.raises(Interrupted):
        made(tmp_path / "s", build, {"up": new})
    assert build.log == ["begun", "begun"]
    made(tmp_path / "s", build, {"up": new})
    assert build.log[-1] == "resumed"


def test_work_of_other_code_is_dropped(tmp_path):
    """A checkpoint that other code wrote may not mean the same."""
    build = InTwoParts()
    with pytest.raises(Interrupted):
        made(tmp_path / "s", build)
    with pytest.raises(Interrupted):
        made(tmp_path / "s", build, code={"room/file.py": "b"})
    assert build.log == ["begun", "begun"]
    with pytest.raises(Interrupted):  # one file more
        made(tmp_path / "s", build, code={"room/file.py": "b", "room/other.py": "c"})
    made(tmp_path / "s", build, code={"room/other.py": "c", "room/file.py": "b"})
    assert build.log == ["begun", "begun", "begun", "resumed"]


def test_files_outside_the_marker_are_dropped(tmp_path):
    """A folder of unknown origin (copied by hand, say) is not resumed."""
    (tmp_path / "s" / "work").mkdir(parents=True)
    (tmp_path / "s" / "work" / "half").write_text("foreign")
    build = InTwoParts()
    with pytest.raises(Interrupted):
        made(tmp_path / "s", build)
    assert build.log == ["begun"]


def test_an_error_of_the_build_comes_through(tmp_path):
    def build(out):
        raise PermissionError(errno.EACCES, "not allowed")

    with pytest.raises(PermissionError):
        made(tmp_path / "s", build)


# --- space ------------------------------------------------------------------------------------


def full_disk(out):
    (out / "work" / "half").write_text("x")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_is_named_and_work_is_kept(tmp_path):
    with pytest.raises(OutOfSpace) as caught:
        made(tmp_path / "s", full_disk)
    assert str(tmp_path / "s") in str(caught.value) and "TRACELIFT_HOME" in str(caught.value)
    assert find(tmp_path / "s", {}) is None
    build = InTwoParts()
    assert made(tmp_path / "s", build) and build.log == ["resumed"]


def test_a_disk_that_fills_up_while_weights_are_saved_is_named(tmp_path):
    """Not every library raises OSError: safetensors has its own error, with the system's words in it."""
    from safetensors import SafetensorError

    def build(out):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OutOfSpace):
        made(tmp_path / "s", build)


def test_a_disk_that_fills_up_while_a_checkpoint_is_saved_is_named(tmp_path, monkeypatch):
    """torch.save says nothing about the disk; only the free space tells. With space left it is another fault."""

    def build(out):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        made(tmp_path / "s", build)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(OutOfSpace):
        made(tmp_path / "s", build)


def test_too_little_space_is_noticed_before_building(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 * 2**30, 0, int(1.5 * 2**30)))
    build = Build()
    with pytest.raises(OutOfSpace, match="less than 2 GB"):
        made(tmp_path / "s", build, min_free_gb=2)
    assert build.runs == 0
    made(tmp_path / "s", build, min_free_gb=1)
    assert build.runs == 1


def test_a_finished_stage_needs_no_space(tmp_path, monkeypatch):
    build = Build()
    made(tmp_path / "s", build)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    made(tmp_path / "s", build, min_free_gb=2)
    assert build.runs == 1


# --- two at once ------------------------------------------------------------------------------


def slow_build(out):
    with (out.parent / "runs.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.5)
    (out / "result").write_text(str(os.getpid()))


def make_in_process(folder, start, results):
    start.wait()
    results.put(make(folder, {}, slow_build, DESCRIPTION, 0).manifest["files"])


def test_two_processes_build_a_stage_once(tmp_path):
    context = multiprocessing.get_context("fork")  # spawn would import torch twice
    start, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=make_in_process, args=(tmp_path / "s", start, results)) for _ in range(3)]
    for p in processes:
        p.start()
    files = [results.get(timeout=60) for _ in processes]
    for p in processes:
        p.join(60)
    assert len((tmp_path / "runs.txt").read_text().split()) == 1
    assert files[0] == files[1] == files[2]


# --- small things -----------------------------------------------------------------------------


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2], "a": "é"})
    assert json.loads(path.read_text()) == {"b": [1, 2], "a": "é"}
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"b": [1, 2], "a": "é"}

    def crash(source, target):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError):
        write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == {"b": [1, 2], "a": "é"}  # the reader's file was not touched


def test_home_is_the_project_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACELIFT_HOME", str(tmp_path))
    assert store.home() == tmp_path
    monkeypatch.delenv("TRACELIFT_HOME")
    assert store.home() == PROJECT and (store.home() / "pyproject.toml").exists()


def test_the_cost_of_a_stage_in_words():
    manifest = {"stage": "demo", "seconds": 61.4, "peak_memory_gb": 1.26, "hardware": "some CPU", "revision": "abc"}
    assert Artifact(None, manifest).cost() == "demo: 61 s, peak memory 1.3 GB, on some CPU, revision abc"
