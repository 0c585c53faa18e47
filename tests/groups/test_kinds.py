"""The one registry of flaw kinds, the modules of makers, and data files."""

import inspect
import re
from typing import NamedTuple

import pytest
from common import CODE, MATH

from tracelift_lib.groups.flaws import code_makers, math_makers, tiny_code, tiny_math
from tracelift_lib.groups.kinds import KINDS, changed_share, kinds_of
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.records import data_file

NAMES = {  # in this order: the draws of a group follow it
    "math": [
        "wrong_operation",
        "arithmetic_slip",
        "misread_quantity",
        "lost_event",
        "swapped_events",
        "stale_value",
        "unsupported_leap",
    ],
    "code": [
        "wrong_algorithm_choice",
        "misread_specification",
        "wrong_constant",
        "missing_step",
        "wrong_order",
        "unsupported_leap",
        "leaked_code",
    ],
}


@pytest.mark.parametrize(("domain", "dimensions"), [("math", MATH), ("code", CODE)])
def test_each_domain_has_its_seven_kinds_in_order(domain, dimensions):
    assert list(kinds_of(domain)) == NAMES[domain]
    for name, kind in kinds_of(domain).items():
        assert (kind.name, kind.domain) == (name, domain) and KINDS[domain, name] == kind
        assert kind.definition and kind.example and kind.hurts and set(kind.hurts) <= set(dimensions)
    assert len(KINDS) == 14


def test_the_kinds_that_keep_the_answer():
    kept = {key for key, kind in KINDS.items() if kind.keeps_answer}
    assert kept == {("math", "unsupported_leap"), ("code", "unsupported_leap"), ("code", "leaked_code")}


@pytest.mark.parametrize(
    ("module", "domain"),
    [(tiny_math, "math"), (math_makers, "math"), (tiny_code, "code"), (code_makers, "code")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_module_of_makers_has_one_for_each_kind_in_the_same_order(module, domain):
    assert list(module.MAKERS) == NAMES[domain]
    assert all(maker is getattr(module, kind) for kind, maker in module.MAKERS.items())
    functions = [name for name, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    public = {name for name in functions if not name.startswith("_")}
    assert public - {"flawed_traces", "flawed_texts", "flawed_plans"} == set(NAMES[domain])  # none of another name


@pytest.mark.parametrize(
    ("before", "after", "heading", "share"),
    [
        ("a\nb\nc\nd", "a\nX\nc\nd", 0, 3 / 4),
        ("a\nb\nc\nd", "a\nb\nc\nd\ne", 0, 1 / 4),  # something below the end spoils the last step
        ("a\nb\nc\nd", "a\nb\nc", 0, 1 / 4),
        ("goal\nb\nc", "goal\nX\nc", 1, 1),
        ("a", "b", 0, 1),
    ],
)
def test_severity_is_the_share_of_lines_from_the_first_changed_one(before, after, heading, share):
    assert changed_share(before, after, heading) == share


class Words(NamedTuple):
    binary: dict[str, str]
    unary: dict[str, str] = {}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("binary: {Add: plus, Sub: 1}", "binary.Sub"),
        ("binary: {7: plus}", "binary.7.[key]"),
        ("unary: {}", "binary"),
        ("binary: {}\nternary: {}", "ternary"),
        ("- binary", "0"),
    ],
)
def test_a_data_file_of_another_layout_is_refused_by_file_and_field(tmp_path, text, field):
    path = tmp_path / "words.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: field {re.escape(field)}: "):
        data_file(path, Words)
