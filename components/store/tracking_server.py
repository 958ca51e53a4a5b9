"""The MLflow store that a run is kept in: whether it answers, and its errors as one line without the password."""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from components.errors import UserError

SERVER_SCHEMES = ("http://", "https://")
"""What the address of a tracking server begins with."""
_TRIES, _ANSWER_SECONDS, _PAUSE_SECONDS = 3, 10.0, 1.0


def require_server(uri: str) -> None:
    """Checks that an HTTP server answers at `uri`; does nothing for other stores and in a pod.

    MLflow 3.17 repeats each request to a server that is away for more than four minutes, without a message. In a pod
    nobody waits at a terminal, and the server may be about to restart.

    Raises:
        UserError: nothing answers.
    """
    if not uri.startswith(SERVER_SCHEMES) or os.environ.get("KUBERNETES_SERVICE_HOST"):
        return
    # `urllib` takes a user and password in an address for a part of the host's name.
    health = without_password(uri, instead="").rstrip("/") + "/health"
    for left in reversed(range(_TRIES)):
        try:
            urllib.request.urlopen(health, timeout=_ANSWER_SECONDS).close()
            return
        except urllib.error.HTTPError:
            return  # It answers; MLflow itself reports a missing permission.
        except (OSError, ValueError, HTTPException) as error:
            if not left:
                raise UserError(
                    f"the MLflow server does not answer ({error})",
                    where="MLFLOW_TRACKING_URI",
                    value=without_password(uri),
                    remedy="start the server, correct the variable, or unset it to use a file in the home",
                ) from error
            time.sleep(_PAUSE_SECONDS)


def without_password(uri: str, instead: str = "...@") -> str:
    """Returns an address with `instead` in place of the user and password in it."""
    return re.sub(r"//[^/]*@", f"//{instead}", uri)


@contextmanager
def translate_tracking_errors(uri: str) -> Iterator[None]:
    """Turns a failure to open the tracking store at `uri` inside the block into a `UserError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        cause = str(error).splitlines()[0]
        remedy = (
            "move the file away (its runs are lost then), or set MLFLOW_TRACKING_URI to another store"
            if uri.startswith("sqlite")
            else "start the server, or correct MLFLOW_TRACKING_URI"
        )
        where = without_password(uri)
        raise UserError(f"the tracking store cannot be opened ({cause})", where=where, remedy=remedy) from error
