"""Run the benchmarks of this folder: `python -m bench.all [--only NAME]`.

Each module has `run() -> list[dict]`: objects with name, ours, other, ratio, unit, note. The results are merged by name
into build/bench.json, so that one benchmark can be measured again alone.
"""

from __future__ import annotations

import argparse
import importlib
import json

from tracelift_lib.problems.files import InputError
from tracelift_lib.runs import store

NAMES = ("sandbox", "reward", "rm_scoring", "busy_core")


def table(rows: list[dict]) -> str:
    """The rows as aligned text."""
    cells = [("name", "ours", "other", "ratio", "unit", "note")]
    cells += [
        (r["name"], f"{r['ours']:.4g}", f"{r['other']:.4g}", f"{r['ratio']:.2f}", r["unit"], r["note"]) for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[5]]) for row in cells)


def main() -> None:
    """Measure, print a table, write build/bench.json.

    Raises:
        SystemExit: there is no benchmark of that name, or its data are missing; says which.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=NAMES, help="one benchmark")
    only = parser.parse_args().only
    path = store.home() / "build" / "bench.json"
    merged = {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    for name in [only] if only else NAMES:
        try:
            rows = importlib.import_module(f"bench.{name}").run()
        except InputError as error:
            raise SystemExit(f"bench {name}: {error}") from None
        merged |= {row["name"]: row for row in rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(list(merged.values()), indent=1) + "\n")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
