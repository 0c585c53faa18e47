"""The runner: sources to notebooks, parameters, overrides. test_notebooks.py executes notebooks, this does not."""

import ast
import json
import os
import shutil
import sys

import jupytext
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from tracelift_lib.problems.files import InputError
from tracelift_lib.runs import cli, run_notebooks, stages, store
from tracelift_lib.runs.presets import read_override
from tracelift_lib.runs.run_notebooks import convert, parameter_names, run_notebook, sources

SOURCES = sources()
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)


def main(arguments):
    return cli.main(["run", *arguments])


def tagged(notebook):
    return [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]


# --- the sources ------------------------------------------------------------------------------


def test_sources_are_numbered_and_in_order():
    numbers = [s.name[:2] for s in SOURCES]
    assert numbers == sorted(set(numbers)) and {"00", "01", "02", "03", "05", "07", "12"} <= set(numbers)


@each_source
def test_the_parameters_cell_holds_exactly_the_three_literals(source):
    """Plain literals, so that papermill can replace them: PRESET, SEED, OVERRIDES."""
    (cell,) = tagged(jupytext.read(source))
    values = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign) and len(node.targets) == 1
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert list(values) == ["PRESET", "SEED", "OVERRIDES"]
    assert values["SEED"] is None and values["OVERRIDES"] == {} and isinstance(values["PRESET"], str)
    assert parameter_names(convert(source)) == {"PRESET", "SEED", "OVERRIDES"}


@each_source
def test_cells_are_short(source):
    for cell in jupytext.read(source).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 25, cell.source


@each_source
def test_notebooks_say_their_aims_first_and_what_was_seen_last(source):
    cells = jupytext.read(source).cells
    assert cells[0].source.startswith(f"# {source.name[:2]} ·")
    assert "**After this notebook you can**" in cells[0].source and "**Time:**" in cells[0].source
    assert any("## What we saw" in c.source for c in cells[-16:])


# --- conversion -------------------------------------------------------------------------------


@each_source
def test_conversion_is_repeatable_valid_and_without_outputs(source):
    first, second = convert(source), convert(source)
    assert nbformat.writes(first) == nbformat.writes(second)
    nbformat.validate(first)
    ids = [c["id"] for c in first.cells]
    assert len(set(ids)) == len(ids)
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in first.cells)
    assert first.metadata["kernelspec"]["name"] == "python3"
    own = [c.source for c in first.cells if c["id"] != "colab"]  # the cell for Colab is put in: test_colab.py
    assert own == [c.source for c in jupytext.read(source).cells]


def test_notebooks_in_the_repository_are_those_of_their_sources(tmp_path):
    """`make notebooks` after a change of a source; what is there must be what it would write."""
    for source in SOURCES:
        if source.with_suffix(".ipynb").exists():
            nbformat.write(convert(source), tmp_path / "fresh.ipynb")
            assert source.with_suffix(".ipynb").read_bytes() == (tmp_path / "fresh.ipynb").read_bytes(), source.stem
    names = {s.stem for s in SOURCES}
    assert {p.stem for p in run_notebooks.NOTEBOOKS.glob("*.ipynb")} <= names  # none without a source


def test_convert_writes_a_notebook_beside_each_source(tmp_path, monkeypatch):
    for source in SOURCES[:2]:
        (tmp_path / source.name).write_text(source.read_text())
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path)
    assert cli.main(["convert"]) == 0
    assert {p.stem for p in tmp_path.glob("*.ipynb")} == {s.stem for s in SOURCES[:2]}
    again = {p: p.read_bytes() for p in tmp_path.glob("*.ipynb")}
    assert cli.main(["convert"]) == 0 and again == {p: p.read_bytes() for p in tmp_path.glob("*.ipynb")}


# --- parameters -------------------------------------------------------------------------------


@pytest.fixture
def executed(monkeypatch):
    """papermill replaced by a list of what it would have run."""
    calls = []
    monkeypatch.setattr(
        run_notebooks.papermill,
        "execute_notebook",
        lambda notebook, output, parameters, **options: calls.append((notebook, output, parameters)),
    )
    return calls


