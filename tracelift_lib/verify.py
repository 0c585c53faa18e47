"""Verifier V(x, y) for math: take one final answer out of the executor's text, then compare exactly."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

# A number that stands for itself: no part of a word, of a power, of 1e3 or of a badly grouped 1,2345.
NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>[-+\u2212]\s?)?\$?"
    r"(?P<body>(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/\d+)?)(?!\d|[.,/]\d|[eE][-+]?\d|[xX]\w|[\u00b2\u00b3])"
)
# Ways to state a final answer, each with its value; a text may use several, but they must agree.
STATED = re.compile(
    r"\\boxed\{(?P<boxed>(?:[^{}]|\{[^{}]*\})*)\}"
    r"|####\s*(?P<hashes>[^\n]+)"
    r"|(?:answer\s+is\b(?!\s+not\b)(?!n't)|answer\s*:)\s*(?P<words>[^\n]+)",
    re.IGNORECASE,
)
AnswerRule = Literal["strict", "last_number"]


def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number, with optional sign, $, %, thousands commas, unit or full stop.

    None if it is no number, or holds several ("3 or 4").
    """
    numbers = list(NUMBER.finditer(text))
    return _value(numbers[0]) if len(numbers) == 1 else None


def _value(match: re.Match) -> Fraction | None:
    sign = -1 if (match["sign"] or "").strip() in ("-", "\u2212") else 1
    try:
        return sign * Fraction(match["body"].replace(",", ""))
    except (ValueError, ZeroDivisionError):  # 1.5/2 or 1/0
        return None


def final_answer(text: str, rule: AnswerRule = "strict") -> Fraction | None:
    """The final answer that `text` gives, or None if it gives none or more than one.

    strict: only stated answers count (`\\boxed{}`, `#### x`, `the answer is x`, `Answer: x`), and all of
    them must agree. last_number: the last number of the text, as in the released code.
    """
    if rule == "last_number":
        numbers = list(NUMBER.finditer(text))
        return _value(numbers[-1]) if numbers else None
    stated = [parse_number(match[match.lastgroup]) for match in STATED.finditer(text)]
    return stated[0] if stated and None not in stated and len(set(stated)) == 1 else None


def verify_math(text: str, answer: str, rule: AnswerRule = "strict") -> int:
    """V(x, y): 1 if the final answer of `text` equals the number `answer`, else 0.

    Raises ValueError if the expected `answer` is itself no number: that is a fault of the data.
    """
    expected = parse_number(answer)
    if expected is None:
        raise ValueError(f"expected answer {answer!r} is not one number")
    return int(final_answer(text, rule) == expected)
