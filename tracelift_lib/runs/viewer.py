"""The trace viewer: cases as one HTML page without remote parts, or inline in Jupyter; the command `tracelift view`.

What a model or a data set has written is never trusted: it is escaped by the template engine, control characters that
could hide or reorder text are shown as their code point, long texts are cut, and the page forbids scripts altogether.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from pathlib import Path

from IPython.display import HTML
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.runs import cases as cs
from tracelift_lib.runs.cases import visible
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.report import LABELS
from tracelift_lib.verifier.verify_code import extract_program

PARTS = {"s": "s", "q": "q", "u": "û", "j": "judge", "c": "c", "baseline_success": "success without a trace"}
SYMBOLS = {"right": "✓", "wrong": "✗", "missing": "+", "": "·"}
STYLE = HtmlFormatter(nowrap=True, noclasses=True, style="default")


def short(text: str) -> str:
    """A name or a label: `visible`, on one line, cut early."""
    return visible(" ".join(text.split()), 80)


def coloured(answer: str) -> Markup:
    """The program in an executor's answer, with Python's colours; Pygments escapes its text."""
    return Markup(highlight(visible(extract_program(answer)), PythonLexer(stripnl=False), STYLE))


def number(value: float, signed: bool = False) -> str:
    """Two decimals, or a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:{'+' if signed else ''}.2f}"


def formula(arm: str, parts: dict[str, float]) -> str:
    """How the reward of an arm comes out of the parts, for the arms whose parts are all known; else empty."""
    s, q, u = (parts.get(name, math.nan) for name in "squ")
    if arm == "exec_only" and math.isfinite(s):
        return f"s = {s:.2f}"
    if arm == "tracelift" and math.isfinite(s + q + u):
        return f"0.5 · {s:.2f} + 0.5 · {q:.2f} · ({u:+.2f})"
    return ""


@functools.cache
def _environment() -> Environment:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"visible": visible, "short": short, "coloured": coloured, "number": number}
    environment.globals |= {
        "formula": formula,
        "PARTS": PARTS,
        "SYMBOLS": SYMBOLS,
        "LABELS": LABELS,
        "isfinite": math.isfinite,
    }
    return environment


def page(cases: Sequence[cs.Case], title: str = "TraceLift cases", whole: bool = True) -> str:
    """The cases as a whole HTML page, or as a fragment to put into one."""
    css = Markup((Path(__file__).parent / "viewer.css").read_text(encoding="utf-8"))
    return _environment().get_template("viewer.html").render(cases=cases, title=title, whole=whole, css=css)


def show(cases: Sequence[cs.Case]) -> HTML:
    """The same inline in Jupyter."""
    return HTML(page(cases, whole=False))


# --- the command --------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tracelift view", description="Show groups of rollouts.parquet as one HTML page."
    )
    parser.add_argument("rollouts", nargs="+", type=Path, help="of one arm, or of two to see side by side")
    parser.add_argument("--out", type=Path, default=Path("traces.html"))
    parser.add_argument("--problems", type=Path, help=".jsonl with the problems; of a run in runs/ they are found")
    parser.add_argument("--rule", choices=[*cs.RULES], help="which groups; default: the first rule that finds any")
    parser.add_argument("--groups", type=int, default=10, help="how many")
    parser.add_argument(
        "--replay", metavar="PRESET", help="ask this preset's executor and RM again, for texts and rubric"
    )
    options = parser.parse_args(arguments)
    rollouts = cs.read_rollouts(options.rollouts)
    problems = {} if options.problems is None else cs.read_problems(options.problems)
    for path in options.rollouts if not problems else ():
        problems |= cs.problems_beside(path)
    cases = _chosen(rollouts, problems, options)
    if options.replay:
        _replay(cases, options.replay)
    options.out.write_text(page(cases, options.rollouts[0].resolve().parent.name), encoding="utf-8")
    print(f"{len(cases)} groups of {len(rollouts)} completions: {options.out}")
    return 0


def _chosen(rollouts, problems: dict[str, Problem], options: argparse.Namespace) -> list[cs.Case]:
    for rule in [options.rule] if options.rule else cs.RULES:
        if len(chosen := cs.choose(rollouts, rule, options.groups)):
            return cs.cases_of(rollouts, chosen, problems, cs.RULES[rule][0])
    if options.rule:
        raise InputError(f"no group has a value for --rule {options.rule} ({cs.RULES[options.rule][0]})")
    first = rollouts.drop_duplicates(cs.GROUP).head(options.groups).set_index(cs.GROUP)["reward"]
    return cs.cases_of(rollouts, first, problems, "the first groups; reward of the first completion")


def _replay(cases: list[cs.Case], preset: str) -> None:
    if unknown := [case.problem.problem_id for case in cases if case.problem.source == "unknown"]:
        raise InputError(f"--replay needs the text of problem {unknown[0]}: name its file with --problems")
    run = Run(preset)
    scorer = run.reward_model() if run.has("reward_model") else None
    cs.replay(cases, run.executor(), scorer, run.preset.execution.k, run.preset.seed)
