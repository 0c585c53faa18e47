"""What a flawed trace must pass to enter a group, whoever made it; a rejected one says why.

It differs from the reference in one place (what follows from the damage may differ in numbers only), stays on topic, is
no duplicate and no placeholder, keeps its length within bounds, and holds code only if that is its flaw. The bounds
are ours: the released code drops code traces under 40 words, which the plans of one-line programs are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from fractions import Fraction

from tracelift_lib.groups.flaws.calculations import Trace, quantities, read_trace
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.problems.problem import Problem

MIN_WORDS = 6
LENGTH_SHARE = (0.3, 1.6)  # of the reference's words; pasted code comes on top
ON_TOPIC_SHARE = 0.6  # of the trace's different words and numbers that problem or reference know
STRONG_CODE = re.compile(
    r"```|^\s*(?:def|class)\s+\w+.*:\s*$|^\s*return\b(?!\s+(?:to|from))|^\s*(?:import|from)\s+\w+(?:\s|$)"
    r"|^\s*\w+\s*[-+*/]?=\s*\S.*[\[(\w]$",
    re.MULTILINE,
)
PYTHON_BLOCK = re.compile(r"```|^\s*def\s+\w+|^\s*(?:import|from)\s+\w+|\bprint\(|\binput\(", re.MULTILINE)
PLACEHOLDER = re.compile(
    r"\b(?:todo|tbd|lorem ipsum|n/a)\b|^\s*(?:\.{3,}|…)\s*$|<(?!=)[a-z_ ]+>"
    r"|\[[^\]]*\b(?:insert|your|step|reasoning|trace|flawed)\b[^\]]*\]",
    re.IGNORECASE | re.MULTILINE,
)
MARKUP = re.compile(r"</?(?:think|reasoning|answer)>", re.IGNORECASE)
TELLTALE = re.compile(
    r"\b(?:deliberate|intentional(?:ly)?|injected|introduced (?:an?|the) (?:error|flaw|mistake)"
    r"|this (?:is|step is) (?:wrong|incorrect|flawed))\b",
    re.IGNORECASE,
)


def reject_reason(problem: Problem, reference: str, text: str, kind: str, taken: Collection[str] = ()) -> str | None:
    """Why `text` cannot be the `kind` negative of `reference`; None if it can. `taken`: negatives there already."""
    simple = _simple_reason(reference, text, kind, taken)
    if simple:
        return simple
    if not _on_topic(problem, reference, text):
        return "off topic"
    # In the tiny world's code family a wrong result changes words of the plan too; its makers do one damage by design.
    if problem.source != "tiny_code" and not _one_place(problem, reference, text, kind):
        return "differs in more than one place"
    return _answer_reason(problem, text, kind) if problem.domain == "math" else None


def _simple_reason(reference: str, text: str, kind: str, taken: Collection[str]) -> str | None:
    plain = _plain(text)
    if not plain:
        return "empty"
    if plain == _plain(reference):
        return "same as the reference"
    if plain in {_plain(t) for t in taken}:
        return "duplicate"
    if MARKUP.search(text):
        return "markup"
    if PLACEHOLDER.search(text):
        return "placeholder"
    if TELLTALE.search(text) and not TELLTALE.search(reference):
        return "tells of its flaw"
    code = bool(STRONG_CODE.search(text)) and not STRONG_CODE.search(reference)
    if kind == "leaked_code":
        return None if code or PYTHON_BLOCK.search(text) else "no code in it"
    if code:
        return "holds code"
    words, wanted = len(text.split()), len(reference.split())
    if words < max(MIN_WORDS, LENGTH_SHARE[0] * wanted):
        return "too short"
    return "too long" if words > LENGTH_SHARE[1] * wanted + MIN_WORDS else None


def _plain(text: str) -> str:
    """Words, numbers and operators: what is left of a text whose spacing, case and punctuation do not count."""
    return " ".join(re.sub(r"\.(?!\d)|[^\w\s+*/=.-]", " ", text.lower()).split())


def _on_topic(problem: Problem, reference: str, text: str) -> bool:
    """Most of its words and numbers are the problem's or the reference's (numbers computed anew are no words)."""
    context = [problem.problem, reference, problem.reference_solution, problem.answer]
    known = set(re.findall(r"[a-z]{3,}", " ".join(context).lower()))
    given = set(re.findall(r"[a-z]{3,}", text.lower()))
    return len(given & known) >= ON_TOPIC_SHARE * len(given) if given else not known


# --- one place --------------------------------------------------------------------------------


def _units(text: str) -> list[str]:
    """Lines, and sentences within them; a decimal point ends no sentence."""
    return [u.strip() for line in text.split("\n") for u in re.split(r"(?<=[.!?])\s+(?=[A-Z])", line) if u.strip()]


def _masked(unit: str) -> str:
    return re.sub(r"\d[\d,]*(?:\.\d+)?|\.\d+", "#", unit)


def _is_one_block(before: list[str], after: list[str]) -> bool:
    """Whether the lists agree but for one stretch. Two neighbouring stretches that change places are one."""
    blocks = [b for b in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if b[0] != "equal"]
    return len(blocks) <= 1 or _is_exchange(before, after)


def _is_exchange(before: list[str], after: list[str]) -> bool:
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    a, b = before[start : len(before) - end], after[start : len(after) - end]
    return len(a) == len(b) and any(a[i:] + a[:i] == b for i in range(1, len(a)))


def _one_place(problem: Problem, reference: str, text: str, kind: str) -> bool:
    """One stretch differs at most. Where the reference calculates, numbers may also differ later if they follow from
    what stands before them."""
    if kind == "leaked_code":
        return _is_one_block(reference.split("\n"), text.split("\n"))
    before, after = _units(reference), _units(text)
    if not read_trace(reference, problem.problem).calculations:
        return _is_one_block(before, after)
    if not _is_one_block([_masked(u) for u in before], [_masked(u) for u in after]):
        return False
    known = set(quantities(problem.problem)) | set(quantities(reference))
    damaged = False
    for unit in after:
        trace = read_trace(unit, problem.problem)
        if unit not in before:
            right = {trace.value(c.result) for c in trace.calculations}
            if damaged and {n.value for n in trace.numbers} - known - right:
                return False  # a number from nowhere: a second damage
            damaged = True
        known |= {n.value for n in trace.numbers}
    return True


def _answer_reason(problem: Problem, text: str, kind: str) -> str | None:
    """A flaw that changes the answer must not end on it; one that keeps it must."""
    try:
        answer = Fraction(problem.answer.replace(",", ""))
    except ValueError:
        return None
    trace = read_trace(text, problem.problem)
    results = [trace.value(c.result) for c in trace.calculations] or [n.value for n in trace.numbers]
    keeps = kinds_of("math")[kind].keeps_answer
    if keeps:
        return None if answer in {n.value for n in trace.numbers} else "loses the answer"
    return "keeps the answer" if results and results[-1] == answer and not _last_is_wrong(trace) else None


def _last_is_wrong(trace: Trace) -> bool:
    """Whether an `=` that does not hold stands on a line after the last calculation that does."""
    return any(line >= trace.calculations[-1].line for line in trace.unread) if trace.calculations else False
