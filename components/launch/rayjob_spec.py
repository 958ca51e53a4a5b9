"""Renders the RayJob custom resource of one stage as a plain dict: a pure function of its arguments.

`render` builds the job, `PodTemplates` its pods: the head, the workers, and the submitter that submits the job to Ray
and prints its log. KubeRay silently drops fields that it does not know, so a test validates the result against the CRD
with unknown fields forbidden.

Source: ray.io/v1 RayJob (KubeRay 1.7).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

from components.errors import UserError
from components.launch.rayjob_settings import RayJobSettings
from components.launch.resources import Resources

MAX_NAME = 47
"""KubeRay appends its own suffixes to the name and marks longer names ValidationFailed."""

MAX_SPEC_BYTES = 100_000
"""Linux refuses a single environment variable of 128 KiB."""

FINGERPRINT_DIGITS = 10
RUN_LABEL = "robustrain/kfp-run-id"
STAGE_LABEL = "robustrain/stage"
FINGERPRINT_LABEL = "robustrain/fingerprint"
JOB_LABEL = "robustrain/rayjob"
FINGERPRINT_ANNOTATION = "robustrain/fingerprint"
SPEC_VARIABLE = "ROBUSTRAIN_SPEC"

_PACKAGE = re.compile(r"[a-z][a-z_]*")
_HEX = re.compile(r"[0-9a-f]{12,64}")


def job_name(stage: str, fingerprint: str) -> str:
    """`<stage>-<first ten digits of the fingerprint>` as a DNS-1035 label of at most 47 characters.

    The same stage and fingerprint give the same name on every machine: creating the job is the claim on the work.
    """
    assert _HEX.fullmatch(fingerprint), fingerprint
    word = re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")
    word = word if word[:1].isalpha() else f"s-{word}".rstrip("-")
    word = word[: MAX_NAME - FINGERPRINT_DIGITS - 1].rstrip("-")
    return f"{word}-{fingerprint[:FINGERPRINT_DIGITS]}"


def label_value(text: str) -> str:
    """`text` as a Kubernetes label value: at most 63 characters, alphanumeric at both ends."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")


def render(
    spec_json: str,
    *,
    stage: str,
    kind: str,
    package: str,
    fingerprint: str,
    resources: Resources,
    settings: RayJobSettings,
) -> dict[str, Any]:
    """The RayJob that runs `python -m components.<package>` with `spec_json` in the environment.

    Args:
        spec_json: the stage's specification, one JSON object.
        stage: the stage's name in the recipe.
        kind: its kind in the stage table.
        package: the package under `components` that does the work.
        fingerprint: hex digits, at least 12.
        resources: of every working pod.
        settings: of the installation.

    Raises:
        UserError: the specification does not fit into an environment variable.
    """
    assert _PACKAGE.fullmatch(package), package
    name = job_name(stage, fingerprint)
    labels = _labels(name, stage, kind, fingerprint, settings)
    if settings.queue:
        # Kueue admits a job as a whole and refuses one whose size may vary.
        resources = replace(resources, workers_min=0)
    pods = PodTemplates(labels, resources, settings, _environment(spec_json))
    cluster: dict[str, Any] = {"rayVersion": settings.ray_version, "headGroupSpec": pods.head()}
    if resources.workers > 1:
        cluster["workerGroupSpecs"] = [pods.workers()]
    if resources.is_elastic:
        cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": pods.autoscaler()}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name, labels, fingerprint, settings),
        "spec": {
            "entrypoint": f"python -m components.{package}",
            "submissionMode": "K8sJobMode",
            "activeDeadlineSeconds": resources.deadline_s,
            "backoffLimit": settings.backoff_limit,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": settings.ttl_s,
            "rayClusterSpec": cluster,
            "submitterPodTemplate": pods.submitter(),
        },
    }


def _labels(name: str, stage: str, kind: str, fingerprint: str, settings: RayJobSettings) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/part-of": "robustrain",
        JOB_LABEL: name,
        STAGE_LABEL: label_value(stage),
        "robustrain/kind": label_value(kind),
        # A label holds 63 characters and a sha256 has 64 digits: half of it here, all of it in an annotation.
        FINGERPRINT_LABEL: fingerprint[:32],
    }
    if settings.run_id:
        labels[RUN_LABEL] = label_value(settings.run_id)
    return labels


def _metadata(name: str, labels: dict[str, str], fingerprint: str, settings: RayJobSettings) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": settings.namespace,
        "labels": dict(labels),
        "annotations": {FINGERPRINT_ANNOTATION: fingerprint},
    }
    if settings.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
    if settings.pod_name and settings.pod_uid:
        # Kubernetes deletes the job with the step's pod, so that a deleted pipeline leaves no GPUs in use. Without
        # `controller` and `blockOwnerDeletion`: both would need rights on pods that the service account does not have.
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Pod", "name": settings.pod_name, "uid": settings.pod_uid}
        ]
    return metadata


def _environment(spec_json: str) -> list[dict[str, str]]:
    text = json.dumps(json.loads(spec_json), separators=(",", ":"))
    # Kubernetes expands $(NAME) in values. A "$" occurs only in JSON strings, where \u0024 means the same.
    text = text.replace("$", "\\u0024")
    if len(text) > MAX_SPEC_BYTES:
        raise UserError(
            f"the stage's specification has {len(text)} bytes; an environment variable takes {MAX_SPEC_BYTES}",
            remedy="move long lists of the recipe into a file of the object store",
        )
    return [
        {"name": SPEC_VARIABLE, "value": text},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        # The stage's results go to MLflow and the object store; this folder is scratch.
        {"name": "ROBUSTRAIN_HOME", "value": "/scratch"},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
    ]


