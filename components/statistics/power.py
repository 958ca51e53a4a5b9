"""What n images can show at all: the smallest difference, and the images a difference would need.

Both ask the same question as the comparison itself: does the 95 % interval of the paired difference leave 0 out?
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
        disagreeing: images on which the two models were seen to disagree. The search starts at so many, as one-sided
            as they need to be, and goes on to more, all on one side, where so few show nothing.

    Returns:
        The least |share of one - share of the other| whose interval leaves 0 out; None where no difference of this n
        would.
    """
    for net in range(1, n + 1):
        against = max(0, disagreeing - net) // 2
        for gained, lost in ((net + against, against), (against, net + against)):
            both, neither = right - lost, n - right - gained
            if both >= 0 and neither >= 0 and from_counts(both, gained, lost, neither).shows:
                return net / n
    return None


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
