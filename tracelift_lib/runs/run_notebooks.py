"""Runs the notebooks headlessly with papermill: `tracelift run --preset tiny`.

The sources are `notebooks/*.py` (jupytext percent format). They are converted in memory; executed copies go to
`build/<preset>/`, the sources are never touched. Unlike papermill itself, an unknown parameter is an error.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from nbconvert.preprocessors import TagRemovePreprocessor
from papermill.exceptions import PapermillExecutionError

from tracelift_lib.problems.files import DATA_VARIABLE, PROJECT, InputError, file_sha256, write_json
from tracelift_lib.runs import colab, store
from tracelift_lib.runs.code_hash import library_sha256
from tracelift_lib.runs.pipeline import stale_lines
from tracelift_lib.runs.presets import load_preset, read_override, variant
from tracelift_lib.runs.settings import Preset

NOTEBOOKS = PROJECT / "notebooks"
# For the kernels: threads that wait sleep; spinning ones stand still on a shared core (bench/busy_core.py).
SLEEPING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def sources() -> list[Path]:
    """The notebook sources in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))


def convert(source: Path) -> nbformat.NotebookNode:
    """A source as a notebook without outputs; cell ids are numbered, so that conversion is repeatable.

    The first code cell is the one for Colab (colab.py); the sources do not have it.
    """
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    first = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code")
    notebook.cells.insert(first, nbformat.v4.new_code_cell(colab.cell(), id="colab"))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata.pop("jupytext", None)
    return notebook


def parameter_names(notebook: nbformat.NotebookNode) -> set[str]:
    """Names assigned in the cell tagged `parameters`."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    tree = ast.parse("\n".join(c.source for c in cells))
    return {t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)}


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy to hand out: cells tagged `solution` are left out."""
    handed_out, _ = TagRemovePreprocessor(enabled=True, remove_cell_tags={"solution"}).preprocess(notebook.copy(), {})
    return handed_out


