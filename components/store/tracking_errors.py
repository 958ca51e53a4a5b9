"""What the tracking store refuses (a damaged data base, a server that is away) as something a person can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from components.errors import UserError


@contextmanager
def tracking_explained(uri: str) -> Iterator[None]:
    """Turns a failure to open the store at `uri` inside the block into a `UserError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        cause = str(error).splitlines()[0]
        remedy = (
            "move the file away (its runs are lost then), or set MLFLOW_TRACKING_URI to another store"
            if uri.startswith("sqlite:")
            else "start the server, or mend MLFLOW_TRACKING_URI"
        )
        raise UserError(f"the tracking store cannot be opened ({cause})", where=uri, remedy=remedy) from error
