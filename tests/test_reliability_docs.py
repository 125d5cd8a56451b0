"""docs/reliability.md is true: every promise and every case names tests, and each of them exists."""

import ast
import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def rows():
    """Return (line number, first cell, last cell) of every row of a table whose last column is headed ``test``."""
    found, inside = [], False
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[-1] == "test":
            inside = True
        elif inside and set(line) != set("|-"):
            found.append((number, cells[0], cells[-1]))
    return found


def functions_of(name):
    return [node.name for node in ast.parse((TESTS / name).read_text(encoding="utf-8")).body if hasattr(node, "name")]


def missing(cell):
    """Return what a cell names that is no test; a part of a name alone is of the file that was named before it."""
    file, lost = None, []
    for name in re.findall(r"`([^`]+)`", cell):
        where, _, part = name.rpartition("::")
        file = where or file
        if file is None or not (TESTS / file).is_file() or not any(part in f for f in functions_of(file)):
            lost.append(name)
    return lost


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"line {row[0]}")
def test_every_row_names_tests_that_exist(row):
    _, case, cell = row
    assert cell == "the same" or "`" in cell, f"{case}: no test is named"
    assert not missing(cell), case


def test_the_tables_are_found_and_a_wrong_name_is():
    assert len(rows()) > 45
    assert missing("`test_reliability.py::a_dead_channel`, `smallest_int16`") == []
    assert missing("`test_reliability.py::a_dead_channel`, `no_such_test`; `test_none.py::x`, `y`") == [
        "no_such_test", "test_none.py::x", "y",
    ]  # fmt: skip


def test_the_counts_are_those_of_the_tables():
    import test_bad_files as files
    import test_reliability as core
    import test_reliability_images as images
    import test_reliability_spikes as recordings
    import test_tables as tables
    from oddities import BAD, ODD

    page = PAGE.read_text(encoding="utf-8")
    for words in (
        f"{len(core.ARRAYS)} arguments of the core",
        f"{len(images.ARRAYS)} of the functions of images",
        f"{len(recordings.CALLS)} functions of recordings",
        f"{len(BAD)} bad arrays and {len(ODD)} odd ones",
        f"{len(core.PARAMETERS)}, {len(images.PARAMETERS)} and {len(recordings.PARAMETERS)} that are no plain numbers",
        f"{len(files.RECORDINGS)} recordings x {len(files.COMMANDS)} commands",
        f"{len(files.MODELS)} models x {len(files.USERS)}, {len(files.PICTURES)} pictures x 4",
        f"{len(files.LINES)} options",
        f"| {len(tables.NO_TIMES)}, and folders of phy",
    ):
        assert words in page, words