def run_notebook(source: Path, parameters: dict[str, Any], output: Path, progress: bool = True) -> None:
    """Execute one source with `parameters`; the executed copy, complete or not, is `output`.

    Raises:
        InputError: the notebook has no such parameter.
        PapermillExecutionError: a cell failed.
    """
    notebook = convert(source)
    known = parameter_names(notebook)
    unknown = set(parameters) - known
    if unknown:
        raise InputError(f"{source.name} has no parameter {sorted(unknown)}; it has {sorted(known)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    # One process trains at a time; the notebook must import the library that runs it, whatever its folder.
    _put_first("PYTHONPATH", PROJECT)
    _put_first("JUPYTER_PATH", _own_kernel(output.parent))
    papermill.execute_notebook(
        notebook,
        str(output),
        parameters=parameters,
        kernel_name="python3",
        progress_bar=progress,
        cwd=str(NOTEBOOKS),
        request_save_on_cell_execute=True,
    )


def _put_first(variable: str, folder: Path) -> None:
    others = [path for path in os.environ.get(variable, "").split(os.pathsep) if path and path != str(folder)]
    os.environ[variable] = os.pathsep.join([str(folder), *others])


def _own_kernel(folder: Path) -> Path:
    """A folder for $JUPYTER_PATH in which `python3` is this very Python.

    Jupyter may otherwise take a kernel spec of that name from the user's home, of whatever Python wrote it there.
    """
    home = folder / "jupyter"
    spec = home / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    write_json(spec, {"argv": command, "display_name": "Python 3", "language": "python"})
    return home


def main(arguments: list[str] | None = None) -> int:
    numbers = [source.name[:2] for source in sources()]
    parser = argparse.ArgumentParser(prog="tracelift run", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", nargs="+", default=["tiny"], help="one or more, run one after the other")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="e.g. execution.k=5")
    parser.add_argument("--only", nargs="+", choices=numbers, metavar="NN", help="notebooks to run, e.g. 02 07")
    options = parser.parse_args(arguments)
    overrides = dict(map(read_override, options.override))
    presets = [load_preset(name, options.seed, overrides) for name in options.preset]  # refuse bad input first
    chosen = [source for source in sources() if not options.only or source.name[:2] in options.only]
    store.rebuilds_stale()
    os.environ.update({name: os.environ.get(name, value) for name, value in SLEEPING.items()})
    for preset in presets:
        parameters = {"PRESET": preset.name, "SEED": options.seed, "OVERRIDES": overrides}
        if code := _run_preset(preset, parameters, chosen):
            return code
    return 0


def convert_all(arguments: list[str] | None = None) -> int:
    """`tracelift convert`: write notebooks/*.ipynb."""
    argparse.ArgumentParser(prog="tracelift convert").parse_args(arguments)
    for source in sources():
        nbformat.write(convert(source), source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb").name)
    return 0


def _run_preset(preset: Preset, parameters: dict[str, Any], chosen: list[Path]) -> int:
    """Exit status: 0, or that of the notebook that failed or was interrupted."""
    folder = store.home() / "build" / variant(*parameters.values())
    begin, left_out = time.monotonic(), [s for s in chosen if s.name[:2] in preset.leaves_out]
    for line in stale_lines(preset):
        print(line, flush=True)
    for source in chosen:
        if source in left_out:
            print(f"{source.stem}: left out of preset {preset.name}: {preset.leaves_out[source.name[:2]]}", flush=True)
        elif status := _run_unless_done(preset, source, parameters, folder / f"{source.stem}.ipynb"):
            return status
    print(
        f"preset {preset.name}: {len(chosen) - len(left_out)} notebooks in {time.monotonic() - begin:.0f} s"
        + (f", {len(left_out)} left out (see above)" if left_out else "")
    )
    return 0


def _run_unless_done(preset: Preset, source: Path, parameters: dict[str, Any], output: Path) -> int:
    rebuilds = store.rebuilds_stale() and stale_lines(preset)
    if not rebuilds and _is_done(output, _state(source, parameters, output)):
        print(f"{source.stem}: done before, executed copy {output}", flush=True)
        return 0
    output.with_suffix(".json").unlink(missing_ok=True)  # the copy is not what this record is of any more
    start = time.monotonic()
    try:
        run_notebook(source, parameters, output)
    except PapermillExecutionError as error:
        print(
            f"error in {source.stem}, cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"The notebook up to there: {output}. Finished stages are kept; run again to go on.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted in {source.stem}; finished stages are kept, run again to go on", file=sys.stderr)
        return 130
    write_json(output.with_suffix(".json"), _state(source, parameters, output))
    print(f"{source.stem}: {time.monotonic() - start:.0f} s, executed copy {output}", flush=True)
    return 0


# A notebook is not run again while nothing that it depends on has changed: its source, its parameters, the library, the
# versions of packages, and the stages, tables and figures of its preset that were there when it had run.
def _is_done(output: Path, now: dict[str, Any]) -> bool:
    """Whether the executed copy `output` is what a run would make; files that later notebooks have added do not count.

    Args:
        now: `_state`, which is written beside the copy after a run.
    """
    record = output.with_suffix(".json")
    if not (output.exists() and record.exists()):
        return False
    then = json.loads(record.read_text())
    return then["recipe"] == now["recipe"] and then["files"].items() <= now["files"].items()


def _state(source: Path, parameters: dict[str, Any], output: Path) -> dict[str, Any]:
    """Hashes of what a notebook makes its results from, and of the stages, tables and figures of its preset."""
    home = store.home()
    figures = (home / "paper_figures" / output.parent.name).glob("*")
    stages = (home / "runs" / parameters["PRESET"]).glob(f"*/*/{store.MANIFEST}")
    files = {str(path.relative_to(home)): file_sha256(path) for path in [*figures, *stages]}
    return {"recipe": _recipe(source, parameters), "files": files}


def _recipe(source: Path, parameters: dict[str, Any]) -> str:
    """Hash of everything but files that decides what a notebook makes."""
    preset = load_preset(*parameters.values()).model_dump(mode="json")
    parts = [
        file_sha256(source),
        parameters,
        preset,
        library_sha256(),
        store.git_revision(),
        store.versions(),
        file_sha256(PROJECT / "paper_figures" / "claims.yaml"),
        os.environ.get(DATA_VARIABLE),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
