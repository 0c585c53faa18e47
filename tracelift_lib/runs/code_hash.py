"""Hashes of the library's source that a change of code or of its data files changes, and one of comments,
docstrings or layout does not."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path

import yaml

from tracelift_lib.problems.files import PROJECT

LIBRARY = PROJECT / "tracelift_lib"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def hashes(*places: str) -> dict[str, str]:
    """Path -> hash, of files of the library, of all files in rooms, and of single classes (`runs/stages.py:Groups`)."""
    found = {}
    for place in places:
        name, _, wanted = place.partition(":")
        root = LIBRARY / name
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml", ".md")) or [root]:
            found[path.relative_to(LIBRARY).as_posix() + place.removeprefix(name)] = _hash(path, wanted)
    return found


@functools.cache
def library_sha256() -> str:
    """One hash of all of it."""
    return hashlib.sha256(json.dumps(hashes("."), sort_keys=True).encode()).hexdigest()


def _hash(path: Path, wanted: str) -> str:
    """Of what the file says, or of its class `wanted`."""
    content = path.read_bytes()
    if path.suffix != ".py":
        text = json.dumps(yaml.safe_load(content)) if path.suffix == ".yaml" else content.decode()
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    tree: ast.AST = ast.parse(content)
    if wanted:
        tree = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == wanted)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    text = ast.dump(tree).replace(", type_params=[]", "")  # which Python 3.11 does not have
    return hashlib.sha256(text.encode()).hexdigest()[:16]
