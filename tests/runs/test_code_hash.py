"""Hashes of source: a change of code changes them, one of comments, docstrings or layout does not."""

import pytest

from tracelift_lib.runs import code_hash

SOURCE = '''"""What this is."""

VALUE = 1  # a comment


class Room:
    """A docstring."""

    def size(self, wide: bool = True) -> int:
        """Another."""
        return 2 if wide else 1


class Other:
    pass
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of two rooms with files of one name."""
    monkeypatch.setattr(code_hash, "LIBRARY", tmp_path)
    for room in ("one", "two"):
        (tmp_path / room / "inner").mkdir(parents=True)
        (tmp_path / room / "settings.py").write_text(SOURCE)
    (tmp_path / "one" / "inner" / "deep.py").write_text("")
    code_hash.hashes.cache_clear()
    yield tmp_path
    code_hash.hashes.cache_clear()


def fresh(*places):
    code_hash.hashes.cache_clear()
    return code_hash.hashes(*places)


def test_files_are_told_apart_by_their_path(library):
    assert set(fresh("one", "two/settings.py")) == {"one/settings.py", "one/inner/deep.py", "two/settings.py"}
    assert set(fresh("one/settings.py:Room")) == {"one/settings.py:Room"}
    before = fresh("one", "two")
    (library / "two" / "settings.py").write_text(SOURCE.replace("VALUE = 1", "VALUE = 2"))
    assert {name for name, value in fresh("one", "two").items() if value != before[name]} == {"two/settings.py"}


@pytest.mark.parametrize(
    "old, new",
    [
        ("# a comment", "# other words"),
        ("  # a comment", ""),
        ("What this is.", "What that was."),
        ('    """A docstring."""\n\n', ""),
        ('"""Another."""', '"""Another.\n\n        Over several lines.\n        """'),
        ("VALUE = 1", "\n\nVALUE   =   1"),
        ("return 2 if wide else 1", "return (\n            2 if wide else 1\n        )"),
    ],
)
def test_words_and_layout_are_no_code(library, old, new):
    before = fresh("one/settings.py", "one/settings.py:Room")
    assert old in SOURCE
    (library / "one" / "settings.py").write_text(SOURCE.replace(old, new))
    assert fresh("one/settings.py", "one/settings.py:Room") == before


@pytest.mark.parametrize(
    "old, new, of_class",
    [
        ("VALUE = 1", "VALUE = 1.0", False),
        ("return 2", "return 3", True),
        ("wide: bool = True", "wide: bool = False", True),
        ("class Other", "class Another", False),
        ("    pass", '    name = "a text that is no docstring"', False),
    ],
)
def test_code_is(library, old, new, of_class):
    """A hash of one class takes that class alone."""
    before = fresh("one/settings.py", "one/settings.py:Room")
    (library / "one" / "settings.py").write_text(SOURCE.replace(old, new))
    after = fresh("one/settings.py", "one/settings.py:Room")
    assert after["one/settings.py"] != before["one/settings.py"]
    assert (after["one/settings.py:Room"] != before["one/settings.py:Room"]) is of_class


def test_the_hash_of_all_takes_every_file(library):
    code_hash.library_sha256.cache_clear()
    before = code_hash.library_sha256()
    (library / "one" / "inner" / "deep.py").write_text("x = 1")
    code_hash.hashes.cache_clear()
    code_hash.library_sha256.cache_clear()
    assert len(before) == 64 and code_hash.library_sha256() != before
    code_hash.library_sha256.cache_clear()


def test_a_change_of_a_data_file_changes_its_hash_and_one_of_comments_does_not(library):
    words = library / "two" / "words.yaml"
    words.write_text("Add: plus\nSub: minus\n")
    before = fresh("two")
    assert set(before) == {"two/settings.py", "two/words.yaml"}
    words.write_text("# of operators\nAdd:  plus\nSub: minus\n")
    assert fresh("two") == before
    for text in ("Add: and\nSub: minus\n", "Sub: minus\nAdd: plus\n"):  # their order may decide what is drawn
        words.write_text(text)
        assert fresh("two") != before
