"""The figures of the code base stay within their limits, and the measurement finds what exceeds them."""

from tests import house
from tests.house import Figures, single_importers


def test_files_functions_and_single_importers_stay_within_their_limits():
    assert Figures.of_project().problems() == []


def test_what_exceeds_a_limit_is_named():
    found = Figures(
        {"a.py": 401, "b.py": 400}, {"a.py:f": 62, "a.py:g": 61}, {str(number): "y" for number in range(25)}, ["a", "b"]
    )
    assert found.problems() == [
        "a.py has 401 lines, more than 400",
        "a.py:f has 62 lines, more than 61",
        "import circle: a -> b",
    ]
    many = Figures({"a.py": 1}, {"a.py:f": 1}, {str(number): "y" for number in range(26)}, [])
    assert many.problems() == ["26 modules have exactly one importer, more than 25"]


def test_single_importers_are_counted_without_packages_and_main_modules():
    graph = {
        "p": {"p.a"},
        "p.__main__": {"p.a", "p.d"},
        "p.a": {"p.b", "p.c"},
        "p.b": {"p.c", "p.e"},
        "p.c": set(),
        "p.d": set(),
        "p.e": set(),
    }
    assert single_importers(graph, {"p"}, {"p.e"}) == {"p.b": "p.a"}


def test_imports_for_types_only_are_free_and_those_in_functions_count(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\ndef f():\n    from a import b\n    import c\n"
    )
    assert house.imported(path) == ["typing.TYPE_CHECKING", "a.b", "c"]
