"""`tracelift COMMAND ...`, or `python -m tracelift_lib.runs.cli COMMAND ...`: the one entry point of the project."""

from __future__ import annotations

import argparse
import importlib
import sys

from tracelift_lib.problems.files import InputError

COMMANDS = {  # name -> module of the library, function of it, help; only the module that is needed is imported
    "run": ("runs.run_notebooks", "main", "run the notebooks of a preset headlessly"),
    "convert": ("runs.run_notebooks", "convert_all", "write notebooks/*.ipynb from their sources"),
    "course": (
        "runs.course",
        "main",
        "write build/course/: copies for students, with solutions, and a website; grade copies",
    ),
    "groups": ("groups.cli", "main", "build TraceLift-Groups from public seeds, or check files of groups"),
    "serve-rm": ("reward_model.server", "main", "serve a reward model over HTTP"),
    "launch": ("runs.launch", "main", "train planners in this process, or in several under `accelerate launch`"),
    "plan": ("runs.plan", "main", "what a preset will take, stage by stage, without making anything"),
    "keep-base": (
        "runs.base_models",
        "main",
        "copy a preset's base models to base_models/, from where others take them",
    ),
    "view": ("runs.viewer", "main", "show groups of rollouts.parquet as one HTML page"),
    "evaluate": ("runs.evaluate", "main", "planner and executor on benchmark sets: answers, intervals, comparisons"),
    "readme": ("runs.report", "main", "put the summaries of paper_figures/ into README.md"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command with the rest of the arguments; returns the exit status, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="tracelift", description="TraceLift, step by step.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, (_, _, words) in COMMANDS.items():
        commands.add_parser(name, help=words, add_help=False)  # each command has its own --help
    given = sys.argv[1:] if arguments is None else arguments
    module, function, _ = COMMANDS[parser.parse_args(given[:1]).command]
    try:
        return getattr(importlib.import_module(f"tracelift_lib.{module}"), function)(given[1:]) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
