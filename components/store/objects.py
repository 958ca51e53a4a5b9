"""Large files (encoded data sets): stored in a folder or an S3 bucket, addressed by key, verified by sha256.

An `s3://bucket/prefix` is treated as a folder: `s3://b/pets` contains `pets/cat.png` and not `pets-old/cat.png`. Object
names come from anybody who can write to the bucket, so names that lead out of the folder they are fetched into are
refused. Errors of S3 become `UserError`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.files import FileDigest, digest_file, mismatch, write_atomically, write_json
from components.store.locks import file_lock


@dataclass(frozen=True)
class ObjectRef:
    """The address and the expected content of an object.

    Attributes:
        uri: a path or `s3://bucket/key`.
        size: in bytes.
        sha256: 64 hex digits.
    """

    uri: str
    size: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values; `ObjectRef(**fields)` is the inverse."""
        return asdict(self)


class ObjectStore:
    """Stores files under keys and returns them verified.

    Args:
        uri: a folder, or `s3://bucket/prefix`.
        cache: a local folder for downloads (S3) or for the verification cache (folder).

    Attributes:
        stored: objects that were put through this instance, in order; they belong to the outputs of the stage.
    """

    def __init__(self, uri: str, cache: Path) -> None:
        self.uri, self.cache = uri.rstrip("/"), cache
        self.stored: list[ObjectRef] = []
        self._client: Any = None
        self._verified = VerificationCache(cache / "verified")

    def put(self, local: Path, key: str) -> ObjectRef:
        """Stores a file. The object appears complete or not at all; an equal one that exists already is kept."""
        digest = digest_file(local)
        uri = f"{self.uri}/{key}"
        ref = ObjectRef(uri, *digest)
        if self._bucket_of(uri):
            self._upload(local, uri, digest)
        else:
            if mismatch(Path(uri), digest):
                write_atomically(Path(uri), lambda part: shutil.copyfile(local, part), fsync=False)
            self._verified.note(Path(uri), digest)
        self.stored.append(ref)
        return ref

    def get(self, ref: ObjectRef) -> Path:
        """Returns a local path with the object's bytes, verified against its digest.

        Raises:
            UserError: the object is missing or has changed, or S3 answers with an error.
        """
        path = Path(ref.uri)
        if self._bucket_of(ref.uri):
            path = self._download(ref)
        problem = mismatch(path, FileDigest(ref.size, ref.sha256))
        if problem:
            self._verified.forget(path)
            raise UserError(
                problem, where=ref.uri, remedy="start the same command again: the stage that makes it will run again"
            )
        return path

    def holds(self, ref: ObjectRef, deep: bool = False) -> bool:
        """Whether the object exists and has the expected size.

        Args:
            deep: compare the sha256 too. A file that has not changed since it was last verified is not read again; for
                an object in S3, the sha256 that was stored with it is compared.

        Raises:
            UserError: S3 answers with an error.
        """
        if not self._bucket_of(ref.uri):
            path = Path(ref.uri)
            same_size = path.is_file() and path.stat().st_size == ref.size
            return same_size and not (deep and self._verified.mismatch(path, FileDigest(ref.size, ref.sha256)))
        bucket, key = bucket_and_key(ref.uri)
        try:
            with translate_s3_errors(ref.uri, missing_ok=True):
                head = self._s3().head_object(Bucket=bucket, Key=key)
        except KeyError:
            return False
        # An object that somebody else has put there has no digest and does not count.
        stored = head.get("Metadata", {}).get("sha256", "")
        return head["ContentLength"] == ref.size and not (deep and stored != ref.sha256)

    def _bucket_of(self, uri: str) -> str:
        return bucket_and_key(uri)[0] if uri.startswith("s3://") else ""

    def _s3(self) -> Any:
        if self._client is None:
            self._client = s3_client()
        return self._client

    def _upload(self, local: Path, uri: str, digest: FileDigest) -> None:
        bucket, key = bucket_and_key(uri)
        extra = {"Metadata": {"sha256": digest.sha256}}
        with translate_s3_errors(uri):
            self._s3().upload_file(str(local), bucket, key, ExtraArgs=extra)

    def _download(self, ref: ObjectRef) -> Path:
        """Downloads an object into the cache unless it is there; if it does not exist, neither does the path."""
        bucket, key = bucket_and_key(ref.uri)
        path = self.cache / "objects" / ref.sha256[:2] / ref.sha256
        with file_lock(path.with_suffix(".lock")):
            if mismatch(path, FileDigest(ref.size, ref.sha256)):
                with contextlib.suppress(KeyError), translate_s3_errors(ref.uri, missing_ok=True):
                    download = lambda part: self._s3().download_file(bucket, key, str(part))  # noqa: E731
                    write_atomically(path, download, fsync=False)
        return path


