"""What the pod of a pipeline step is told about its cluster: who it is, where things are, with which keys.

Written into the compiled pipeline's platform part, which a run on this machine does not read. Names and addresses come
from the ConfigMap and the Secret of `k8s/base`, so that one compiled pipeline serves every cluster. Each key may be
absent: what a step needs and does not find is told by the step itself, with the variable's name. That steps start
RayJobs at all (`ROBUSTRAIN_LAUNCHER`) is set in their image: a run on this machine would see it in the pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

CONFIG_MAP, SECRET = "robustrain", "robustrain-credentials"

FIELDS = {
    "POD_NAME": "metadata.name",
    "POD_UID": "metadata.uid",
    "POD_NAMESPACE": "metadata.namespace",
    "ROBUSTRAIN_KFP_RUN_ID": "metadata.labels['pipeline/runid']",
}
"""Variable -> field of the pod. By the first two the RayJob belongs to the step, by the last one `cancel` finds it."""

CONFIG_KEYS = (
    "MLFLOW_TRACKING_URI",
    "ROBUSTRAIN_ARTIFACTS",
    "ROBUSTRAIN_BACKOFF_LIMIT",
    "ROBUSTRAIN_CONFIG_MAP",
    "ROBUSTRAIN_EXPERIMENT",
    "ROBUSTRAIN_GPU_RESOURCE",
    "ROBUSTRAIN_IMAGE",
    "ROBUSTRAIN_IMAGE_GRACE",
    "ROBUSTRAIN_NAMESPACE",
    "ROBUSTRAIN_NODE_SELECTOR",
    "ROBUSTRAIN_OBJECTS",
    "ROBUSTRAIN_PULL_POLICY",
    "ROBUSTRAIN_PULL_SECRETS",
    "ROBUSTRAIN_QUEUE",
    "ROBUSTRAIN_SECRET",
    "ROBUSTRAIN_TOLERATIONS",
)
"""Keys of the ConfigMap, which are the variables' names."""

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


def tell(task: PipelineTask) -> None:
    """Gives the task's pod its variables."""
    from kfp import kubernetes

    for variable, path in FIELDS.items():
        kubernetes.use_field_path_as_env(task, variable, path)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in CONFIG_KEYS}, optional=True)
    kubernetes.use_secret_as_env(task, SECRET, {key: key for key in SECRET_KEYS}, optional=True)
