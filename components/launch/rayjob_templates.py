"""The pods of a RayJob: the head, the workers, and the submitter that hands the job in and prints its log."""

from __future__ import annotations

import math
from typing import Any

from components.launch.rayjob_settings import RayJobSettings, Resources


class PodTemplates:
    """Templates of the head, the workers and the submitter."""

    def __init__(
        self, labels: dict[str, str], resources: Resources, settings: RayJobSettings, environment: list[dict[str, str]]
    ) -> None:
        self._labels, self._resources, self._settings = labels, resources, settings
        self._environment = environment

    def head(self) -> dict[str, Any]:
        """The pod that runs the entrypoint: it does the work alone, or leads the workers and computes nothing."""
        wanted, settings = self._resources, self._settings
        parameters = {"dashboard-host": "0.0.0.0"}
        if wanted.workers > 1:
            parameters["num-cpus"] = "0"
            limits = _quantities(settings.head_cpus, settings.head_memory_gib)
        else:
            limits = self._working()
        container = self._container("ray-head", limits)
        container["ports"] = [
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
            {"containerPort": 10001, "name": "client"},
        ]
        memory = settings.head_memory_gib if wanted.workers > 1 else wanted.memory_gib
        template = self._template(container, memory)
        if wanted.is_elastic:
            # The autoscaler in this pod changes the number of workers, by a service account that KubeRay makes for it.
            template["spec"]["automountServiceAccountToken"] = True
        return {"rayStartParams": parameters, "template": template}

    def workers(self) -> dict[str, Any]:
        """The group of equal pods that train or attack: all of them or none, or, where the number may vary, the least
        number at first and more when Ray asks for them and the cluster has room."""
        most = self._resources.workers
        least = self._resources.workers_min if self._resources.is_elastic else most
        container = self._container("ray-worker", self._working())
        return {
            "groupName": "workers",
            "replicas": least,
            "minReplicas": least,
            "maxReplicas": most,
            "rayStartParams": {},
            "template": self._template(container, self._resources.memory_gib),
        }

    def autoscaler(self) -> dict[str, Any]:
        """Options of the container that KubeRay adds to the head of a cluster whose size may vary."""
        return {
            "securityContext": _unprivileged(),
            # A worker that has come must not go again while the training is still preparing.
            "idleTimeoutSeconds": 600,
        }

    def submitter(self) -> dict[str, Any]:
        """The small pod that hands in the job and prints its log; KubeRay fills in the command."""
        container = {
            "name": "ray-job-submitter",
            "image": self._settings.image,
            "imagePullPolicy": self._settings.pull_policy,
            "resources": _both(_quantities(0.5, 1)),
            "securityContext": _unprivileged(),
        }
        spec = self._pod_spec([container])
        spec["restartPolicy"] = "Never"
        return {"metadata": {"labels": dict(self._labels)}, "spec": spec}

    def _working(self) -> dict[str, str]:
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
            "resources": _both(limits),
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
            # Nothing in a training pod talks to Kubernetes (but for an autoscaler), so a stolen image gets no token.
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
    """Kubernetes quantities: whole cores or thousandths, MiB."""
    cpu = str(int(cpus)) if float(cpus).is_integer() else f"{math.ceil(cpus * 1000)}m"
    return {"cpu": cpu, "memory": f"{math.ceil(memory_gib * 1024)}Mi"}


def _both(limits: dict[str, str]) -> dict[str, dict[str, str]]:
    """Requests equal to limits: the pod is never evicted for using what it asked for, and Ray counts whole cores."""
    return {"requests": dict(limits), "limits": dict(limits)}


def _unprivileged() -> dict[str, Any]:
    """With the pod's security context: what the "restricted" Pod Security Standard asks for."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
