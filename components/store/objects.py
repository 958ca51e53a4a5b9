"""Large files (encoded data sets): a folder here, an S3 bucket on a cluster. Addressed by key, verified by sha256."""

from __future__ import annotations

import os
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.store.claims import claim
from components.store.digests import FileDigest, differs, digest_file


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
        cache: a local folder for downloads; only used with S3.

    Attributes:
        stored: what was put here through this store, in order; part of the outputs of the stage that did it.
    """

    def __init__(self, uri: str, cache: Path) -> None:
        self.uri, self.cache = uri.rstrip("/"), cache
        self.stored: list[ObjectRef] = []
        self._client: Any = None

    def put(self, local: Path, key: str) -> ObjectRef:
        """Stores a file. The object appears whole or not at all; an equal one already there is kept."""
        digest = digest_file(local)
        uri = f"{self.uri}/{key}"
        ref = ObjectRef(uri, *digest)
        if self._bucket_of(uri):
            self._upload(local, uri, digest)
        elif differs(Path(uri), digest):
            _copy_whole(local, Path(uri))
        self.stored.append(ref)
        return ref

    def get(self, ref: ObjectRef) -> Path:
        """A local path with the object's bytes, verified against its digest.

        Raises:
            UserError: the object is missing or is not what was stored.
        """
        path = Path(ref.uri)
        if self._bucket_of(ref.uri):
            path = self._download(ref)
        problem = differs(path, FileDigest(ref.size, ref.sha256))
        if problem:
            raise UserError(
                problem, where=ref.uri, remedy="run the encode stage again: `robustrain run RECIPE --again encode`"
            )
        return path

    def holds(self, ref: ObjectRef) -> bool:
        """Whether an object of that size is there; the digest is checked when it is read."""
        if not self._bucket_of(ref.uri):
            return Path(ref.uri).is_file() and Path(ref.uri).stat().st_size == ref.size
        bucket, key = _split(ref.uri)
        try:
            return self._s3().head_object(Bucket=bucket, Key=key)["ContentLength"] == ref.size
        except self._s3().exceptions.ClientError:
            return False

    def _bucket_of(self, uri: str) -> str:
        return _split(uri)[0] if uri.startswith("s3://") else ""

    def _s3(self) -> Any:
        if self._client is None:
            self._client = s3_client()
        return self._client

    def _upload(self, local: Path, uri: str, digest: FileDigest) -> None:
        bucket, key = _split(uri)
        extra = {"Metadata": {"sha256": digest.sha256}}
        self._s3().upload_file(str(local), bucket, key, ExtraArgs=extra)

    def _download(self, ref: ObjectRef) -> Path:
        bucket, key = _split(ref.uri)
        path = self.cache / "objects" / ref.sha256[:2] / ref.sha256
        with claim(path.with_suffix(".lock")):
            if differs(path, FileDigest(ref.size, ref.sha256)):
                part = path.with_suffix(".part")
                self._s3().download_file(bucket, key, str(part))
                os.replace(part, path)
        return path


def s3_client() -> Any:
    """A boto3 client; endpoint and credentials come from the ordinary AWS variables (`AWS_ENDPOINT_URL`, ...)."""
    import boto3

    return boto3.client("s3")


def list_prefix(uri: str) -> Iterator[tuple[str, int, str]]:
    """(key, size, ETag) of every object below an `s3://bucket/prefix`."""
    bucket, prefix = _split(uri)
    for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            yield item["Key"], item["Size"], item["ETag"]


def fetch_prefix(uri: str, to: Path) -> Path:
    """Downloads every object below an `s3://bucket/prefix` into the folder `to`; what is there in full is kept.

    Raises:
        UserError: nothing lies below the prefix.
    """
    bucket, prefix = _split(uri)
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    client, found = s3_client(), 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            found += 1
            path = to / item["Key"][len(prefix) :]
            if not (path.is_file() and path.stat().st_size == item["Size"]):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(path.name + ".part")
                client.download_file(bucket, item["Key"], str(part))
                os.replace(part, path)
    if not found:
        raise UserError("nothing lies below this address", where=uri, remedy="check the bucket and the prefix")
    return to


def _split(uri: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def _copy_whole(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(source, part)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
