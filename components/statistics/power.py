"""What n images can show at all: the smallest difference, and the images a difference would need.

Both ask the same question as the comparison itself: `PairedDifference.shows`.
"""

from __future__ import annotations

from components.statistics.paired import from_counts

MOST_IMAGES = 1_000_000
"""Where the search for a number of images ends; no evaluation has more."""


def smallest_difference(n: int, right: int, disagreeing: int) -> float | None:
    """The smallest difference that these images could have shown, as a fraction.

    Args:
        n: images.
        right: images that the baseline gets right.
        disagreeing: images on which the two models were seen to disagree. So many are taken, as one-sided as they need
            to be; more, all on one side, where so few show nothing; and fewer where so many cannot be that one-sided.

    Returns:
        The least |share of one - share of the other| that would have been shown; None where none of this n would.
    """
    for net in range(1, n + 1):
        for gain in (True, False):
            can_go, can_come = (n - right, right) if gain else (right, n - right)
            # Images that go one way, and those that go the other, can be no more than there are.
            against = min(max(0, disagreeing - net) // 2, can_go - net, can_come)
            if against >= 0 and _shows(n, right, net, against, gain):
                return net / n
    return None


def _shows(n: int, right: int, net: int, against: int, gain: bool) -> bool:
    gained, lost = (net + against, against) if gain else (against, net + against)
    return from_counts(right - lost, gained, lost, n - right - gained).shows


def images_needed(both: int, only_first: int, only_second: int, neither: int) -> int | None:
    """How many images would show this difference if their shares stayed as they are, rounded up to two digits.

    Returns:
        None where the difference is 0, or more than `MOST_IMAGES` would be needed.
    """
    n = both + only_first + only_second + neither
    if only_first == only_second:
        return None

    def shows(factor: float) -> bool:
        a, b, c, d = (round(factor * cell) for cell in (both, only_first, only_second, neither))
        return from_counts(a, b, c, d).shows

    factor = 1.0
    while not shows(factor):
        factor *= 1.05
        if factor * n > MOST_IMAGES:
            return None
    images = round(factor * n)
    unit = 10 ** max(0, len(str(images)) - 2)
    return -(-images // unit) * unit
