"""Answers to math problems: reading a number exactly, and when two answers are equal.

`same` may run for hours on hostile text, so it is called in a process with limits (compare.py). It is symmetric: which
of two answers is the expected one makes no difference. docs/answers.md lists what counts as equal, in short:

- Numbers are compared exactly: 0.75 is 3/4, 0.333 is not 1/3. Powers, roots, factorials and logarithms count by their
  value (2^3 is 8), a sum or product of written-out numbers does not (8 is not 3 + 5): to carry it out was the task.
- Units, currencies and % are left out ("12 apples" is 12, 50% is 50 and not 0.5): what is asked for is in the problem.
- (a, b), [a, b), ... are ordered and their brackets count; {a, b} and a list "a, b" are the same set, in any order.
- x = 5 is 5 and x \\in [0, 1] is [0, 1]; x = 5 is not y = 5. A number with a base (52_8) is only itself.
- Equations and inequalities are the same up to a factor. Names are compared as words, without case.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

# A number that stands for itself: no part of a word, of a power or of a badly grouped 1,2345. A dash behind a number
# ("16 - 3") is no sign, nor is one with a space after it at the start of a line, which marks a list.
NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>(?<![\d)] )[-+]|(?<![\d)] )(?<!\n)[-+]\s)?\$?"
    r"(?P<body>(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?(?:/-?\d+(?:\.\d+)?)?)"
    r"(?!\d|[.,/]\d|[eE][-+]?\d|[xX]\w)"
)
MAX_ANSWER = 1000  # characters of an answer with its sentence
MAX_LENGTH, MAX_DEPTH, MAX_PARTS = 300, 12, 16  # of an expression (the longest answer of MATH-500 has 53), of a list
PART_OF_FRACTION = r"(?:\{\s*(-?\d[\d,]*(?:\.\d+)?)\s*\}|(\d))"
FRACTION = re.compile(rf"\\frac\s*{PART_OF_FRACTION}\s*{PART_OF_FRACTION}")
MIXED = re.compile(r"(?<![\w.,/])(\d{1,9})\s+(\d{1,9})/(\d{1,9})(?!\d|[.,/]\d)")
REPEATING = re.compile(r"(?<![\w.,])(\d{0,9})\.(\d{0,20})\\(?:overline|bar)\s*\{(\d{1,20})\}")
SCIENTIFIC = re.compile(
    r"(?<![\w.,])(\d{1,30}(?:\.\d{1,30})?)\s*(?:\\times|\\cdot|x)\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))"
)
SPACED = re.compile(r"(?<![\w.,^])\d{1,3}(?:(?:\\[,;: ]|[~ \u00a0\u2009\u202f])\d{3})+(?![\d/])")  # 12 000, 12\,000
TEXT = re.compile(
    r"\\(?:text[a-z]{0,6}|[mh]box|math(?:rm|bf|it|sf|tt)|operatorname|emph)\s*\{([^{}]*)\}(\s*\^\s*(?:\d|\{\d\}))?"
)
# What else in a statement makes its only number (written as #) a part of something: 2x, x - 2, 8\pi, \sqrt{5}, 52_8.
PART = re.compile(
    r"[\\^]|#_|#(?![mgshL]\b)[a-zA-Z]\b|\b(?![aAI]\b)[a-zA-Z]\s*#|(?:\b[a-zA-Z]|\))\s?[+*/]\s?#"
    r"|#\s?[-+*/]\s?(?:[a-zA-Z]\b|\()|(?<![\w<])[a-zA-Z]\s*[<>]=?\s*#"
    r"|#\s*[<>]=?\s*[a-zA-Z]\b|#:|:#|\b(?:not|[a-z]+n't)\s[^#]*#"
)
UNITS = r"(?:[kcmdn]m|mi|ft|in|yd|[km]?g|lbs?|oz|m?l|hrs?|mins?|secs?|mph|kph|pct|deg|sq|of|to)"
# In LaTeX 2x, 2xy and 2 xyz are products: letters are a unit only if they are known for one, or make up a word.
PART_IN_MATHS = re.compile(
    rf"[|!<>\d]|[-+*/]\s*[#(]|[#)]\s*[-+*/]|\b[a-zA-Z]\b(?!\s*(?:\([a-z]\)\s*)?=)"
    rf"|#\s*(?!{UNITS}\b)[a-zA-Z]{{2}}\b|#(?!{UNITS}\b)[a-zA-Z]{{3}}\b|#\s*[b-df-hj-np-tv-xz]{{3}}\b"
)
MONTH = re.compile(
    r"\b(?:jan(?:uary)?|feb(?:ruary)?|march|april|may|june|july|august|sept?(?:ember)?|octo?(?:ber)?)\b"
    r"|\b(?:novem|decem)ber\b",
    re.IGNORECASE,
)
BRACKETS = ("()", "[]", "(]", "[)")
NAME = (
    r"(?:\\angle\s*|m\\angle\s*)?(?:[A-Za-z]{1,3}|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega))'?"
    r"(?:\^\{-1\})?(?:_(?:\w|\{\w{1,3}\}))?(?:\([a-zA-Z](?:\s*,\s*[a-zA-Z])*\))?|\([a-zA-Z](?:\s*,\s*[a-zA-Z])+\)"
)
NAMED = re.compile(rf"^({NAME})\s*(?:=(?!=)|\\in(?![a-z]))\s*(?=[^=<>]*$)")
RELATION = re.compile(r"[=<>]|\\(?:leq?|geq?|lt|gt|neq?)(?![a-z])")
UNKNOWN = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]|,")  # what makes one side of a chain of = more than a calculation
BASE = re.compile(r"([0-9A-Z]+)_\{?(\d+)\}?")
BASE_WORDS = {
    word: str(n) for n, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)
}
TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")
# Any other command is no final answer: a sum, an integral or a limit is a calculation still to be done. It also keeps
# math-verify from reading only the part before a command that it does not know.
COMMANDS = frozenset(
    "frac sqrt pi sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp cdot times div infty le leq "
    "ge geq lt gt ne neq binom begin end alpha beta gamma delta epsilon theta lambda mu phi omega rho sigma tau psi "
    "emptyset mathbb lfloor rfloor lceil rceil".split()
)
# Not worth a try: towers of powers, exponents and factorials beyond four digits, very long numbers, (n!)!.
HEAVY = re.compile(r"\^\s*\{?\s*\d+\s*\^\s*\{?\s*\d|\^\s*\{?\s*-?\d{5}|\d{5,}\s*\}?\s*\)?!|\d{40}|![\s)}]*!")
WORD = re.compile(r"(?<![\\a-zA-Z])(?!(?:p|b|v)?matrix\b)[a-zA-Z]{4,}|\b(?:or|and|not)\b")
APART = re.compile(
    r"(?<![\d.^_])\d+(?:\.\d+)?\s+\d|\.\.|\\c?dots"
)  # "3 4" is no product, and an ellipsis leaves something out
# A calculation left undone: written-out numbers with + - * / between them.
UNDONE = re.compile(r"(?:[\d.,\s(){}+*/-]|\\(?:frac|cdot|times|div)(?![a-z]))+")
SIGNS = str.maketrans(
    {
        "\u2013": "-",
        "\u2212": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": r"\div ",
        "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u221e": r"\infty ", "\u222a": r"\cup ",
        "\u2208": r"\in ", "\u00b1": r"\pm ", "\u2248": r"\approx ", "\u03c0": r"\pi ", "\u03b8": r"\theta ",
        "\u00b2": "^2", "\u00b3": "^3", "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4", "\u2205": r"\emptyset ",
        "\u00b0": " ", "\u2019": "'",
    }
)  # fmt: skip
SPELLINGS = [  # other ways to write the same LaTeX; the order counts
    (r",\\!\s*|\{,\}", ","),
    (r"^([\s$]*)\\(?:approx|sim)(?![a-z])", r"\1"),
    (r"\\(?:left|right|bigg?|Bigg?)[lr]?(?![a-zA-Z])|\\(?=[$%])|\\middle(?=\|)", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\(?:degree|q?quad|displaystyle|limits)\b|(?<!\\)\\[!,;: ()[\]]", " "),
    (r"\u221a\s*\(([^()]*)\)|(?<![\\a-zA-Z])sqrt\s*[({]([^(){}]*)[)}]", r"\\sqrt{\1\2}"),
    (r"\u221a\s*(\d+|[a-zA-Z])|\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))", r"\\sqrt{\1\2}"),
    (r"(?<![\\a-zA-Z])(pi|sin|cos|tan|log|ln)(?![a-zA-Z])", r"\\\1 "),
    (r"(?<![\\a-zA-Z])(?:infinity|infty|oo)(?![a-zA-Z])", r"\\infty "),
    (r"\\varnothing(?![a-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"<=|\\leqslant(?![a-z])", r"\\le "),
    (r">=|\\geqslant(?![a-z])", r"\\ge "),
    (r"!=", r"\\ne "),
    (r"(?<=[)\]}])\s*U\s*(?=[(\[{\\])", r"\\cup "),
    (r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r"\\cdot "),
    (r"\\math(?:rm|bf|it)\{([eid])\}", r"\1"),
    (r"\\begin\s*\{array\}\s*\{[clr|\s]*\}(.*?)\\end\s*\{array\}", r"\\begin{pmatrix}\1\\end{pmatrix}"),
    (r"[\[(]\s*(\\begin\{pmatrix\}.*\\end\{pmatrix\})\s*[\])]", r"\1"),
    (r"\\(?:overline|vec|overrightarrow|overleftrightarrow|widehat)\s*\{\s*([A-Za-z]+)\s*\}", r"\\text{\1}"),
    (r"\\(?:triangle|parallelogram)\s*([A-Z]+)\b", r"\\text{\1}"),
]  # fmt: skip
SPELLINGS = [(re.compile(pattern, re.DOTALL), to) for pattern, to in SPELLINGS]


def tidy(text: str) -> str:
    """`text` without what only sets its looks: spacing, sizes of brackets, degree signs, delimiters, Unicode signs."""
    text = SPACED.sub(lambda m: re.sub(r"\D", "", m[0]), text.replace("**", " ")).translate(SIGNS)
    for pattern, to in SPELLINGS:
        text = pattern.sub(to, text)
    return text.strip()


def _written_out(text: str) -> str:
    """Tidy text in which fractions, mixed, repeating and scientific numbers are plain ones, and units are words."""
    text = TEXT.sub(lambda m: f" {m[1]} " if re.search(r"\d|\b(?:or|and)\b", m[1]) else " unit ", text)
    text = REPEATING.sub(_repeating, text)
    text = re.sub(r"(?<=\d)\s*(?=\\frac)", " ", text)
    text = FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}".replace(",", ""), text)
    text = SCIENTIFIC.sub(lambda m: str(Fraction(m[1]) * Fraction(10) ** int(m[2] or m[3])), text)
    text = MIXED.sub(_mixed, text)
    return re.sub(
        rf"(?<![a-zA-Z\\])(?:[a-zA-Z]{{4,}}|{UNITS}|m)\s?\^(?:[23]|\{{[23]\}})", " unit ", text
    )  # square and cubic units


def _repeating(match: re.Match) -> str:
    whole, start, again = match.groups()
    digits = f"{whole or 0}{start}"
    value = Fraction(int(digits + again) - int(digits), 10 ** len(start) * (10 ** len(again) - 1))
    return f"{value.numerator}/{value.denominator}"


def _mixed(match: re.Match) -> str:
    whole, top, bottom = (int(part) for part in match.groups())
    return f"{whole * bottom + top}/{bottom}" if top < bottom else match[0]


def parse_number(text: str, maths: bool = False) -> Fraction | None:
    """The value of a text that is one number, with optional sign, $, %, thousands commas, unit or full stop.

    Of a calculation with its result, "12 + 5 = 17", the result. None if the text is no number, or holds several
    ("3 or 4"). In `maths` (LaTeX) a single letter is a variable, not a unit.
    """
    if len(text) > MAX_ANSWER or (maths and _parts(plain(text))[0] in BRACKETS):  # (1,234) is a pair
        return None
    if MONTH.search(text):  # a date: its name is no unit
        return None
    text = _result(_written_out(tidy(text)))
    numbers = list(NUMBER.finditer(text))
    if len(numbers) != 1:
        return None
    rest = text[: numbers[0].start()] + "#" + text[numbers[0].end() :]
    in_maths = maths and (PART_IN_MATHS.search(rest) or rest.count("(") != rest.count(")"))
    return None if in_maths or PART.search(rest) else number_value(numbers[0])


def _result(text: str) -> str:
    """What stands behind the last = of a calculation with numbers only, x = 5 + 6 = 11; other text as it is."""
    calculation, equals, result = text.rpartition("=")
    calculation = re.sub(rf"^\s*\$?\s*{NAME}\s*=", "", calculation)
    written = re.sub(r"\\(?:cdot|times|div)(?![a-z])", "*", calculation)
    alone = re.fullmatch(r"[$\s\d.,(){}+*/=-]*[+*/-][$\s\d.,(){}+*/=-]*", written) and re.search(r"\d", written)
    return result if equals and alone else text


@lru_cache(maxsize=4096)  # a problem's answer is compared with many texts
def expected_number(answer: str) -> Fraction | None:
    """The value of an expected answer if it is a bare number; not if it is named, x = 5."""
    return None if NAMED.match(plain(answer)) else parse_number(answer, maths=True)


def number_value(match: re.Match) -> Fraction | None:
    """The value of a match of NUMBER."""
    top, _, bottom = match["body"].replace(",", "").partition("/")
    try:
        return (-1 if (match["sign"] or "").strip() == "-" else 1) * Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):  # 5,000 digits, or 1/0
        return None


def last_number(text: str) -> Fraction | None:
    """The value of the last number that is written out in `text`; None if there is none."""
    end = max((match.end() for match in re.finditer(r"\d", text)), default=0)
    start = max(0, end - MAX_ANSWER)
    near = text[start : end + MAX_ANSWER]
    near = near.lstrip("0123456789.,/") if start else near  # which may be the rest of a longer one
    numbers = list(NUMBER.finditer(_written_out(tidy(near))))
    return number_value(numbers[-1]) if numbers else None


def plain(answer: str) -> str:
    """An answer as bare LaTeX: the only formula of its line, without delimiters, full stop, units; "" if too long."""
    answer = answer.strip() if len(answer) <= MAX_ANSWER else ""
    formulas = re.findall(r"\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", answer, re.DOTALL)
    outside = re.sub(r"\$+[^$]+\$+|\\\(.+?\\\)|\\\[.+?\\\]", "", answer, flags=re.DOTALL)
    if len(formulas) == 1 and not re.search(r"\d|\bor\b", outside):
        answer = "".join(formulas[0])
    answer = re.sub(r",?\s*\\text\{\s*,?\s*and\s*\}\s*|,?\s+and\s+", ", ", _stripped(tidy(answer)))
    answer = re.sub(r"_\{?\s*\\text\{\s*([a-z]+)\s*\}\s*\}?", lambda m: f"_{BASE_WORDS.get(m[1], m[0])}", answer)
    answer = re.sub(r"\(\s*(\\text[a-z]*\{[^{}]*\})\s*\)", r"\1", answer)
    if not TEXT.fullmatch(answer):
        kept = re.compile(r"\b(?:or|not)\b|\d|^\s*[ap]\.?\s?m\.?\s*$", re.IGNORECASE)
        answer = TEXT.sub(lambda m: m[0] if kept.search(m[1]) else " ", answer).strip()
    answer = re.sub(
        r"\\frac\s*(\{[^{}]*\}|\d)\s*(\d)", r"\\frac\1{\2}", re.sub(r"\\frac\s*(\d)", r"\\frac{\1}", answer)
    )
    return _end_of_chain(answer)


def _stripped(text: str) -> str:
    """`text` without punctuation around it; an ellipsis at its end stays, as does the point of .5."""
    text = text.lstrip(" *$:,;")
    return text if re.search(r"\.\s?\.[\s$]*$", text) else text.rstrip(" .,;:*$")


def _end_of_chain(text: str) -> str:
    """x = 2 + 3 = 5 is x = 5, 2 + 3 = 5 is 5, x = 1/3 \\approx 0.33 is x = 1/3; an equation stays as it is."""
    exact, _, rounded = text.partition(r"\approx")
    if rounded:
        text = exact.strip() if "=" in exact else f"{exact.strip()} = {rounded.strip()}"
    sides = _split(text, "=") or [text]
    if len(sides) < 2:
        return text
    first, *between, last = sides
    if not last or re.search(r"[<>!]|\\(?:ne|le|ge)", text) or any(UNKNOWN.search(side) for side in between):
        return text
    if re.fullmatch(NAME, first):
        return f"{first} = {last}"
    return text if UNKNOWN.search(first) or UNKNOWN.search(last) else last


def _parts(text: str) -> tuple[str, list[str]]:
    """(kind, elements): a bracket pair for ordered ones, "set" for sets and lists, "union", or "" for one element.

    a \\pm b is a set: of the two elements that it stands for.
    """
    braces = re.fullmatch(r"\\\{(.*)\\\}", text, re.DOTALL)
    inner = _split(re.sub(r"\\([{}])", r"\1", braces[1]), ",") if braces else None
    ends = text[:1] + text[-1:]
    if inner is None and ends[:1] in tuple("([{") and ends[1:] in tuple(")]}"):
        found = _split(text[1:-1], ",")
        if found and len(found) > 1 and ends in BRACKETS:
            return ends, found
        if found and len(found) > 1 and ends == "{}":
            inner = found
        elif found and ends == "{}":  # {8} only groups
            return _parts(text[1:-1].strip())
    union, listed = _split(text, r"\cup"), _split(text, ",")
    if inner is None and union and len(union) > 1:
        return "union", union
    parts = inner or (listed if listed and len(listed) > 1 else [text])
    kind = "set" if inner or len(parts) > 1 else ""
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


def same(a: str, b: str) -> bool:
    """Equality of two answers in the form that `plain` gives; one that cannot be read does not even equal itself."""
    first, second = sorted((a, b))  # so that the order in which they are given cannot matter
    return _same(first, second)


def _same(a: str, b: str) -> bool:
    a, b = _without_names(a, b)
    (kind, parts), (other_kind, others) = (
        ("", [side]) if expected_number(side) is not None else _parts(side) for side in (a, b)
    )
    if kind != other_kind or len(parts) != len(others) or len(parts) > MAX_PARTS:
        return False
    if not kind:
        return _same_leaf(parts[0], others[0])
    if kind in BRACKETS:
        return all(map(same, parts, others))
    for part in parts:  # equality is transitive, so the first match will do
        match = next((o for o in others if same(part, o)), None)
        if match is None:
            return False
        others.remove(match)
    return True


def _without_names(a: str, b: str) -> tuple[str, str]:
    """x = 5 beside x = 5 or beside 5 is 5; beside another relation, 5 = x or y = 5, it stays a relation."""
    name, other = NAMED.match(a), NAMED.match(b)
    if name and other:
        agree = re.sub(r"\s", "", name[1]) == re.sub(r"\s", "", other[1])
        return (a[name.end() :], b[other.end() :]) if agree else (a, b)
    if name and not RELATION.search(b):
        return a[name.end() :], b
    return (a, b[other.end() :]) if other and not RELATION.search(a) else (a, b)


def _same_leaf(a: str, b: str) -> bool:
    name = bool(TEXT.fullmatch(a) or TEXT.fullmatch(b))
    words = _words(a, name), _words(b, name)
    if name or None not in words:
        return words[0] is not None and words[0] == words[1]
    values = expected_number(a), expected_number(b)  # of x = 5 beside y = 5 none: their names differ
    if None not in values:
        return values[0] == values[1]
    for form, equal in ((TIME, _same_time), (RATIO, _same_ratio)):
        matches = [form.fullmatch(TEXT.sub(r"\1", side)) for side in (a, b)]
        if None not in matches:
            return equal(*matches)
    if BASE.fullmatch(a) or BASE.fullmatch(b):
        return re.sub(r"[{}\s]", "", a) == re.sub(r"[{}\s]", "", b)
    undone = [value is None and UNDONE.fullmatch(side) is not None for value, side in zip(values, (a, b))]
    return undone[0] == undone[1] and equal_expressions(a, b)


def _words(text: str, name: bool) -> list[str] | None:
    """The words of a name, lower case, without article; None if it is none or leaves a choice open ("or").

    A name is known by its \\text{...}, or by a word of three letters; beside one (`name`) any letters are a name.
    """
    said = TEXT.sub(r"\1", text).strip(" .()")
    words = re.findall(r"\w+", said.casefold())
    if re.search(r"[\\=<>^_{}+*/]", said) or "or" in words:
        return None
    if not (name or re.search(r"[^\W\d_]{3}|\bno\b", said, re.IGNORECASE)):
        return None
    return [word for word in words if word not in ("the", "an") or words == [word]] or None


def _same_time(a: re.Match, b: re.Match) -> bool:
    """08:34 p.m. is 20:34; 8:34 may be either half of the day."""
    (hour, *rest, half), (other, *others, other_half) = a.groups(), b.groups()
    if [part or "00" for part in rest] != [part or "00" for part in others]:
        return False
    as_written = int(hour) == int(other) and (not half or not other_half or half.lower() == other_half.lower())
    hours = [int(h) % 12 + 12 * (p.lower() == "p") if p else int(h) for h, p in ((hour, half), (other, other_half))]
    return as_written or hours[0] == hours[1]


def _same_ratio(a: re.Match, b: re.Match) -> bool:
    left, right = ([Fraction(part.strip()) for part in side[0].split(":")] for side in (a, b))
    scaled = all(x * right[0] == y * left[0] and (x == 0) == (y == 0) for x, y in zip(left, right))
    return len(left) == len(right) and scaled


def equal_expressions(a: str, b: str) -> bool:
    """Whether two LaTeX expressions or relations are equal for all values of their letters; False if unreadable.

    math-verify reads them, sympy compares: math-verify's own comparison rounds and depends on the order.
    """
    if not (readable(a) and readable(b)):
        return False
    letters = [set(re.sub(r"\\[a-zA-Z]+", "", side)) for side in (a, b)]
    if letters[0] != letters[1] and {c.lower() for c in letters[0]} == {c.lower() for c in letters[1]}:
        return False  # math-verify takes x and X for one variable
    from tracelift_lib.verifier.expressions import equal, parsed  # sympy takes a second; most runs compare numbers only

    left, right = parsed(_exact(a)), parsed(_exact(b))
    return left is not None and right is not None and equal(left, right)


def readable(text: str) -> bool:
    """Whether math-verify may try: short, brackets matched, no words, no unknown commands, no heavy arithmetic."""
    if not (0 < len(text) <= MAX_LENGTH and text.isascii()):
        return False
    commands = set(re.findall(r"\\([a-zA-Z]+)", text.replace(r"\\", " ")))
    depths = list(accumulate((char in "({") - (char in ")}") for char in text))
    matched = min(depths) >= 0 and depths[-1] == 0
    hopeless = max(depths) > MAX_DEPTH or HEAVY.search(text) or WORD.search(text) or APART.search(text)
    return matched and commands <= COMMANDS and not hopeless


def _exact(text: str) -> str:
    """`text` with decimals as fractions: math-verify would round them."""

    def fraction(m: re.Match) -> str:
        return rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}"

    return re.sub(r"(\d*)\.(\d+)", fraction, text)
