"""The matrix of a recipe: named axes, and the stages that fan out over them.

    matrix:
      steps: [1, 2, 3]                                     a list of scalars: each is its own label
      norm: {linf: {norm: Linf, eps: 0.1}, l2: {norm: L2, eps: 1.0}}   label -> any value
    stages:
      adversarial-{norm}-{steps}: {attack: "{norm}", ...}  six stages, one per combination

A stage is made once per combination of the axes in its name; a stage without axes is made once. Inside a stage, a text
that is exactly `{axis}` becomes the axis's value with its type, and exactly `{axis.key}` becomes that key of a value
that is a mapping. Inside a longer text, `{axis}` becomes the label, so that a stage can refer to another one. An item
of a list that contains an axis which is not in the stage's name is repeated for each value of that axis. The matrix is
expanded after `extends`.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.errors import UserError, nearest
from pipeline.stages import NAME_RULE, STAGE_NAME

FIELD = "matrix"
"""The recipe's key with the axes."""

Axes = Mapping[str, Mapping[str, Any]]
"""Axis -> label -> value."""
Cell = Mapping[str, str]
"""Axis -> label of one combination."""

_PLACE = re.compile(r"\{([^{}.\s]+)(?:\.([^{}\s]+))?\}")
_LABEL = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def has_placeholder(text: str) -> bool:
    """Returns whether a text contains an axis in braces."""
    return _PLACE.search(text) is not None


