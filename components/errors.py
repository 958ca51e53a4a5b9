"""Errors that users can cause, and how they are reported.

A `UserError` becomes one line (what, where, the value, the remedy) and exit status 2, without a stack trace.
Mistakes in this code are `assert` or ordinary exceptions and keep their stack trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_STATUS = 2
"""Exit status of every command that ends with a `UserError`."""

_UNSET = object()


class UserError(ValueError):
    """An error that the user can fix.

    Args:
        what: what is wrong, beginning in lower case and without a full stop.
        where: the field, file, stage or object that is wrong; empty if `what` names it.
        value: the wrong value; left out of the message if not given.
        remedy: what to do about it, beginning in lower case and without a full stop.
    """

    def __init__(self, what: str, *, where: str = "", value: object = _UNSET, remedy: str) -> None:
        self.what, self.where, self.value, self.remedy = what, where, value, remedy
        prefix = f"{where}: " if where else ""
        got = f" (got {value!r})" if self.has_value else ""
        super().__init__(" ".join(f"{prefix}{what}{got}. {remedy}.".split()))

    @property
    def has_value(self) -> bool:
        """Whether the error has a value."""
        return self.value is not _UNSET

    def within(self, where: str) -> UserError:
        """Returns the error with `where` in front of its own: `epochs` becomes `stages.adversarial.epochs`."""
        inside = ".".join(part for part in (where, self.where) if part)
        return UserError(self.what, where=inside, value=self.value, remedy=self.remedy)


class RemoteUserError(UserError):
    """A `UserError` of another process, with the message as it was formatted there.

    Args:
        text: the whole message.
    """

    def __init__(self, text: str) -> None:
        super().__init__("", remedy="")
        self.args = (text,)


class Terminated(BaseException):
    """The process got SIGTERM. Not an `Exception`, so that no `except Exception` catches it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a tail ", did you mean ...?" with the known name most similar to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""
