"""The artifacts of one MLflow run: save, fetch, list, and the manifest of a stage's outputs.

If the artifact location is a local folder, files are read in place; otherwise they are downloaded into a cache.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from components.files import FileDigest, digest_file, files_below, mismatch, sha256_file, write_json

MANIFEST = "manifest-of-outputs.json"
"""Artifact that lists every output of a complete stage with its size and sha256."""


class Artifacts:
    """Artifacts of the run `run_id`, addressed by relative POSIX paths.

    Args:
        client: an `MlflowClient`.
        uri: the run's artifact URI.
        cache: local folder for downloads; used only if `uri` is remote.
    """

    def __init__(self, client: Any, run_id: str, uri: str, cache: Path) -> None:
        self.client, self.run_id, self.uri, self.cache = client, run_id, uri, cache
        self.folder = _local_folder(uri)

    def save(self, local: Path, artifact: str) -> dict[str, FileDigest]:
        """Uploads a file or folder as `artifact`, and returns the digests of its files by artifact path."""
        parent, _, name = artifact.rpartition("/")
        digests = {}
        if local.is_dir():
            self.client.log_artifacts(self.run_id, str(local), artifact)
            for relative, path in files_below(local):
                digests[f"{artifact}/{relative}"] = digest_file(path)
            return digests
        if local.name == name:
            self.client.log_artifact(self.run_id, str(local), parent or None)
        else:
            self._save_renamed(local, parent, name)
        return {artifact: digest_file(local)}

    def _save_renamed(self, local: Path, parent: str, name: str) -> None:
        staged = self.cache / "staged" / name
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local, staged)
        try:
            self.client.log_artifact(self.run_id, str(staged), parent or None)
        finally:
            staged.unlink()

    def fetch(self, artifact: str) -> Path | None:
        """Returns a local path of an artifact (file or folder), unverified; None if it does not exist."""
        if self.folder is not None:
            path = self.folder / artifact
            return path if path.exists() else None
        if not self._exists(artifact):
            return None
        self.cache.mkdir(parents=True, exist_ok=True)
        # MLflow returns the path it wrote, which includes the artifact's own folders.
        return Path(self.client.download_artifacts(self.run_id, artifact, str(self.cache)))

    def _exists(self, artifact: str) -> bool:
        parent = artifact.rpartition("/")[0]
        return any(item.path == artifact for item in self.client.list_artifacts(self.run_id, parent or None))

    def list(self, artifact: str = "") -> list[str]:
        """Returns the paths of the entries directly below a folder, sorted."""
        return sorted(item.path for item in self.client.list_artifacts(self.run_id, artifact or None))

    def read_json(self, artifact: str) -> Any:
        """Returns an artifact parsed as JSON; None if it does not exist."""
        path = self.fetch(artifact)
        return json.loads(path.read_text()) if path else None

    def write_manifest(self, files: dict[str, FileDigest], scratch: Path) -> str:
        """Writes and uploads the manifest, and returns its sha256."""
        path = write_json(scratch / MANIFEST, {name: list(digest) for name, digest in files.items()})
        self.save(path, MANIFEST)
        return sha256_file(path)

    def manifest(self) -> dict[str, FileDigest]:
        """Returns the digests in the manifest by artifact path; empty if there is no manifest."""
        return {name: FileDigest(*digest) for name, digest in (self.read_json(MANIFEST) or {}).items()}

    def manifest_problem(self, sha256: str, *, deep: bool) -> str:
        """Returns why the outputs are not the ones that the stage wrote; an empty string if they are.

        The files themselves are compared only in a local folder; a download is verified when it is read.

        Args:
            sha256: the manifest's sha256 from the run's tag.
            deep: compare the files' sha256 too, not only their sizes.
        """
        path = self.fetch(MANIFEST)
        if path is None:
            return "its manifest is missing"
        if sha256_file(path) != sha256:
            return "its manifest has been changed"
        if self.folder is None:
            return ""
        for name, expected in self.manifest().items():
            problem = _size_mismatch(self.folder / name, expected) or (deep and mismatch(self.folder / name, expected))
            if problem:
                return f"its output {name} {problem}"
        return ""


def _size_mismatch(path: Path, expected: FileDigest) -> str:
    if not path.is_file():
        return "is missing"
    return "" if path.stat().st_size == expected.size else "has another size than its manifest says"


def _local_folder(uri: str) -> Path | None:
    if uri.startswith("file://"):
        return Path(unquote(uri.removeprefix("file://")))
    return None if "://" in uri or uri.startswith("mlflow-artifacts:") else Path(uri)
