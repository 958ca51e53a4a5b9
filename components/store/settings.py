"""The folders and addresses of one installation, read from the environment once.

| variable | meaning | default |
|---|---|---|
| `ROBUSTRAIN_HOME` | everything kept on this machine | `.robustrain/` in the working folder |
| `MLFLOW_TRACKING_URI` | runs, metrics, registry | `sqlite:///` data base in the home |
| `ROBUSTRAIN_ARTIFACTS` | where MLflow keeps artifacts of new experiments | a folder in the home |
| `ROBUSTRAIN_OBJECTS` | encoded data sets: a folder or `s3://bucket/prefix` | a folder in the home |
| `ROBUSTRAIN_EXPERIMENT` | the MLflow experiment | `robustrain` |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOME_VARIABLE = "ROBUSTRAIN_HOME"
KFP_RUN_VARIABLE = "ROBUSTRAIN_KFP_RUN_ID"
"""The pipeline's run in Kubeflow; set in the steps there and nowhere else."""


@dataclass(frozen=True)
class Places:
    """Absolute folders and URIs; nothing is created by constructing it."""

    home: Path
    tracking_uri: str
    artifacts_uri: str
    objects_uri: str
    experiment: str = "robustrain"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, *, home: Path | None = None) -> Places:
        """The places that the environment names; `home` overrides `ROBUSTRAIN_HOME`."""
        env = os.environ if environment is None else environment
        root = Path(home or env.get(HOME_VARIABLE) or ".robustrain").expanduser().resolve()
        return cls(
            home=root,
            tracking_uri=env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}",
            artifacts_uri=env.get("ROBUSTRAIN_ARTIFACTS") or str(root / "artifacts"),
            objects_uri=env.get("ROBUSTRAIN_OBJECTS") or str(root / "objects"),
            experiment=env.get("ROBUSTRAIN_EXPERIMENT") or "robustrain",
        )

    def environment(self) -> dict[str, str]:
        """The variables that make a child process find the same places."""
        return {
            HOME_VARIABLE: str(self.home),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "ROBUSTRAIN_ARTIFACTS": self.artifacts_uri,
            "ROBUSTRAIN_OBJECTS": self.objects_uri,
            "ROBUSTRAIN_EXPERIMENT": self.experiment,
        }

    @property
    def is_fresh(self) -> bool:
        """Whether runs are kept in this home's own data base and it is not there yet: nothing has run here."""
        file = self.home / "mlflow.db"
        return self.tracking_uri == f"sqlite:///{file}" and not file.exists()

    @property
    def cache(self) -> Path:
        """Downloads that can be made again."""
        return self.home / "cache"

    @property
    def locks(self) -> Path:
        """One lock file per claim."""
        return self.home / "locks"

    @property
    def logs(self) -> Path:
        """One folder per pipeline run, one log per stage."""
        return self.home / "logs"

    @property
    def work(self) -> Path:
        """Scratch folders of unfinished stages, one per fingerprint."""
        return self.home / "work"
