"""The course: copies, their grading, and a website that needs nothing but its files."""

import re
from html.parser import HTMLParser

import nbformat
import pytest
from browser import needs_browser

from tracelift_lib.runs import cli, course, run_notebooks
from tracelift_lib.runs.run_notebooks import convert, sources

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def executed(source):
    """A source as if it had been run: outputs of each kind, wide ones too."""
    notebook = convert(source)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    output = nbformat.v4.new_output
    wide = "<table><tr>" + "<td>0.123 [0.100, 0.200]</td>" * 30 + "</tr></table>"
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "100%|####|"}
    cells[1].outputs = [
        output("stream", name="stdout", text="x" * 500),
        output("stream", name="stderr", text="secret warning"),
        output("display_data", {"image/png": PICTURE, "text/plain": "figure"}),
        output("display_data", {"text/html": wide, "text/plain": "table"}),
        output("display_data", {"text/markdown": "**seen** $\\hat u$"}),
        output("display_data", widget),
    ]
    return notebook


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What `tracelift course` writes, with one executed notebook."""
    home = tmp_path_factory.mktemp("course")
    ready = home / "build" / "tiny" / f"{sources()[0].stem}.ipynb"
    ready.parent.mkdir(parents=True)
    nbformat.write(executed(sources()[0]), ready)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELIFT_HOME", str(home))
        assert cli.main(["course"]) == 0
    return home / "build" / "course"


class Links(HTMLParser):
    """Every address in a page, with the tag and attribute it stands in; and the page's anchors."""

    def __init__(self, text):
        super().__init__()
        self.found, self.anchors, self.tags = [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data"):
                self.found.append((tag, name, value or ""))
            if name == "id":
                self.anchors.add(value)


def test_every_notebook_comes_without_and_with_solutions(built):
    for source in sources():
        student, solution = (
            nbformat.read(built / kind / f"{source.stem}.ipynb", 4) for kind in ("student", "solution")
        )
        nbformat.validate(student)
        own = convert(source).cells
        assert [c.source for c in solution.cells] == [c.source for c in own]
        assert [c.source for c in student.cells] == [c.source for c in own if not course.tagged(c, "solution")]


def test_every_exercise_has_a_solution_and_a_check_comes_after_both():
    """A starter may check itself, or leave that to a cell of its own, which is what is graded."""
    for source in sources():
        wanted = ("exercise", "solution", "check")
        tags = [t for c in convert(source).cells for t in c.metadata.get("tags", []) if t in wanted]
        for part in " ".join(tags).split("exercise")[1:]:
            assert part.split()[:1] == ["solution"] and part.split().count("check") <= 1, source.stem
        assert "check" not in " ".join(tags).partition("exercise")[0], source.stem


def test_nbgraders_metadata(built):
    notebook = nbformat.read(built / "student" / "10_case_studies.ipynb", 4)
    marks = [c.metadata["nbgrader"] for c in notebook.cells if "nbgrader" in c.metadata]
    assert [(m["solution"], m["grade"], m["locked"], m.get("points")) for m in marks] == [
        (True, False, False, None),
        (False, True, True, 1),
    ] * 2
    assert len({m["grade_id"] for m in marks}) == 4 and {m["schema_version"] for m in marks} == {3}


def test_no_page_asks_for_anything_from_elsewhere_and_no_link_is_broken(built):
    site = built / "site"
    pages = {p.name: Links(p.read_text(encoding="utf-8")) for p in site.glob("*.html")}
    assert len(pages) >= len(sources()) + 6
    for name, page in pages.items():
        assert not {"script", "iframe", "object", "embed", "form"} & page.tags, name
        for tag, attribute, value in page.found:
            if value.startswith(("http://", "https://")):
                assert (tag, attribute) == ("a", "href"), (name, value)  # a link to follow, nothing that is loaded
            elif not value.startswith(("data:image/png", "mailto:")):
                target, _, anchor = value.partition("#")
                assert not target or (site / target).exists(), (name, value)
                if anchor and (target or name).endswith(".html"):
                    assert anchor in pages[target or name].anchors, (name, value)
    assert not re.search(r"url\(|@import", (site / "style.css").read_text())


def test_formulas_are_drawn_without_scripts_and_code_is_left_alone():
    html = course.markdown(
        "We pay $0.5\\,s$, not `$HOME` or 5 $ and 6 $.\n\n$$r = q \\hat u$$\n\n```sh\necho $A $B\n```\n"
    )
    assert html.count("<math") == 2 and html.count('display="block"') == 1
    html = re.sub("<[^>]+>", "", html)  # colours of code
    assert "$HOME" in html and "5 $ and 6 $" in html and "echo $A $B" in html


def test_what_needs_scripts_or_stands_beside_the_results_is_left_out(built):
    text = (built / "site" / f"{sources()[0].stem}.html").read_text()
    assert "seen" in text and PICTURE in text and "secret warning" not in text and "widget-view" not in text


@needs_browser
def test_pages_fit_a_phone_and_are_drawn(built, browser, tmp_path):
    site = built / "site"
    for name in ("index", sources()[0].stem, "glossary", "10_case_studies", "09_theory_checks"):
        browser.open(site / f"{name}.html", width=390, height=800)
        wide = browser.run("return document.documentElement.scrollWidth")
        assert wide <= 390, (name, wide)
        assert browser.run("return document.querySelector('main h1').getBoundingClientRect().height") > 10
        sizes = "return [...document.querySelectorAll('main math')].map(e => e.getBoundingClientRect().height)"
        assert all(height > 4 for height in browser.run(sizes)), name
        loaded = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
        assert all(address.startswith("file:") for address in loaded), loaded
    browser.picture(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 5_000


# --- grading --------------------------------------------------------------------------------------------------

LESSON = """# %% tags=["parameters"]
PRESET = "tiny"

# %% tags=["exercise"]
def double(x):
    ...

# %% tags=["solution"]
def double(x):
    return 2 * x

# %% tags=["check"]
assert double(2) == 4, "2 doubled is 4"

# %% tags=["check"]
assert PRESET == "check"
"""


@pytest.fixture
def handed_in(tmp_path, monkeypatch):
    """A lesson's student copy, and what runs its cells in this process."""

    class Client:
        def __init__(self, notebook, **_):
            self.notebook = notebook

        def execute(self):
            values = {}
            for cell in (c for c in self.notebook.cells if c.cell_type == "code"):
                cell.outputs = []
                try:
                    exec(cell.source, values)
                except Exception as e:
                    error = nbformat.v4.new_output("error", ename=type(e).__name__, evalue=str(e), traceback=[])
                    cell.outputs.append(error)

    (tmp_path / "99_lesson.py").write_text(LESSON)
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(course, "NotebookClient", Client)
    (tmp_path / "in").mkdir()
    copy = course.student_copy(run_notebooks.convert(tmp_path / "99_lesson.py"), "99_lesson")
    return copy, tmp_path / "in" / "99_lesson.ipynb"


def cell_tagged(notebook, tag):
    return next(c for c in notebook.cells if course.tagged(c, tag))


def test_points_are_the_checks_that_pass(handed_in, capsys):
    copy, path = handed_in
    nbformat.write(copy, path)
    assert cli.main(["course", "--grade", str(path)]) == 0
    assert "0 of 2 points" in capsys.readouterr().out
    cell_tagged(copy, "exercise").source = "def double(x):\n    return x + x"
    nbformat.write(copy, path)
    assert cli.main(["course", "--grade", str(path), "--with-preset", "check"]) == 0
    assert "2 of 2 points" in capsys.readouterr().out


def test_a_check_that_was_changed_or_removed_does_not_help(handed_in, capsys):
    copy, path = handed_in
    cell_tagged(copy, "check").source = "pass"
    nbformat.write(copy, path)
    assert cli.main(["course", "--grade", str(path)]) == 0
    assert "0 of 2 points" in capsys.readouterr().out
    copy.cells.remove(cell_tagged(copy, "check"))
    nbformat.write(copy, path)
    assert cli.main(["course", "--grade", str(path)]) == 2
    assert "1 cells are tagged `check`, the course has 2" in capsys.readouterr().err
    nbformat.write(copy, path.with_name("renamed.ipynb"))
    assert cli.main(["course", "--grade", str(path.with_name("renamed.ipynb"))]) == 2
