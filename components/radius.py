"""A radius as people write it: `4/255` or a number, the same in training, evaluation and promotion."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator


def parse_radius(value: Any) -> Any:
    """`"4/255"` -> 0.0157; numbers pass through unchanged.

    Raises:
        ValueError: text that is neither a number nor a fraction.
    """
    if not isinstance(value, str):
        return value
    over, _, under = value.partition("/")
    try:
        return float(over) / float(under) if under else float(over)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a radius is a number or a fraction such as 4/255, got {value!r}") from None


def radius_text(eps: float) -> str:
    """A radius as people write it: 4/255 where it is a whole number of 255ths, else up to six digits."""
    steps = eps * 255
    whole = eps < 1 and round(steps) >= 1 and math.isclose(steps, round(steps), rel_tol=1e-9)
    return f"{round(steps)}/255" if whole else f"{eps:g}"


Radius = Annotated[float, BeforeValidator(parse_radius)]
"""Type of a configuration field that takes a radius."""
