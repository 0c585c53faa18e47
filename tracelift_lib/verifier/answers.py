"""Answers to math problems: reading a number exactly, and when two answers are equal.

`same` may run for hours on hostile text, so it is called in a process with limits (compare.py).

What counts as equal:
- A number must be written out: an expected 8 is met by 8, 8.0, 16/2 or \\frac{16}{2}, not by 2^3 or 3 + 5, or else the
  verifier would do the calculation that the executor was asked for. 0.75 is 3/4, but 0.333 is not 1/3.
- Units, currencies and % are left out ("12 apples" is 12, 50% is 50 and not 0.5): what is asked for is in the problem.
- (a, b), [a, b), ... are ordered and their brackets count; {a, b} and a list "a, b" are the same set, in any order.
- x = 5 is 5 and x \\in [0, 1] is [0, 1]; x = 5 is not y = 5. A number with a base (52_8) is only itself.
- \\text{...} names are compared as words, without case. Other expressions are compared by math-verify.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

# A number that stands for itself: no part of a word, of a power, of 1e3 or of a badly grouped 1,2345. A dash behind a
# number ("16 - 3") is no sign, nor is one with a space after it at the start of a line, which marks a list.
NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>(?<![\d)] )[-+\u2212]|(?<![\d)] )(?<!\n)[-+\u2212]\s)?\$?"
    r"(?P<body>(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/\d+)?)"
    r"(?!\d|[.,/]\d|[eE][-+]?\d|[xX]\w|[\u00b2\u00b3])"
)
MAX_ANSWER = 1000  # characters of an answer with its sentence
MAX_LENGTH, MAX_DEPTH, MAX_PARTS = 300, 12, 16  # of an expression (the longest answer of MATH-500 has 53), of a list
FRACTION = re.compile(r"\\frac\s*(?:\{\s*(-?\d[\d,]*)\s*\}|(\d))\s*(?:\{\s*(\d[\d,]*)\s*\}|(\d))")
MIXED = re.compile(r"(?<![\w.,/])(\d{1,9})\s+(\d{1,9})/(\d{1,9})(?!\d|[.,/]\d)")
SCIENTIFIC = re.compile(
    r"(?<![\w.,])(\d{1,30}(?:\.\d{1,30})?)\s*(?:\\times|\\cdot|\u00d7)\s*10\^(?:\{(-?\d{1,3})\}|(\d))"
)
TEXT = re.compile(r"\\(?:text(?:rm|bf|it)?|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}(\s*\^\s*(?:\d|\{\d\}))?")
# What else in a statement makes its only number (written as #) a part of something: 2x, x - 2, 8\pi, \sqrt{5}, 52_8.
PART = re.compile(
    r"[\\^\u221a\u03c0\u221e\u00b1]|#_|#(?![mgshL]\b)[a-zA-Z]\b|\b(?![aAI]\b)[a-zA-Z]\s*#|(?:\b[a-zA-Z]|\))\s?[+*/]\s?#"
    r"|#\s?[-+*/]\s?(?:[a-zA-Z]\b|\()|(?<![\w<])[a-zA-Z]\s*[<>\u2264\u2265\u2260]=?\s*#"
    r"|#\s*[<>\u2264\u2265\u2260]=?\s*[a-zA-Z]\b"
)
PART_IN_MATHS = re.compile(r"[|!<>\d]|[-+*/]\s*[#(]|[#)]\s*[-+*/]|\b[a-zA-Z]\b(?!\s*(?:\([a-z]\)\s*)?=)")
BRACKETS = ("()", "[]", "(]", "[)")
NAMED = re.compile(r"^([A-Za-z](?:\([a-z]\))?)\s*(?:=(?!=)|\\in(?![a-z]))\s*(?=[^=<>]*$)")
BASE = re.compile(r"[0-9A-F]+_\{?\d+\}?")
# Any other command is no final answer: a sum, an integral or a limit is a calculation still to be done. It also keeps
# math-verify from reading only the part before a command that it does not know.
COMMANDS = frozenset(
    "frac sqrt pi sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp cdot times div infty le leq "
    "ge geq lt gt ne neq binom begin end alpha beta gamma delta epsilon theta lambda mu phi omega rho sigma tau psi "
    "emptyset mathbb".split()
)
# Not worth a try: towers of powers, exponents and factorials beyond four digits, very long numbers, (n!)!.
HEAVY = re.compile(r"\^\s*\{?\s*\d+\s*\^\s*\{?\s*\d|\^\s*\{?\s*-?\d{5}|\d{5,}\s*\}?\s*\)?!|\d{40}|![\s)}]*!")
WORD = re.compile(r"(?<![\\a-zA-Z])(?!(?:p|b|v)?matrix\b)[a-zA-Z]{4,}|\b(?:or|and|not)\b")


def parse_number(text: str, maths: bool = False) -> Fraction | None:
    """The value of a text that is one number, with optional sign, $, %, thousands commas, unit or full stop.

    None if it is no number, or holds several ("3 or 4"). In `maths` (LaTeX) a single letter is a variable, not a unit.
    """
    if len(text) > MAX_ANSWER or (maths and _parts(plain(text))[0] in BRACKETS):  # (1,234) is a pair
        return None
    text = TEXT.sub(lambda m: f" {m[1]} " if re.search(r"\d|\b(?:or|and)\b", m[1]) else " unit ", _tidy(text))
    text = re.sub(r"(?<=\d)\s*(?=\\frac)", " ", text)
    text = FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}".replace(",", ""), text)
    text = SCIENTIFIC.sub(lambda m: str(Fraction(m[1]) * Fraction(10) ** int(m[2] or m[3])), text)
    text = MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
    text = re.sub(r"\b([a-zA-Z]{2,}|[ck]?m)\^(?:[23]|\{[23]\})", r"\1", text)  # square and cubic units
    numbers = list(NUMBER.finditer(text))
    if len(numbers) != 1:
        return None
    rest = text[: numbers[0].start()] + "#" + text[numbers[0].end() :]
    in_maths = maths and (PART_IN_MATHS.search(rest) or rest.count("(") != rest.count(")"))
    return None if in_maths or PART.search(rest) else number_value(numbers[0])


@lru_cache(maxsize=4096)  # a problem's answer is compared with many texts
def expected_number(answer: str) -> Fraction | None:
    """The value of an expected answer if it is a bare number; not if it is named, x = 5."""
    return None if NAMED.match(plain(answer)) else parse_number(answer, maths=True)


def number_value(match: re.Match) -> Fraction | None:
    """The value of a match of NUMBER."""
    sign = -1 if (match["sign"] or "").strip() in ("-", "\u2212") else 1
    try:
        return sign * Fraction(match["body"].replace(",", ""))
    except (ValueError, ZeroDivisionError):  # 1.5/2 or 1/0
        return None


def _tidy(text: str) -> str:
    """`text` without what only sets its looks: spacing, sizes of brackets, degree signs, delimiters of maths."""
    text = re.sub(r",\\!\s*|\{,\}", ",", text.replace("**", " ").replace("\u2212", "-"))
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\\(?=[$%])", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    return re.sub(r"\^\{?\\circ\}?|\\(?:degree|q?quad|displaystyle)\b|\u00b0|(?<!\\)\\[!,;: ()[\]]", " ", text).strip()


def plain(answer: str) -> str:
    """An answer as bare LaTeX: the only formula of its line, without delimiters, full stop, units; "" if too long."""
    answer = answer.strip() if len(answer) <= MAX_ANSWER else ""
    formulas = re.findall(r"\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", answer)
    outside = re.sub(r"\$+[^$]+\$+|\\\(.+?\\\)|\\\[.+?\\\]", "", answer)
    if len(formulas) == 1 and not re.search(r"\d|\bor\b", outside):
        answer = "".join(formulas[0])
    answer = re.sub(r",?\s*\\text\{\s*and\s*\}\s*|,?\s+and\s+", ", ", _tidy(answer).rstrip(" .*$"))
    if not TEXT.fullmatch(answer):
        answer = TEXT.sub(lambda m: m[0] if re.search(r"\b(?:or|not)\b|\d", m[1]) else " ", answer).strip()
    return re.sub(r"\\frac\s*(\{[^{}]*\}|\d)\s*(\d)", r"\\frac\1{\2}", re.sub(r"\\frac\s*(\d)", r"\\frac{\1}", answer))


def _parts(text: str) -> tuple[str, list[str]]:
    """(kind, elements): a bracket pair for ordered ones, "set" for sets and lists, "union", or "" for one element.

    a \\pm b is a set: of the two elements that it stands for.
    """
    text = re.sub(r"\\([{}])", r"\1", text) if re.fullmatch(r"\\\{.*\\\}", text, re.DOTALL) else text
    ends = text[:1] + text[-1:]
    inner = _split(text[1:-1], ",") if ends[:1] in tuple("([{") and ends[1:] in tuple(")]}") else None
    if inner and len(inner) > 1 and ends in BRACKETS:
        return ends, inner
    union, listed = _split(text, r"\cup"), _split(text, ",")
    braces = inner and ends == "{}"
    if not braces and union and len(union) > 1:
        return "union", union
    parts = inner if braces else listed if listed and len(listed) > 1 else [text]
    kind = "set" if braces or len(parts) > 1 else ""
    if any(r"\pm" in part for part in parts):
        kind = "set"
        parts = [part.replace(r"\pm", sign) for part in parts for sign in ("+-" if r"\pm" in part else "+")]
    return kind, parts


def _split(text: str, separator: str) -> list[str] | None:
    """The parts of `text` between separators outside brackets; None if brackets do not match."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[()\[\]{}]|" + re.escape(separator), text):
        depth += (match[0] in "([{") - (match[0] in ")]}")
        if depth < 0:
            return None
        if match[0] == separator and depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()] if depth == 0 else None