def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path, executed):
    """papermill itself would only warn, and run with the defaults."""
    with pytest.raises(InputError, match="PRESETT.*PRESET"):
        run_notebook(SOURCES[0], {"PRESETT": "check"}, tmp_path / "x.ipynb")
    assert not executed and not (tmp_path / "x.ipynb").exists()
    run_notebook(SOURCES[0], {"PRESET": "check"}, tmp_path / "deep" / "x.ipynb")
    assert executed[0][2] == {"PRESET": "check"}


def test_a_foreign_kernel_spec_does_not_win(tmp_path, executed, monkeypatch):
    """A user's own `python3` comes before the environment's where that belongs to somebody else."""
    foreign = tmp_path / "home" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/elsewhere/python"], "display_name": "foreign", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("JUPYTER_PATH", "")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert KernelSpecManager().get_kernel_spec("python3").argv == ["/elsewhere/python"]
    for _ in range(2):
        run_notebook(SOURCES[0], {"PRESET": "check"}, tmp_path / "build" / "x.ipynb")
        assert KernelSpecManager().get_kernel_spec("python3").argv[:3] == [sys.executable, "-m", "ipykernel_launcher"]
    assert os.environ["PYTHONPATH"] == f"{run_notebooks.PROJECT}:/mine"


def test_a_notebook_without_parameters_takes_none(tmp_path, executed):
    source = tmp_path / "99_plain.py"
    source.write_text("# %%\nPRESET = 'tiny'\n")
    assert parameter_names(convert(source)) == set()
    with pytest.raises(InputError):
        run_notebook(source, {"PRESET": "check"}, tmp_path / "x.ipynb")


@pytest.mark.parametrize(
    "text, key, value",
    [
        ("execution.k=5", "execution.k", 5),
        ("execution.temperature=0.25", "execution.temperature", 0.25),
        ("execution.answer=last_number", "execution.answer", "last_number"),
        ("planner_training.arms=[exec_only, tracelift]", "planner_training.arms", ["exec_only", "tracelift"]),
        ("planner_training.seeds=[0]", "planner_training.seeds", [0]),
        ("reward_model=null", "reward_model", None),
        ("is_result=true", "is_result", True),
        ("problems.sizes={train: 5, test: 6}", "problems.sizes", {"train": 5, "test": 6}),
        ("description=a=b", "description", "a=b"),
        ("planner.revision='12345'", "planner.revision", "12345"),
        ('planner.revision="1e5"', "planner.revision", "1e5"),
    ],
)
def test_overrides_are_read_as_yaml(text, key, value):
    assert read_override(text) == (key, value)


@pytest.mark.parametrize("text", ["1e-3", "1e-04", "5E-6", "1.0e-3"])
def test_numbers_with_exponents_are_numbers(text, executed):
    """YAML 1.1 takes 1e-3 (no point) for a text; who sets a learning rate means the number."""
    assert main(["--preset", "check", "--only", "00", "--override", f"planner_training.learning_rate={text}"]) == 0
    assert executed[0][2]["OVERRIDES"] == {"planner_training.learning_rate": float(text)}


BAD = [
    (["--preset", "nope"], "nope"),
    (["--preset", "check", "--override", "execution.k"], "KEY=VALUE"),
    (["--preset", "check", "--override", ""], "KEY=VALUE"),
    (["--preset", "check", "--override", "=5"], "''"),
    (["--preset", "check", "--override", "execution.kk=5"], "did you mean 'k'"),
    (["--preset", "check", "--override", "execution.k=many"], "execution.k"),
    (["--preset", "check", "--override", "execution.k="], "execution.k"),
    (["--preset", "check", "--override", "planner_training.seeds=[0, 1"], "planner_training.seeds"),
    (["--preset", "check", "--override", "execution.k=5: 6: 7"], "execution.k"),
    (["--preset", "check", "--override", "problems.sizes={train: 5, train: 6}"], "'train' is there twice"),
    (["--preset", "check", "--override", "evaluation.splits=[nosuch]"], "evaluation.splits"),
]


