"""The first cell of every notebook: the same everywhere, silent off Colab, and what it installs on Colab.

A whole installation in a fresh Python is not run here (it loads gigabytes); the README says how to do it by hand.
"""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from types import SimpleNamespace

import nbformat
import pytest

from tracelift_lib.problems.files import PROJECT
from tracelift_lib.runs import colab
from tracelift_lib.runs.run_notebooks import convert, sources

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
ADDRESS = PYPROJECT["urls"]["Repository"]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("source", sources(), ids=lambda s: s.stem)
def test_every_notebook_begins_with_it(source):
    for notebook in (convert(source), nbformat.read(source.with_suffix(".ipynb"), as_version=4)):
        assert code_cells(notebook)[0].source == colab.cell()
        assert sum("COLAB_RELEASE_TAG" in cell.source for cell in notebook.cells) == 1


def test_it_is_short_and_names_no_package():
    lines = colab.cell().splitlines()
    assert len(lines) <= 11 and ADDRESS in colab.cell()
    assert not any(re.split(r"[=<>]", r)[0] in colab.cell() for r in PYPROJECT["dependencies"])


def run_cell(folder, tmp_path, **environment):
    """Run the cell in a bare Python (no packages of ours, not in our folder), as a notebook from GitHub alone does."""
    text = colab.cell().replace(ADDRESS, PROJECT.as_uri()).replace("/content/tracelift", str(folder))
    (tmp_path / "cell.py").write_text(text + "\nprint('after', os.getcwd(), 'tracelift_lib' in sys.modules)\n")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COLAB_RELEASE_TAG")}
    return subprocess.run(
        [sys.executable, "-I", "cell.py"], cwd=tmp_path, env={**clean, **environment}, capture_output=True, text=True
    )


def test_elsewhere_it_does_nothing(tmp_path):
    done = run_cell(tmp_path / "project", tmp_path)
    assert done.returncode == 0 and done.stdout == f"after {tmp_path} False\n" and not done.stderr
    assert not (tmp_path / "project").exists()


def test_on_colab_it_fetches_the_project_and_goes_there(tmp_path):
    """Here nothing is lacking, so pip has nothing to do (a GPU would add the extra unsloth: then this is not run)."""
    if colab.shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU: the cell would install unsloth")
    folder, environment = tmp_path / "project", {"COLAB_RELEASE_TAG": "release", "PIP_NO_INDEX": "1"}
    done = run_cell(folder, tmp_path, **environment)
    if "pip could not install" in done.stderr:
        pytest.skip("this Python lacks a pinned package: the cell would install it")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"after {folder}/notebooks True\n")
    assert (folder / "tracelift_lib" / "runs" / "colab.py").exists()
    (folder / "tracelift_lib" / "runs" / "colab.py").write_text(
        "def prepare(): pass\n"
    )  # which the first run has shown
    again = run_cell(folder, tmp_path, **environment)  # it is there: no second clone
    assert again.returncode == 0 and "Cloning" not in again.stderr


def test_a_wrong_address_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PROJECT", tmp_path / "nothing")
    done = run_cell(tmp_path / "project", tmp_path, COLAB_RELEASE_TAG="release")
    assert done.returncode == 1 and "put its address there, or upload it as" in done.stderr


# --- what is installed ----------------------------------------------------------------------------


def test_pins_are_those_of_pyproject():
    assert colab.requirements() == PYPROJECT["dependencies"]
    extra = PYPROJECT["optional-dependencies"]["unsloth"]
    assert colab.requirements("unsloth") == PYPROJECT["dependencies"] + extra and extra


COLAB = {"torch": "2.11.0+cu128", "torchvision": "0.26.0+cu128", "torchaudio": "2.11.0+cu128", "torchao": "0.10.0"}
OLD = {"torch": "2.6.0+cu124", "torchvision": "0.21.0+cu124", "torchaudio": "2.6.0+cu124"}


def torch_parts(command):
    return sorted(r for r in command if r.startswith("torch"))


@pytest.mark.parametrize("gpu", [True, False])
def test_colabs_own_torch_stays_with_what_was_built_for_it(gpu):
    """Replaced alone, it would leave torchvision and torchaudio unusable, and could ask for a newer driver."""
    wanted = colab.fitting(PYPROJECT["dependencies"], COLAB.get, gpu)
    assert torch_parts(wanted) == ["torch==2.11.0", "torchao>=0.16.0"] and "--extra-index-url" not in wanted
    assert not any(r.startswith("torch==2.13") for r in wanted)


