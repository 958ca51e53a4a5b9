"""Reads recipe files (strict YAML and `extends`) and applies `--set KEY=VALUE` overrides.

KEY is `stage.field`, `stages.stage.field` or a field of the recipe itself, and `threats[0]` is the first of a list;
VALUE is YAML. In a recipe with a matrix, an
override of one stage (`adversarial-conv.epochs=3`) is applied after the expansion; one of a template
(`adversarial-{stem}.epochs=3`) or of an axis (`matrix.stem=[conv]`) before it. So the override of a single stage wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from components.errors import UserError, nearest
from pipeline.matrix import FIELD, has_placeholder

Find = Callable[[str], Path]
"""Returns the file of a recipe, given its name or path; raises `UserError` if there is none."""

_MERGE = "tag:yaml.org,2002:merge"


class _RefusedError(yaml.YAMLError):
    """Valid YAML that is a mistake in a recipe. Lines count from 1."""

    def __init__(self, what: str, value: str, line: int, remedy: str) -> None:
        self.what, self.value, self.line, self.remedy = what, value, line, remedy
        super().__init__(what)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys, of which PyYAML keeps the last, and recursive aliases."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[Any] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Returns the next node; an alias inside its own anchor is refused."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if event.anchor in self._open:
                line, remedy = event.start_mark.line + 1, "write the values out"
                raise _RefusedError("this alias is inside its own anchor", f"*{event.anchor}", line, remedy)
        return super().compose_node(parent, index)

    def compose_sequence_node(self, anchor: Any) -> Any:
        """Returns a list."""
        self._open.append(anchor)
        node = super().compose_sequence_node(anchor)
        self._open.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Returns a mapping. Duplicates are looked for before `<<` adds keys that the mapping may repeat."""
        self._open.append(anchor)
        node = super().compose_mapping_node(anchor)
        self._open.pop()
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                line, known = key.start_mark.line + 1, (key.tag, key.value)
                if known in lines:
                    remedy = f"keep one of them; the first is on line {lines[known]}"
                    raise _RefusedError("this key is given twice", key.value, line, remedy)
                lines[known] = line
        return node


_FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SCALARS = {
    "tag:yaml.org,2002:bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), "-+0123456789"),
    "tag:yaml.org,2002:float": (_FLOAT, "-+.0123456789"),
}
"""Booleans and numbers as in YAML 1.2.

PyYAML reads those of YAML 1.1, where `yes` and `on` are booleans, `010` is 8, `1:30` is 90 and `1e-3` is a text.
"""
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in _SCALARS]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _firsts) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), list(_firsts))


def parse_yaml(text: str, where: str) -> Any:
    """Parses YAML.

    Args:
        where: the file or option that the text comes from.

    Raises:
        UserError: it is not YAML, a mapping has a key twice, or an alias is inside its own anchor.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except _RefusedError as error:
        location = f"{where}:{error.line}"
        raise UserError(error.what, where=location, value=error.value, remedy=error.remedy) from None
    except yaml.YAMLError as error:
        raise UserError("this is not YAML", where=f"{where}{_line(error, text)}", remedy="correct the syntax") from None
    except (ValueError, RecursionError) as error:
        what = f"this YAML has an impossible value ({error})"
        raise UserError(what, where=where, remedy="correct or quote the value") from None


def _line(error: yaml.YAMLError, text: str) -> str:
    """Returns `:LINE` of a mistake; an empty string if PyYAML does not give its position."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f":{mark.line + 1}"
    position = getattr(error, "position", None)
    return "" if position is None else f":{text.count(chr(10), 0, position) + 1}"