@pytest.mark.parametrize("arguments, word", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_ends_with_2_and_a_message_and_runs_nothing(arguments, word, executed, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and word in error and "Traceback" not in error
    assert not executed


@pytest.mark.parametrize("arguments", [["--seed", "x"], ["--unknown"], ["--only"], ["--only", "00", "xx"]])
def test_bad_options_end_with_2_and_are_named(arguments, executed, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and not executed and arguments[-1] in capsys.readouterr().err


# --- what is run ------------------------------------------------------------------------------


def test_all_notebooks_run_in_order_with_the_parameters(executed, capsys):
    assert main(["--preset", "check", "--seed", "3", "--override", "execution.k=2", "--override", "seed=3"]) == 0
    assert [output.split("/")[-1] for _, output, _ in executed] == [f"{s.stem}.ipynb" for s in SOURCES]
    assert all(p == {"PRESET": "check", "SEED": 3, "OVERRIDES": {"execution.k": 2, "seed": 3}} for _, _, p in executed)
    assert all("/build/check-seed3-custom/" in output for _, output, _ in executed)


def test_several_presets_run_one_after_the_other(executed, capsys):
    assert main(["--preset", "check", "tiny", "--only", "09"]) == 0
    assert [parameters["PRESET"] for _, _, parameters in executed] == ["check", "tiny"]
    assert [output.split("/")[-2] for _, output, _ in executed] == ["check", "tiny"]


def test_a_choice_runs_in_the_order_of_the_numbers(executed):
    assert main(["--preset", "check", "--only", "03", "00"]) == 0
    assert [output.split("/")[-1][:2] for _, output, _ in executed] == ["00", "03"]


def test_what_a_preset_leaves_out_is_said_and_skipped(executed, capsys):
    assert main(["--preset", "check", "--only", "00", "04", "--override", "leaves_out={'04': too large here}"]) == 0
    assert [output.split("/")[-1][:2] for _, output, _ in executed] == ["00"]
    assert "too large here" in capsys.readouterr().out


def test_a_failed_cell_ends_with_1_and_says_where(monkeypatch, capsys):
    from papermill.exceptions import PapermillExecutionError

    def fail(*_, **__):
        raise PapermillExecutionError(3, 7, "source", "ValueError", "what went wrong", [])

    monkeypatch.setattr(run_notebooks.papermill, "execute_notebook", fail)
    assert main(["--preset", "check", "--only", "01"]) == 1
    error = capsys.readouterr().err
    assert "01_build_groups" in error and "cell 7" in error and "what went wrong" in error


def test_an_interruption_ends_with_130(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_notebooks.papermill, "execute_notebook", interrupt)
    assert main(["--preset", "check", "--only", "01"]) == 130
    assert "run again" in capsys.readouterr().err


def test_sources_are_never_touched(executed):
    before = {s: (s.read_bytes(), s.stat().st_mtime_ns) for s in SOURCES}
    assert main(["--preset", "check"]) == 0
    assert before == {s: (s.read_bytes(), s.stat().st_mtime_ns) for s in SOURCES}


# --- what was done before -------------------------------------------------------------------------

PARAMETERS = '# %% tags=["parameters"]\nPRESET = "tiny"\nSEED = None\nOVERRIDES = {}\n\n# %%\n'
USED = """import pandas as pd
from tracelift_lib.runs import report
from tracelift_lib.runs.pipeline import Run
run = Run(PRESET, SEED, OVERRIDES)
"""
STUBS = {  # the first makes a stage and a table of it, the second reads both and makes another table
    "00_make": """files = run.make("problems")
table = pd.DataFrame({"problems": [len(run.problems("rl"))]})
report.save_table(run, table, "made", [files], "all")
""",
    "01_read": """files = run.need("problems")
table = report.read_tables(run, {"made": "00"})["made"][["problems"]]
report.save_table(run, 2 * table, "read", [files], "all")
""",
}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """Two small notebooks, executed in this process; the names of those that were, in order."""
    ran = []

    def execute(notebook, output, parameters, **_):
        name = output.split("/")[-1].removesuffix(".ipynb")
        ran.append(name)
        values = {}
        for cell in (c for c in notebook.cells if c.cell_type == "code"):
            exec(cell.source, values)
            if "parameters" in cell.metadata.get("tags", []):
                values.update(parameters)
        nbformat.write(notebook, output)

    for name, text in STUBS.items():
        (tmp_path / f"{name}.py").write_text(PARAMETERS + USED + text)
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(run_notebooks.papermill, "execute_notebook", execute)
    assert main(["--preset", "check"]) == 0 and ran == list(STUBS)
    del ran[:]
    return ran


def again(*arguments):
    """A second pass; files of the home before and after it."""
    before = {p: p.read_bytes() for p in store.home().rglob("*") if p.is_file() and p.suffix in (".csv", ".ipynb")}
    assert main(["--preset", "check", *arguments]) == 0
    return before, {p: p.read_bytes() for p in before}


def test_a_second_pass_finds_everything_done(stubs, capsys):
    before, after = again()
    assert stubs == [] and before == after and len(before) == 4
    assert capsys.readouterr().out.count("done before") == 2


@pytest.mark.parametrize(
    "damage, run_again",
    [
        (lambda home: (home / "paper_figures/check/made.csv").unlink(), ["00_make"]),
        (lambda home: (home / "paper_figures/check/read.csv").write_text("changed"), ["01_read"]),
        (lambda home: (home / "build/check/01_read.ipynb").unlink(), ["01_read"]),
        (lambda home: (home / "build/check/00_make.json").unlink(), ["00_make"]),
        (lambda home: shutil.rmtree(home / "runs/check/problems"), ["00_make"]),
    ],
    ids=["table lost", "table changed", "copy lost", "record lost", "stage lost"],
)
def test_what_was_changed_or_removed_is_run_again(stubs, damage, run_again):
    """The notebook that makes it runs, and gives the same. A stage carries its time, to the second: made anew it may be
    another for what reads it."""
    tables = {p: p.read_bytes() for p in store.home().rglob("*.csv")}
    damage(store.home())
    again()
    assert stubs[: len(run_again)] == run_again and {p: p.read_bytes() for p in tables} == tables
    del stubs[:]
    again()
    assert stubs == []


def test_another_seed_another_source_and_other_code_are_run_again(stubs, monkeypatch):
    again("--seed", "5")
    assert stubs == ["00_make", "01_read"]
    del stubs[:]
    source = run_notebooks.NOTEBOOKS / "01_read.py"
    source.write_text(source.read_text() + "\n# a further line\n")
    again()
    assert stubs == ["01_read"]
    del stubs[:]
    monkeypatch.setattr(run_notebooks, "library_sha256", lambda: "f" * 64)
    again()
    assert stubs == ["00_make", "01_read"]


def test_an_interrupted_pass_goes_on_where_it_stopped(stubs, capsys):
    source = run_notebooks.NOTEBOOKS / "01_read.py"
    whole = source.read_text()
    source.write_text(whole + "raise KeyboardInterrupt\n")
    assert main(["--preset", "check"]) == 130 and stubs == ["01_read"]
    source.write_text(whole)
    assert main(["--preset", "check"]) == 0 and stubs == ["01_read"] * 2


def test_stages_of_other_code_are_told_and_built_again_when_asked_for(stubs, monkeypatch, capsys):
    """Though their notebooks have been done before."""
    real = stages.hashes
    monkeypatch.setattr(
        stages,
        "hashes",
        lambda *places: {n: "f" if n == "problems/problem.py" else h for n, h in real(*places).items()},
    )
    again()
    said = capsys.readouterr().out
    assert "stage problems: problems/problem.py changed since it was made; kept" in said and stubs == []
    monkeypatch.setenv("STALE", "rebuild")
    manifest = next(store.home().glob("runs/check/problems/*/manifest.json"))
    before = manifest.read_text()
    again()
    assert stubs == ["00_make", "01_read"] and manifest.read_text() != before
    del stubs[:]
    again()
    assert stubs == []
    monkeypatch.setenv("STALE", "yes")
    assert main(["--preset", "check"]) == 2
