"""The data card of a built set of TraceLift-Groups: what it holds, how it was made, what was rejected and why."""

from __future__ import annotations

import json

from tracelift_lib.groups.group_files import HUB_NAME
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.groups.seeds import SOURCES

CARD = """\
---
license: other
language: en
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: dev
    path: dev.parquet{test_file}
---

# TraceLift-Groups from {source}

{sizes} groups, domain {domain}. A group holds a problem's reference trace and flawed versions
of it, each damaged in one place, with a rubric of five dimensions (0 to 4) and a total (0 to 1). Schema of the released
data set {hub}. Split: {test}problems ordered by SHA-256 of (18, problem_id), the first tenth is dev.

- Seeds: {source}, licence {licence}; settings `{seeds}`.
- Flawed traces: {maker}. Rubrics: {judge}.
- Leakage: seeds were compared with {benchmarks} test problems of benchmarks, exactly and normalised; {leaked} left out.
- Made by revision {revision} of the companion. The kinds of flaw and their definitions are the companion's own.
{note}
## Traces

| kind | traces | mean total | hurts | definition |
| --- | --- | --- | --- | --- |
{kinds}

## Every proposal, and what became of it

| kind | outcome | count |
| --- | --- | --- |
{outcomes}
"""
MADE_BY = {
    "exact": "exact, by program",
    "programmatic": "programmatic, from the definition of each kind and how much of the trace builds on the flaw "
    "(ours; no judge has read them)",
    "ground_truth": "ground truth of the generated worlds",
}
PLANS = "- Reference traces are plans read off the reference programs, one line a statement.\n"
NOTES = {
    "gsm_symbolic": "- Caution: gsm_symbolic's templates go back to GSM8K *test* problems with other numbers and "
    "names, which no comparison of texts finds. Do not report GSM8K test for a model trained on these groups.\n",
    "mbpp": PLANS,
    "contests": PLANS,
}


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
    return CARD.format(
        source=seeds["source"],
        domain=source.domain,
        hub=HUB_NAME,
        licence=source.licence,
        seeds=json.dumps(seeds),
        note=NOTES.get(seeds["source"], ""),
        maker=MADE_BY.get(settings["maker"], by_model),
        judge=MADE_BY.get(settings["judge"], by_model),
        benchmarks=report["benchmark_problems_kept_out"],
        revision=report["revision"],
        leaked=sum(report["outcomes"].get("leaked", {}).values()),
        kinds="\n".join(rows),
        outcomes="\n".join(outcomes),
        sizes=", ".join(f"{n} {split}" for split, n in groups.items()),
        test="the last seeds are test; of the others, " if "test" in groups else "",
        test_file="\n  - split: test\n    path: test.parquet" if "test" in groups else "",
    )
