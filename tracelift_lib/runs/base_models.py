"""Base models that lie in the repository, so that a student begins with the method and not with pre-training.

`base_models/<stage>-<key>/` is a stage's finished folder as a run has left it, with its manifest as `origin.json`.
Whoever makes a stage of that key gets these files, each checked by its hash; BASE=trained trains the model instead.
`tracelift keep-base PRESET` writes such folders from the preset's finished stages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

from tracelift_lib.problems.files import PROJECT, InputError, file_sha256, write_json
from tracelift_lib.runs.store import MANIFEST, ORIGIN, read_manifest

KEPT = PROJECT / "base_models"
STAGES = ("executor", "planner", "second_executor")


def take(out: Path, code: dict[str, str]) -> bool:
    """Copy the kept files of the stage whose folder is `out` (`.../<stage>/<key>`); False if there are none.

    Says so if `code` (path -> hash) is not what has made them.

    Raises:
        InputError: a file is missing or damaged, or $BASE has an unknown value.
    """
    kept = KEPT / f"{out.parent.name}-{out.name}"
    if _trained_here() or not kept.is_dir():
        return False
    origin = json.loads((kept / ORIGIN).read_text())
    for name, known in origin["files"].items():
        if not (kept / name).is_file() or file_sha256(kept / name) != known["sha256"]:
            raise InputError(
                f"{kept / name}: missing, or not the file that {ORIGIN} names; `git checkout {kept.name}` in "
                f"{KEPT.name}/ restores it, BASE=trained trains the model here"
            )
    if any(origin.get("code", code).get(name) != value for name, value in code.items() if not name.startswith("runs/")):
        print(f"{kept.name}: trained by other code than today's; BASE=trained trains it anew")
    for name in origin["files"]:
        shutil.copy2(kept / name, out / name)
    write_json(out / ORIGIN, origin)
    print(f"{out.parent.name}: taken from {KEPT.name}/{kept.name} (BASE=trained trains it here)")
    return True


def _trained_here() -> bool:
    choice = os.environ.get("BASE", "")
    if choice not in ("", "trained"):
        raise InputError(f"BASE={choice}: say BASE=trained to train base models here, or leave it out")
    return choice == "trained"


def keep(finished: Path) -> Path:
    """Copy a stage's finished folder to `base_models/`; returns the new folder."""
    kept = KEPT / f"{finished.parent.name}-{finished.name}"
    shutil.rmtree(kept, ignore_errors=True)
    manifest = read_manifest(finished)
    for name in manifest["files"]:
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(finished / name, kept / name)
    shutil.copy2(finished / MANIFEST, kept / ORIGIN)
    return kept


def main(arguments: list[str] | None = None) -> int:
    """`tracelift keep-base`."""
    from tracelift_lib.runs.pipeline import Run  # which imports the stages, and they this module

    parser = argparse.ArgumentParser(prog="tracelift keep-base", description=__doc__)
    parser.add_argument("preset", nargs="+")
    for preset in parser.parse_args(arguments).preset:
        run = Run(preset)
        for stage in STAGES:
            if run.preset.value(stage) is not None:
                print(keep(run.need(stage).path))
    return 0
