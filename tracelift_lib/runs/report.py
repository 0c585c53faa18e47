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

from tracelift_lib.evaluation.intervals import Comparison, verdict
from tracelift_lib.problems.files import PROJECT, InputError, changed_since, git_revision
from tracelift_lib.runs import store
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset, preset_names
from tracelift_lib.runs.stages import STAGES

Sources = Sequence[store.Artifact]  # the stages that data were computed from
COLUMN_WIDTH = 3.5  # inches; a figure must read well in one column of a paper
CHARACTERS_AN_INCH = 24  # of a footer
PALETTE = {"warm_start": "#7f7f7f", "exec_only": "#0072b2", "tracelift": "#d55e00"}
LABELS = {"warm_start": "warm start", "exec_only": "exec-only", "tracelift": "TraceLift"}
CLAIMS = PROJECT / "paper_figures" / "claims.yaml"


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


def ledger(claims: list[dict], folder: Path = CLAIMS.parent) -> pd.DataFrame:
    """A row for each evidence of a claim: what the paper reports, what the committed table shows, verdict, command.

    An evidence names a table, the row that it reads, and which side of 0 the claim expects (`expected`), if it is about
    a difference. A claim without evidence has its reason in `not_tested`.

    Raises:
        InputError: the table is missing, has no such row, or is of a preset whose outputs are no result; names the
            claim, the file and what to do.
    """
    rows = []
    for claim in claims:
        row = {"claim": claim["claim"], "paper": claim["figure"], "where": claim["source"]}
        none = {"ours": "", "preset": "", "n": "", "verdict": claim.get("not_tested", "not run"), "command": ""}
        rows += [row | _shown(claim["id"], e, folder) for e in claim.get("evidence", [])] or [row | none]
    return pd.DataFrame(rows)


def _shown(claim: str, evidence: dict, folder: Path) -> dict[str, str]:
    """What the evidence of a claim shows, from its table."""
    path = folder / evidence["table"]
    where = f"claim {claim}: {path}"
    if not path.exists():
        raise InputError(f"{where} is missing; `{evidence['command']}` writes it")
    table = pd.read_csv(path)
    for column, value in evidence["row"].items():
        if column not in table:
            raise InputError(f"{where}: has no column {column!r}; correct `row` of the claim")
        table = table[table[column].astype(str) == str(value)]
    if len(table) != 1:
        raise InputError(f"{where}: {len(table)} rows have {evidence['row']}, not one; correct `row` of the claim")
    found = table.iloc[0]
    if "not a result" in str(found["preset"]):
        raise InputError(f"{where}: is of preset {found['preset']}; take evidence of a preset that is a result")
    value = found[evidence["value"]]
    if "expected" in evidence:
        detectable = found.get("detectable", float("nan"))
        size = Comparison(value, found["low"], found["high"], detectable, found.get("p", float("nan")))
        said = verdict(size, evidence["expected"])
    else:
        said = evidence.get("verdict") or found[evidence["verdict_in"]]
    if isinstance(value, str):  # in words
        ours = value
    else:
        ours = with_interval(value, found["low"], found["high"]) if "low" in found else f"{value:.3f}"
    seeds = f"{found['n']}; seeds {found['seeds']}"
    return {"ours": ours, "preset": found["preset"], "n": seeds, "verdict": said, "command": evidence["command"]}


def stale_evidence(claims: list[dict], folder: Path = CLAIMS.parent) -> list[str]:
    """A line for each claim whose table was made before the last change of the code that makes it (`code`).

    A revision that this history does not have counts as older.
    """
    lines = []
    for claim, evidence in ((c, e) for c in claims for e in c.get("evidence", [])):
        table = pd.read_csv(folder / evidence["table"])
        for revision in sorted(set(" ".join(table["revision"]).split())):
            changed = changed_since(revision.rstrip("+"), evidence["code"])
            if changed:
                lines.append(f"claim {claim['id']}: {evidence['table']} is of revision {revision}, before {changed}")
                break
    return lines


