"""HTML and SVG elements that escape by construction: plain text can never become an element.

`element("p", "a < b", class_="note")` gives `<p class="note">a &lt; b</p>`. Only `Markup`, which this module alone
makes, passes unescaped. Everything written is well-formed XML too, so that a parser can check the whole page.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias, Union

Content: TypeAlias = Union["Markup", str, int, float, Iterable["Content"], None]

_WITHOUT_CONTENT = frozenset({"meta", "br", "img", "line", "circle", "rect", "polygon", "polyline"})
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS |= dict.fromkeys((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\N{REPLACEMENT CHARACTER}")


class Markup(str):
    """Text that is markup already. Made by `element` and `join`, never from what a person wrote."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Any text made safe for element content and for quoted attributes; control characters are replaced."""
    return Markup(html.escape(str(text).translate(_CONTROLS), quote=True))


def join(*children: Content) -> Markup:
    """Children one after another: markup as it is, `None` as nothing, everything else escaped."""
    return Markup("".join(_pieces(children)))


def element(name: str, *children: Content, **attributes: object) -> Markup:
    """One element. `class_` becomes `class`, `data_label` becomes `data-label`; `None` and `False` leave it out."""
    written = "".join(f' {_attribute(key)}="{_value(value)}"' for key, value in attributes.items() if _given(value))
    if name in _WITHOUT_CONTENT:
        assert not children, f"{name} has no content"
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def trusted(text: str) -> Markup:
    """Text of our own package (the style sheet), taken as it is. Never call it on data."""
    return Markup(text)


def _pieces(children: Iterable[Content]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str | int | float):
            yield escape(child)
        else:
            yield from _pieces(child)


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _given(value: object) -> bool:
    return value is not None and value is not False


def _value(value: object) -> str:
    return escape(_short(value) if isinstance(value, float) else value)


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
