"""The model registry: versions of a named model, and the aliases `challenger`, `champion` and `previous`.

A promotion, and a rollback, only moves an alias (MLflow 3.17: an alias moves atomically, the last write wins).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.store.run import StageInput
from components.store.settings import StorageSettings
from components.store.spec import ParentRef
from components.store.tracking import Tracking

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
EVALUATION_RUN, EVALUATION_FINGERPRINT = "evaluation_run", "evaluation_fingerprint"
"""Tags of a version: the run and the fingerprint of the evaluation that decided on it."""


@dataclass(frozen=True)
class Version:
    """One registered version of a model."""

    name: str
    version: str
    run_id: str
    tags: dict[str, str]


class Registry:
    """Registered models in the tracking store of an installation."""

    def __init__(self, storage: StorageSettings) -> None:
        self._tracking = Tracking(storage)
        self._client = self._tracking.client

    def register(self, name: str, run_id: str, artifact: str, tags: Mapping[str, str]) -> Version:
        """Registers the folder `artifact` of a run as the next version; for a registered run, only sets the tags."""
        known = [v for v in self._versions(name) if v.run_id == run_id]
        if known:
            version = known[0]
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version.version, key, value)
            return Version(name, version.version, run_id, {**version.tags, **tags})
        self._create_model(name)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{artifact}"
        made = self._client.create_model_version(name, source=source, run_id=run_id, tags=dict(tags))
        return Version(name, str(made.version), run_id, dict(tags))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Points `alias` at `version`."""
        self._client.set_registered_model_alias(name, alias, version)

    def get(self, name: str, alias: str) -> Version | None:
        """Returns the version that `alias` points at; None if the model or the alias does not exist.

        Raises:
            MlflowException: the registry cannot answer, which must not be mistaken for "does not exist".
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if not _is_absent(error):
                raise
            return None
        return Version(name, str(found.version), found.run_id or "", dict(found.tags))

    def challenger(self, name: str) -> Version | None:
        """Returns the version that waits for promotion, if any."""
        return self.get(name, CHALLENGER)

    def champion(self, name: str) -> Version | None:
        """Returns the version in use, if any."""
        return self.get(name, CHAMPION)

    def evaluation_of(self, version: Version) -> StageInput | None:
        """Returns the finished evaluation that decided on a version; None if its tags name none, or its run is gone.

        Raises:
            UserError: the evaluation is not complete.
        """
        from mlflow.exceptions import MlflowException

        run_id = version.tags.get(EVALUATION_RUN)
        if not run_id:
            return None
        fingerprint = version.tags.get(EVALUATION_FINGERPRINT, "")
        reference = ParentRef(name="evaluate", kind="evaluate", run_id=run_id, fingerprint=fingerprint)
        try:
            return self._tracking.finished(reference)
        except MlflowException as error:
            if not _is_absent(error):
                raise
            return None

    def promote(self, name: str, version: str) -> None:
        """Points `previous` at the present champion, then `champion` at `version`."""
        champion = self.champion(name)
        if champion and champion.version != version:
            self.set_alias(name, PREVIOUS, champion.version)
        self.set_alias(name, CHAMPION, version)

    def _versions(self, name: str) -> list[Version]:
        found = self._client.search_model_versions(f"name = '{name}'")
        return [Version(name, str(v.version), v.run_id or "", dict(v.tags)) for v in found]

    def _create_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if not _is_absent(error):
                raise
            self._client.create_registered_model(name)


def _is_absent(error: Any) -> bool:
    """Whether the error means that the model or the alias does not exist, not that the registry cannot answer.

    MLflow 3.17 has one error code for a missing model, and another one for a missing alias and for invalid names.
    """
    missing_alias = (
        error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error) and "not found" in str(error)
    )
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or missing_alias
