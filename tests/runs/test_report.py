"""Tables and figures carry where they come from."""

from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.runs import report, store
from tracelift_lib.runs.presets import load_preset
from tracelift_lib.runs.store import Artifact, MissingArtifact

matplotlib.use("Agg")


def run(preset="check", variant=None):
    return SimpleNamespace(preset=load_preset(preset), variant=variant or preset)


def artifact(revision="abc123", **manifest):
    plain = {"stage": "demo", "config": {}, "seconds": 2.0, "peak_memory_gb": 1.0, "revision": revision}
    return Artifact(None, plain | manifest)


TABLE = pd.DataFrame({"x": [1, 2], "y": [0.123456, 2 / 3]})


def test_a_table_carries_its_provenance():
    report.save_table(run(), TABLE, "demo", [artifact("b2"), artifact("a1"), artifact("b2")], "24 problems", [0, 1])
    saved = pd.read_csv(store.home() / "paper_figures" / "check" / "demo.csv")
    assert saved.columns.tolist() == ["x", "y", "preset", "n", "seeds", "revision"]
    assert saved["x"].tolist() == [1, 2] and saved["y"].tolist() == [0.1235, 0.6667]
    assert saved["n"].tolist() == ["24 problems"] * 2 and saved["seeds"].tolist() == ["0 1"] * 2
    assert saved["revision"].tolist() == ["a1 b2"] * 2
    assert saved["preset"].tolist() == ["check (not a result)"] * 2


def test_what_has_no_artifact_carries_the_revision_of_the_code(monkeypatch):
    """A table that a notebook computes by itself must not lose its revision."""
    monkeypatch.setattr(report, "git_revision", lambda: "c0de")
    report.save_table(run(), TABLE, "computed", [], "exact")
    saved = pd.read_csv(store.home() / "paper_figures" / "check" / "computed.csv")
    assert saved["revision"].tolist() == ["c0de"] * 2
    assert report.provenance(run(), [artifact("abc")], "n", [0])["revision"] == "abc"


def test_only_what_is_no_result_is_marked_so():
    report.save_table(run("tiny", "tiny-seed3"), TABLE, "demo", [artifact()], "n")
    saved = pd.read_csv(store.home() / "paper_figures" / "tiny-seed3" / "demo.csv")
    assert saved["preset"].tolist() == ["tiny-seed3"] * 2
    assert saved["seeds"].tolist() == [load_preset("tiny").seed] * 2  # no seeds given: the preset's own


def test_the_table_is_returned_unchanged():
    assert report.save_table(run(), TABLE, "demo", [artifact()], "n") is TABLE and list(TABLE) == ["x", "y"]


def test_a_column_that_the_provenance_would_overwrite_is_refused():
    with pytest.raises(ValueError, match=r"'demo'.*\['n', 'seeds'\]"):
        report.save_table(run(), TABLE.assign(seeds=1, n=2), "demo", [artifact()], "n")


def test_a_figure_comes_as_png_pdf_and_data():
    figure, axis = plt.subplots()
    axis.plot(TABLE["x"], TABLE["y"])
    report.save_figure(run(), figure, "demo", TABLE, [artifact()], "24 problems", [0])
    folder = store.home() / "paper_figures" / "check"
    assert (folder / "demo.png").read_bytes()[:4] == b"\x89PNG" and (folder / "demo.pdf").read_bytes()[:4] == b"%PDF"
    assert pd.read_csv(folder / "demo.csv")["x"].tolist() == [1, 2]
    footer = figure._supxlabel.get_text()
    assert all(part in footer for part in ("check (not a result)", "24 problems", "abc123"))
    plt.close(figure)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_long_footer_stays_in_its_figure(columns):
    figure, _ = plt.subplots(figsize=(columns * report.COLUMN_WIDTH, 2))
    n = ", ".join(f"{i} problems of processbench_math" for i in range(12))
    report.save_figure(run(), figure, "long", TABLE, [artifact()], n)
    footer = figure._supxlabel.get_window_extent()
    assert footer.x0 >= 0 and footer.x1 <= figure.bbox.x1
    assert "".join(n.split()) in "".join(figure._supxlabel.get_text().split())
    plt.close(figure)


