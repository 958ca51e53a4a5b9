"""Settings of the RayJobs of one installation, read from the environment of the step's pod."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.settings import EnvironmentSettings, JsonObject, JsonObjects, Names, setting
from components.store.settings import KFP_RUN_VARIABLE, StorageSettings

RAY_VERSION = "2.60.0"
"""Ray in the training image; KubeRay chooses its defaults by it."""

CONFIG_MAP, SECRET = "robustrain", "robustrain-credentials"
"""Names of the objects of `k8s/base` that steps read, and training pods unless the settings name others."""

POD_FIELDS = {
    "POD_NAME": "metadata.name",
    "POD_UID": "metadata.uid",
    "POD_NAMESPACE": "metadata.namespace",
    KFP_RUN_VARIABLE: "metadata.labels['pipeline/runid']",
}
"""Variable -> field of the step's pod. The first two make the pod the RayJob's owner; by the last one
`robustrain cancel` finds the RayJobs of a run."""

SECRET_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
)
"""Keys of the Secret, which are the variables' names."""

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Timing:
    """Pauses and time limits of the launcher, in seconds."""

    retry_s: float = 0.5
    """First pause after a failed call; doubles up to 15 s."""
    patience_s: float = 60
    """A call is repeated for this long before the cluster counts as unreachable."""
    outage_s: float = 600
    """The same while a job runs: the cluster's own maintenance must not end a training of days."""
    watch_s: int = 30
    """A watch is closed and the job read again after this long."""
    operator_grace_s: float = 300
    """KubeRay has to set the status of a new job within this time."""
    gone_s: float = 300
    """How long to wait for an ended job of the same name to disappear after its deletion."""
    drain_s: float = 10
    """How long to wait for the rest of the log after the job has ended."""
    keep_alive_s: float = 20
    """The connection reserved for the deletion is used this often, so that it is open when it is needed."""


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.is_file() else "default"


def _config(variable: str, description: str, default: Any, **options: Any) -> Any:
    """A setting in the ConfigMap."""
    return setting(variable, description=description, default=default, set_in="config map", **options)


def _from_pod(*variables: str, description: str) -> Any:
    """A setting that Kubernetes or Kubeflow fills in."""
    return setting(*variables, description=description, default="", set_in="pod")


class RayJobSettings(EnvironmentSettings):
    """One installation's values for every RayJob."""

    image: str = setting(
        "ROBUSTRAIN_IMAGE",
        description="training image of head, workers and submitter",
        set_in="config map",
        remedy="set the training image in the ConfigMap robustrain (k8s/base/config.yaml) or in the environment",
    )
    namespace: str = setting(
        "ROBUSTRAIN_NAMESPACE",
        "POD_NAMESPACE",
        description="namespace of the RayJobs",
        default_factory=_own_namespace,
        default_text="the step's",
        set_in="config map",
    )
    config_map: str = _config(
        "ROBUSTRAIN_CONFIG_MAP", "ConfigMap that the training pods get as variables; must exist", CONFIG_MAP
    )
    secret: str = _config("ROBUSTRAIN_SECRET", "Secret that the training pods get as variables; may be missing", SECRET)
    node_selector: JsonObject = _config(
        "ROBUSTRAIN_NODE_SELECTOR",
        "labels of the nodes for training pods, a JSON object",
        {},
        remedy='write an object such as {"gpu": "a100"}',
    )
    tolerations: JsonObjects = _config(
        "ROBUSTRAIN_TOLERATIONS",
        "tolerations of the training pods, a JSON list",
        (),
        remedy='write a list such as [{"operator": "Exists"}]',
    )
    pull_policy: str = _config("ROBUSTRAIN_PULL_POLICY", "image pull policy", "IfNotPresent")
    pull_secrets: Names = _config("ROBUSTRAIN_PULL_SECRETS", "image pull secrets, comma-separated names", ())
    gpu_resource: str = _config("ROBUSTRAIN_GPU_RESOURCE", "resource name of a GPU in this cluster", "nvidia.com/gpu")
    queue: str = _config("ROBUSTRAIN_QUEUE", "local queue of Kueue", "")
    backoff_limit: int = _config("ROBUSTRAIN_BACKOFF_LIMIT", "number of new Ray clusters after a failed one", 1, ge=0)
    image_grace_s: float = _config(
        "ROBUSTRAIN_IMAGE_GRACE",
        "seconds for which an image pull or a container's configuration may fail before the job is given up",
        120,
        ge=0,
    )
    run_id: str = _from_pod(
        "ROBUSTRAIN_KFP_RUN_ID", description="Kubeflow's id of the pipeline run, written to a label"
    )
    pod_name: str = _from_pod("POD_NAME", "KFP_POD_NAME", description="name of the step's pod, which owns the RayJob")
    pod_uid: str = _from_pod("POD_UID", "KFP_POD_UID", description="uid of the step's pod")
    ttl_s: int = 30
    """Seconds for which a succeeded job keeps its pods."""
    head_cpus: float = 2
    """Cores of a head that only leads workers."""
    head_memory_gib: float = 8
    """Memory of a head that only leads workers, GiB."""
    ray_version: str = RAY_VERSION
    timing: Timing = Timing()


def config_map_keys() -> list[str]:
    """Keys of the ConfigMap, which are the variables' names, sorted: of the storage and of the RayJobs."""
    variables = [*StorageSettings.variables("config map"), *RayJobSettings.variables("config map")]
    return sorted(name for variable in variables for name in variable.names if name not in POD_FIELDS)
