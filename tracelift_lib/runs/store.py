"""Stage results on disk: found again, resumed, never half read.

`runs/<preset>/<stage>/<key>/` holds plain files and `manifest.json`, which is written last and by
rename: a folder without it is unfinished work, to be resumed or redone. The key hashes what decides
the result (config slice, seed, stage version, upstream keys); the manifest also records the hashes of
the upstream manifests it was made from, so a stage is remade when one it depends on was remade.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from tracelift_lib.problems.files import PROJECT, WORK, InputError, file_sha256, git_revision, write_json
from tracelift_lib.runs.code_hash import library_sha256

MANIFEST = "manifest.json"
ORIGIN = (
    "origin.json"  # the manifest of the run that trained it, where files of the repository were taken (base_models.py)
)
FULL = 2**20  # bytes left on a disk that counts as full
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy")


class MissingArtifact(RuntimeError):
    """An upstream stage has not been run; the message names the notebook that runs it."""


class CorruptArtifact(RuntimeError):
    """A stage folder does not hold what its manifest says; the message names the folder."""


class OutOfSpace(RuntimeError):
    """The disk is (nearly) full; finished stages are kept."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest file."""
        return file_sha256(self.path / MANIFEST)

    @property
    def revision(self) -> str:
        """Git revision of the code that made it."""
        return self.manifest["revision"]

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def cost(self) -> str:
        """Time and memory of the run that made it, for people."""
        m = self.json(ORIGIN) if ORIGIN in self.manifest.get("files", ()) else self.manifest
        return (
            f"{m['stage']}: {m['seconds']:.0f} s, peak memory {m['peak_memory_gb']:.1f} GB, "
            f"on {m['hardware']}, revision {m['revision']}"
        )


def home() -> Path:
    """Where runs/, build/ and paper_figures/ are: the project, or $TRACELIFT_HOME."""
    return Path(os.environ.get("TRACELIFT_HOME", PROJECT))


def key_of(stage: str, version: int, config: Any, upstream_keys: dict[str, str]) -> str:
    """Twelve hex digits that name a stage's result."""
    recipe = {"stage": stage, "version": version, "config": config, "upstream": upstream_keys}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def find(folder: Path, upstream: dict[str, Artifact]) -> Artifact | None:
    """The finished stage in `folder`; None if there is none or it was made from other upstream results.

    Raises:
        CorruptArtifact: manifest or files are damaged.
    """
    if not (folder / MANIFEST).exists():
        return None
    artifact = Artifact(folder, read_manifest(folder))
    if artifact.manifest["upstream"] != {name: a.digest for name, a in upstream.items()}:
        return None
    _check_files(artifact)
    return artifact