class PodTemplates:
    """Templates of the head, the workers and the submitter."""

    def __init__(
        self, labels: dict[str, str], resources: Resources, settings: RayJobSettings, environment: list[dict[str, str]]
    ) -> None:
        self._labels, self._resources, self._settings = labels, resources, settings
        self._environment = environment

    def head(self) -> dict[str, Any]:
        """The pod that runs the entrypoint: it does all the work, or it leads the workers and computes nothing."""
        resources, settings = self._resources, self._settings
        parameters = {"dashboard-host": "0.0.0.0"}
        if resources.workers > 1:
            parameters["num-cpus"] = "0"
            limits = _quantities(settings.head_cpus, settings.head_memory_gib)
        else:
            limits = self._worker_limits()
        container = self._container("ray-head", limits)
        container["ports"] = [
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
            {"containerPort": 10001, "name": "client"},
        ]
        memory = settings.head_memory_gib if resources.workers > 1 else resources.memory_gib
        template = self._template(container, memory)
        if resources.is_elastic:
            # The autoscaler in this pod changes the number of workers, with a service account that KubeRay creates.
            template["spec"]["automountServiceAccountToken"] = True
        return {"rayStartParams": parameters, "template": template}

    def workers(self) -> dict[str, Any]:
        """The group of equal pods that train or attack.

        A fixed number starts as a whole or not at all. A range starts with its smallest number and grows when Ray asks
        for more and the cluster has free nodes.
        """
        largest = self._resources.workers
        smallest = self._resources.workers_min if self._resources.is_elastic else largest
        container = self._container("ray-worker", self._worker_limits())
        return {
            "groupName": "workers",
            "replicas": smallest,
            "minReplicas": smallest,
            "maxReplicas": largest,
            "rayStartParams": {},
            "template": self._template(container, self._resources.memory_gib),
        }

    def autoscaler(self) -> dict[str, Any]:
        """Options of the autoscaler container that KubeRay adds to the head of a cluster whose size may vary."""
        return {
            "securityContext": _unprivileged(),
            # A new worker must not be removed while the training is still preparing.
            "idleTimeoutSeconds": 600,
        }

    def submitter(self) -> dict[str, Any]:
        """The small pod that submits the job to Ray and prints its log; KubeRay fills in the command."""
        container = {
            "name": "ray-job-submitter",
            "image": self._settings.image,
            "imagePullPolicy": self._settings.pull_policy,
            "resources": _requests_and_limits(_quantities(0.5, 1)),
            "securityContext": _unprivileged(),
        }
        spec = self._pod_spec([container])
        spec["restartPolicy"] = "Never"
        return {"metadata": {"labels": dict(self._labels)}, "spec": spec}

    def _worker_limits(self) -> dict[str, str]:
        limits = _quantities(self._resources.cpus, self._resources.memory_gib)
        if self._resources.gpus:
            limits[self._settings.gpu_resource] = str(self._resources.gpus)
        return limits

    def _container(self, name: str, limits: dict[str, str]) -> dict[str, Any]:
        settings = self._settings
        return {
            "name": name,
            "image": settings.image,
            "imagePullPolicy": settings.pull_policy,
            "env": [dict(entry) for entry in self._environment],
            "envFrom": [
                {"configMapRef": {"name": settings.config_map}},
                # Clusters with workload identity have no secret.
                {"secretRef": {"name": settings.secret, "optional": True}},
            ],
            "resources": _requests_and_limits(limits),
            "securityContext": _unprivileged(),
            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "scratch", "mountPath": "/scratch"}],
        }

    def _template(self, container: dict[str, Any], memory_gib: float) -> dict[str, Any]:
        spec = self._pod_spec([container])
        settings = self._settings
        if settings.node_selector:
            spec["nodeSelector"] = dict(settings.node_selector)
        if settings.tolerations:
            spec["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
        # Ray's object store takes 30 % of the memory in /dev/shm; the container's default of 64 MiB stops it.
        shm = {"medium": "Memory", "sizeLimit": f"{max(1, math.floor(0.4 * memory_gib))}Gi"}
        spec["volumes"] = [{"name": "shm", "emptyDir": shm}, {"name": "scratch", "emptyDir": {}}]
        # Time to write a checkpoint after SIGTERM.
        spec["terminationGracePeriodSeconds"] = 60
        return {"metadata": {"labels": dict(self._labels)}, "spec": spec}

    def _pod_spec(self, containers: list[dict[str, Any]]) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "containers": containers,
            # Only an autoscaler talks to Kubernetes, so code in a training pod gets no token.
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        if self._settings.pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in self._settings.pull_secrets]
        return spec


def _quantities(cpus: float, memory_gib: float) -> dict[str, str]:
    """Kubernetes quantities: cores (whole or in thousandths) and MiB."""
    cpu = str(int(cpus)) if float(cpus).is_integer() else f"{math.ceil(cpus * 1000)}m"
    return {"cpu": cpu, "memory": f"{math.ceil(memory_gib * 1024)}Mi"}


def _requests_and_limits(limits: dict[str, str]) -> dict[str, dict[str, str]]:
    """Requests equal to limits: a pod is never evicted for using what it requested, and Ray counts whole cores."""
    return {"requests": dict(limits), "limits": dict(limits)}


def _unprivileged() -> dict[str, Any]:
    """Together with the pod's security context: what the "restricted" Pod Security Standard requires."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
