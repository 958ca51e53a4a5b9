"""Large files (encoded data sets): a folder here, an S3 bucket on a cluster. Addressed by key, verified by sha256.

An `s3://bucket/prefix` read as if it were a folder, and S3's errors as something a person can mend.

The prefix stands for a folder: `s3://b/pets` holds `pets/cat.png` and not `pets-old/cat.png`. Names come from whoever
can write to the bucket, so none may lead out of the folder that they are fetched into.

Remembers which large files were held against their sha256, so that an unchanged one is not read again and again.

A file counts as unchanged while its size, inode and times are. Only the decision to reuse a stage trusts that; whoever
reads the file holds it against its sha256 each time.
"""

from __future__ import annotations

import contextlib
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
from components.files import FileDigest, digest_file, mismatch, write_json
from components.store.locks import file_lock

# MERGED
# MERGED


@dataclass(frozen=True)
class ObjectRef:
    """Where an object lies and what it must be: `uri` is a path or `s3://bucket/key`; `size` in bytes."""

    uri: str
    size: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `ObjectRef(**d)` is the way back."""
        return asdict(self)


class ObjectStore:
    """Puts files under keys and gives them back verified.

    Args:
        uri: a folder, or `s3://bucket/prefix`.
        cache: a local folder for downloads (with S3) and for notes of what was verified (without).

    Attributes:
        stored: what was put here through this store, in order; part of the outputs of the stage that did it.
    """

    def __init__(self, uri: str, cache: Path) -> None:
        self.uri, self.cache = uri.rstrip("/"), cache
        self.stored: list[ObjectRef] = []
        self._client: Any = None
        self._verified = VerificationCache(cache / "verified")

    def put(self, local: Path, key: str) -> ObjectRef:
        """Stores a file. The object appears whole or not at all; an equal one already there is kept."""
        digest = digest_file(local)
        uri = f"{self.uri}/{key}"
        ref = ObjectRef(uri, *digest)
        if self._bucket_of(uri):
            self._upload(local, uri, digest)
        else:
            if mismatch(Path(uri), digest):
                _copy_whole(local, Path(uri))
            self._verified.note(Path(uri), digest)
        self.stored.append(ref)
        return ref

    def get(self, ref: ObjectRef) -> Path:
        """A local path with the object's bytes, verified against its digest.

        Raises:
            UserError: the object is missing or is not what was stored, or S3 cannot be asked.
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
        """Whether an object of that size is there.

        Args:
            deep: and of that sha256. A file that has not changed since it was last read is not read again; of an object
                in S3 the sha256 is asked for that was stored with it.

        Raises:
            UserError: S3 cannot be asked.
        """
        if not self._bucket_of(ref.uri):
            path = Path(ref.uri)
            right = path.is_file() and path.stat().st_size == ref.size
            return right and not (deep and self._verified.mismatch(path, FileDigest(ref.size, ref.sha256)))
        bucket, key = bucket_and_key(ref.uri)
        try:
            with translate_s3_errors(ref.uri, missing_ok=True):
                head = self._s3().head_object(Bucket=bucket, Key=key)
        except KeyError:
            return False
        # Whatever was put there by others has no digest, and is not ours.
        known = head.get("Metadata", {}).get("sha256", "")
        return head["ContentLength"] == ref.size and not (deep and known != ref.sha256)

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
        bucket, key = bucket_and_key(ref.uri)
        path = self.cache / "objects" / ref.sha256[:2] / ref.sha256
        with file_lock(path.with_suffix(".lock")):
            if mismatch(path, FileDigest(ref.size, ref.sha256)):
                part = path.with_suffix(".part")
                try:
                    with translate_s3_errors(ref.uri, missing_ok=True):
                        self._s3().download_file(bucket, key, str(part))
                except KeyError:
                    return path  # nothing there: `get` says that it is missing
                os.replace(part, path)
        return path


def _copy_whole(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(source, part)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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
def translate_s3_errors(uri: str, *, missing_ok: bool = False) -> Iterator[None]:
    """Turns what S3 or the way to it refuses inside the block into a `UserError`.

    Raises:
        KeyError: there is no object of that name, and with `missing_ok` that is an answer.
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
    """(name below the prefix, size, ETag) of every object below an `s3://bucket/prefix`; markers of folders left out.

    Raises:
        UserError: nothing lies below the prefix, a name leads out of it, or S3 refuses.
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
        with translate_s3_errors(uri), _name_explained(uri, name):
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


class VerificationCache:
    """Notes in a folder, one small file for each large one.

    Args:
        folder: may be lost at any time; then files are read once more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def mismatch(self, path: Path, expected: FileDigest) -> str:
        """As `digests.mismatch`, without reading a file that has not changed since it was noted."""
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self._note(path).read_text()) == _seen(path, expected):
                return ""
        problem = mismatch(path, expected)
        if not problem:
            self.note(path, expected)
        return problem

    def note(self, path: Path, digest: FileDigest) -> None:
        """The file has just been found to have this digest."""
        with contextlib.suppress(OSError):
            write_json(self._note(path), _seen(path, digest))

    def forget(self, path: Path) -> None:
        """The file was found damaged."""
        with contextlib.suppress(OSError):
            self._note(path).unlink(missing_ok=True)

    def _note(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"


def _seen(path: Path, digest: FileDigest) -> dict[str, object]:
    stat = path.stat()
    facts = {"device": stat.st_dev, "inode": stat.st_ino, "changed": stat.st_ctime_ns, "written": stat.st_mtime_ns}
    return {**facts, "size": stat.st_size, "sha256": digest.sha256}
