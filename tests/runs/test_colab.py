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


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Commands that pip would have got; nothing is installed."""
    commands, result = [], SimpleNamespace(returncode=0)
    monkeypatch.setattr(colab.subprocess, "run", lambda command, **rest: commands.append(command) or result)
    monkeypatch.setattr(colab.os, "chdir", lambda folder: None)
    return SimpleNamespace(commands=commands, result=result)


@pytest.mark.parametrize("gpu", [True, False])
def test_unsloth_only_beside_a_gpu(pip, monkeypatch, gpu):
    monkeypatch.setattr(colab.shutil, "which", lambda name: name if gpu else None)
    colab.prepare()
    extra = PYPROJECT["optional-dependencies"]["unsloth"] if gpu else []
    assert pip.commands == [[sys.executable, "-m", "pip", "install", "--quiet", *PYPROJECT["dependencies"], *extra]]


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
