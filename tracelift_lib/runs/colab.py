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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
TORCH = (2, 11), (2, 13)  # releases of torch that the project has run with, the first and the last
TRIED = "torch", "transformers", "peft", "trl"  # imported once after any of them was replaced
TORCHVISION = 15  # torchvision 0.(n + 15) is built for torch 2.n; torchaudio has torch's own numbers
TORCHAO = "0.16.0"  # the oldest that peft 0.21.2 works beside
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
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
        SystemExit: this Python is not supported (nothing is installed then); pip failed; a package that this Python had
            loaded before was replaced: restart, run again; or what is there now does not work.
    """
    if fault := unsupported(sys.version_info[:2]):
        raise SystemExit(fault)
    print("installing what is lacking here of the packages in pyproject.toml", flush=True)
    gpu = bool(shutil.which("nvidia-smi"))
    before, wanted = _loaded_versions(), fitting(requirements(*["unsloth"] * gpu), _version, gpu)
    tried = [_version(name) for name in TRIED]
    if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted]).returncode:
        raise SystemExit("pip could not install these packages; its messages above say why")
    if replaced := sorted(name for name, version in before.items() if _version(name) != version):
        raise SystemExit(
            f"{', '.join(replaced)} changed while in use: choose Runtime > Restart session, then run this cell again"
        )
    if tried != [_version(name) for name in TRIED] and (fault := what_fails(gpu)):
        raise SystemExit(fault)
    os.chdir(PROJECT / "notebooks")


def unsupported(version: tuple[int, int]) -> str:
    """Why this Python cannot be used, by `requires-python` of pyproject.toml; empty if it can."""
    wanted = _pyproject()["requires-python"]  # such as >=3.11,<3.13
    first, end = (tuple(map(int, text.split("."))) for text in re.findall(r"\d+\.\d+", wanted))
    if first <= version < end:
        return ""
    names = " or ".join(f"{first[0]}.{minor}" for minor in range(first[1], end[1]))
    return (
        f"this runtime has Python {version[0]}.{version[1]}, the project needs {names}; nothing was installed. Choose "
        "Runtime > Change runtime type > Runtime version, and there one with such a Python, then run this cell again"
    )


def fitting(wanted: list[str], version_of: Callable[[str], str | None], gpu: bool) -> list[str]:
    """Requirements for pip: those of the project, and what keeps torch and the packages built for it together.

    A torch that the project has run with stays, as Colab built it for its drivers, with torchvision and torchaudio
    beside it. Otherwise all of them that are there are replaced together; without a GPU by builds without CUDA.

    Args:
        version_of: distribution -> its version here, None if it is not installed.
    """
    here, pinned = version_of("torch"), next(r for r in wanted if r.startswith("torch=="))
    others = [r for r in wanted if r != pinned]
    if version_of("torchao") and not any(r.startswith("torchao") for r in others):
        others.append(f"torchao>={TORCHAO}")  # PEFT refuses to work beside an older one
    if here and TORCH[0] <= _release(here)[:2] <= TORCH[1]:
        return [*others, f"torch=={here.split('+')[0]}"]
    major, minor, patch = _release(pinned.removeprefix("torch=="))
    with_it = {"torch": f"{major}.{minor}.{patch}", "torchvision": f"0.{minor + TORCHVISION}.{patch}"}
    with_it["torchaudio"] = with_it["torch"]
    together = [f"{name}=={v}" for name, v in with_it.items() if name == "torch" or version_of(name)]
    if gpu:
        return [*others, *together]
    return [*others, *(f"{r}+cpu" for r in together), "--extra-index-url", CPU_BUILDS]


def what_fails(gpu: bool) -> str:
    """Whether the packages work together, tried in a fresh Python; empty if they do."""
    script = f"import {', '.join(TRIED)}; print(torch.__version__, torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        return f"the installed packages do not work together:\n{done.stderr[-1500:]}\nRuntime > Disconnect and delete"
    version, available = done.stdout.split()[-2:]
    if gpu and available != "True":
        return (
            f"torch {version} cannot use this GPU, most likely because the machine's driver is older than the CUDA "
            "that it was built for. Choose Runtime > Disconnect and delete runtime, then run this cell again"
        )
    return ""


def _release(version: str) -> tuple[int, ...]:
    """(2, 11, 0) of `2.11.0+cu128`; empty if that is no version."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


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