def same(expected: str, stated: str) -> bool:
    """Equality of two answers in the form that `plain` gives; one that cannot be read does not even equal itself."""
    name, other = NAMED.match(expected), NAMED.match(stated)
    if name and other and name[1] != other[1]:
        return False
    if other or "=" not in stated:  # y = 2x stays an equation beside 2x - y = 0
        expected, stated = NAMED.sub("", expected), NAMED.sub("", stated)
    kind, parts = _parts(expected)
    other_kind, others = _parts(stated)
    if not kind:
        return other_kind not in BRACKETS and _same_leaf(expected, stated)  # x > 5 is not (5, \infty)
    if kind != other_kind or len(parts) != len(others) or len(parts) > MAX_PARTS:
        return False
    if kind in BRACKETS:
        return all(map(same, parts, others))
    for part in parts:  # equality is transitive, so the first match will do
        match = next((o for o in others if same(part, o)), None)
        if match is None:
            return False
        others.remove(match)
    return True


def _same_leaf(expected: str, stated: str) -> bool:
    if TEXT.fullmatch(expected):
        words = [re.findall(r"\w+", TEXT.sub(r"\1", side).casefold()) for side in (expected, stated)]
        return words[0] == words[1]
    value = parse_number(expected, maths=True)
    if value is not None:
        return parse_number(stated, maths=True) == value
    if BASE.fullmatch(expected) or BASE.fullmatch(stated):
        return re.sub(r"[{}\s]", "", expected) == re.sub(r"[{}\s]", "", stated)
    return equal_expressions(expected, stated)


