"""The course: copies of the notebooks for students and lecturers, a grader, and a website that opens offline.

`tracelift course` writes build/course/student (exercises with a starter cell and checks), build/course/solution, and
build/course/site from executed notebooks and docs/*.md: formulas are MathML, pictures lie inside the pages, and nothing
is fetched from anywhere. `tracelift course --grade FILE` runs a student's copy and counts the checks that pass.

Tags of cells in the sources: `exercise` a starter, `solution` what is left out of the students' copies, `check` asserts
that are worth one point. Students' copies also carry nbgrader's metadata, for who uses that.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml.converter import convert as to_mathml
from markupsafe import Markup
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from tracelift_lib.problems.files import PROJECT, InputError
from tracelift_lib.runs import store
from tracelift_lib.runs.run_notebooks import NOTEBOOKS, convert, sources, without_solutions

DOCS = PROJECT / "docs"
START = "syllabus"  # the page that the site opens with
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$]+?)(?<=\S)\$(?![\d\w])", re.DOTALL)
HOLD = "\ue000{}\ue001"  # stands for a formula or code while the rest is worked on: no text has these characters
LONG = 30  # characters of a formula in a line that may not fit on a phone: it gets a scroll bar there
HELD = re.compile("\ue000(\\d+)\ue001")
LINK = re.compile(r'(href=")([^":#]+?)\.(?:ipynb|md)(#[^"]*)?"')

# --- copies ---------------------------------------------------------------------------------------------


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def student_copy(notebook: NotebookNode, name: str) -> NotebookNode:
    """Without solutions; starters and checks carry nbgrader's metadata, a check is worth one point."""
    copy = without_solutions(nbformat.from_dict(notebook))
    number = 0
    for cell in copy.cells:
        kinds = {"solution": tagged(cell, "exercise"), "grade": tagged(cell, "check")}
        if any(kinds.values()):
            number += kinds["solution"]
            what = "check" if kinds["grade"] else "exercise"
            points = {"points": 1} if kinds["grade"] else {}
            identity = {"grade_id": f"{name}-{what}-{number}", "schema_version": 3, "task": False}
            cell.metadata["nbgrader"] = {**kinds, "locked": kinds["grade"], **identity, **points}
    return copy


def grade(path: Path, preset: str | None = None, seconds: int = 3600) -> list[tuple[str, str]]:
    """(check, "" or why it failed) of each check of a student's copy, which is run from its first cell to its last.

    Checks are taken from the course's own notebook of that name, not from the student's file. Run it where a student's
    code may run: it is not kept in the sandbox.

    Raises:
        InputError: there is no notebook of that name, or the file has not the same number of checks.
    """
    source = NOTEBOOKS / f"{path.stem}.py"
    if not source.exists():
        raise InputError(f"{path}: the course has no notebook {path.stem}; keep the name of the file")
    notebook = nbformat.read(path, as_version=4)
    theirs = [cell for cell in notebook.cells if tagged(cell, "check")]
    ours = [cell for cell in student_copy(convert(source), path.stem).cells if tagged(cell, "check")]
    if len(theirs) != len(ours):
        raise InputError(f"{path}: {len(theirs)} cells are tagged `check`, the course has {len(ours)}; restore them")
    for cell, own in zip(theirs, ours):
        cell.source = own.source
    for cell in notebook.cells if preset else ():
        if tagged(cell, "parameters"):
            cell.source += f'\nPRESET = "{preset}"'
    client = NotebookClient(
        notebook, timeout=seconds, allow_errors=True, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute()
    return [(own.metadata["nbgrader"]["grade_id"], _error(cell)) for cell, own in zip(theirs, ours)]


def _error(cell: NotebookNode) -> str:
    errors = [o for o in cell.outputs if o.output_type == "error"]
    return f"{errors[0].ename}: {errors[0].evalue}" if errors else ""


# --- pages ------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Markdown as HTML; formulas between dollar signs as MathML, links to notebooks and docs as links to pages."""
    held: list[str] = []

    def hold(html: str) -> str:
        held.append(html)
        return HOLD.format(len(held) - 1)

    def formula(found: re.Match) -> str:
        html = to_mathml(found[1] or found[2], display="block" if found[1] else "inline")
        return hold(f'<span class="long">{html}</span>' if len(found[2] or "") > LONG else html)

    def release(found: re.Match) -> str:
        return held[int(found[1])]

    text = MATH.sub(formula, CODE.sub(lambda code: hold(code[0]), text))
    codes = {i for i, html in enumerate(held) if "</math>" not in html}
    text = HELD.sub(lambda m: held[int(m[1])] if int(m[1]) in codes else m[0], text)  # code is Markdown's business
    return LINK.sub(_page_link, HELD.sub(release, markdown2html_mistune(text)))


def _page_link(found: re.Match) -> str:
    return f'{found[1]}{Path(found[2]).name}.html{found[3] or ""}"'


def notebook_body(notebook: NotebookNode) -> str:
    """The cells as HTML. What needs scripts (widgets) and what a run says beside its results (stderr) is left out."""
    for cell in notebook.cells:
        outputs = [o for o in cell.get("outputs", ()) if o.get("name") != "stderr"]
        for output in outputs:
            for kind in [k for k in output.get("data", {}) if "widget" in k or "javascript" in k]:
                del output["data"][kind]
        if cell.cell_type == "code":
            cell.outputs = outputs
    exporter = HTMLExporter(template_name="basic")
    exporter.register_filter("markdown2html", lambda text, **_: markdown(text))
    return exporter.from_notebook_node(notebook)[0]


def title_of(text: str, default: str) -> str:
    """The first heading of a Markdown text."""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1].replace("`", "").strip() if found else default


