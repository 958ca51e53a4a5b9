"""The RayJob custom resource of one stage, as a plain dict: a pure function of its arguments.

KubeRay silently drops fields that it does not know, so a test holds the result against the CRD made strict.
Source: ray.io/v1 RayJob (KubeRay 1.7).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from components.errors import UserError
from components.launch.rayjob_settings import RayJobSettings, Resources
from components.launch.rayjob_templates import PodTemplates

MAX_NAME = 47
"""KubeRay appends its own endings to the name and marks longer ones ValidationFailed."""

MAX_SPEC_BYTES = 100_000
"""Linux refuses a single environment variable of 128 KiB."""

FINGERPRINT_DIGITS = 10
RUN_LABEL = "robustrain/kfp-run-id"
STAGE_LABEL = "robustrain/stage"
FINGERPRINT_LABEL = "robustrain/fingerprint"
JOB_LABEL = "robustrain/rayjob"
FINGERPRINT_ANNOTATION = "robustrain/fingerprint"
SPEC_VARIABLE = "ROBUSTRAIN_SPEC"

_ROOM = re.compile(r"[a-z][a-z_]*")
_HEX = re.compile(r"[0-9a-f]{12,64}")


def job_name(stage: str, fingerprint: str) -> str:
    """`<stage>-<first ten digits of the fingerprint>` as a DNS-1035 label of at most 47 characters.

    The same stage and fingerprint give the same name on every machine: creating it is the claim on the work.
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
    room: str,
    fingerprint: str,
    resources: Resources,
    settings: RayJobSettings,
) -> dict[str, Any]:
    """The RayJob that runs `python -m components.<room>` with `spec_json` in the environment.

    Args:
        spec_json: the stage's specification, one JSON object.
        stage: the stage's name in the recipe.
        kind: its kind in the stage table.
        room: the package under `components` that does the work.
        fingerprint: hex digits, at least 12.
        resources: of every working pod.
        settings: of the installation.

    Raises:
        UserError: the specification does not fit into an environment variable.
    """
    assert _ROOM.fullmatch(room), room
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
            "entrypoint": f"python -m components.{room}",
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
        # The job goes when the step's pod goes, so that a deleted pipeline leaves no GPUs in use. Not a controller, and
        # it does not block the pod's deletion: both would need rights on pods that the service account does not have.
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Pod", "name": settings.pod_name, "uid": settings.pod_uid}
        ]
    return metadata


def _environment(spec_json: str) -> list[dict[str, str]]:
    text = json.dumps(json.loads(spec_json), separators=(",", ":"))
    # Kubernetes expands $(NAME) in values. A "$" stands only inside JSON strings, where \u0024 says the same.
    text = text.replace("$", "\\u0024")
    if len(text) > MAX_SPEC_BYTES:
        raise UserError(
            f"the stage's specification has {len(text)} bytes, more than the {MAX_SPEC_BYTES} that fit into a variable",
            remedy="put long lists of the recipe into a file of the object store",
        )
    return [
        {"name": SPEC_VARIABLE, "value": text},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        # Everything the stage keeps goes to MLflow and the object store; this folder is scratch.
        {"name": "ROBUSTRAIN_HOME", "value": "/scratch"},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
    ]