def expand(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the document with all stages of its matrix and without `matrix`; without a matrix, an equal document.

    The keys of `sources` fan out like the names of the stages.

    Raises:
        UserError: an axis is empty, unknown or in no stage's name; a label or a name is not allowed; two stages have
            the same name; a placeholder has no value at its place.
    """
    document = dict(document)
    matrix, stages = document.pop(FIELD, None), document.get("stages")
    if not isinstance(stages, Mapping) or (matrix is None and not any(has_placeholder(str(name)) for name in stages)):
        return document
    axes = _axes(matrix)
    _check_use(axes, stages)
    document["stages"] = _expanded(stages, axes)
    if isinstance(document.get("sources"), Mapping):
        document["sources"] = _sources(document["sources"], axes)
    return document


def _axes(matrix: Any) -> dict[str, dict[str, Any]]:
    if matrix is not None and not isinstance(matrix, Mapping):
        remedy = "write axis: [value, ...] or axis: {label: value, ...} below it"
        raise UserError("a matrix is a mapping of its axes", where=FIELD, value=matrix, remedy=remedy)
    return {
        str(name): _axis(f"{FIELD}.{name}", values) for name, values in (matrix or {}).items() if values is not None
    }


def _axis(where: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, list | Mapping) or not values:
        what = "an axis is a list of scalars or a mapping of label to value, with at least one value"
        raise UserError(what, where=where, value=values, remedy="give it values, or remove the axis")
    pairs = list(values.items()) if isinstance(values, Mapping) else [(_own_label(where, one), one) for one in values]
    found: dict[str, Any] = {}
    for key, value in pairs:
        label = str(key).lower() if isinstance(key, bool) else str(key)
        if not _LABEL.fullmatch(label):
            what = "a label becomes part of stage names: lower-case letters and digits, with single hyphens between"
            raise UserError(what, where=where, value=key, remedy="write the axis as label: value with another label")
        if label in found:
            raise UserError("this value is on the axis twice", where=where, value=label, remedy="remove one of them")
        found[label] = value
    return found


def _own_label(where: str, value: Any) -> Any:
    if value is None or isinstance(value, list | Mapping):
        what = "a value in a list must be a scalar, because it is its own label"
        raise UserError(what, where=where, value=value, remedy="write the axis as a mapping of label to value")
    return value


def _check_use(axes: Axes, stages: Mapping[str, Any]) -> None:
    used = {name for template in stages for name, _ in _PLACE.findall(str(template))}
    for axis in axes:
        if axis not in used:
            hint = nearest(axis, used)
            remedy = f"write {{{axis}}} into the names of the stages that differ in it, or remove the axis"
            raise UserError(f"this axis is in no stage's name{hint}", where=FIELD, value=axis, remedy=remedy)


def _expanded(stages: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    made: dict[str, Any] = {}
    makers: dict[str, str] = {}
    for template, entry in stages.items():
        where = f"stages.{template}"
        for name, cell in _cells(str(template), axes, where):
            if name in made:
                what = f"two stages have this name; the other one comes from {makers[name]!r}"
                raise UserError(what, where=where, value=name, remedy="rename one of them, or a label")
            made[name], makers[name] = _filled(entry, cell, axes, where), str(template)
    return made


def _cells(template: str, axes: Axes, where: str) -> Iterator[tuple[str, Cell]]:
    """Yields (name, cell) of each combination; the last axis in the name changes fastest."""
    for axis, key in _PLACE.findall(template):
        if key:
            remedy = f"write {{{axis}}} there, and {{{axis}.{key}}} inside the stage"
            raise UserError(
                "a stage's name can contain labels, not parts of values", where=where, value=template, remedy=remedy
            )
    for cell in _combinations(_named(template), axes, where):
        name = _PLACE.sub(lambda found, cell=cell: cell[found[1]], template)
        if cell and not STAGE_NAME.fullmatch(name):
            raise UserError(NAME_RULE, where=where, value=name, remedy="shorten the labels or the name")
        yield name, cell


def _combinations(names: list[str], axes: Axes, where: str) -> Iterator[dict[str, str]]:
    for name in names:
        if name not in axes:
            raise _unknown(name, axes, where)
    for labels in itertools.product(*(axes[name] for name in names)):
        yield dict(zip(names, labels, strict=True))


def _filled(value: Any, cell: Cell, axes: Axes, where: str) -> Any:
    if isinstance(value, str):
        return _text(value, cell, axes, where)
    if isinstance(value, Mapping):
        return {key: _filled(item, cell, axes, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [filled for i, item in enumerate(value) for filled in _items(item, cell, axes, f"{where}.{i}")]
    return value


def _items(item: Any, cell: Cell, axes: Axes, where: str) -> Iterator[Any]:
    """Yields an item of a list once per combination of its axes that are not in the stage's name."""
    free = [name for name in dict.fromkeys(_names_in(item)) if name not in cell]
    for more in _combinations(free, axes, where):
        yield _filled(item, {**cell, **more}, axes, where)


def _text(text: str, cell: Cell, axes: Axes, where: str) -> Any:
    whole = _PLACE.fullmatch(text)
    if whole:
        return copy.deepcopy(_value(whole, cell, axes, where))
    return _PLACE.sub(lambda found: _word(found, cell, axes, where), text)


def _word(found: re.Match[str], cell: Cell, axes: Axes, where: str) -> str:
    value = _value(found, cell, axes, where)
    if not found[2]:
        return cell[found[1]]
    if value is None or isinstance(value, list | Mapping):
        what = "only a scalar can be part of a longer text"
        raise UserError(what, where=where, value=found[0], remedy="make the placeholder the whole text")
    return str(value)


def _value(found: re.Match[str], cell: Cell, axes: Axes, where: str) -> Any:
    axis, key = found[1], found[2]
    if axis not in axes:
        raise _unknown(axis, axes, where)
    if axis not in cell:
        remedy = f"write {{{axis}}} into the stage's name, or use it in an item of a list"
        raise UserError("this axis is not in the stage's name", where=where, value=found[0], remedy=remedy)
    value = axes[axis][cell[axis]]
    if not key:
        return value
    if not isinstance(value, Mapping) or key not in value:
        known = [str(name) for name in value] if isinstance(value, Mapping) else []
        remedy = f"add it below {FIELD}.{axis}.{cell[axis]}, which has: {', '.join(known) or 'no keys'}"
        raise UserError(f"this value has no such key{nearest(key, known)}", where=where, value=found[0], remedy=remedy)
    return value[key]


def _unknown(name: str, axes: Axes, where: str) -> UserError:
    remedy = f"the axes are: {', '.join(axes) or '(none: the recipe has no matrix)'}"
    return UserError(f"there is no such axis{nearest(name, axes)}", where=where, value=f"{{{name}}}", remedy=remedy)


def _named(text: str) -> list[str]:
    return list(dict.fromkeys(axis for axis, _ in _PLACE.findall(text)))


def _names_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _named(value)
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _names_in(item)


def _sources(sources: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    named = {str(key): text for key, text in sources.items()}
    return {name: text for key, text in named.items() for name, _ in _source_cells(key, axes)}


def _source_cells(key: str, axes: Axes) -> Iterator[tuple[str, Cell]]:
    for cell in _combinations(_named(key), axes, f"sources.{key}"):
        yield _PLACE.sub(lambda found, cell=cell: cell[found[1]], key), cell
