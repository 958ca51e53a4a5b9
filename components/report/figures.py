"""How numbers are written for people: percentages, radii, intervals, counts."""

from __future__ import annotations

import math
from fractions import Fraction

NOT_RECORDED = "–"
NBSP = "\N{NO-BREAK SPACE}"


def number(value: object) -> float | None:
    """`value` as a finite float, or `None` for anything else (text, NaN, a missing key, a truth value)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.683 as "68.3 %"; a dash when there is no figure."""
    return NOT_RECORDED if fraction is None else f"{100 * fraction:.{digits}f}{NBSP}%"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points with its sign: 0.031 as "+3.1"."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval of a fraction, in per cent: "58.3–76.3"."""
    return NOT_RECORDED if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def radius(eps: float | None) -> str:
    """A radius as the field writes it: 4/255 where it is such a fraction, else the shortest decimal number."""
    if eps is None:
        return NOT_RECORDED
    plain = f"{eps:.4g}"
    if abs(float(plain) - eps) < 1e-9 and len(plain) <= 5:
        return plain
    pixels = Fraction(eps * 255).limit_denominator(8)
    if abs(float(pixels) - eps * 255) < 1e-5 and pixels.denominator in (1, 2, 4):
        return f"{float(pixels):g}/255"
    return plain


def count(value: float | None) -> str:
    """A whole number with thin separators: 5000 as "5 000"."""
    return NOT_RECORDED if value is None else f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def half_width(n: int, share: float = 0.5) -> float:
    """Half the width of a 95 % interval of a share measured on n images (normal approximation)."""
    return 1.96 * math.sqrt(share * (1 - share) / n)


def listed(words: list[str]) -> str:
    """Words as a phrase: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
