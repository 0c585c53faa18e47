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


# --- the ledger of claims ---------------------------------------------------------------------


def claim(**more):
    evidence = {"table": "p/t.csv", "row": {"measure": "success"}, "value": "difference", "expected": "more"}
    evidence |= {"command": "make reproduce PRESET=p", "code": ["notebooks/07_evaluate.py"]}
    return {"id": "c", "claim": "A beats B", "figure": "2 points", "source": "Table 1", "evidence": [evidence | more]}


def evidence_table(folder, low=0.01, high=0.2, preset="p", **more):
    table = pd.DataFrame(
        [{"measure": m, "difference": 0.1, "low": low, "high": high, **more} for m in ("success", "x")]
    )
    (folder / "p").mkdir(exist_ok=True)
    table.assign(preset=preset, n="20 problems", seeds="0 1", revision="b" * 10).to_csv(
        folder / "p" / "t.csv", index=False
    )


def test_a_claim_is_read_from_its_table(tmp_path):
    evidence_table(tmp_path)
    untested = {"id": "d", "claim": "C", "figure": "not available", "source": "x", "not_tested": "needs a judge"}
    rows = report.ledger([claim(), claim(expected="less"), untested], tmp_path)
    assert rows["verdict"].tolist() == ["agrees", "disagrees", "needs a judge"]
    one = rows.iloc[0]
    assert one["ours"] == "0.100 [0.010, 0.200]" and one["n"] == "20 problems; seeds 0 1" and one["preset"] == "p"
    assert one["command"] == "make reproduce PRESET=p" and one["paper"] == "2 points" and one["where"] == "Table 1"


def test_the_smallest_detectable_difference_stands_beside_no_difference(tmp_path):
    evidence_table(tmp_path, low=-0.01, detectable=0.15)
    assert report.ledger([claim()], tmp_path)["verdict"].tolist() == ["no difference found (smallest detectable 0.150)"]


@pytest.mark.parametrize(
    "more, words",
    [
        ({"table": "p/other.csv"}, "claim c: .*other.csv is missing; `make reproduce PRESET=p` writes it"),
        ({"row": {"measure": "faithful"}}, "0 rows have"),
        ({"row": {"n": "20 problems"}}, "2 rows have"),
        ({"row": {"split": "test"}}, "no column 'split'"),
    ],
)
def test_evidence_that_is_not_there_fails(tmp_path, more, words):
    evidence_table(tmp_path)
    with pytest.raises(InputError, match=words):
        report.ledger([claim(**more)], tmp_path)


def test_evidence_of_a_preset_that_is_no_result_fails(tmp_path):
    evidence_table(tmp_path, preset="check (not a result)")
    with pytest.raises(InputError, match="not a result"):
        report.ledger([claim()], tmp_path)


def test_evidence_older_than_its_code_is_named(tmp_path):
    """The revision of the table is in no history here."""
    evidence_table(tmp_path)
    lines = report.stale_evidence([claim()], tmp_path)
    assert lines == ["claim c: p/t.csv is of revision bbbbbbbbbb, before this history"]


def test_the_committed_ledger_can_be_made():
    """Every claim's table is there, its row is one, and it is of a preset that is a result."""
    rows = report.ledger(report.claims())
    assert set(rows["claim"]) == {c["claim"] for c in report.claims()} and (rows["verdict"] != "").all()
    assert "agrees" in set(rows["verdict"])


def test_presets_with_most_seeds_stand_first():
    assert sorted(["smol_short", "tiny", "tiny_code"], key=report._most_seeds_first) == [
        "tiny",
        "tiny_code",
        "smol_short",
    ]


def test_costs_of_notebooks_come_from_the_manifests(tmp_path):
    (tmp_path / "steps.csv").write_text("step,tokens_so_far\n0,100\n1,250\n")

    def made(stage, seconds, memory):
        return Artifact(tmp_path, {"stage": stage, "seconds": seconds, "peak_memory_gb": memory})

    table = report.notebook_costs([made("planner_training", 60, 1.5), made("planner_training", 120, 2.0)])
    assert table.iloc[0].tolist() == ["05_train_planner_lora", 2, 3.0, 2.0, 500]


def test_a_claim_may_have_evidence_of_several_presets(tmp_path):
    evidence_table(tmp_path, verdict="agrees here", said="0.1 of 0.2")
    two = claim()
    two["evidence"] += [{**two["evidence"][0], "value": "said", "verdict_in": "verdict"}]
    del two["evidence"][1]["expected"]
    rows = report.ledger([two], tmp_path)
    assert rows["verdict"].tolist() == ["agrees", "agrees here"] and rows["claim"].nunique() == 1


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