def cost_table(artifacts: Sources) -> pd.DataFrame:
    """Seconds and peak memory of each stage's run, from the manifests."""
    return pd.DataFrame([a.manifest for a in artifacts])[["stage", "seconds", "peak_memory_gb"]]


def notebook_costs(artifacts: Sources) -> pd.DataFrame:
    """What the stages of each notebook cost, from their manifests: a row a notebook.

    Minutes are summed over results that a CPU makes side by side; planner tokens are completions drawn in training.
    """
    rows = [
        {
            "notebook": STAGES[a.manifest["stage"]].notebook,
            "results": 1,
            "minutes": a.manifest["seconds"] / 60,
            "peak memory, GB": a.manifest["peak_memory_gb"],
            "planner tokens": _tokens_drawn(a),
        }
        for a in artifacts
    ]
    how = {"results": "sum", "minutes": "sum", "peak memory, GB": "max", "planner tokens": "sum"}
    table = pd.DataFrame(rows).groupby("notebook").agg(how).reset_index()
    return table.round({"minutes": 1, "peak memory, GB": 1})


def _tokens_drawn(artifact: store.Artifact) -> int:
    log = artifact.path / "steps.csv"
    return int(pd.read_csv(log)["tokens_so_far"].max()) if log.exists() else 0


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
    run: Run,
    main: pd.DataFrame,
    bounds: pd.DataFrame,
    ledger: pd.DataFrame,
    hardware: str,
    sources: Sources,
    costs: pd.DataFrame | None = None,
) -> str:
    """The run's results in Markdown, for the README, with what they cost: written beside its figures, and returned."""
    facts = provenance(run, sources, "", run.preset.planner_training.seeds)
    head = (
        f"`make reproduce PRESET={run.preset.name} SEED={run.preset.seed}`: preset {facts['preset']}, "
        f"planner seeds {facts['seeds']}, revision {facts['revision']}; on {hardware}. "
        "Means with 95 % intervals over problems and seeds."
    )
    tables = [main, bounds.round(3), ledger.drop(columns="source"), *([] if costs is None else [costs])]
    text = "\n\n".join([head, *map(markdown_table, tables)])
    (figures_folder(run) / "summary.md").write_text(text + "\n")
    return text


def main(arguments: list[str] | None = None) -> int:
    """`tracelift readme`: the ledger of claims into README.md, the committed summaries into docs/results.md.

    With --check nothing is written: the exit status is 1 if a claim's evidence is older than its code.
    """
    parser = argparse.ArgumentParser(prog="tracelift readme")
    parser.add_argument("--check", action="store_true", help="fail if a claim's evidence is older than its code")
    table = ledger(claims())
    if parser.parse_args(arguments).check:
        stale = stale_evidence(claims())
        print("\n".join(stale) or "every claim's evidence is of the present code")
        return int(bool(stale))
    parts = []
    for name in sorted(filter(_is_result, preset_names()), key=_most_seeds_first):
        path = CLAIMS.parent / name / "summary.md"
        parts += [f"## Preset `{name}`\n\n{path.read_text().strip()}"] if path.exists() else []
    _fill(PROJECT / "docs" / "results.md", "results", "\n\n".join(parts))
    shown = table[["claim", "paper", "ours", "preset", "verdict"]].copy()
    shown.loc[shown["claim"].duplicated(), ["claim", "paper"]] = ""  # said once
    _fill(PROJECT / "README.md", "claims", markdown_table(shown))
    return 0


def _fill(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->` of `page`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise InputError(f"{page}: no {begin} ... {end}")
    page.write_text("\n\n".join([before + begin, text, end + after]), encoding="utf-8")


def _is_result(preset: str) -> bool:
    return load_preset(preset).is_result


def _most_seeds_first(preset: str) -> tuple[int, str]:
    """The best evidence stands first: as many seeds of planner training as there are."""
    training = load_preset(preset).planner_training
    return -len(training.seeds if training else ()), preset
