"""Tables and figures, each saved with its data and with what it came from."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure

from tracelift_lib.problems.files import PROJECT, InputError, git_revision
from tracelift_lib.runs import store
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset, preset_names

Sources = Sequence[store.Artifact]  # the stages that data were computed from
COLUMN_WIDTH = 3.5  # inches; a figure must read well in one column of a paper
CHARACTERS_AN_INCH = 24  # of a footer
PALETTE = {"warm_start": "#7f7f7f", "exec_only": "#0072b2", "tracelift": "#d55e00"}
LABELS = {"warm_start": "warm start", "exec_only": "exec-only", "tracelift": "TraceLift"}
CLAIMS = PROJECT / "paper_figures" / "claims.yaml"
# domain -> presets whose ledgers the README shows, best first
EVIDENCE = {"stories": ("tiny_arms", "tiny"), "programs": ("tiny_code",)}


def set_theme() -> None:
    """One look for all figures."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.style.use(Path(__file__).with_name("figures.mplstyle"))


def figures_folder(run: Run) -> Path:
    """Where this run's tables and figures go; a seed or override other than the preset's gets its own folder."""
    folder = store.home() / "paper_figures" / run.variant
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def provenance(run: Run, sources: Sources, n: str, seeds: Sequence[int]) -> dict[str, str]:
    """What every table and figure carries: preset, n in words, seeds, revision of the code that made its data.

    Without `sources` the data were computed on the spot, by the code as it is now.
    """
    revisions = sorted({artifact.revision for artifact in sources}) or [git_revision()]
    return {
        "preset": run.variant + ("" if run.preset.is_result else " (not a result)"),
        "n": n,
        "seeds": " ".join(map(str, seeds)),
        "revision": " ".join(revisions),
    }


def save_figure(
    run: Run, figure: Figure, name: str, data: pd.DataFrame, sources: Sources, n: str, seeds: Sequence[int] = ()
) -> None:
    """Save a figure as PDF and PNG with a footer, and the plotted `data` as CSV beside it."""
    facts = provenance(run, sources, n, seeds or [run.preset.seed])
    items = [f"{key} {value}" for key, value in facts.items()]
    wide = figure.get_figwidth() > 1.5 * COLUMN_WIDTH
    lines = [" · ".join(items)] if wide else [" · ".join(items[:2]), " · ".join(items[2:])]
    room = int(CHARACTERS_AN_INCH * figure.get_figwidth())
    footer = "\n".join(part for line in lines for part in textwrap.wrap(line, room))
    figure.supxlabel(footer, fontsize=5, color="0.45", x=0.99, ha="right")
    folder = figures_folder(run)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    save_table(run, data, name, sources, n, seeds)


def save_table(
    run: Run, table: pd.DataFrame, name: str, sources: Sources, n: str, seeds: Sequence[int] = ()
) -> pd.DataFrame:
    """Save `table` as CSV with the provenance as last columns (floats to 4 decimals); returns it unchanged.

    Raises:
        ValueError: a column of `table` has the name of one of those.
    """
    facts = provenance(run, sources, n, seeds or [run.preset.seed])
    if clash := sorted(set(table.columns) & set(facts)):
        raise ValueError(f"table {name!r}: rename the columns {clash}, these names are those of the provenance")
    table.assign(**facts).to_csv(figures_folder(run) / f"{name}.csv", index=False, float_format="%.4f")
    return table


def with_interval(mean: float, low: float, high: float, digits: int = 3) -> str:
    """`0.812 [0.780, 0.843]`."""
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def claims() -> list[dict]:
    """The paper's claims that we can source, from paper_figures/claims.yaml."""
    return yaml.safe_load(CLAIMS.read_text())


def cost_table(artifacts: Sources) -> pd.DataFrame:
    """Seconds and peak memory of each stage's run, from the manifests."""
    return pd.DataFrame([a.manifest for a in artifacts])[["stage", "seconds", "peak_memory_gb"]]


def markdown_table(table: pd.DataFrame) -> str:
    """A GitHub table; cells are shown as they are."""
    head = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + " --- |" * len(table.columns)
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join([head, rule, *rows])


def read_tables(run: Run, names: dict[str, str]) -> dict[str, pd.DataFrame]:
    """Tables of this run by name.

    Args:
        names: table name -> number of the notebook that writes it.
    Raises:
        store.MissingArtifact: a table has not been written; names the notebook.
    """
    tables = {}
    for name, notebook in names.items():
        path = figures_folder(run) / f"{name}.csv"
        if not path.exists():
            raise store.MissingArtifact(f"{path.name} is missing; notebook {notebook} writes it")
        tables[name] = pd.read_csv(path)
    return tables


def write_summary(
    run: Run, main: pd.DataFrame, bounds: pd.DataFrame, ledger: pd.DataFrame, hardware: str, sources: Sources
) -> str:
    """The run's results in Markdown, for the README: written beside its figures, and returned."""
    facts = provenance(run, sources, "", run.preset.planner_training.seeds)
    head = (
        f"`make reproduce PRESET={run.preset.name} SEED={run.preset.seed}`: preset {facts['preset']}, "
        f"planner seeds {facts['seeds']}, revision {facts['revision']}; on {hardware}. "
        "Means with 95 % intervals over problems and seeds."
    )
    tables = (main, bounds.round(3), ledger.drop(columns="source"))
    text = "\n\n".join([head, *map(markdown_table, tables)])
    (figures_folder(run) / "summary.md").write_text(text + "\n")
    return text


def best_evidence() -> pd.DataFrame:
    """A row for each claim; for each domain the committed ledger of the best preset that tested it, else why not."""
    paths = {name: CLAIMS.parent / name / "claims_ledger.csv" for presets in EVIDENCE.values() for name in presets}
    ledgers = {name: pd.read_csv(path).set_index("claim") for name, path in paths.items() if path.exists()}

    def shown(claim: dict, presets: Sequence[str]) -> str:
        for name in (n for n in presets if n in ledgers and claim["claim"] in ledgers[n].index):
            row = ledgers[name].loc[claim["claim"]]
            if not row["verdict"].startswith("not "):
                return f"**{row['verdict']}**: {row[f'this run ({name})']} (`{name}`)"
        return claim.get("not_tested", "not tested")

    return pd.DataFrame(
        {
            "claim": claim["claim"],
            "the paper's figure": claim["figure"],
            **{domain: shown(claim, presets) for domain, presets in EVIDENCE.items()},
        }
        for claim in claims()
    )


def _fill(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->` of `page`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise InputError(f"{page}: no {begin} ... {end}")
    page.write_text("\n\n".join([before + begin, text, end + after]), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """`tracelift readme`: the table of claims into README.md, summaries of presets into docs/results.md."""
    argparse.ArgumentParser(prog="tracelift readme").parse_args(arguments)
    summaries = {name: CLAIMS.parent / name / "summary.md" for name in preset_names() if load_preset(name).is_result}
    parts = [f"## Preset `{name}`\n\n{path.read_text().strip()}" for name, path in summaries.items() if path.exists()]
    _fill(PROJECT / "docs" / "results.md", "results", "\n\n".join(parts))
    _fill(PROJECT / "README.md", "claims", markdown_table(best_evidence()))
    return 0