def read_document(path: Path, find: Find, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns the document of a recipe file, merged over the recipe that it `extends`.

    Args:
        find: returns the file of a recipe that is not in this file's folder.
        seen: files that extend this one, directly or not.

    Raises:
        UserError: the file cannot be read or is no mapping, or recipes extend each other in a circle.
    """
    if path.resolve() in seen:
        raise UserError("recipes extend each other in a circle", where=str(path), remedy="remove one `extends`")
    document = parse_yaml(_text(path), str(path))
    if not isinstance(document, dict):
        raise UserError("a recipe is a mapping", where=str(path), value=document, remedy="write `name:` and `stages:`")
    base = document.pop("extends", None)
    if base is None:
        _refuse_empty_stages(document, {}, path)
        return document
    beside = path.parent / str(base)
    below = read_document(beside if beside.is_file() else find(str(base)), find, (*seen, path.resolve()))
    _refuse_empty_stages(document, below, path)
    return _merged(below, document)


def _refuse_empty_stages(document: dict[str, Any], below: dict[str, Any], path: Path) -> None:
    """Null leaves out a stage of the recipe that is extended; elsewhere it is a stage whose fields were forgotten."""
    stages, known = document.get("stages"), below.get("stages")
    for name, entry in stages.items() if isinstance(stages, dict) else ():
        if entry is None and not (isinstance(known, dict) and name in known):
            remedy = "write {} for a stage without fields, or remove it"
            raise UserError("this stage has no value", where=f"{path}: stages.{name}", remedy=remedy)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"the recipe cannot be read ({error.strerror})", where=str(path), remedy="check it") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte {raw[error.start]:#04x} is not UTF-8"
        raise UserError(what, where=f"{path}:{line}", remedy="save the recipe as UTF-8") from None


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: _merged(base.get(key), over[key]) if key in over else base[key] for key in {**base, **over}}
    return over


def before_expansion(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Splits overrides into those of templates and axes and those of single stages, each in their order."""
    general, single = [], []
    for override in overrides:
        key = override.partition("=")[0]
        (general if has_placeholder(key) or key.split(".")[0] == FIELD else single).append(override)
    return general, single


def override(document: dict[str, Any], given: str, fields: Collection[str]) -> None:
    """Sets one value in a document, in place.

    Args:
        given: KEY=VALUE.
        fields: names of the recipe's own fields; every other first part of a key is a stage.

    Raises:
        UserError: it is not KEY=VALUE, VALUE is not YAML, or there is no stage or field of that name.
    """
    key, equals, text = given.partition("=")
    if not equals or not key:
        remedy = "for example adversarial.lr=1e-3"
        raise UserError("an override is KEY=VALUE", where="--set", value=given, remedy=remedy)
    parts = key.split(".")
    if parts[0] not in fields and parts[0] not in {"stages", FIELD}:
        _check_stage(document, key, parts[0], fields)
        parts = ["stages", *parts]
    steps = [step for part in parts for step in _steps(part)]
    document.update(_with(document, steps, _yaml(given, text), key))


def _steps(part: str) -> list[str | int]:
    """Splits `threats[0]` into `threats` and 0."""
    found = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])+)", part)
    return [found[1], *map(int, re.findall(r"\d+", found[2]))] if found else [part]


def _with(node: Any, steps: list[str | int], value: Any, key: str) -> Any:
    """Returns a copy of a node with one value set. YAML's aliases share nodes: what they share stays as it is."""
    if not steps:
        return value
    first, *rest = steps
    if isinstance(first, str):
        below = node if isinstance(node, dict) else {}
        return {**below, first: _with(below.get(first), rest, value, key)}
    if not isinstance(node, list) or first >= len(node):
        remedy = f"count from 0 to {len(node) - 1}" if isinstance(node, list) and node else "set the whole list"
        raise UserError(
            f"the recipe has no list with an element {first} there", where="--set", value=key, remedy=remedy
        )
    return [*node[:first], _with(node[first], rest, value, key), *node[first + 1 :]]


def _check_stage(document: dict[str, Any], key: str, name: str, fields: Collection[str]) -> None:
    found = document.get("stages")
    stages = [str(stage) for stage in found] if isinstance(found, dict) else []
    if name not in stages:
        hint = nearest(name, [*stages, *fields])
        remedy = f"the stages are: {', '.join(stages)}"
        raise UserError(f"no stage or field of that name{hint}", where="--set", value=key, remedy=remedy)


def _yaml(given: str, text: str) -> Any:
    try:
        return parse_yaml(text, "--set")
    except UserError:
        remedy = "quote it, or write a list as [a, b] and a mapping as {a: b}, each key once"
        raise UserError("the value is not YAML", where="--set", value=given, remedy=remedy) from None
