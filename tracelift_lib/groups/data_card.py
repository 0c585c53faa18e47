"""The data card of a built set of TraceLift-Groups: what it holds, how it was made, what was rejected and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tracelift_lib.groups.group_files import HUB_NAME
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.groups.seeds import SOURCES
from tracelift_lib.problems.records import data_file


class Phrases(NamedTuple):
    """The template of the card; who `made_by` says made traces or rubrics, if no language model; notes on sources."""

    card: str
    made_by: dict[str, str]
    notes: dict[str, str]


PHRASES = data_file(Path(__file__).with_name("data_card.yaml"), Phrases)


def data_card(report: dict) -> str:
    """The README of a built data set, with the front matter that `datasets.load_dataset(folder)` reads."""
    settings, groups = report["settings"], report["groups"]
    seeds, by_model = settings["seeds"], f"by the language model {settings['model']}"
    source = SOURCES[seeds["source"]]
    rows = []
    for name, n in report["traces"].items():
        kind = kinds_of(source.domain).get(name)  # none of the reference
        about = f" {', '.join(kind.hurts)} | {kind.definition} |" if kind else " | |"
        rows.append(f"| {name} | {n} | {report['mean_total'][name]:.3f} |{about}")
    outcomes = [f"| {kind} | {what} | {n} |" for kind, row in report["outcomes"].items() for what, n in row.items()]
    note = PHRASES.notes.get(seeds["source"])
    return PHRASES.card.format(
        report=report,
        seeds=seeds,
        settings=json.dumps(seeds),
        source=source,
        hub=HUB_NAME,
        note=f"{note}\n" if note else "",
        maker=PHRASES.made_by.get(settings["maker"], by_model),
        judge=PHRASES.made_by.get(settings["judge"], by_model),
        leaked=sum(report["outcomes"].get("leaked", {}).values()),
        kinds="\n".join(rows),
        outcomes="\n".join(outcomes),
        sizes=", ".join(f"{n} {split}" for split, n in groups.items()),
        test="the last seeds are test; of the others, " if "test" in groups else "",
        test_file="\n  - split: test\n    path: test.parquet" if "test" in groups else "",
    )
