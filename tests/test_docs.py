"""docs/: the code in it runs, its links lead somewhere, and its lists are complete."""

import re

import pytest
from common import PROJECT

from tracelift_lib.planner import rewards

DOCS = sorted((PROJECT / "docs").glob("*.md"))
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@pytest.mark.parametrize("name", ["extend_arm", "extend_domain", "extend_executor"])
def test_the_code_of_a_page_runs(name, monkeypatch):
    for table in ("ARMS", "NEEDS"):  # changed in place by the page on arms: put back afterwards
        monkeypatch.setattr(rewards, table, dict(getattr(rewards, table)))
    blocks = PYTHON.findall((PROJECT / "docs" / f"{name}.md").read_text())
    namespace: dict = {}
    assert blocks and any("assert" in block for block in blocks)
    for block in blocks:
        exec(compile(block, f"docs/{name}.md", "exec"), namespace)


def test_the_page_on_domains_names_every_file_that_knows_them():
    page = (PROJECT / "docs" / "extend_domain.md").read_text()
    knows = re.compile(r'domain [=!]= "|"math", "code"|"math" if ')
    library = PROJECT / "tracelift_lib"
    files = {str(p.relative_to(library)) for p in library.rglob("*.py") if knows.search(p.read_text())}
    assert len(files) >= 10 and [name for name in sorted(files) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_of_a_page_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", CODE.sub("", path.read_text())):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_the_syllabus_takes_every_notebook_and_the_glossary_is_in_order():
    text = (PROJECT / "docs" / "syllabus.md").read_text()
    numbers = {p.name[:2] for p in (PROJECT / "notebooks").glob("[0-9][0-9]_*.py")}
    assert numbers <= set(re.findall(r"\[(\d\d)\]", text))
    sessions = re.findall(r"^\| (\d) \| (\d+) \|", text, re.MULTILINE)
    parts = [sum(map(int, re.findall(r"^\| (\d+) \| ", part, re.MULTILINE))) for part in text.split("## Session")[1:]]
    assert [int(minutes) for _, minutes in sessions] == parts and len(parts) == 4  # a session's parts fill its minutes
    words = (PROJECT / "docs" / "glossary.md").read_text().split("## Symbols")[0]
    terms = [t.lower() for t in re.findall(r"^\| ([^|]+?) \|", words, re.MULTILINE) if t not in ("term", "---")]
    assert len(terms) > 40 and terms == sorted(terms)
