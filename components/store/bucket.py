"""An `s3://bucket/prefix` read as if it were a folder, and S3's errors as something a person can mend.

The prefix stands for a folder: `s3://b/pets` holds `pets/cat.png` and not `pets-old/cat.png`. Names come from whoever
can write to the bucket, so none may lead out of the folder that they are fetched into.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.errors import UserError

_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})


def s3_client() -> Any:
    """A boto3 client; endpoint and credentials come from the ordinary AWS variables (`AWS_ENDPOINT_URL`, ...)."""
    import boto3

    return boto3.client("s3")


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The parts of `s3://bucket/key`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.lstrip("/")


@contextmanager
def s3_explained(uri: str, *, may_lack: bool = False) -> Iterator[None]:
    """Turns what S3 or the way to it refuses inside the block into a `UserError`.

    Raises:
        KeyError: there is no object of that name, and with `may_lack` that is an answer.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
        if may_lack and code in _ABSENT:
            raise KeyError(uri) from error
        raise UserError(
            f"S3 cannot be used for this ({error})",
            where=uri,
            remedy="check the address, AWS_ENDPOINT_URL and the credentials (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
        ) from error


def list_prefix(uri: str) -> Iterator[tuple[str, int, str]]:
    """(name below the prefix, size, ETag) of every object below an `s3://bucket/prefix`; markers of folders left out.

    Raises:
        UserError: nothing lies below the prefix, a name leads out of it, or S3 refuses.
    """
    bucket, key = bucket_and_key(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    found = False
    with s3_explained(uri):
        for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    found = True
                    yield _inside(item["Key"][len(prefix) :], uri), item["Size"], item["ETag"]
    if not found:
        raise UserError("nothing lies below this address", where=uri, remedy="check the bucket and the prefix")


def _inside(name: str, uri: str) -> str:
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise UserError(
            "this object's name leads out of the prefix", where=uri, value=name, remedy="rename or remove the object"
        )
    return name


def fetch_prefix(uri: str, to: Path) -> Path:
    """Downloads every object below an `s3://bucket/prefix` into the folder `to`; what is there in full is kept.

    Raises:
        UserError: nothing lies below the prefix, a name leads out of it or is a folder too, or S3 refuses.
    """
    bucket, key = bucket_and_key(uri)
    client = s3_client()
    for name, size, _ in list_prefix(uri):
        path = to / name
        if path.is_file() and path.stat().st_size == size:
            continue
        part = path.with_name(path.name + ".part")
        with s3_explained(uri), _name_explained(uri, name):
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, f"{key.rstrip('/')}/{name}" if key else name, str(part))
            os.replace(part, path)
    return to


@contextmanager
def _name_explained(uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            "a name is an object's and a folder's at once", where=uri, value=name, remedy="rename one of the objects"
        ) from error
