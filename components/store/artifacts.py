"""The artifact folder of one MLflow run: save, fetch, list, and the manifest that says what must be in it.

Reading goes straight to the files where the artifact location is a local folder, and through a verified download cache
where it is not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from components.files import FileDigest, digest_file, files_below, mismatch, write_json

MANIFEST = "manifest-of-outputs.json"
"""Artifact that lists every output of a complete stage with size and sha256."""


class Artifacts:
    """Artifacts of the run `run_id`, addressed by relative POSIX paths.

    Args:
        client: an `MlflowClient`.
        uri: the run's artifact URI.
        cache: local folder for downloads; only used when `uri` is remote.
    """

    def __init__(self, client: Any, run_id: str, uri: str, cache: Path) -> None:
        self.client, self.run_id, self.uri, self.cache = client, run_id, uri, cache
        self.folder = _local_folder(uri)

    def save(self, local: Path, artifact: str) -> dict[str, FileDigest]:
        """Uploads a file or folder so that it is `artifact`; returns the digests of the files by artifact path."""
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
        """A local path of the artifact (file or folder) as it stands now, unverified; None when absent."""
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
        """Paths of the entries directly below a folder, sorted."""
        return sorted(item.path for item in self.client.list_artifacts(self.run_id, artifact or None))

    def read_json(self, artifact: str) -> Any:
        """The artifact parsed as JSON; None when absent."""
        path = self.fetch(artifact)
        return json.loads(path.read_text()) if path else None

    def write_manifest(self, files: dict[str, FileDigest], scratch: Path) -> str:
        """Uploads the manifest and returns its sha256."""
        path = write_json(scratch / MANIFEST, {name: list(digest) for name, digest in files.items()})
        self.save(path, MANIFEST)
        return digest_file(path).sha256

    def manifest(self) -> dict[str, FileDigest]:
        """What the manifest says; empty where there is none."""
        return {name: FileDigest(*digest) for name, digest in (self.read_json(MANIFEST) or {}).items()}

    def manifest_problem(self, sha256: str, *, deep: bool) -> str:
        """Why the outputs are not what the stage left behind; an empty string when they are.

        Args:
            sha256: of the manifest, as the run's tag says.
            deep: compare digests too, not only sizes. Only done for local folders; a download is always verified.
        """
        path = self.fetch(MANIFEST)
        if path is None:
            return "its manifest is missing"
        if digest_file(path).sha256 != sha256:
            return "its manifest has been changed"
        if self.folder is None:
            return ""
        for name, expected in self.manifest().items():
            problem = _shallow(self.folder / name, expected) or (deep and mismatch(self.folder / name, expected))
            if problem:
                return f"its output {name} {problem}"
        return ""


def _shallow(path: Path, expected: FileDigest) -> str:
    if not path.is_file():
        return "is missing"
    return "" if path.stat().st_size == expected.size else "has another size than its manifest says"


def _local_folder(uri: str) -> Path | None:
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    return None if "://" in uri or uri.startswith("mlflow-artifacts:") else Path(uri)
