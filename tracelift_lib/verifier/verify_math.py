"""Verifier V(x, y) for math: take the final answer out of the executor's text, then compare.

Three rules say what the final answer of a text is. docs/answers.md has what each gets wrong, and how often.

- `strict` (ours): only a stated answer counts, and all statements must agree. Compared exactly.
- `released_code`: the chain of the released math code (docs/method.md section 9). Compared within 1e-6.
- `last_number`: the last number, whatever it stands for. Compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import without_thinking
from tracelift_lib.verifier import compare
from tracelift_lib.verifier.answers import UNDONE, expected_number, last_number, parse_number, plain, readable
from tracelift_lib.verifier.statements import own_text, stated_answers

AnswerRule = Literal["strict", "released_code", "last_number"]
MAX_STATED = 16  # different statements of one text
TOLERANCE = Fraction(1, 10**6)  # of `released_code`
RELEASED_STATED = (r"answer\s+is\s*[:=]?\s*([^\n.]+)", r"final\s+answer\s*[:=]?\s*([^\n.]+)")
RELEASED_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:\s*/\s*[-+]?\d+(?:\.\d+)?)?")


def final_answer(text: str, rule: AnswerRule = "strict") -> Fraction | None:
    """The final answer that `text` gives as a number by `rule`, or None if it gives none, or (strict) more than one.

    strict: statements are `\\boxed{}`, `#### x`, `the answer is x`, `Answer: x`; each ends where its sentence does.
    """
    if rule == "last_number":
        return last_number(own_text(text))
    if rule == "released_code":
        return _released_number(without_thinking(text))
    values = {parse_number(answer, maths) for answer, maths in stated_answers(text)}
    return values.pop() if len(values) == 1 else None


def _released_text(text: str) -> str:
    """What the released math code takes for the answer in `text`; all of it if there is nothing else to take."""
    text = re.sub(r"\\boxed\s*\{([^{}]+)\}", r"\1", text.strip())
    text = re.sub(r"\\frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", text)
    if "####" in text:
        return text.rpartition("####")[2].strip()
    for pattern in RELEASED_STATED:
        found = re.findall(pattern, text, re.IGNORECASE)
        if found:
            return found[-1].strip()
    numbers = re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*[-+]?\d[\d,]*(?:\.\d+)?)?", text)
    return numbers[-1] if numbers else text


def _released_number(text: str) -> Fraction | None:
    """The first number in what the released code takes for the answer."""
    found = RELEASED_NUMBER.search(re.sub(r"[$,]", "", _released_text(text)))
    try:
        top, _, bottom = found[0].replace(" ", "").partition("/") if found else ("", "", "")
        return Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _released_same(text: str, answer: str) -> bool:
    values = _released_number(without_thinking(text)), _released_number(answer)
    if None not in values:
        return abs(values[0] - values[1]) <= TOLERANCE
    said, expected = (
        re.sub(r"\s+", " ", re.sub(r"[$,]", "", _released_text(side).lower())).strip(" .")
        for side in (without_thinking(text), answer)
    )
    return said == expected != ""


def verify_math(text: str, answer: str, rule: AnswerRule = "strict") -> int:
    """V(x, y): 1 if the final answer of `text` equals the expected `answer`, else 0.

    By `strict` a text that states several answers gets 1 only if each of them equals `answer`. An expected answer that
    is no number is looked for among the stated answers by `last_number` too: it has none to offer.

    Raises:
        ValueError: the expected `answer` is itself no valid answer: that is a fault of the data.
        RuntimeError: the process that compares expressions does not work (compare.py).
    """
    value = check_answer(answer)
    if rule == "released_code":
        return int(_released_same(text, answer))
    if value is not None and rule == "last_number":
        return int(final_answer(text, rule) == value)
    return int(_states(stated_answers(text), answer, value))


def _states(stated: list[tuple[str, bool]], answer: str, value: Fraction | None) -> bool:
    """Whether there are statements, and each is the expected answer, of which `value` is the number if it is one."""
    others = set()
    for candidate, maths in stated:
        number = parse_number(candidate, maths) if value is not None else None
        if number is None:
            others.add(plain(candidate))
        elif number != value:
            return False
    if value is not None and not all(_worth_comparing(other) for other in others):
        return False
    few = 0 < len(stated) and len(others) <= MAX_STATED
    return few and (not others or compare.all_same(plain(answer), tuple(sorted(others))))


def _worth_comparing(text: str) -> bool:
    """Whether an answer that is no written-out number might have the value of one: 2^3, \\sqrt{64}, x = 8."""
    return readable(text) and not UNDONE.fullmatch(text)


def check_answer(answer: str) -> Fraction | None:
    """The number that an expected answer is; None if it is another answer that can be compared.

    Raises:
        ValueError: it cannot be read, so that no answer could ever equal it.
    """
    value = expected_number(answer)
    expected = plain(answer)
    if value is None and not compare.all_same(expected, (expected,)):
        raise ValueError(
            f"expected answer {answer!r} is not one number, expression or name that can be compared; correct it or "
            "leave the problem out"
        )
    return value


def check_problems(problems: Iterable[Problem]) -> None:
    """That the expected answer of every math problem can be read, so that no run ends in the middle for one.

    Raises:
        InputError: names the problems (the first five) and their answers.
    """
    unread = []
    for problem in problems:
        if problem.domain == "math":
            try:
                check_answer(problem.answer)
            except ValueError:
                unread.append(f"problem {problem.problem_id}: answer {problem.answer!r}")
    if unread:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        raise InputError(
            f"{'; '.join(unread[:5])}{more}: not one number, expression or name that can be compared "
            "(docs/answers.md says which are); correct the answer or leave the problem out"
        )
