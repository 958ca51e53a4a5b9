"""What a cluster is told about the jobs of one installation, read from the environment of the step pod.

| variable | meaning | default |
|---|---|---|
| `ROBUSTRAIN_IMAGE` | training image of head, workers and submitter | none, required |
| `POD_NAMESPACE`, `ROBUSTRAIN_NAMESPACE` | namespace of the jobs (the second one wins) | the service account's |
| `POD_NAME`, `POD_UID` | the step pod, which owns the job (`KFP_POD_NAME`, `KFP_POD_UID` are read too) | no owner |
| `ROBUSTRAIN_KFP_RUN_ID` | the pipeline run, written to a label | no label |
| `ROBUSTRAIN_CONFIG_MAP` | handed to the training pods as variables; has to exist | `robustrain` |
| `ROBUSTRAIN_SECRET` | the same; may be absent | `robustrain-credentials` |
| `ROBUSTRAIN_NODE_SELECTOR`, `ROBUSTRAIN_TOLERATIONS` | JSON object, JSON list of objects | none |
| `ROBUSTRAIN_PULL_POLICY` | image pull policy | `IfNotPresent` |
| `ROBUSTRAIN_PULL_SECRETS` | comma-separated names of secrets | none |
| `ROBUSTRAIN_GPU_RESOURCE` | what the cluster calls a GPU | `nvidia.com/gpu` |
| `ROBUSTRAIN_QUEUE` | Kueue's local queue | none |
| `ROBUSTRAIN_BACKOFF_LIMIT` | new clusters after a failed one | 1 |
| `ROBUSTRAIN_IMAGE_GRACE` | seconds that an image may fail to arrive before the job is given up | 120 |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import UserError

RAY_VERSION = "2.60.0"
"""Ray in the training image; KubeRay chooses its defaults by it."""

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Resources:
    """What one stage needs.

    Args:
        cpus: cores of every working pod.
        memory_gib: memory of every working pod, GiB; /dev/shm counts towards it.
        gpus: GPUs of every working pod.
        workers: Ray workers of the stage. With 0 or 1 the head does the work alone, from 2 on it leads that many pods.
        workers_min: with how many of them it can begin, where it takes as many as the cluster has room for; 0: with all
            of them or none.
        deadline_s: seconds from the job's start after which KubeRay ends it.
    """

    cpus: float = 4
    memory_gib: float = 16
    gpus: int = 0
    workers: int = 0
    deadline_s: int = 24 * 3600
    workers_min: int = 0

    @property
    def is_elastic(self) -> bool:
        """Whether the number of working pods may vary."""
        return 0 < self.workers_min < self.workers

    def __post_init__(self) -> None:
        whole = (("gpus", 0), ("workers", 0), ("workers_min", 0), ("deadline_s", 1))
        for name, least in (("cpus", 0.1), ("memory_gib", 0.5), *whole):
            if getattr(self, name) < least:
                raise UserError(
                    "is too small",
                    where=f"resources.{name}",
                    value=getattr(self, name),
                    remedy=f"give at least {least}",
                )


@dataclass(frozen=True)
class Timing:
    """How patient the launcher is; seconds throughout."""

    retry_s: float = 0.5
    """First pause after a failed call; doubles up to 15 s."""
    patience_s: float = 60
    """A call is tried again for this long before the cluster counts as unreachable."""
    outage_s: float = 600
    """The same while a job runs: the cluster's own maintenance must not end a training of days."""
    watch_s: int = 30
    """A watch is closed and the job read anew after this long."""
    image_grace_s: float = 120
    """An image that cannot be pulled, or a container that cannot be configured, may still come right."""
    operator_grace_s: float = 300
    """KubeRay has to take notice of a new job within this time."""
    gone_s: float = 300
    """A finished job of the same name has to be gone within this time after its deletion."""
    drain_s: float = 10
    """The log may go on for this long after the job has ended."""
    warm_s: float = 20
    """The connection kept for the deletion is used this often, so that it is open when it is needed."""


@dataclass(frozen=True)
class RayJobSettings:
    """One installation's values for every job; see the table above."""

    image: str
    namespace: str = "default"
    run_id: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    config_map: str = "robustrain"
    secret: str = "robustrain-credentials"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    gpu_resource: str = "nvidia.com/gpu"
    queue: str = ""
    backoff_limit: int = 1
    ttl_s: int = 30
    head_cpus: float = 2
    head_memory_gib: float = 8
    ray_version: str = RAY_VERSION
    timing: Timing = field(default_factory=Timing)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RayJobSettings:
        """The settings that the environment names.

        Raises:
            UserError: no image is named, or a JSON value does not have the shape it needs.
        """
        env = os.environ if environment is None else environment
        image = env.get("ROBUSTRAIN_IMAGE", "")
        if not image:
            raise UserError(
                "no training image is named",
                where="ROBUSTRAIN_IMAGE",
                remedy="set it in the ConfigMap robustrain (k8s/base/config.yaml) or in the environment",
            )
        return cls(
            image=image,
            namespace=env.get("ROBUSTRAIN_NAMESPACE") or env.get("POD_NAMESPACE") or _own_namespace(),
            run_id=env.get("ROBUSTRAIN_KFP_RUN_ID", ""),
            pod_name=env.get("POD_NAME") or env.get("KFP_POD_NAME", ""),
            pod_uid=env.get("POD_UID") or env.get("KFP_POD_UID", ""),
            config_map=env.get("ROBUSTRAIN_CONFIG_MAP") or "robustrain",
            secret=env.get("ROBUSTRAIN_SECRET") or "robustrain-credentials",
            node_selector=_json(env, "ROBUSTRAIN_NODE_SELECTOR", dict, {}),
            tolerations=tuple(_json(env, "ROBUSTRAIN_TOLERATIONS", list, [])),
            pull_policy=env.get("ROBUSTRAIN_PULL_POLICY") or "IfNotPresent",
            pull_secrets=tuple(name.strip() for name in env.get("ROBUSTRAIN_PULL_SECRETS", "").split(",") if name),
            gpu_resource=env.get("ROBUSTRAIN_GPU_RESOURCE") or "nvidia.com/gpu",
            queue=env.get("ROBUSTRAIN_QUEUE", ""),
            backoff_limit=int(_number(env, "ROBUSTRAIN_BACKOFF_LIMIT", 1)),
            timing=Timing(image_grace_s=_number(env, "ROBUSTRAIN_IMAGE_GRACE", Timing.image_grace_s)),
        )


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.is_file() else "default"


def _json(env: Mapping[str, str], name: str, kind: type, default: Any) -> Any:
    text = env.get(name, "")
    if not text.strip():
        return default
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error}", where=name, value=text, remedy="quote names and values") from error
    items = value if isinstance(value, list) else [value]
    if not isinstance(value, kind) or not all(isinstance(item, dict) for item in items):
        shape = 'an object such as {"gpu": "a100"}' if kind is dict else 'a list such as [{"operator": "Exists"}]'
        raise UserError("has another shape", where=name, value=text, remedy=f"write {shape}")
    return value


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "").strip()
    try:
        value = float(text) if text else float(default)
    except ValueError as error:
        raise UserError("is not a number", where=name, value=text, remedy="write digits") from error
    if value < 0:
        raise UserError("is negative", where=name, value=text, remedy="write 0 or more")
    return value
