"""Every notebook, executed at presets check and check_code, in order; then what they leave behind. Takes minutes.

Two runs are shared by all tests of this file, in two empty homes with the same seed, side by side: the first as users
have it, the second without kernels (in_forks.py) and of the notebooks that the pipeline consists of. What a second run
in one home does is tested with small notebooks: tests/runs/test_run_notebooks.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from common import PROJECT

from tracelift_lib.runs.presets import load_preset
from tracelift_lib.runs.run_notebooks import NOTEBOOKS, main, sources

PRESETS = ("check", "check_code")
PIPELINE = ("00", "01", "02", "03", "05", "07", "12")  # the others have numbers of their own, which no stage reads
each_preset = pytest.mark.parametrize("preset", PRESETS)
# What notebook 12 reads, and what it writes itself.
NEEDED = {
    "executor_success",
    "uplift_of_reference",
    "rm_held_out",
    "rm_by_kind",
    "evaluation_levels",
    "gain_over_warm_start",
    "tracelift_against_exec_only",
    "unfaithful_successes",
    "claims_ledger",
}


def tables(home):
    return {str(p.relative_to(home)): p.read_bytes() for p in home.glob("paper_figures/*/*.csv")}


def sources_on_disk():
    return {p: p.read_bytes() for p in NOTEBOOKS.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """(home, process) of a run of the pipeline that goes on beside the first."""
    home = tmp_path_factory.mktemp("fresh")
    command = [sys.executable, Path(__file__).with_name("in_forks.py"), "--preset", *PRESETS, "--only", *PIPELINE]
    environment = {**os.environ, "TRACELIFT_HOME": str(home), "PYTHONPATH": str(PROJECT)}
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield home, process
    process.kill()


@pytest.fixture(scope="module")
def first(tmp_path_factory, beside):
    """A home in which every notebook has run once."""
    home, before = tmp_path_factory.mktemp("first"), sources_on_disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(home))
        assert main(["--preset", *PRESETS]) == 0
    assert sources_on_disk() == before  # executed copies go elsewhere
    return home


@pytest.fixture(scope="module")
def fresh(beside):
    home, process = beside
    assert process.wait(1800) == 0, (home / "log.txt").read_text()[-3000:]
    return home


@each_preset
def test_every_notebook_ran_to_its_end(first, preset):
    left_out = load_preset(preset).leaves_out
    for source in sources():
        path = first / "build" / preset / f"{source.stem}.ipynb"
        if source.name[:2] in left_out:
            assert not path.exists()
            continue
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert all(c.execution_count for c in cells if c.source.strip()), source.stem
        assert not [o for c in cells for o in c.outputs if o.output_type == "error"], source.stem
        injected = [c.source for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert len(injected) == 1 and f'PRESET = "{preset}"' in injected[0]


@each_preset
def test_every_table_says_where_it_comes_from(first, preset):
    folder = first / "paper_figures" / preset
    found = sorted(folder.glob("*.csv"))
    assert NEEDED <= {p.stem for p in found}
    for path in found:
        table = pd.read_csv(path)
        assert len(table), path.stem
        assert table.columns[-4:].tolist() == ["preset", "n", "seeds", "revision"], path.stem
        assert set(table["preset"]) == {f"{preset} (not a result)"}, path.stem
        for column in ("n", "seeds", "revision"):
            assert table[column].notna().all() and table[column].nunique() == 1, (path.stem, column)


@each_preset
def test_every_figure_comes_as_png_pdf_and_data(first, preset):
    folder = first / "paper_figures" / preset
    kinds = {kind: {p.stem for p in folder.glob(f"*.{kind}")} for kind in ("png", "pdf", "csv")}
    assert len(kinds["png"]) >= 10
    assert kinds["png"] == kinds["pdf"] and kinds["png"] <= kinds["csv"]
    assert all(p.stat().st_size > 1000 for kind in ("png", "pdf") for p in folder.glob(f"*.{kind}"))


@each_preset
def test_the_summary_is_marked_as_no_result(first, preset):
    text = (first / "paper_figures" / preset / "summary.md").read_text()
    assert "(not a result)" in text and "| --- |" in text


def test_nothing_is_written_outside_its_place(first):
    assert {p.name for p in first.iterdir()} == {"runs", "build", "paper_figures"}
    assert {p.name for p in (first / "runs").iterdir()} == set(PRESETS)
    assert not list(first.glob("runs/*/*/*/work"))  # finished stages keep no scratch


def test_a_fresh_home_with_the_same_seed_gives_the_same_tables(first, fresh):
    """Byte for byte: every number of every table of the pipeline is decided by preset and seed."""
    ours, theirs = tables(first), tables(fresh)
    assert set(theirs) <= set(ours)
    assert {f"paper_figures/{preset}/{name}.csv" for preset in PRESETS for name in NEEDED} <= set(theirs)
    ledgers = {f"paper_figures/{preset}/claims_ledger.csv" for preset in PRESETS}  # they read tables of 08 and 09 too
    assert [name for name in theirs if ours[name] != theirs[name] and name not in ledgers] == []
    assert os.path.realpath(first) != os.path.realpath(fresh)
