"""Hashes of the library's source that a change of code changes, and one of comments, docstrings or layout does not."""

from __future__ import annotations

import ast
import functools
import hashlib
import json

from tracelift_lib.problems.files import PROJECT

LIBRARY = PROJECT / "tracelift_lib"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def hashes(*places: str) -> dict[str, str]:
    """Path -> hash, of files of the library, of all files in rooms, and of single classes (`runs/stages.py:Groups`)."""
    found = {}
    for place in places:
        name, _, wanted = place.partition(":")
        for path in sorted((LIBRARY / name).rglob("*.py")) or [LIBRARY / name]:
            tree = ast.parse(path.read_bytes())
            if wanted:
                tree = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == wanted)
            found[path.relative_to(LIBRARY).as_posix() + place.removeprefix(name)] = _hash(tree)
    return found


@functools.cache
def library_sha256() -> str:
    """One hash of all of it."""
    return hashlib.sha256(json.dumps(hashes("."), sort_keys=True).encode()).hexdigest()


def _hash(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    text = ast.dump(tree).replace(", type_params=[]", "")  # which Python 3.11 does not have
    return hashlib.sha256(text.encode()).hexdigest()[:16]
