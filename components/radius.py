"""A radius as people write it, `4/255` or a number, and how large it may be: the same in training and evaluation."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator

from components.errors import UserError

LARGEST: dict[str, float] = {"Linf": 1.0, "L2": 40.0, "L1": 1500.0}
"""Largest radius that is believed, for pixels in [0, 1].

Linf: the whole range of a pixel. L2 and L1: twenty times the paper's radius at 224 px (2 and 75), under which no
classifier is known to hold. What is written in 0-255 units is 255 times too large, so this catches every such slip from
a thirteenth of the paper's radius up (L2 0.16, L1 5.9).
"""


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


def check_radius(norm: str, eps: float, *, where: str) -> None:
    """That a radius is meant for pixels in [0, 1].

    Args:
        norm: Linf, L2 or L1.
        eps: the radius, above 0.
        where: its field, for the message.

    Raises:
        UserError: it is larger than `LARGEST`.
    """
    if eps > LARGEST[norm]:
        raise UserError(
            f"this {norm} radius looks like 0-255 units: for pixels in [0, 1] at most {LARGEST[norm]:g} makes sense",
            where=where,
            value=eps,
            remedy=f"write {eps:g}/255" + ("" if norm == "Linf" else f", which is {eps / 255:.4g}"),
        )


def radius_text(eps: float) -> str:
    """A radius as people write it: 4/255 where it is a whole number of 255ths, else up to six digits."""
    steps = eps * 255
    whole = eps < 1 and round(steps) >= 1 and math.isclose(steps, round(steps), rel_tol=1e-9)
    return f"{round(steps)}/255" if whole else f"{eps:g}"


Radius = Annotated[float, BeforeValidator(parse_radius)]
"""Type of a configuration field that takes a radius."""
