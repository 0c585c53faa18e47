"""The layout of the library: ten rooms, imports that run one way, a core that can be read in an evening."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import PROJECT

LIBRARY = PROJECT / "tracelift_lib"
# From the lowest floor up; rooms of one floor do not know each other.
FLOORS = [
    {"problems"},
    {"sandbox"},
    {"verifier"},
    {"models"},
    {"executor"},
    {"groups"},
    {"reward_model"},
    {"planner", "evaluation"},
    {"runs"},
]
ROOMS = sorted(set().union(*FLOORS))
CORE_LINES, LIBRARY_LINES = 2_500, 12_600
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FILES = sorted(LIBRARY.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0]


def imported_rooms(source: str) -> Iterator[str]:
    """Rooms that a file imports from, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "tracelift_lib":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tracelift_lib."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("tracelift_lib."))


def upward(room: str, source: str) -> list[str]:
    """Rooms that `source`, a file of `room`, must not import from."""
    floor = next(i for i, rooms in enumerate(FLOORS) if room in rooms)
    below = set().union(*FLOORS[:floor])
    return [other for other in imported_rooms(source) if other != room and other not in below]


def code_lines(path: Path) -> int:
    """Lines of code: docstrings, comments and blank lines do not count."""
    text = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docs)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def listed(room: str) -> tuple[list[str], list[str]]:
    """(files to read first, the other files) as the docstring of a room or a folder in it lists them."""
    first, _, rest = docstring(LIBRARY / room / "__init__.py").partition("\nThen:\n")
    name = re.compile(r"^ {4}(\w+(?:/\w+)?\.py) ", re.MULTILINE)
    if "Read first:" in first:
        return name.findall(first), name.findall(rest)
    return [], name.findall(first + rest)


def core() -> list[Path]:
    return [LIBRARY / room / name for room in ROOMS for name in listed(room)[0]]


def test_the_library_is_its_rooms():
    assert {p.name for p in LIBRARY.iterdir() if p.name != "__pycache__"} == {"__init__.py", *ROOMS}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_run_one_way(path):
    if room_of(path) != "__init__.py":
        assert upward(room_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "line", "wrong"),
    [
        ("problems", "from tracelift_lib.runs import store", ["runs"]),
        ("executor", "from tracelift_lib.groups.schema import Group", ["groups"]),
        ("planner", "from tracelift_lib.evaluation.settings import Evaluation", ["evaluation"]),
        ("groups", "def f():\n    import tracelift_lib.reward_model.model", ["reward_model"]),
        ("models", "from tracelift_lib import planner", ["planner"]),
        ("runs", "from tracelift_lib.problems.files import PROJECT", []),
        ("groups", "from tracelift_lib.groups.schema import Group", []),
    ],
)
def test_an_import_that_is_turned_round_is_found(room, line, wrong):
    assert upward(room, line) == wrong


@pytest.mark.parametrize("room", [*ROOMS, "groups/flaws"])
def test_a_room_tells_what_is_in_it(room):
    """The docstring lists every file, and nothing else is in the room's __init__.py."""
    first, then = listed(room)
    inner = {p.name for p in (LIBRARY / room).glob("*.py")} - {"__init__.py"}
    assert sorted([Path(n).name for n in first + then if "/" not in n]) == sorted(inner)
    assert len(ast.parse((LIBRARY / room / "__init__.py").read_text()).body) == 1


def test_the_core_can_be_read_in_an_evening():
    assert len(core()) >= 15 and all(path.exists() for path in core())
    assert sum(map(code_lines, core())) <= CORE_LINES


def test_the_library_is_small():
    assert sum(map(code_lines, FILES)) <= LIBRARY_LINES


def test_the_readme_names_the_core():
    """One table: a row for each room with the files that are read first."""
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]+) \|$", readme, re.MULTILINE))
    assert {room: re.findall(r"`([\w/]+\.py)`", cell) for room, cell in rows.items()} == {
        room: listed(room)[0] for room in ROOMS
    }


CITED = re.compile(r"(?<![\w./*-])((?:[\w-]+/)*[\w-]+\.(?:md|py|yaml|toml))(?![\w(])")
OUTSIDE = {  # files of other projects, or that a run or a user makes
    "README.md",
    "adapter_config.json",
    "summary.md",
    "spawn.py",
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_docstrings_cite_files_that_exist(path):
    """A file is named from the project, from the library, from its own room, or (if there is one such) by its name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(n) or "" for n in ast.walk(tree) if isinstance(n, documented)]
    for name in (n for text in docs for n in CITED.findall(text)):
        places = [PROJECT / name, LIBRARY / name, path.parent / name, PROJECT / "notebooks" / name]
        assert name in OUTSIDE or any(p.exists() for p in places), f"{path}: {name}"


def test_the_package_can_be_imported_from_elsewhere(tmp_path):
    """As an installed package: every room is found, wherever the command runs."""
    names = sorted(".".join(p.relative_to(PROJECT).with_suffix("").parts) for p in FILES if p.name != "__init__.py")
    light = [n for n in names if n.startswith(("tracelift_lib.problems", "tracelift_lib.sandbox"))]
    code = f"import importlib\nfor name in {light}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found = "from setuptools import find_packages; print(*find_packages(include=['tracelift_lib*']))"
    packages = subprocess.run([sys.executable, "-c", found], cwd=PROJECT, check=True, capture_output=True, text=True)
    folders = {".".join(p.parent.relative_to(PROJECT).parts) for p in FILES}
    assert set(packages.stdout.split()) == folders
