"""The rendered RayJob: valid against the published CRD made strict, safe names, nothing expanded or lost."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import UserError
from components.launch.rayjob import RayJobSettings, Resources, job_name, render
from tests.cluster_servers import crd

FINGERPRINT = "0123456789abcdef" * 4
PLAIN = RayJobSettings(image="registry/robustrain-train:1", namespace="team")
FULL = RayJobSettings(
    image="registry/robustrain-train@sha256:" + "a" * 64,
    namespace="team",
    run_id="3d1f6a2e-8a4b-4f6f-9a0e-0d7f0a1c2b3d",
    pod_name="robustrain-x7-impl-123",
    pod_uid="6c1d0b0e-0000-4000-8000-000000000001",
    node_selector={"accelerator": "a100"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    pull_secrets=("registry",),
    queue="gpu",
)
SMALL = Resources()
CASES = {
    "plain": (PLAIN, Resources()),
    "all settings": (FULL, Resources(cpus=8, memory_gib=64, gpus=8)),
    "a range of workers": (PLAIN, Resources(gpus=1, workers=4, workers_min=1)),
    "workers": (FULL, Resources(cpus=0.5, memory_gib=1.5, gpus=1, workers=4, deadline_s=3600)),
}


def make(settings: RayJobSettings = PLAIN, resources: Resources = SMALL, **more: str) -> dict:
    words = {
        "stage": "adversarial",
        "kind": "adversarial",
        "package": "train",
        "spec": '{"name": "adversarial"}',
        **more,
    }
    spec = words.pop("spec")
    return render(spec, fingerprint=FINGERPRINT, resources=resources, settings=settings, **words)


def containers(body: dict) -> dict[str, dict]:
    spec = body["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
    return {c["name"]: c for group in groups for c in group["template"]["spec"]["containers"]}


@pytest.mark.parametrize("case", CASES)
def test_the_crd_accepts_it(case: str) -> None:
    folder = crd.need_contracts()
    settings, resources = CASES[case]
    assert crd.faults(make(settings, resources), folder) == []


def test_the_strict_schema_finds_what_the_api_server_drops() -> None:
    folder = crd.need_contracts()
    body = make()
    body["spec"]["shutdownAfterJobFinish"] = True
    body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullpolicy"] = "Always"
    body["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    found = "\n".join(crd.faults(body, folder))
    assert "shutdownAfterJobFinish" in found
    assert "imagePullpolicy" in found
    assert "rayStartParams" in found


def test_the_job_belongs_to_the_step_and_carries_its_labels() -> None:
    metadata = make(FULL)["metadata"]
    assert metadata["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": FULL.pod_name, "uid": FULL.pod_uid}
    ]
    assert metadata["labels"]["robustrain/kfp-run-id"] == FULL.run_id
    assert metadata["labels"]["robustrain/stage"] == "adversarial"
    assert FINGERPRINT.startswith(metadata["labels"]["robustrain/fingerprint"])
    assert metadata["annotations"]["robustrain/fingerprint"] == FINGERPRINT
    assert "ownerReferences" not in make(PLAIN)["metadata"]


def test_a_deadline_and_a_clean_end_are_always_set() -> None:
    spec = make(resources=Resources(deadline_s=77))["spec"]
    assert spec["activeDeadlineSeconds"] == 77
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == 1


def test_the_head_works_alone_or_leads_workers() -> None:
    alone = make(resources=Resources(cpus=8, memory_gib=64, gpus=2))
    assert list(containers(alone)) == ["ray-head"]
    assert make(resources=Resources(cpus=8, memory_gib=64, gpus=2, workers=1)) == alone
    assert containers(alone)["ray-head"]["resources"]["limits"] == {
        "cpu": "8",
        "memory": "65536Mi",
        "nvidia.com/gpu": "2",
    }
    led = make(resources=Resources(cpus=8, memory_gib=64, gpus=2, workers=3))
    assert "nvidia.com/gpu" not in containers(led)["ray-head"]["resources"]["limits"]
    assert containers(led)["ray-worker"]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert led["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    group = led["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3


def test_a_range_of_workers_begins_with_the_least_and_may_grow() -> None:
    cluster = make(resources=Resources(gpus=1, workers=4, workers_min=2))["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (2, 2, 4)
    assert cluster["enableInTreeAutoscaling"] is True
    head, worker = (one["template"]["spec"] for one in (cluster["headGroupSpec"], group))
    assert head["automountServiceAccountToken"] is True, "the autoscaler in the head talks to Kubernetes"
    assert worker["automountServiceAccountToken"] is False


def test_a_queue_admits_all_workers_or_none() -> None:
    wanted = Resources(gpus=1, workers=4, workers_min=2)
    assert make(FULL, wanted) == make(FULL, Resources(gpus=1, workers=4))


@pytest.mark.parametrize("wanted", [{"workers": 4}, {"workers": 4, "workers_min": 4}, {"workers": 1, "workers_min": 1}])
def test_a_number_of_workers_is_never_scaled(wanted: dict[str, int]) -> None:
    cluster = make(resources=Resources(**wanted))["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster
    for group in cluster.get("workerGroupSpecs", []):
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 4
    assert cluster["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_working_pods_have_shared_memory_selectors_and_secrets() -> None:
    template = make(FULL, Resources(memory_gib=10))["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    shm = next(volume for volume in template["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in template["containers"][0]["volumeMounts"]
    assert template["nodeSelector"] == {"accelerator": "a100"}
    assert template["tolerations"][0]["operator"] == "Exists"
    assert template["automountServiceAccountToken"] is False
    assert template["imagePullSecrets"] == [{"name": "registry"}]
    sources = template["containers"][0]["envFrom"]
    assert sources[0] == {"configMapRef": {"name": "robustrain"}}
    assert sources[1]["secretRef"]["name"] == "robustrain-credentials"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(name=TEXT)
@settings(max_examples=60, deadline=None)
def test_any_specification_arrives_whole(name: str) -> None:
    spec = {"name": name, "config": {"a": "$(HOME) $$(X) \\$(Y)"}}
    env = {entry["name"]: entry["value"] for entry in containers(make(spec=json.dumps(spec)))["ray-head"]["env"]}
    assert json.loads(env["ROBUSTRAIN_SPEC"]) == spec
    assert "$" not in env["ROBUSTRAIN_SPEC"], "Kubernetes expands $(NAME)"


def test_the_entrypoint_has_no_word_a_shell_would_read() -> None:
    entrypoint = make(package="evaluate", spec='{"name": "; rm -rf $HOME"}')["spec"]["entrypoint"]
    assert entrypoint == "python -m components.evaluate"
    assert all(shlex.quote(word) == word for word in entrypoint.split())
    with pytest.raises(AssertionError):
        make(package="train; true")


def test_a_specification_too_large_for_a_variable_is_refused() -> None:
    with pytest.raises(UserError, match="takes 100000"):
        make(spec=json.dumps({"long": "x" * 100_001}))


@given(
    stage=TEXT | st.text("abcXYZ019_-. é", max_size=80),
    fingerprint=st.text("0123456789abcdef", min_size=64, max_size=64),
)
@settings(max_examples=300, deadline=None)
def test_names_are_dns_labels_that_keep_the_fingerprint(stage: str, fingerprint: str) -> None:
    name = job_name(stage, fingerprint)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
    assert len(name) <= 47
    assert name.endswith("-" + fingerprint[:10])
    assert name == job_name(stage, fingerprint)


def test_names_are_readable() -> None:
    assert job_name("adversarial_linf", FINGERPRINT) == "adversarial-linf-0123456789"
    assert job_name("2nd", FINGERPRINT) == "s-2nd-0123456789"


def test_settings_come_from_the_environment() -> None:
    got = RayJobSettings.from_environment(
        {
            "ROBUSTRAIN_IMAGE": "i:1",
            "POD_NAMESPACE": "team",
            "KFP_POD_NAME": "p",
            "KFP_POD_UID": "u",
            "ROBUSTRAIN_NODE_SELECTOR": '{"gpu": "a100"}',
            "ROBUSTRAIN_TOLERATIONS": '[{"operator": "Exists"}]',
            "ROBUSTRAIN_PULL_SECRETS": "a, b",
            "ROBUSTRAIN_IMAGE_GRACE": "5",
        }
    )
    assert (got.image, got.namespace, got.pod_name, got.pod_uid) == ("i:1", "team", "p", "u")
    assert got.node_selector == {"gpu": "a100"}
    assert got.tolerations == ({"operator": "Exists"},)
    assert got.pull_secrets == ("a", "b")
    assert got.image_grace_s == 5


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("ROBUSTRAIN_IMAGE", "", "is not set"),
        ("ROBUSTRAIN_NODE_SELECTOR", "gpu=a100", "is not JSON"),
        ("ROBUSTRAIN_NODE_SELECTOR", "[]", "wrong shape"),
        ("ROBUSTRAIN_TOLERATIONS", '["Exists"]', "wrong shape"),
        ("ROBUSTRAIN_BACKOFF_LIMIT", "many", "not a number"),
        ("ROBUSTRAIN_BACKOFF_LIMIT", "-1", "is less than 0"),
    ],
)
def test_wrong_settings_name_the_variable(variable: str, value: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        RayJobSettings.from_environment({"ROBUSTRAIN_IMAGE": "i:1", variable: value})
    assert variable in str(caught.value)


def test_resources_that_cannot_run_are_refused() -> None:
    with pytest.raises(UserError, match=r"resources\.cpus"):
        Resources(cpus=0)