def write_site(folder: Path, executed: Path | None) -> list[Path]:
    """The pages, from executed notebooks where `executed` has them and from the sources elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    docs = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
    bodies = {name: (title_of(text, name), partial(markdown, text)) for name, text in docs.items()}
    lessons = {}
    for source in sources():
        ready = executed / f"{source.stem}.ipynb" if executed else None
        notebook = nbformat.read(ready, as_version=4) if ready and ready.exists() else convert(source)
        notebook.cells = [cell for cell in notebook.cells if cell.get("id") != "colab"]
        prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
        lessons[source.stem] = (title_of(prose, source.stem), partial(notebook_body, notebook))
    first = {START: bodies.pop(START)} if START in bodies else {}
    pages = first | lessons | bodies
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("course.html")
    menu = {name: title for name, (title, _) in pages.items()}
    style = (Path(__file__).parent / "course.css").read_text(encoding="utf-8")
    (folder / "style.css").write_text(style + HtmlFormatter().get_style_defs(".highlight"), encoding="utf-8")
    written = []
    for name, (title, body) in pages.items():
        written.append(folder / f"{name}.html")
        html = template.render(name=name, title=title, body=Markup(body()), menu=menu, order=[*pages])
        written[-1].write_text(html, encoding="utf-8")
    (folder / "index.html").write_text((folder / f"{[*pages][0]}.html").read_text(encoding="utf-8"), encoding="utf-8")
    return written


# --- the command --------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tracelift course", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tiny", help="whose executed notebooks (build/PRESET/) the site shows")
    parser.add_argument("--grade", nargs="+", type=Path, metavar="FILE", help="grade students' copies instead")
    parser.add_argument("--with-preset", metavar="PRESET", help="for --grade: run them at this preset")
    options = parser.parse_args(arguments)
    if options.grade:
        return _print_grades(options.grade, options.with_preset)
    folder, executed = store.home() / "build" / "course", store.home() / "build" / options.preset
    for kind in ("student", "solution"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for source in sources():
        notebook = convert(source)
        nbformat.write(notebook, folder / "solution" / f"{source.stem}.ipynb")
        nbformat.write(student_copy(notebook, source.stem), folder / "student" / f"{source.stem}.ipynb")
    pages = write_site(folder / "site", executed)
    ready = [s for s in sources() if (executed / f"{s.stem}.ipynb").exists()]
    print(f"students' copies: {folder / 'student'}\nwith solutions: {folder / 'solution'}")
    print(f"website: {folder / 'site' / 'index.html'}, {len(pages)} pages")
    print(f"{len(ready)} of its {len(sources())} notebooks are executed ones, from {executed}")
    return 0


def _print_grades(paths: Sequence[Path], preset: str | None) -> int:
    for path in paths:
        results = grade(path, preset)
        print(f"{path}: {sum(not why for _, why in results)} of {len(results)} points")
        for name, why in results:
            print(f"  {name}: {why or 'passed'}")
    return 0
