"""The one registry of the fourteen kinds of flaw, seven for each domain, read from kinds.yaml.

docs/method.md section 8: of the paper's names only `wrong_algorithm_choice` is available to us, so these fourteen and
their definitions are ours. Every maker (exact, from text or by an LLM), the LLM's instructions, the data card and the
programmatic rubric read this registry; its order is the order in which kinds are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from tracelift_lib.problems.records import data_file

Domain = Literal["math", "code"]


class Kind(NamedTuple):
    """One kind of flaw.

    `hurts` names the rubric dimensions it should lower, the one hurt most first. `keeps_answer`: the trace still leads
    to the right answer or program, only its support or its form is damaged.
    """

    name: str
    domain: Domain
    definition: str
    hurts: tuple[str, ...]
    example: str
    keeps_answer: bool = False


class Flaw(NamedTuple):
    """A flawed trace, how much of it the flaw spoils, in (0, 1], and for code the program that follows from it."""

    text: str
    severity: float
    program: str | None = None


KINDS = {(kind.domain, kind.name): kind for kind in data_file(Path(__file__).with_name("kinds.yaml"), list[Kind])}


def kinds_of(domain: str) -> dict[str, Kind]:
    """The seven kinds of a domain by name, in the registry's order."""
    return {name: kind for (of, name), kind in KINDS.items() if of == domain}


def with_change(items: Sequence[BaseModel], i: int, **change: Any) -> list:
    """`items` with fields of item i changed."""
    return [*items[:i], items[i].model_copy(update=change), *items[i + 1 :]]


def changed_share(before: str, after: str, heading: int = 0) -> float:
    """The share of the lines of `before`, without the first `heading`, from the first changed one on, in (0, 1]."""
    old, new = before.split("\n"), after.split("\n")
    same = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    return max(1, len(old) - same) / (len(old) - heading)
