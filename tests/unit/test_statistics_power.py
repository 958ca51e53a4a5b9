"""What n images can show: exact at the edge, never less than the comparison itself shows."""

import pytest

from components.statistics import from_counts, images_needed, paired_difference, smallest_difference, wilson


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
        found = []
        for sign in (1, -1):
            against = max(0, disagreeing - net) // 2
            while against >= 0:
                gained, lost = (net + against, against) if sign > 0 else (against, net + against)
                cells = (right - lost, gained, lost, n - right - gained)
                if min(cells) >= 0:
                    found.append(from_counts(*cells).shows)
                    break
                against -= 1
        return any(found)

    assert shows(net)
    assert not any(shows(less) for less in range(1, net))


@pytest.mark.parametrize(
    ("n", "right", "disagreeing", "net"),
    [(10, 1, 0, 6), (10, 9, 0, 6), (20, 4, 0, 6), (60, 10, 0, 6), (60, 30, 20, 10)],
)
def test_the_smallest_difference_of_some_cases(n, right, disagreeing, net):
    # All on one side, the exact test needs 6 images (p = 2 / 2^6); of 20 it needs 15 against 5 (p = 0.041).
    assert smallest_difference(n, right, disagreeing) == net / n


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
    assert 40 <= (images_needed(10, 3, 0, 10) or 0) <= 46


def test_an_interval_above_zero_shows_nothing_while_the_exact_test_does_not_agree():
    found = from_counts(5, 3, 0, 2)
    assert found.interval[0] > 0
    assert (found.p_value, found.shows) == (0.25, False)
    assert from_counts(5, 6, 0, 2).shows
