"""Where Kubeflow Pipelines is, and as whom we speak to it; read from the environment.

| variable | meaning | default |
|---|---|---|
| `ROBUSTRAIN_KFP_HOST`, `KF_PIPELINES_ENDPOINT` | address of the Kubeflow Pipelines API | none, required |
| `ROBUSTRAIN_KFP_TOKEN` | token to send | none |
| `ROBUSTRAIN_KFP_TOKEN_FILE`, `KF_PIPELINES_SA_TOKEN_PATH` | file with a token, read anew for every call | none |
| `ROBUSTRAIN_KFP_CA` | certificate authority, PEM file | the system's |
| `ROBUSTRAIN_KFP_NAMESPACE` | your profile, in a Kubeflow of several users | none |
| `ROBUSTRAIN_NAMESPACE` | where the RayJobs run | the profile, else `kubeflow` |
| `ROBUSTRAIN_KFP_EXPERIMENT` | the experiment of the runs | `robustrain` |
| `ROBUSTRAIN_SERVICE_ACCOUNT` | account of the steps | Kubeflow's choice |
| `ROBUSTRAIN_PIPELINE_IMAGE` | image of the steps, also for `compile` | `robustrain/pipeline:0.1.0` |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from components.errors import UserError


@dataclass(frozen=True)
class ClusterSettings:
    """Where Kubeflow Pipelines is and as whom we speak to it; see the table above."""

    host: str
    token: str = field(default="", repr=False)
    token_file: str = ""
    ca: str = ""
    namespace: str = ""
    job_namespace: str = "kubeflow"
    experiment: str = "robustrain"
    service_account: str = ""
    image: str = ""
    poll_s: float = 10.0
    outage_s: float = 300.0
    """While waiting: the API may be out of reach for so long (s)."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ClusterSettings:
        """The settings that the environment names.

        Raises:
            UserError: no address is named.
        """
        env = os.environ if environment is None else environment
        host = env.get("ROBUSTRAIN_KFP_HOST") or env.get("KF_PIPELINES_ENDPOINT", "")
        if not host:
            raise UserError(
                "no Kubeflow Pipelines address is named",
                where="ROBUSTRAIN_KFP_HOST",
                remedy="set it, for example to https://kubeflow.example.com/pipeline",
            )
        namespace = env.get("ROBUSTRAIN_KFP_NAMESPACE", "")
        return cls(
            host=(host if "://" in host else f"https://{host}").rstrip("/"),
            token=env.get("ROBUSTRAIN_KFP_TOKEN", ""),
            token_file=env.get("ROBUSTRAIN_KFP_TOKEN_FILE") or env.get("KF_PIPELINES_SA_TOKEN_PATH", ""),
            ca=env.get("ROBUSTRAIN_KFP_CA", ""),
            namespace=namespace,
            job_namespace=env.get("ROBUSTRAIN_NAMESPACE") or namespace or "kubeflow",
            experiment=env.get("ROBUSTRAIN_KFP_EXPERIMENT") or "robustrain",
            service_account=env.get("ROBUSTRAIN_SERVICE_ACCOUNT", ""),
            image=env.get("ROBUSTRAIN_PIPELINE_IMAGE", ""),
        )

    def run_url(self, run_id: str) -> str:
        """The run's page in the Kubeflow interface."""
        return f"{self.host}/#/runs/details/{run_id}"
