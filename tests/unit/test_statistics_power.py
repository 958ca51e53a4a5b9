"""What n images can show: exact at the edge, never less than the comparison itself shows."""

import pytest

from components.statistics import images_needed, paired_difference, smallest_difference, wilson
from components.statistics.paired import from_counts


def verdicts(both, only_first, only_second, neither):
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


def test_lists_and_counts_say_the_same_and_intervals_are_worked_out():
    first, second = verdicts(20, 7, 2, 11)
    found = paired_difference(first, second)
    assert found == from_counts(20, 7, 2, 11)
    assert found == paired_difference(first, second, wilson(27, 40), wilson(22, 40))
    assert (found.difference, found.only_first, found.only_second, found.n) == (pytest.approx(5 / 40), 7, 2, 40)


@pytest.mark.parametrize(
    ("n", "right", "disagreeing"),
    [(60, 46, 0), (60, 58, 0), (60, 2, 0), (60, 57, 9), (60, 46, 5), (60, 46, 20), (200, 20, 9), (12, 6, 0)],
)
def test_the_smallest_difference_is_the_edge_of_what_shows(n, right, disagreeing):
    smallest = smallest_difference(n, right, disagreeing)
    assert smallest is not None
    net = round(smallest * n)
    assert net / n == smallest

    def shows(net):
        against = max(0, disagreeing - net) // 2
        ways = ((net + against, against), (against, net + against))
        cells = [(right - lost, gained, lost, n - right - gained) for gained, lost in ways]
        return any(from_counts(*one).shows for one in cells if min(one) >= 0)

    assert shows(net)
    assert not any(shows(less) for less in range(1, net))


def test_more_images_show_less_and_more_disagreement_shows_less():
    assert smallest_difference(600, 460, 0) < smallest_difference(60, 46, 0)
    assert smallest_difference(60, 30, 30) > smallest_difference(60, 30, 0)
    assert smallest_difference(1, 1, 0) is None


def test_images_needed_show_the_difference_and_not_many_fewer_would():
    cells = (40, 6, 3, 11)
    assert not from_counts(*cells).shows
    needed = images_needed(*cells)
    factor = needed / 60
    assert from_counts(*(round(cell * factor) for cell in cells)).shows
    assert not from_counts(*(round(cell * factor * 0.85) for cell in cells)).shows
    assert images_needed(40, 3, 3, 14) is None
    assert images_needed(10, 20, 0, 10) == 40