def equal_expressions(a: str, b: str) -> bool:
    """Whether two LaTeX expressions are equal by math-verify; False also if one cannot be read."""
    from math_verify import verify  # takes a second, and most runs compare numbers only

    if not (_readable(a) and _readable(b)):
        return False
    letters = [set(re.sub(r"\\[a-zA-Z]+", "", side)) for side in (a, b)]
    if letters[0] != letters[1] and {c.lower() for c in letters[0]} == {c.lower() for c in letters[1]}:
        return False  # math-verify takes x and X for one variable
    return bool(verify(_parsed(_exact(a)), _parsed(_exact(b)), timeout_seconds=None))


@lru_cache(maxsize=256)
def _parsed(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    # Its own time-outs need signals, which work on the main thread only. Its other way to read text calls eval.
    text = re.sub(r"(?<![\\a-zA-Z])i(?![a-zA-Z])", r"\\imath ", text)  # it takes i for a variable in 5i, not in 5 i
    return parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def _readable(text: str) -> bool:
    """Whether math-verify may try: short, brackets matched, no words, no unknown commands, no heavy arithmetic."""
    if not (0 < len(text) <= MAX_LENGTH and text.isascii()):
        return False
    commands = set(re.findall(r"\\([a-zA-Z]+)", text.replace(r"\\", " ")))
    depths = list(accumulate((char in "({") - (char in ")}") for char in text))
    matched = min(depths) >= 0 and depths[-1] == 0
    hopeless = max(depths) > MAX_DEPTH or HEAVY.search(text) or WORD.search(text)
    return matched and commands <= COMMANDS and not hopeless


def _exact(text: str) -> str:
    """`text` with decimals as fractions: math-verify would round them to six places."""

    def fraction(m: re.Match) -> str:
        return rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}"

    return re.sub(r"(\d*)\.(\d+)", fraction, text)
