"""The one error that people can cause, and how it is said.

A `UserError` becomes one line (what, where, the value, the remedy) and exit status 2, never a stack trace.
Our own mistakes are `assert` or ordinary exceptions and keep their trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_STATUS = 2
"""Exit status of every command that ends in a `UserError`."""

_UNSET = object()


class UserError(ValueError):
    """Something the person can mend.

    Args:
        what: the fault in plain words, without a full stop.
        where: the field, file, stage or object it was found in; empty where that is said in `what`.
        value: the offending value; left out of the message when not given.
        remedy: what to do about it, as a sentence without a full stop.
    """

    def __init__(self, what: str, *, where: str = "", value: object = _UNSET, remedy: str) -> None:
        self.what, self.where, self.value, self.remedy = what, where, value, remedy
        place = f"{where}: " if where else ""
        got = f" (got {value!r})" if self.has_value else ""
        super().__init__(" ".join(f"{place}{what}{got}. {remedy}.".split()))

    @property
    def has_value(self) -> bool:
        """Whether an offending value was given."""
        return self.value is not _UNSET

    def within(self, where: str) -> UserError:
        """The same error, found inside `where`: `label_smoothing` becomes `stages.adversarial.label_smoothing`."""
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
    """The process was told to end (SIGTERM); not an `Exception`, so that no `except Exception` swallows it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A ", did you mean ...?" tail naming the known word nearest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""
