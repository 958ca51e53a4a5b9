"""The registry of threats: norms, radii and how they are written, and the attacks of the evaluation.

A threat is a norm, a radius and an attack. Evaluation, report, results, promotion and the runner's cost model read
these tables and hold no lists of their own. To add an attack, add one row to `ATTACKS` and write its code (see
`Attack.module`).

Radii are in the units of images in [0, 1]. "The paper" is Singh, Croce, Hein, NeurIPS 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from components.errors import UserError, nearest

Norm = Literal["Linf", "L2", "L1"]
"""Norm of a perturbation."""


@dataclass(frozen=True)
class NormInfo:
    """One norm.

    Attributes:
        paper_radius: the radius that the paper evaluates at 224 px.
        largest_radius: above it a radius is refused as a slip, see `check_radius`.
        relative_cost: time of an attack in this norm, relative to Linf; only the order of work follows from it.
    """

    paper_radius: float
    largest_radius: float
    relative_cost: float = 1.0


NORMS: dict[Norm, NormInfo] = {
    "Linf": NormInfo(paper_radius=4 / 255, largest_radius=1.0),
    "L2": NormInfo(paper_radius=2.0, largest_radius=40.0),
    "L1": NormInfo(paper_radius=75.0, largest_radius=1500.0, relative_cost=1.5),
}
"""Norm -> its facts, in the order of tables.

The largest radius is for Linf the whole range of a pixel, for L2 and L1 twenty times the paper's, under which no
classifier is known to be robust. A radius in 0-255 units is 255 times too large, so this catches every such slip from a
thirteenth of the paper's radius up (L2 0.16, L1 5.9).
"""
assert tuple(NORMS) == get_args(Norm)


def norm_order(norm: str) -> int:
    """Position of a norm in tables; unknown norms come last."""
    return [*NORMS, norm].index(norm)


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


Radius = Annotated[float, BeforeValidator(parse_radius)]
"""Type of a configuration field that takes a radius, written as `4/255` or as a number."""


def check_radius(norm: str, eps: float, *, where: str) -> None:
    """Checks that a radius is meant for pixels in [0, 1].

    Args:
        norm: Linf, L2 or L1.
        eps: the radius, above 0.
        where: its field, for the message.

    Raises:
        UserError: it is larger than the norm's `largest_radius`.
    """
    largest = NORMS[norm].largest_radius  # type: ignore[index]
    if eps > largest:
        raise UserError(
            f"this {norm} radius looks like 0-255 units: for pixels in [0, 1] at most {largest:g} makes sense",
            where=where,
            value=eps,
            remedy=f"write {eps:g}/255" + ("" if norm == "Linf" else f", which is {eps / 255:.4g}"),
        )


def radius_text(eps: float) -> str:
    """The one way in which a radius is written: in tables, titles, metric names, messages and the model card.

    The rule, for all norms:

    1. A number of at most three decimals is written as it is: `0.2`, `0.015`, `2`, `75`.
    2. Else, below 1, a multiple of 1/255 with at most two decimals in the numerator is written as a fraction: `4/255`,
       `0.5/255`. Numbers that have both forms, such as 51/255 = 0.2, take the first.
    3. Else up to six significant digits: `0.123457`.

    `parse_radius` reads the text of the first two forms back as the same number.
    """
    if math.isclose(eps, round(eps, 3), rel_tol=1e-9):
        return f"{round(eps, 3):.15g}"
    steps = round(eps * 255, 2)
    if eps < 1 and math.isclose(eps * 255, steps, rel_tol=1e-9):
        return f"{steps:g}/255"
    return f"{eps:g}"


def same_radius(first: float, second: float) -> bool:
    """Whether two radii are the same up to rounding of the last bits."""
    return math.isclose(first, second, rel_tol=1e-9)


def threat_text(norm: str, eps: float) -> str:
    """Norm and radius: `Linf 4/255`."""
    return f"{norm} {radius_text(eps)}"


@dataclass(frozen=True)
class AttackPart:
    """One of the attacks that an evaluation runs one after the other, each on the images that the former ones left.

    Attributes:
        key: name in the attack's library.
        title: name in results, as the word for an image that this part broke.
        model_calls: calls of the model on a batch that survives; only for the progress shown.
        forwards: their cost in forward passes, a gradient counted as about one more.
        fewest_classes: number of classes that it needs.
    """

    key: str
    title: str
    model_calls: int
    forwards: int
    fewest_classes: int = 2


APGD_CE = AttackPart("apgd-ce", "APGD-CE", model_calls=102, forwards=220)
# The targeted loss divides by the mean of the third and fourth largest logits.
APGD_T = AttackPart("apgd-t", "APGD-T", model_calls=919, forwards=2000, fewest_classes=4)
FAB_T = AttackPart("fab-t", "FAB-T", model_calls=1828, forwards=2900)
SQUARE = AttackPart("square", "Square", model_calls=5003, forwards=5003)


@dataclass(frozen=True)
class Attack:
    """One attack of the evaluation.

    Attributes:
        key: word in the configuration, in lower case.
        title: name in every table. Only the whole standard version may be called AutoAttack.
        parts: what is run, in this order.
        strength: rank; of two attacks on the same threat the one with the higher strength is shown first and judged.
        seconds_per_image: measured in the quickstart on one core; only the order of stages follows from it.
        version: variant of the attack's library, as recorded with the results.
        implies: keys of shorter attacks whose verdicts are read off a run of this one: they begin with the same parts,
            from the same seeds and on the same blocks.
        module: the code: a module as `components.evaluate.attack.AttackModule` describes it.
    """

    key: str
    title: str
    parts: tuple[AttackPart, ...]
    strength: int
    seconds_per_image: float
    version: str = "parts of standard"
    implies: tuple[str, ...] = ()
    module: str = "components.evaluate.pyautoattack_adapter"

    @property
    def forwards_per_image(self) -> int:
        """Forward passes that an image costs which survives every part."""
        return sum(part.forwards for part in self.parts)

    @property
    def fewest_classes(self) -> int:
        """Number of classes that every part can work with."""
        return max(part.fewest_classes for part in self.parts)

    def includes(self, other: Attack) -> bool:
        """Whether this attack contains every part of `other`, so that the other's robust accuracy is an upper bound."""
        return set(other.parts) <= set(self.parts)