def make(
    folder: Path,
    upstream: dict[str, Artifact],
    build: Callable[[Path], None],
    description: dict[str, Any],
    min_free_gb: float,
) -> Artifact:
    """Run `build(folder)` and seal the folder with a manifest.

    Work that an interrupted run left is kept for `build` to resume, if it came from the same upstream results and the
    same code; otherwise it is removed first. `description` (stage, config, seed ...) goes into the manifest as it is;
    its `code` has the hashes of the code that decides the result (code_hash.py).

    Raises:
        OutOfSpace: less than `min_free_gb` free before, or the disk filled up meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = description.get("code", {})
    with FileLock(folder.with_suffix(".lock")):
        found = find(folder, upstream)  # another process may have made it while we waited
        if found and not must_rebuild(found, code):
            return found
        if shutil.disk_usage(folder).free < min_free_gb * 2**30:
            raise _out_of_space(folder, f"less than {min_free_gb} GB free")
        made_from = {name: a.digest for name, a in upstream.items()}
        _drop_foreign_work(folder, {"upstream": made_from, "code": code})
        start = time.monotonic()
        try:
            build(folder)
            shutil.rmtree(folder / WORK, ignore_errors=True)
            manifest = {**description, "upstream": made_from, **_facts(folder, time.monotonic() - start)}
            write_json(folder / MANIFEST, manifest)
        except Exception as error:  # writers of weights report a full disk in their own ways
            said = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            if said or shutil.disk_usage(folder).free < FULL:
                raise _out_of_space(folder, "the disk filled up") from error
            raise
    return Artifact(folder, manifest)


def _facts(folder: Path, seconds: float) -> dict[str, Any]:
    """What a manifest says of the finished folder, and of the run and the machine that made it."""
    return {
        "files": {
            str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": file_sha256(p)}
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        },
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(_peak_memory_gb(), 2),
        "hardware": hardware(),
        "packages": versions(),
        "python": platform.python_version(),
        "revision": git_revision(),
        "code_sha256": library_sha256(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def hardware() -> str:
    """The machine in words: processor, cores, memory, GPU if any."""
    gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{_cpu_model()}, {os.cpu_count()} cores, {gb:.0f} GB"
    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def changed_code(artifact: Artifact, code: dict[str, str]) -> list[str]:
    """Files of `code` (path -> hash) that are not as they were when the result was made; of older results none."""
    before = artifact.manifest.get("code", code)
    return sorted(name for name in before.keys() | code.keys() if before.get(name) != code.get(name))


def rebuilds_stale() -> bool:
    """Whether results that other code has made are built again: $STALE. Raises InputError for an unknown value."""
    choice = os.environ.get("STALE", "")
    if choice not in ("", "rebuild"):
        raise InputError(f"STALE={choice}: say STALE=rebuild to build results of other code again, or leave it out")
    return choice == "rebuild"


def must_rebuild(artifact: Artifact, code: dict[str, str]) -> bool:
    """Whether a finished result is to be built again, because other code has made it and STALE=rebuild is set."""
    return rebuilds_stale() and bool(changed_code(artifact, code))


def read_manifest(folder: Path) -> dict:
    """The manifest in a stage's folder. Raises CorruptArtifact, or FileNotFoundError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        missing = {"stage", "upstream", "files", "seconds", "revision"} - set(manifest)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise _corrupt(folder, f"{path}: not valid JSON ({error})") from None
    if missing:
        raise _corrupt(folder, f"{path}: no {sorted(missing)}")
    return manifest


def _corrupt(folder: Path, what: str) -> CorruptArtifact:
    advice = f"Delete the folder {folder} and run again: only this stage and what depends on it will be remade."
    return CorruptArtifact(f"{what}. {advice}")


@functools.cache
def _sha256_of(path: Path, size: int, changed_ns: int) -> str:
    """`file_sha256`, once in a process while the file is not touched: large models are hashed once."""
    return file_sha256(path)


def _check_files(artifact: Artifact) -> None:
    for name, known in artifact.manifest["files"].items():
        path = artifact.path / name
        if not path.exists():
            raise _corrupt(artifact.path, f"{path} is missing")
        state = path.stat()
        if path.is_dir() or _sha256_of(path, state.st_size, state.st_mtime_ns) != known["sha256"]:
            raise _corrupt(artifact.path, f"{path} differs from its manifest")


def _drop_foreign_work(folder: Path, state: dict[str, Any]) -> None:
    """Keep an interrupted run's files only if it had the same upstream results and code: `state`."""
    marker = folder / WORK / "made_from.json"
    if marker.exists() and not (folder / MANIFEST).exists() and json.loads(marker.read_text()) == state:
        return
    shutil.rmtree(folder)
    (folder / WORK).mkdir(parents=True)
    write_json(marker, state)


def _out_of_space(folder: Path, what: str) -> OutOfSpace:
    free = shutil.disk_usage(folder).free / 2**30
    return OutOfSpace(
        f"{folder}: {what} ({free:.2f} GB left). Finished stages are kept; free some space, or set "
        "TRACELIFT_HOME to a folder on a larger disk, and run again."
    )


def _peak_memory_gb() -> float:
    """Peak of this process so far (and of the GPU, whichever is larger)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        peak = max(peak, torch.cuda.max_memory_allocated() / 2**30)
    return peak


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
