"""What a flawed trace must pass to enter a group, whoever made it; a rejected one says why.

It differs from the reference in one place (what follows from the damage may differ in numbers only), stays on topic, is
no duplicate and no placeholder, keeps its length within bounds, and holds code only if that is its flaw. The bounds
are ours: the released code drops code traces under 40 words, which the plans of one-line programs are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from os.path import commonprefix

from tracelift_lib.groups.flaws.calculations import Trace, quantities, read_trace
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.problems.problem import Problem
from tracelift_lib.verifier.answers import expected_number

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
    if reason := _form_reason(reference, text, kind, taken):
        return reason
    if not _on_topic(problem, reference, text):
        return "off topic"
    # In the generated programs a wrong result changes words of the plan too; their makers do one damage by design.
    if problem.source != "tiny_code" and not _one_place(problem, reference, text, kind):
        return "differs in more than one place"
    return _answer_reason(problem, text, kind) if problem.domain == "math" else None


def _form_reason(reference: str, text: str, kind: str, taken: Collection[str]) -> str | None:
    plain, words, wanted = _plain(text), len(text.split()), len(reference.split())
    code = STRONG_CODE.search(text) and not STRONG_CODE.search(reference)
    leak = kind == "leaked_code"
    findings = {
        "empty": not plain,
        "same as the reference": plain == _plain(reference),
        "duplicate": plain in map(_plain, taken),
        "markup": MARKUP.search(text),
        "placeholder": PLACEHOLDER.search(text),
        "tells of its flaw": TELLTALE.search(text) and not TELLTALE.search(reference),
        "no code in it": leak and not code and not PYTHON_BLOCK.search(text),
        "holds code": code and not leak,
        "too short": words < max(MIN_WORDS, LENGTH_SHARE[0] * wanted) and not leak,
        "too long": words > LENGTH_SHARE[1] * wanted + MIN_WORDS and not leak,
    }
    return next((reason for reason, found in findings.items() if found), None)


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
    """Whether what stands between their common start and their common end is rotated."""
    for _ in range(2):  # from either end
        start = len(commonprefix([before, after]))
        before, after = before[start:][::-1], after[start:][::-1]
    return len(before) == len(after) and any(before[i:] + before[:i] == after for i in range(1, len(before)))


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
    answer = expected_number(problem.answer)
    if answer is None:
        return None
    trace = read_trace(text, problem.problem)
    numbers = [n.value for n in trace.numbers]
    if kinds_of("math")[kind].keeps_answer:
        return None if answer in numbers else "loses the answer"
    results = [trace.value(c.result) for c in trace.calculations] or numbers
    return "keeps the answer" if results and results[-1] == answer and not _last_is_wrong(trace) else None


def _last_is_wrong(trace: Trace) -> bool:
    """Whether an `=` that does not hold stands on a line after the last calculation that does."""
    return any(line >= trace.calculations[-1].line for line in trace.unread) if trace.calculations else False
