"""How figures and comparisons are written for people: percentages, intervals, counts, and a paired difference.

The report, the terminal and the promotion gate share these functions, so that one result is written in one way.
"""

from __future__ import annotations

from components.statistics import PairedDifference

NOT_RECORDED = "–"
"""Text for a figure that does not exist."""

NBSP = "\N{NO-BREAK SPACE}"


def percent(share: float | None, digits: int = 1) -> str:
    """Returns 0.683 as "68.3 %", and a dash for None."""
    return NOT_RECORDED if share is None else f"{100 * share:.{digits}f}{NBSP}%"


def points(difference: float) -> str:
    """Returns the difference of two shares in percentage points with its sign: 0.031 as "+3.1"."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None) -> str:
    """Returns a 95 % interval of a share in per cent: "58.3–76.3"."""
    return NOT_RECORDED if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def count(value: float | None) -> str:
    """Returns a whole number with thin separators: 5000 as "5 000"."""
    return NOT_RECORDED if value is None else f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def sample_size(n: int | None) -> str:
    """Returns the number of images as "n = 5 000"."""
    return f"n{NBSP}={NBSP}{count(n)}"


def listed(words: list[str]) -> str:
    """Returns words as a phrase: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def p_value(value: float) -> str:
    """Returns a p-value with three decimals, and everything below 0.001 as "p < 0.001"."""
    return f"p{NBSP}<{NBSP}0.001" if value < 0.001 else f"p{NBSP}={NBSP}{value:.3f}"


def paired_evidence(found: PairedDifference) -> str:
    """Returns the interval, the disagreements and p of a paired difference.

    For example "95 % +13.2 to +40.4; 11 images against 0, p < 0.001". The two numbers of images are those that only the
    first and only the second model classifies correctly; p is that of the exact McNemar test.
    """
    low, high = (points(bound) for bound in found.interval)
    only_first = f"{found.only_first} image{'' if found.only_first == 1 else 's'}"
    return f"95{NBSP}% {low} to {high}; {only_first} against {found.only_second}, {p_value(found.p_value)}"


def paired_difference_text(found: PairedDifference) -> str:
    """Describes the difference of two models on the same images, seen from the first model.

    Returns:
        "higher by 27.5 points on the same 40 images (95 % +13.2 to +40.4; 11 images against 0, p < 0.001)", or
        "no difference shown on the same 40 images (+5.0 points, 95 % ...)"; see `paired_evidence`.
    """
    gap, images = points(found.difference), f"on the same {count(found.n)} images"
    if not found.shows:
        return f"no difference shown {images} ({gap}{NBSP}points, {paired_evidence(found)})"
    word = "higher" if found.difference > 0 else "lower"
    return f"{word} by {gap.lstrip('+−')} points {images} ({paired_evidence(found)})"