def test_a_torch_that_does_not_fit_is_replaced_with_all_that_was_built_for_it():
    assert torch_parts(colab.fitting(PYPROJECT["dependencies"], OLD.get, True)) == [
        "torch==2.13.0",
        "torchaudio==2.13.0",
        "torchvision==0.28.0",
    ]
    alone = {"torch": "2.6.0"}
    assert torch_parts(colab.fitting(PYPROJECT["dependencies"], alone.get, True)) == ["torch==2.13.0"]


@pytest.mark.parametrize("here", [OLD, {}])
def test_without_a_gpu_no_build_with_cuda_is_fetched(here):
    wanted = colab.fitting(PYPROJECT["dependencies"], here.get, False)
    assert all(r.endswith("+cpu") for r in torch_parts(wanted)) and wanted[-2:] == [
        "--extra-index-url",
        colab.CPU_BUILDS,
    ]


@pytest.mark.parametrize("version, fits", [((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), False)])
def test_a_python_that_is_not_supported_is_said_before_anything_is_installed(pip, monkeypatch, version, fits):
    monkeypatch.setattr(colab.sys, "version_info", (*version, 0, "final", 0))
    if fits:
        colab.prepare()
        assert len(pip.commands) == 1
        return
    with pytest.raises(SystemExit, match=rf"Python {version[0]}.{version[1]}, the project needs 3.11 or 3.12.*Runtime"):
        colab.prepare()
    assert pip.commands == []


@pytest.mark.parametrize(
    "returncode, printed, error, gpu, words",
    [
        (0, "2.11.0 True", "", True, ""),
        (0, "2.11.0 False", "", False, ""),
        (0, "2.13.0 False", "", True, "torch 2.13.0 cannot use this GPU.*driver"),
        (1, "", "RuntimeError: operator torchvision::nms does not exist", False, "torchvision::nms does not exist"),
    ],
)
def test_what_was_installed_is_tried_in_a_fresh_python(monkeypatch, returncode, printed, error, gpu, words):
    result = SimpleNamespace(returncode=returncode, stdout=printed + "\n", stderr=error)
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: result)
    found = colab.what_fails(gpu)
    assert re.search(words, found) if words else found == ""


def test_what_does_not_work_together_stops_before_the_notebook(pip, monkeypatch):
    """Tried if pip has replaced anything that matters; nothing has to be tried twice."""
    versions, fault = iter(range(1000)), "torch cannot use this GPU"
    monkeypatch.setattr(colab, "_version", lambda name: f"2.11.{next(versions)}")
    monkeypatch.setattr(colab, "what_fails", lambda gpu: fault)
    with pytest.raises(SystemExit, match=fault):
        colab.prepare()
    monkeypatch.setattr(colab, "_version", lambda name: "2.11.0")
    colab.prepare()


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Commands that pip would have got; nothing is installed. Colab's own packages lie there, unless a test says so."""
    commands, result = [], SimpleNamespace(returncode=0)
    monkeypatch.setattr(colab.subprocess, "run", lambda command, **rest: commands.append(command) or result)
    monkeypatch.setattr(colab, "what_fails", lambda gpu: "")
    monkeypatch.setattr(colab, "_loaded_versions", dict)
    monkeypatch.setattr(colab.os, "chdir", lambda folder: None)
    return SimpleNamespace(commands=commands, result=result)


@pytest.mark.parametrize("gpu", [True, False])
def test_unsloth_only_beside_a_gpu(pip, monkeypatch, gpu):
    monkeypatch.setattr(colab.shutil, "which", lambda name: name if gpu else None)
    monkeypatch.setattr(colab, "_version", COLAB.get)
    colab.prepare()
    (command,) = pip.commands
    assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
    extra = PYPROJECT["optional-dependencies"]["unsloth"]
    assert [set(extra) <= set(command), bool(set(extra) & set(command))] == [gpu, gpu]
    assert {r for r in PYPROJECT["dependencies"] if not r.startswith("torch==")} <= set(command)


def test_a_failed_installation_stops(pip):
    pip.result.returncode = 1
    with pytest.raises(SystemExit, match="pip could not install"):
        colab.prepare()


def test_a_package_replaced_while_in_use_asks_for_a_restart(pip, monkeypatch):
    versions = iter(["1.0", "2.0"])
    monkeypatch.setattr(colab, "_version", lambda name: next(versions) if name == "pandas" else "same")
    monkeypatch.setattr(colab, "_loaded_versions", lambda: {"pandas": colab._version("pandas"), "torch": "same"})
    with pytest.raises(SystemExit, match="pandas changed while in use.*Restart session"):
        colab.prepare()


def test_loaded_packages_are_seen_by_their_distribution():
    import yaml  # noqa: F401

    assert colab._loaded_versions()["pyyaml"] == metadata.version("pyyaml")