ATTACKS: dict[str, Attack] = {
    attack.key: attack
    for attack in (
        Attack(
            "autoattack",
            "AutoAttack",
            parts=(APGD_CE, APGD_T, FAB_T, SQUARE),
            strength=30,
            seconds_per_image=2.0,
            version="standard",
            implies=("apgd-ce+apgd-t",),
        ),
        Attack("apgd-ce+apgd-t", "APGD-CE+APGD-T", parts=(APGD_CE, APGD_T), strength=20, seconds_per_image=0.8),
        Attack("apgd-ce", "APGD-CE", parts=(APGD_CE,), strength=10, seconds_per_image=0.15),
    )
}
"""Configuration word -> attack, the strongest first."""

STANDARD = ATTACKS["autoattack"]
"""The attack that published robust accuracies are measured with."""


def attack_titled(title: str) -> Attack | None:
    """The attack with this title; None for a title that is not in the registry."""
    return next((attack for attack in ATTACKS.values() if attack.title == title), None)


def attack_order(title: str) -> int:
    """Position of an attack in tables, the strongest first; unknown attacks come last."""
    found = attack_titled(title)
    stronger = [attack for attack in ATTACKS.values() if found is None or attack.strength > found.strength]
    return len(stronger)


def is_upper_bound(title: str, of: str) -> bool:
    """Whether the attack titled `title` is a shorter one than `of`, so that its robust accuracy bounds the other's."""
    short, long = attack_titled(title), attack_titled(of)
    return short is not None and long is not None and short != long and long.includes(short)


def _known_attack(value: str) -> str:
    if value not in ATTACKS:
        what = f"there is no such attack{nearest(value, ATTACKS)}"
        raise UserError(what, value=value, remedy=f"choose one of {', '.join(ATTACKS)}")
    return value


AttackKey = Annotated[
    str,
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    AfterValidator(_known_attack),
]
"""Type of a configuration field that names an attack, in any case."""


def evaluation_seconds(threats: list[tuple[str, int]], num_resolutions: int = 1) -> float:
    """Estimated time of an evaluation in seconds of the quickstart on one core, for the order of stages only.

    Args:
        threats: (attack's key, number of images) of each threat.
        num_resolutions: the threats are measured at each of them.
    """
    return num_resolutions * sum(num_images * ATTACKS[key].seconds_per_image for key, num_images in threats)
