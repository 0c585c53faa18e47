"""What a notebook needs on Google Colab: the cell that every .ipynb begins with, and the installation it starts.

Only the standard library is imported: this runs before anything else of the project can. The cell is put in when
notebooks are converted (run_notebooks.py), so it is the same everywhere and no source repeats it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CELL = """\
# On Google Colab: fetch the project, install what Colab lacks of it. Anywhere else this cell does nothing.
import os, subprocess, sys  # noqa: E401

if "COLAB_RELEASE_TAG" in os.environ:
    REPOSITORY, FOLDER = "{repository}", "/content/tracelift"
    if not os.path.isdir(FOLDER) and subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, FOLDER]).returncode:
        raise SystemExit(f"no project at {{REPOSITORY}}: put its address there, or upload it as {{FOLDER}}")
    sys.path.insert(0, FOLDER)
    from tracelift_lib.runs import colab
    colab.prepare()
"""


def cell() -> str:
    """The first code cell of every notebook, with the project's address from pyproject.toml."""
    return CELL.format(repository=_pyproject()["urls"]["Repository"]).rstrip("\n")


def prepare() -> None:
    """Install what is lacking of the pinned packages, those of extra `unsloth` where there is a GPU; go to notebooks/.

    Raises:
        SystemExit: pip failed, or a package that this Python had loaded before was replaced: restart, run again.
    """
    print("installing what is lacking here of the packages in pyproject.toml", flush=True)
    before, wanted = _loaded_versions(), requirements(*["unsloth"] * bool(shutil.which("nvidia-smi")))
    if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted]).returncode:
        raise SystemExit("pip could not install these packages; its messages above say why")
    if replaced := sorted(name for name, version in before.items() if _version(name) != version):
        raise SystemExit(
            f"{', '.join(replaced)} changed while in use: choose Runtime > Restart session, then run this cell again"
        )
    os.chdir(PROJECT / "notebooks")


def requirements(*extras: str) -> list[str]:
    """What pyproject.toml asks for, pins included; pip leaves alone what is here already."""
    project = _pyproject()
    return [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]


def _pyproject() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _loaded_versions() -> dict[str, str | None]:
    """Distribution -> version of every package that this process has imported."""
    of_module = metadata.packages_distributions()
    loaded = {name for module in list(sys.modules) for name in of_module.get(module, []) if "." not in module}
    return {re.sub(r"[-_.]+", "-", name).lower(): _version(name) for name in loaded}
