"""The Kubernetes manifests: they render, they fit together, and the Role grants the launcher's calls and no others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import UserError
from components.launch.rayjob import RayJobSettings, Resources, cancel, render
from tests.cluster_servers import crd
from tests.cluster_servers.kubernetes_api import Cluster
from tests.faults.test_cluster_launcher import MINE, NAME, body, connected, launch, pod, script, submitter

K8S = Path(__file__).parents[2] / "k8s"
SAMPLE = K8S / "samples" / "rayjob.yaml"
UPDATE = "UPDATE_SAMPLES"
SAMPLE_HEADER = f"""\
# The RayJob that the launcher creates for one stage: adversarial training on two workers of four GPUs each.
# Rendered by the launcher; a test compares. To write it again after a change:
#   {UPDATE}=1 pytest tests/unit/test_cluster_kustomize.py
"""


def kustomize(folder: str) -> dict[str, list[dict[str, Any]]]:
    """The rendered objects of a folder, by kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine: the kustomize folders were not rendered")
    text = subprocess.run(
        ["kubectl", "kustomize", str(K8S / folder)], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    found: dict[str, list[dict[str, Any]]] = {}
    for thing in yaml.safe_load_all(text):
        found.setdefault(thing["kind"], []).append(thing)
    return found


def role() -> set[tuple[str, str]]:
    """(verb, resource) that the Role grants."""
    rules = yaml.safe_load((K8S / "base" / "role.yaml").read_text())["rules"]
    assert {group for rule in rules for group in rule["apiGroups"]} == {"ray.io", ""}
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


@pytest.mark.parametrize("folder", ["base", "overlays/example"])
def test_kustomize_renders_objects_that_refer_to_each_other(folder: str) -> None:
    found = kustomize(folder)
    assert set(found) == {"Namespace", "ServiceAccount", "Role", "RoleBinding", "ConfigMap"}
    space = found["Namespace"][0]["metadata"]["name"]
    for kind in set(found) - {"Namespace"}:
        assert [thing["metadata"]["namespace"] for thing in found[kind]] == [space], kind
    binding = found["RoleBinding"][0]
    assert binding["roleRef"]["name"] == found["Role"][0]["metadata"]["name"]
    accounts = [(subject["name"], subject["namespace"]) for subject in binding["subjects"]]
    assert (found["ServiceAccount"][0]["metadata"]["name"], space) in accounts


@pytest.mark.parametrize("folder", ["base", "overlays/example"])
def test_the_launcher_reads_the_config_map(folder: str) -> None:
    config = kustomize(folder)["ConfigMap"][0]
    settings = RayJobSettings.from_environment({**config["data"], "POD_NAMESPACE": "team"})
    assert settings.image == config["data"]["ROBUSTRAIN_IMAGE"]
    assert settings.config_map == config["metadata"]["name"]
    if folder != "base":
        assert settings.tolerations
        assert settings.node_selector


def test_the_role_grants_exactly_the_launchers_calls() -> None:
    requested: set[tuple[str, str]] = set()
    lines = ["2026-11-22T10:00:00Z hello"]
    good = Cluster(on_create=script(("Running", "RUNNING"), ("Complete", "SUCCEEDED"), pause=0.4))
    good.on_pods = submitter(lines)
    launch(good)
    bad = Cluster(on_create=script(("Initializing", "")))
    waiting = ("ErrImagePull", "not found")
    bad.pods = [pod("head", labels={"robustrain/rayjob": NAME}, phase="Pending", waiting=waiting)]
    with pytest.raises(UserError, match="cannot be pulled"):
        launch(bad)
    left = Cluster()
    left.put(NAME, body())
    with connected(left) as api:
        cancel(MINE.run_id, namespace=MINE.namespace, timing=MINE.timing, api=api)
    for cluster in (good, bad, left):
        requested |= set(cluster.requests)
    assert requested == role()


def test_the_sample_is_rendered_by_the_launcher() -> None:
    settings = RayJobSettings(
        image="registry.example.com/robustrain/train:0.1.0",
        namespace="robustrain",
        run_id="3d1f6a2e-8a4b-4f6f-9a0e-0d7f0a1c2b3d",
        pod_name="robustrain-imagenet-x7k2p-system-container-impl-1234567890",
        pod_uid="6c1d0b0e-5a5b-4c4d-8e8f-000000000001",
        tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    )
    spec = {"name": "adversarial", "kind": "adversarial", "config": {"epochs": 50}, "seed": 0}
    rendered = render(
        json.dumps(spec),
        stage="adversarial",
        kind="adversarial",
        package="train",
        fingerprint="0123456789abcdef" * 4,
        resources=Resources(cpus=32, memory_gib=256, gpus=4, workers=2, deadline_s=4 * 86_400),
        settings=settings,
    )
    if os.environ.get(UPDATE):
        SAMPLE.write_text(SAMPLE_HEADER + yaml.safe_dump(rendered, sort_keys=False, width=120))
    text = SAMPLE.read_text()
    assert text.startswith(SAMPLE_HEADER)
    assert yaml.safe_load(text) == rendered
    assert crd.faults(yaml.safe_load(text), crd.need_contracts()) == []
