"""Every notebook, executed at preset check, in order; then what they leave behind. Takes minutes.

Three runs are shared by all tests of this file: the first in an empty home, a second in the same home, and one in
another empty home with the same seed.
"""

import os
import shutil

import nbformat
import pandas as pd
import pytest

from tracelift_lib.presets import load_preset
from tracelift_lib.run_notebooks import NOTEBOOKS, main, sources

PRESET = "check"
# What notebook 12 reads, and what it writes itself.
NEEDED = {
    "executor_success", "uplift_of_reference", "rm_held_out", "rm_by_kind", "evaluation_levels", "gain_over_warm_start",
    "tracelift_against_exec_only", "unfaithful_successes", "claims_ledger",
}


def run_all(home):
    """Exit status of the runner with `home` as the place of runs/, build/ and paper_figures/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(home))
        return main(["--preset", PRESET])


def manifests(home):
    return {p.relative_to(home): p.stat().st_mtime_ns for p in home.glob("runs/*/*/*/manifest.json")}


def executed(home):
    return {p.stem: p.stat().st_mtime_ns for p in home.glob("build/*/*.ipynb")}


def tables(home):
    return {p.stem: p.read_bytes() for p in (home / "paper_figures" / PRESET).glob("*.csv")}


def sources_on_disk():
    return {p: p.read_bytes() for p in NOTEBOOKS.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A home in which every notebook has run once."""
    home, before = tmp_path_factory.mktemp("first"), sources_on_disk()
    assert run_all(home) == 0
    assert sources_on_disk() == before  # executed copies go elsewhere
    return home


@pytest.fixture(scope="module")
def again(first):
    """(manifests, tables, executed copies) before a second run in the same home, which has happened."""
    before = manifests(first), tables(first), executed(first)
    assert run_all(first) == 0
    return before


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    home = tmp_path_factory.mktemp("fresh")
    assert run_all(home) == 0
    return home


def test_every_notebook_ran_to_its_end(first):
    left_out = load_preset(PRESET).leaves_out
    for source in sources():
        path = first / "build" / PRESET / f"{source.stem}.ipynb"
        if source.name[:2] in left_out:
            assert not path.exists()
            continue
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert all(c.execution_count for c in cells if c.source.strip()), source.stem
        assert not [o for c in cells for o in c.outputs if o.output_type == "error"], source.stem
        injected = [c.source for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert len(injected) == 1 and f'PRESET = "{PRESET}"' in injected[0]


def test_every_table_says_where_it_comes_from(first):
    folder = first / "paper_figures" / PRESET
    found = sorted(folder.glob("*.csv"))
    assert NEEDED <= {p.stem for p in found}
    for path in found:
        table = pd.read_csv(path)
        assert len(table), path.stem
        assert table.columns[-4:].tolist() == ["preset", "n", "seeds", "revision"], path.stem
        assert set(table["preset"]) == {f"{PRESET} (not a result)"}, path.stem
        for column in ("n", "seeds", "revision"):
            assert table[column].notna().all() and table[column].nunique() == 1, (path.stem, column)


def test_every_figure_comes_as_png_pdf_and_data(first):
    folder = first / "paper_figures" / PRESET
    kinds = {kind: {p.stem for p in folder.glob(f"*.{kind}")} for kind in ("png", "pdf", "csv")}
    assert len(kinds["png"]) >= 10
    assert kinds["png"] == kinds["pdf"] and kinds["png"] <= kinds["csv"]
    assert all(p.stat().st_size > 1000 for kind in ("png", "pdf") for p in folder.glob(f"*.{kind}"))


def test_the_summary_is_marked_as_no_result(first):
    text = (first / "paper_figures" / PRESET / "summary.md").read_text()
    assert "(not a result)" in text and "| --- |" in text


def test_nothing_is_written_outside_its_place(first):
    assert {p.name for p in first.iterdir()} == {"runs", "build", "paper_figures"}
    assert {p.name for p in (first / "runs").iterdir()} == {PRESET}
    assert not list(first.glob("runs/*/*/*/work"))  # finished stages keep no scratch


def test_a_second_run_finds_everything_done(first, again):
    stages, csv, copies = again
    assert len(stages) >= 10 and manifests(first) == stages
    assert tables(first) == csv
    assert len(copies) >= 8 and executed(first) == copies


def test_what_was_changed_or_removed_is_run_again(first, again, capsys):
    """A table is lost, a table is changed, a stage is lost: the notebook that makes it runs, and gives the same."""
    csv, copies = tables(first), executed(first)
    folder = first / "paper_figures" / PRESET
    (folder / "uplift_noise.csv").unlink()
    assert run_all(first) == 0 and tables(first) == csv
    assert executed(first)["03_executor_uplift"] != copies["03_executor_uplift"]
    assert executed(first)["02_train_reward_model"] == copies["02_train_reward_model"]
    (folder / "claims_ledger.csv").write_text("changed")
    assert run_all(first) == 0 and tables(first) == csv
    shutil.rmtree(next((first / "runs" / PRESET / "uplift").glob("*/manifest.json")).parent)
    assert run_all(first) == 0 and tables(first) == csv
    assert all(stage in manifests(first) for stage in again[0])


def test_a_fresh_home_with_the_same_seed_gives_the_same_tables(first, fresh):
    """Byte for byte: every number of every table is decided by preset and seed."""
    ours, theirs = tables(first), tables(fresh)
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert os.path.realpath(first) != os.path.realpath(fresh)
