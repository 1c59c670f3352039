"""The list of slower tests names tests that there are."""

import pathlib
import re

FOLDER = pathlib.Path(__file__).parent
LINES = (FOLDER / "slower.txt").read_text().splitlines()


def test_it_is_sorted_and_names_tests_that_are_there():
    assert LINES == sorted(set(LINES))
    for line in LINES:
        path, name = re.fullmatch(r"([\w/]+\.py)::(\w+)(?:\[.*\])?", line).groups()
        assert f"def {name}(" in (FOLDER / path).read_text(), line


def test_what_it_names_is_slow(request):
    slow = [item.nodeid for item in request.session.items if item.get_closest_marker("slow")]
    chosen = [item.nodeid.removeprefix("tests/") for item in request.session.items]
    assert not set(LINES) & set(chosen) - {name.removeprefix("tests/") for name in slow}
