"""Figures and paired differences are written in one way, with signs and separators that line up."""

import pytest

from components.statistics import paired_difference
from components.wording import count, interval, listed, p_value, paired_difference_text, percent, points, sample_size


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.683), "68.3 %"),
        (percent(None), "–"),
        (percent(0.5, 0), "50 %"),
        (points(0.031), "+3.1"),
        (points(-0.031), "−3.1"),
        (interval(0.583, 0.763), "58.3–76.3"),
        (interval(None, 0.5), "–"),
        (count(5000), "5\N{NARROW NO-BREAK SPACE}000"),
        (sample_size(40), "n = 40"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (p_value(0.0004), "p < 0.001"),
        (p_value(0.25), "p = 0.250"),
    ],
)
def test_figures_are_written_as_documented(text, expected):
    assert plain(text) == expected


def test_a_shown_difference_names_direction_images_and_evidence():
    found = paired_difference([True] * 32 + [False] * 8, [True] * 21 + [False] * 19)
    assert plain(paired_difference_text(found)) == (
        "higher by 27.5 points on the same 40 images (95 % +13.2 to +40.4; 11 images against 0, p < 0.001)"
    )
    other = paired_difference([True] * 21 + [False] * 19, [True] * 32 + [False] * 8)
    assert plain(paired_difference_text(other)).startswith("lower by 27.5 points on the same 40 images")


def test_an_interval_without_zero_is_not_enough_when_the_exact_test_disagrees():
    found = paired_difference([True] * 4 + [False] * 6, [False] * 3 + [True] + [False] * 6)
    assert found.interval[0] > 0
    assert plain(paired_difference_text(found)).startswith("no difference shown on the same 10 images (+30.0 points")
    assert "3 images against 0, p = 0.250" in plain(paired_difference_text(found))
