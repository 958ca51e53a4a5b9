"""Large files (encoded data sets): a folder here, an S3 bucket on a cluster. Addressed by key, verified by sha256."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.store.bucket import bucket_and_key, s3_client, s3_explained
from components.store.claims import claim
from components.store.digests import FileDigest, differs, digest_file
from components.store.verified import Verified


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
        self._verified = Verified(cache / "verified")

    def put(self, local: Path, key: str) -> ObjectRef:
        """Stores a file. The object appears whole or not at all; an equal one already there is kept."""
        digest = digest_file(local)
        uri = f"{self.uri}/{key}"
        ref = ObjectRef(uri, *digest)
        if self._bucket_of(uri):
            self._upload(local, uri, digest)
        else:
            if differs(Path(uri), digest):
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
        problem = differs(path, FileDigest(ref.size, ref.sha256))
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
            return right and not (deep and self._verified.differs(path, FileDigest(ref.size, ref.sha256)))
        bucket, key = bucket_and_key(ref.uri)
        try:
            with s3_explained(ref.uri, may_lack=True):
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
        with s3_explained(uri):
            self._s3().upload_file(str(local), bucket, key, ExtraArgs=extra)

    def _download(self, ref: ObjectRef) -> Path:
        bucket, key = bucket_and_key(ref.uri)
        path = self.cache / "objects" / ref.sha256[:2] / ref.sha256
        with claim(path.with_suffix(".lock")):
            if differs(path, FileDigest(ref.size, ref.sha256)):
                part = path.with_suffix(".part")
                try:
                    with s3_explained(ref.uri, may_lack=True):
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