class VerificationCache:
    """Remembers which large files were verified, so that an unchanged one is not read again.

    A file counts as unchanged while its size, inode and times are the same. Only the decision to reuse a stage trusts
    that; code that reads the file verifies its sha256 each time.

    Args:
        folder: one small JSON file per large file. It may be deleted at any time; files are then read once more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def mismatch(self, path: Path, expected: FileDigest) -> str:
        """Does the same as `files.mismatch`, without reading a file that has not changed since it was verified."""
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self._note(path).read_text()) == _identity(path, expected):
                return ""
        problem = mismatch(path, expected)
        if not problem:
            self.note(path, expected)
        return problem

    def note(self, path: Path, digest: FileDigest) -> None:
        """Records that the file has just been found to have this digest."""
        with contextlib.suppress(OSError):
            write_json(self._note(path), _identity(path, digest), fsync=False)

    def forget(self, path: Path) -> None:
        """Removes the record of a file that was found damaged."""
        with contextlib.suppress(OSError):
            self._note(path).unlink(missing_ok=True)

    def _note(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"


def _identity(path: Path, digest: FileDigest) -> dict[str, object]:
    stat = path.stat()
    times = {"changed": stat.st_ctime_ns, "written": stat.st_mtime_ns}
    return {"device": stat.st_dev, "inode": stat.st_ino, **times, "size": stat.st_size, "sha256": digest.sha256}


_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})


def s3_client() -> Any:
    """Returns a boto3 client; endpoint and credentials come from the usual AWS variables (`AWS_ENDPOINT_URL`, ...).

    Raises:
        UserError: the endpoint is no URL.
    """
    import boto3

    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
        value = os.environ.get(variable, "")
        if value and not value.startswith(("http://", "https://")):
            raise UserError(
                "this address has no scheme",
                where=variable,
                value=value,
                remedy=f"write http://{value} or https://{value}",
            )

    return boto3.client("s3")


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Splits `s3://bucket/key` into bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.lstrip("/")


@contextmanager
def translate_s3_errors(uri: str, *, missing_ok: bool = False) -> Iterator[None]:
    """Turns errors of S3 and of the connection to it inside the block into a `UserError`.

    Raises:
        KeyError: the object does not exist and `missing_ok` is true.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
        if missing_ok and code in _ABSENT:
            raise KeyError(uri) from error
        raise UserError(
            f"S3 cannot be used for this ({error})",
            where=uri,
            remedy="check the address, AWS_ENDPOINT_URL and the credentials (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
        ) from error


def list_prefix(uri: str) -> Iterator[tuple[str, int, str]]:
    """Yields (name below the prefix, size, ETag) of every object below `s3://bucket/prefix`, without folder markers.

    Raises:
        UserError: there are no objects, a name leads out of the prefix, or S3 answers with an error.
    """
    bucket, key = bucket_and_key(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    found = False
    with translate_s3_errors(uri):
        for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    found = True
                    yield _inside(item["Key"][len(prefix) :], uri), item["Size"], item["ETag"]
    if not found:
        raise UserError("there are no objects below this address", where=uri, remedy="check the bucket and the prefix")


def _inside(name: str, uri: str) -> str:
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise UserError(
            "this object's name leads out of the prefix", where=uri, value=name, remedy="rename or remove the object"
        )
    return name


def fetch_prefix(uri: str, to: Path) -> Path:
    """Downloads every object below `s3://bucket/prefix` into the folder `to`; files with the right size are kept.

    Raises:
        UserError: there are no objects, a name leads out of the prefix or is also a folder, or S3 answers with an
            error.
    """
    bucket, key = bucket_and_key(uri)
    client = s3_client()
    for name, size, _ in list_prefix(uri):
        path = to / name
        if path.is_file() and path.stat().st_size == size:
            continue
        whole_key = f"{key.rstrip('/')}/{name}" if key else name
        with translate_s3_errors(uri), _translate_name_errors(uri, name):
            download = functools.partial(client.download_file, bucket, whole_key)
            write_atomically(path, download, fsync=False)
    return to


@contextmanager
def _translate_name_errors(uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            "this name is both an object and a folder", where=uri, value=name, remedy="rename one of the objects"
        ) from error
