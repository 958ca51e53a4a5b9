"""Where one installation keeps its data: the home folder, the tracking store, artifacts and large objects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from components.settings import EnvironmentSettings, setting

HOME_VARIABLE = "ROBUSTRAIN_HOME"
KFP_RUN_VARIABLE = "ROBUSTRAIN_KFP_RUN_ID"
"""Id of the Kubeflow run; set in the pods of its steps and nowhere else."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")


def _absolute(value: Any) -> Any:
    """Makes a folder absolute, because child processes and later runs have other working folders; URIs stay."""
    return value if _SCHEME.match(str(value)) else str(Path(value).expanduser().resolve())


def _folder_or_s3(value: str) -> str:
    if _SCHEME.match(value) and not re.match(r"s3://[^/]", value):
        raise ValueError("is neither a folder nor s3://bucket/prefix")
    return value


def _store_in(home: Path) -> str:
    """Returns the address of the SQLite file in a home; `%` and `?`, which mean something in a URL, are escaped.

    MLflow 3.17 makes the folder of a `sqlite:///` address by its escaped name. It does not if the driver is named.
    """
    path = str(home / "mlflow.db")
    escaped = path.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if escaped == path else f"sqlite+pysqlite:///{escaped}"


def _as_mlflow_takes_it(location: str) -> str:
    """Returns a folder with `%`, `?` or `#` in its path as a URL, because MLflow takes the path itself for one."""
    is_odd = set("%?#") & set(location) and not _SCHEME.match(location)
    return Path(location).as_uri() if is_odd else location


Location = Annotated[str, BeforeValidator(_absolute)]
"""An absolute folder, or a URI that is passed on as it is."""


class StorageSettings(EnvironmentSettings):
    """Absolute folders and URIs. Constructing it creates nothing."""

    home: Annotated[Path, BeforeValidator(_absolute)] = setting(
        HOME_VARIABLE,
        description="folder for everything that is kept on this machine",
        default=Path(".robustrain"),
        default_text="`.robustrain/` in the working folder",
        validate_default=True,
    )
    tracking_uri: str = setting(
        "MLFLOW_TRACKING_URI",
        description="MLflow store with runs, metrics and the model registry",
        default_factory=lambda values: _store_in(values["home"]),
        default_text="an SQLite file in the home",
        set_in="config map",
    )
    artifacts_uri: Annotated[Location, AfterValidator(_as_mlflow_takes_it)] = setting(
        "ROBUSTRAIN_ARTIFACTS",
        description="where MLflow keeps the artifacts of a new experiment: a folder or a URI",
        default_factory=lambda values: _as_mlflow_takes_it(str(values["home"] / "artifacts")),
        default_text="a folder in the home",
        set_in="config map",
    )
    objects_uri: Annotated[Location, AfterValidator(_folder_or_s3)] = setting(
        "ROBUSTRAIN_OBJECTS",
        description="encoded data sets: a folder or `s3://bucket/prefix`",
        default_factory=lambda values: str(values["home"] / "objects"),
        default_text="a folder in the home",
        set_in="config map",
        remedy="name a folder or s3://bucket/prefix",
    )
    experiment: str = setting(
        "ROBUSTRAIN_EXPERIMENT", description="the MLflow experiment", default="robustrain", set_in="config map"
    )

    def environment(self) -> dict[str, str]:
        """Returns the variables that give a child process the same settings."""
        return {variable.names[0]: str(getattr(self, variable.field)) for variable in self.variables()}

    @property
    def is_fresh(self) -> bool:
        """Whether the tracking store is this home's own SQLite file and does not exist yet: nothing has run here."""
        return self.tracking_uri == _store_in(self.home) and not (self.home / "mlflow.db").exists()

    @property
    def cache(self) -> Path:
        """Downloads and notes that can be made again."""
        return self.home / "cache"

    @property
    def locks(self) -> Path:
        """Lock files: one per fingerprint, and one for opening the tracking store."""
        return self.home / "locks"

    @property
    def logs(self) -> Path:
        """One folder per pipeline run, with one log per stage."""
        return self.home / "logs"

    @property
    def work(self) -> Path:
        """Scratch folders of unfinished stages, one per fingerprint."""
        return self.home / "work"
