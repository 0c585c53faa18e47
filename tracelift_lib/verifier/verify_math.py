"""Verifier V(x, y) for math: take the final answer out of the executor's text, then compare exactly."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from tracelift_lib.verifier import compare
from tracelift_lib.verifier.answers import MAX_ANSWER, NUMBER, expected_number, number_value, parse_number, plain

# Ways to state a final answer, up to the end of the line; a text may use several, but they must agree.
STATED = re.compile(
    r"(?:####\s*|(?:answer\s+is\b(?!\s+(?:not|correct)\b)(?!n't)\s*:?|answer\s*:)(?:\s|\*\*)*)(?:\\\[\s*|\$\$\s*)?(?P<answer>[^\n]+)",
    re.IGNORECASE,
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
MARK = "\0"  # stands for a box
# "3 or \boxed{4}", "\boxed{3}, 4": a box with another candidate beside it.
BEFORE_BOX = re.compile(r"\d\W{0,3}\bor\W{0,3}$")
AFTER_BOX = re.compile(r"\W{0,3}(?:,|\bor\b|\band\b)[\s$]{0,3}-?\.?\d")
AnswerRule = Literal["strict", "last_number"]
MAX_STATED = 16  # different statements of one text


def stated_answers(text: str) -> list[tuple[str, bool]]:
    """All answers that `text` states, each with whether it is maths (LaTeX); "" for one that cannot be read."""
    boxes, pieces, end = [], [], 0
    text = text.replace(MARK, " ")
    for match in BOX.finditer(text):
        if match.start() < end:  # a box in a box
            continue
        content = _braced(text, match.end())
        pieces += [text[end : match.start()], MARK]
        before = text[max(end, match.start() - 12) : match.start()]
        end = len(text) if content is None else match.end() + len(content) + 1
        alone = not (BEFORE_BOX.search(before) or AFTER_BOX.match(text[end : end + 12]))
        boxes.append((content if content and alone and not BOX.search(content) else "", True))
    lines = [match["answer"] for match in STATED.finditer("".join([*pieces, text[end:]]))]
    return boxes + [answer for line in lines for answer in _line_answer(line)]


def _line_answer(line: str) -> list[tuple[str, bool]]:
    """The answer that a line states in words; none of its own if it only introduces a box."""
    before, box, _ = line.partition(MARK)
    if box:  # "The answer is $2 + 3 = \boxed{5}$", but "the answer is 3, \boxed{5}" names two
        introduces = before.rstrip().endswith("=") or not re.search(r"\d", before)
        return [] if introduces else [("", False)]
    return [(line, re.search(r"\$[^$]+\$|\\[(\[]", line) is not None)]


def _braced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes it; None if there is none near."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start, start + MAX_ANSWER):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return text[start : match.start()]
    return None


def final_answer(text: str, rule: AnswerRule = "strict") -> Fraction | None:
    """The final answer that `text` gives as a number, or None if it gives none, more than one, or no number.

    strict: only stated answers count (`\\boxed{}`, `#### x`, `the answer is x`, `Answer: x`), and all of
    them must agree. last_number: the last number of the text, as in the released code.
    """
    if rule == "last_number":
        numbers = list(NUMBER.finditer(text))
        return number_value(numbers[-1]) if numbers else None
    values = {parse_number(answer, maths) for answer, maths in stated_answers(text)}
    return values.pop() if len(values) == 1 else None


def verify_math(text: str, answer: str, rule: AnswerRule = "strict") -> int:
    """V(x, y): 1 if the final answer of `text` equals the expected `answer`, else 0.

    A text that states several answers gets 1 only if each of them equals `answer`. An expected answer that is
    no number is always looked for among the stated answers: `last_number` has none to offer.

    Raises:
        ValueError: the expected `answer` is itself no valid answer: that is a fault of the data.
        RuntimeError: the process that compares expressions does not work (compare.py).
    """
    value = expected_number(answer)
    if value is not None:
        return int(final_answer(text, rule) == value)
    expected = plain(answer)
    if not compare.all_same(expected, (expected,)):
        raise ValueError(f"expected answer {answer!r} is not one number or expression")
    stated = {plain(candidate) for candidate, _ in stated_answers(text)}
    return int(0 < len(stated) <= MAX_STATED and compare.all_same(expected, tuple(sorted(stated))))
