"""Values that travel between a program and what judges it: JSON out of values of builtin and standard types, and back.

What comes out of `decode` is made of exact types, whatever the program did to its own. Standard library only: this file
runs inside the sandbox too.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import math
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import Any

MAX_DEPTH = 1000  # containers in containers: more cannot be compared by the interpreter either
MAX_TEXT = 8 << 20  # characters
MAX_FIELDS = 100  # of a named tuple


class ProtocolError(ValueError):
    """A message that no honest program sends, or a value too large or too deep to travel."""


def _dict(parts: list) -> dict:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _pairs(value: Any) -> Any:
    return chain.from_iterable(dict.items(value))


def _named_tuple_parts(value: Any) -> list:
    return [type(value).__name__, *type(value)._fields, *tuple.__iter__(value)]


@lru_cache(maxsize=64)
def _named_tuple(name: str, fields: tuple[str, ...]) -> type:
    return collections.namedtuple(name, fields)


def _make_named_tuple(parts: list) -> tuple:
    fields = tuple(parts[1 : (len(parts) + 1) // 2])
    if len(parts) % 2 == 0 or len(fields) > MAX_FIELDS or not all(type(name) is str for name in (parts[0], *fields)):
        raise ValueError("no named tuple")
    return _named_tuple(parts[0], fields)(*parts[1 + len(fields) :])


def _moment(value: datetime.datetime) -> list:
    zone = value.utcoffset()
    return [value.replace(tzinfo=None).isoformat(), value.fold, None if zone is None else zone.total_seconds()]


def _make_moment(parts: list) -> datetime.datetime:
    text, fold, offset = parts
    zone = None if offset is None else datetime.timezone(datetime.timedelta(seconds=offset))
    return datetime.datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)


Kind = tuple[type, Callable[[Any], Any], Callable[[Any], Any]]
# JSON tag: type, its parts (values, or a text), the value of them. None, bool, str, float, list and int below
# 2**53 travel as they are. Integers in base 16, since decimal ones have a limit of 4,300 digits.
KINDS: dict[str, Kind] = {
    "t": (tuple, tuple.__iter__, tuple),
    "s": (set, set.__iter__, set),
    "f": (frozenset, frozenset.__iter__, frozenset),
    "d": (dict, _pairs, _dict),
    "i": (int, hex, lambda text: int(text, 16)),
    "c": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "b": (bytes, bytes.hex, bytes.fromhex),
    "y": (bytearray, bytearray.hex, bytearray.fromhex),
    "r": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
}
# Values of exactly these types, whose handling may need more time or memory than their JSON shows.
STANDARD: dict[str, Kind] = {
    "C": (collections.Counter, _pairs, lambda parts: collections.Counter(_dict(parts))),
    "O": (collections.OrderedDict, _pairs, lambda parts: collections.OrderedDict(_dict(parts))),
    "Q": (collections.deque, lambda v: [v.maxlen, *v], lambda parts: collections.deque(parts[1:], parts[0])),
    "F": (fractions.Fraction, lambda v: [v.numerator, v.denominator], lambda parts: fractions.Fraction(*parts)),
    "N": (decimal.Decimal, decimal.Decimal.__str__, decimal.Decimal),
    "D": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "M": (datetime.datetime, _moment, _make_moment),
    "T": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "E": (datetime.timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda parts: datetime.timedelta(*parts)),
    "K": (type({}.keys()), list, lambda parts: dict.fromkeys(parts).keys()),
    "V": (type({}.values()), list, lambda parts: dict(enumerate(parts)).values()),
    "P": (type({}.items()), list, lambda parts: dict(parts).items()),
}
TEXTS = frozenset("ibyNDT")  # of which the parts are a text
TAGS = {kind: tag for tag, (kind, _, _) in STANDARD.items()}
STANDARD["U"] = (tuple, _named_tuple_parts, _make_named_tuple)  # a named tuple; TAGS does not find it
JUDGED = frozenset(STANDARD) | {"r"}  # not for a process without limits
# What travels by its name
FUNCTIONS = (
    abs,
    all,
    any,
    ascii,
    bin,
    callable,
    chr,
    divmod,
    hash,
    hex,
    len,
    max,
    min,
    oct,
    ord,
    pow,
    repr,
    round,
    sum,
)
NAMED = {
    name: thing
    for name, thing in vars(builtins).items()
    if (isinstance(thing, type) and thing.__name__ == name) or thing in (Ellipsis, NotImplemented, *FUNCTIONS, sorted)
} | {"nan": math.nan}  # which is identical to itself
EXCEPTIONS = {name: kind for name, kind in NAMED.items() if isinstance(kind, type) and issubclass(kind, BaseException)}


def encode(value: Any, keep: Callable[[Any], Any], depth: int = 0) -> Any:
    """JSON for a value. Subclasses of builtin types travel as their base; `keep` gives the JSON of any other object."""
    small = isinstance(value, int) and not abs(value) >> 53
    if small or value is None:
        return value
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ProtocolError(f"a text of {len(value)} characters")
        return value
    if isinstance(value, float):
        return value if value == value else {"n": "nan"} if value is math.nan else keep(value)
    if depth > MAX_DEPTH:
        raise ProtocolError(f"more than {MAX_DEPTH} containers inside each other")
    if type(value) is list:
        return [encode(item, keep, depth + 1) for item in value]
    tag = TAGS.get(type(value))
    if tag is None and isinstance(value, tuple) and type(value) is not tuple and hasattr(type(value), "_fields"):
        tag = "U"
    if tag is not None:
        return {tag: _parts(STANDARD[tag][1](value), keep, depth)}
    if isinstance(value, list):
        return [encode(item, keep, depth + 1) for item in list.__iter__(value)]
    for tag, (kind, parts_of, _) in KINDS.items():
        if isinstance(value, kind):
            return {tag: _parts(parts_of(value), keep, depth)}
    for name, thing in NAMED.items():
        if thing is value:
            return {"n": name}
    return _plain_scalar(value, keep, depth)


def _parts(parts: Any, keep: Callable[[Any], Any], depth: int) -> Any:
    return parts if isinstance(parts, str) else [encode(part, keep, depth + 1) for part in parts]


def _plain_scalar(value: Any, keep: Callable[[Any], Any], depth: int) -> Any:
    """numpy's numbers travel as Python's, which they are equal to; its arrays as {"A": type, shape, items}."""
    if type(value).__module__ == "numpy":
        if type(value).__name__ == "ndarray" and value.dtype.kind in "biufcUS":
            parts = [str(value.dtype), value.shape, value.ravel().tolist()]
            return {"A": _parts(parts, keep, depth)}
        if hasattr(type(value), "dtype") and type(value.item()).__module__ == "builtins":
            return encode(value.item(), keep, depth + 1)
    return keep(value)


def _array(parts: list) -> Any:
    import numpy  # the test runner's own, where the sandbox has it

    kind, shape, items = parts
    return numpy.array(items, dtype=kind).reshape(shape)


STANDARD["A"] = (object, None, _array)
JUDGED |= {"A"}


def decode(data: Any, found: Callable[[str, Any], Any], depth: int = 0) -> Any:
    """The value of `encode`'s JSON, made of exact types; `found` gives the object for a tag that only one end knows.

    Raises:
        ProtocolError: no JSON that `encode` writes.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if depth > MAX_DEPTH + 1:
        raise ProtocolError("too deep")
    if isinstance(data, list):
        return [decode(item, found, depth + 1) for item in data]
    if len(data) != 1:
        raise ProtocolError("not one tag")
    ((tag, body),) = data.items()
    try:
        if tag == "n":
            return NAMED[body]
        make = KINDS[tag][2] if tag in KINDS else STANDARD[tag][2] if tag in STANDARD else None
        if make is None:
            return found(tag, body)
        if isinstance(body, str) is not (tag in TEXTS):
            raise ProtocolError("a text" if tag not in TEXTS else "no text")
        return make(body if isinstance(body, str) else [decode(part, found, depth + 1) for part in body])
    except (TypeError, ValueError, LookupError, OverflowError, MemoryError, ArithmeticError, AttributeError) as error:
        raise ProtocolError(f"bad body for tag {tag!r}: {error}") from None