def test_the_same_figure_is_the_same_file():
    """No time stamp inside: a figure that did not change makes no difference in the repository."""
    folder = store.home() / "paper_figures" / "check"
    contents = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([1, 2], [3, 4])
        report.save_figure(run(), figure, "demo", TABLE, [artifact()], "n")
        plt.close(figure)
        contents.append([(folder / f"demo.{kind}").read_bytes() for kind in ("png", "pdf", "csv")])
    assert contents[0] == contents[1]


def test_a_missing_table_names_the_notebook():
    report.save_table(run(), TABLE, "there", [artifact()], "n")
    assert report.read_tables(run(), {"there": "03"})["there"]["x"].tolist() == [1, 2]
    with pytest.raises(MissingArtifact, match="gone.csv.*notebook 07"):
        report.read_tables(run(), {"there": "03", "gone": "07"})


def test_texts():
    assert report.with_interval(0.81249, 0.78, 0.8434) == "0.812 [0.780, 0.843]"
    assert report.with_interval(-1.5, -2, 1, digits=1) == "-1.5 [-2.0, 1.0]"
    assert report.markdown_table(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})) == (
        "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |"
    )


def test_costs_come_from_the_manifests():
    table = report.cost_table([artifact(seconds=3.5), artifact(stage="train", config={"arm": "exec_only", "seed": 2})])
    assert table["stage"].tolist() == ["demo", "train"] and table["seconds"].tolist() == [3.5, 2.0]


def test_every_claim_has_a_source_and_no_invented_figure():
    """What the paper's public texts do not give is 'not available'; the others are those of the method page."""
    claims = report.claims()
    assert len({c["id"] for c in claims}) == len(claims) >= 5
    for c in claims:
        assert c["claim"] and c["source"].startswith(("paper", "ours")) and c["figure"]
        assert c["source"].startswith("paper") or c["figure"] == "no claim of the paper"
    figures = {c["id"]: c["figure"] for c in claims}
    assert "+0.84" in figures["gain_over_exec_only"] and "2 to 4 points" in figures["gain_over_exec_only"]
    assert "95.5 %" in figures["judge_saturation"] and "30 tokens" in figures["shorter_traces"]
    assert "not available" in figures["rm_held_out"] and "not available" in figures["ablations"]


def ledger(folder, name, claim, measured, verdict):
    (folder / name).mkdir(exist_ok=True)
    row = {"claim": [claim], "paper": ["-"], f"this run ({name})": [measured], "verdict": [verdict]}
    pd.DataFrame(row).to_csv(folder / name / "claims_ledger.csv", index=False)


def test_the_readme_shows_the_best_evidence_of_each_domain(tmp_path, monkeypatch):
    """A preset that did not test a claim leaves it to the next one of its domain."""
    claim = report.claims()[0]["claim"]
    monkeypatch.setattr(report, "CLAIMS", tmp_path / "claims.yaml")
    (tmp_path / "claims.yaml").write_text(
        f'[{{claim: "{claim}", figure: "2"}}, {{claim: b, figure: "3", not_tested: not tested here}}]'
    )
    ledger(tmp_path, "tiny_arms", claim, "0", "not run: no gradient")
    ledger(tmp_path, "tiny", claim, "0.1 [0.0, 0.2]", "agrees")
    ledger(tmp_path, "tiny_code", claim, "0.3 [0.2, 0.4]", "disagrees")
    rows = [tuple(row) for row in report.best_evidence().itertuples(index=False)]
    assert rows == [
        (claim, "2", "**agrees**: 0.1 [0.0, 0.2] (`tiny`)", "**disagrees**: 0.3 [0.2, 0.4] (`tiny_code`)"),
        ("b", "3", "not tested here", "not tested here"),
    ]


def test_the_committed_pages_are_those_of_the_committed_tables(tmp_path, monkeypatch):
    """README and docs/results.md are what `tracelift readme` makes of paper_figures/ now."""
    pages = {page: (PROJECT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/results.md")}
    (tmp_path / "docs").mkdir()
    for page, text in pages.items():
        (tmp_path / page).write_text(text, encoding="utf-8")
    monkeypatch.setattr(report, "PROJECT", tmp_path)
    report.main([])
    assert {page: (tmp_path / page).read_text(encoding="utf-8") for page in pages} == pages


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marker")
    with pytest.raises(InputError, match=r"page.md: no <!-- claims -->"):
        report._fill(page, "claims", "text")
