"""The launcher against a Kubernetes API over HTTP, with the real client: successes and failures."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from components.errors import UserError
from components.launch import rayjob
from components.launch.rayjob import RayJobSettings, Resources, Timing
from components.launch.rayjob_client import RayJobApi, connect
from tests.cluster_servers.kubernetes_api import Cluster, script, serve

FINGERPRINT = "0123456789abcdef" * 4
NAME = "adversarial-0123456789"
QUICK = Timing(
    retry_s=0.05,
    patience_s=3,
    outage_s=3,
    watch_s=1,
    operator_grace_s=30,
    gone_s=5,
    drain_s=3,
    keep_alive_s=0.2,
)
MINE = RayJobSettings(image="registry/train:1", namespace="team", run_id="run-1", image_grace_s=0.3, timing=QUICK)
OTHERS = MINE.model_copy(update={"run_id": "another"})
RUNS = (("Initializing", ""), ("Running", "PENDING"), ("Running", "RUNNING"))
SUCCEEDS = (*RUNS, ("Complete", "SUCCEEDED"))


def with_timing(**seconds: float) -> RayJobSettings:
    return MINE.model_copy(update={"timing": replace(QUICK, **seconds)})


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    with serve(cluster) as address:
        configuration = client.Configuration(host=address)
        configuration.api_key["authorization"] = "Bearer good"
        yield client.ApiClient(configuration)


def launch(cluster: Cluster, settings: RayJobSettings = MINE) -> None:
    with connected(cluster) as api:
        rayjob.launch("{}", **WORDS, resources=Resources(), settings=settings, api=api)


WORDS = {"stage": "adversarial", "kind": "adversarial", "package": "train", "fingerprint": FINGERPRINT}


def body(settings: RayJobSettings = MINE) -> dict[str, Any]:
    return rayjob.render("{}", **WORDS, resources=Resources(), settings=settings)


def pod(name: str, *, labels: dict[str, str], phase: str = "Running", waiting: tuple[str, str] | None = None) -> dict:
    state = {"waiting": {"reason": waiting[0], "message": waiting[1]}} if waiting else {"running": {}}
    status = {"name": "main", "image": MINE.image, "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {
        "metadata": {"name": name, "labels": labels},
        "status": {"phase": phase, "containerStatuses": [status]},
    }


def submitter(lines: list[str], phase: str = "Succeeded") -> Callable[[Cluster], None]:
    def appear(cluster: Cluster) -> None:
        cluster.pods = [pod("submitter", labels={"job-name": NAME}, phase=phase)]
        cluster.logs.setdefault("submitter", list(lines))

    return appear


def test_a_stage_runs_to_its_end_and_its_log_is_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="components")
    lines = ["2026-11-22T10:00:00.1Z epoch 1", "2026-11-22T10:00:00.12Z epoch 2"]
    cluster = Cluster(on_create=script(*SUCCEEDS), on_pods=submitter(lines))
    launch(cluster)
    printed = capfd.readouterr().out
    assert printed == "epoch 1\nepoch 2\n", "standard output has the stage's log and nothing else"
    assert f"RayJob {NAME}: Running/RUNNING" in caplog.messages
    assert NAME in cluster.jobs, "a succeeded job stays"


def test_a_log_that_breaks_off_is_taken_up_without_repeating(capfd: pytest.CaptureFixture[str]) -> None:
    lines = ["2026-11-22T10:00:00.1Z one", "CUT", "2026-11-22T10:00:00.12Z two"]
    launch(Cluster(on_create=script(*SUCCEEDS, pause=0.3), on_pods=submitter(lines)))
    assert capfd.readouterr().out.splitlines() == ["one", "two"]


def test_a_job_that_exists_is_attached_to(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="components")
    cluster = Cluster()
    existing = cluster.put(NAME, body(OTHERS))
    cluster.status(NAME, "Running", "RUNNING")
    cluster.on_pods = lambda it: it.status(NAME, "Complete", "SUCCEEDED")
    launch(cluster)
    assert f"RayJob {NAME}: exists, attached to it" in caplog.messages
    assert cluster.jobs[NAME]["metadata"]["uid"] == existing["metadata"]["uid"]
    assert ("delete", "rayjobs") not in cluster.requests


def test_a_dropped_creation_is_tried_again_and_the_conflict_is_ours() -> None:
    cluster = Cluster(drop_creates=1, on_create=script(*RUNS, ("Failed", "FAILED"), pause=0.3))
    with pytest.raises(UserError, match="Failed/FAILED"):
        launch(cluster)
    assert cluster.requests.count(("create", "rayjobs")) == 2
    assert not cluster.jobs, "a job whose creation was not answered is ours to delete"


def test_an_ended_job_of_the_same_name_is_replaced() -> None:
    cluster = Cluster(on_create=script(*SUCCEEDS))
    old = cluster.put(NAME, body())["metadata"]["uid"]
    cluster.status(NAME, "Failed", "FAILED")
    launch(cluster)
    assert cluster.jobs[NAME]["metadata"]["uid"] != old


def test_another_pipelines_job_that_is_deleted_is_claimed_again() -> None:
    cluster = Cluster()
    cluster.put(NAME, body(OTHERS))
    cluster.status(NAME, "Running", "RUNNING")

    def cancelled(it: Cluster) -> None:
        it.on_create = script(*SUCCEEDS)
        it.on_pods = None
        it.remove(NAME)

    cluster.on_pods = cancelled
    launch(cluster)
    assert cluster.jobs[NAME]["metadata"]["labels"]["robustrain/kfp-run-id"] == "run-1"


@pytest.mark.parametrize(
    ("status", "more", "word", "remedy"),
    [
        (("ValidationFailed", ""), {"message": "name is too long"}, "name is too long", "correct the value"),
        (("Complete", "STOPPED"), {}, "was stopped before it ended", "start the pipeline again"),
        (("Failed", "RUNNING"), {"reason": "DeadlineExceeded"}, "deadline", "raise the deadline"),
        (("Failed", ""), {"reason": "SubmissionFailed", "message": "timeout"}, "timeout", r"ray\[default\]"),
        (("Failed", "FAILED"), {"message": "log:\nValueError: x\n\n"}, "ValueError: x", "log above"),
    ],
)
def test_every_bad_end_is_one_line_and_leaves_no_job(
    status: tuple[str, str], more: dict[str, str], word: str, remedy: str
) -> None:
    cluster = Cluster(on_create=lambda it, name: it.status(name, *status, **more))
    with pytest.raises(UserError, match=f"{word}.*{remedy}") as caught:
        launch(cluster)
    assert NAME in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cluster.jobs


def test_the_stages_own_error_is_the_cause() -> None:
    lines = ["2026-11-22T10:00:00.1Z error: train.lr: is too large. lower it."]
    message = "Job entrypoint command failed with exit code 2"

    def fail(it: Cluster, name: str) -> None:
        it.status(name, "Failed", "FAILED", message=message)

    with pytest.raises(UserError, match=r"Failed/FAILED: train\.lr: is too large\. lower it"):
        launch(Cluster(on_create=fail, on_pods=submitter(lines, "Failed")))


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    def pulling(it: Cluster) -> None:
        reason = "ErrImagePull" if time.monotonic() % 0.2 < 0.1 else "ImagePullBackOff"
        it.pods = [pod("head", labels={"robustrain/rayjob": NAME}, phase="Pending", waiting=(reason, "not found"))]

    cluster = Cluster(on_create=script(("Initializing", "")), on_pods=pulling)
    with pytest.raises(UserError, match=r"cannot be pulled.*not found.*registry/train:1"):
        launch(cluster)
    assert not cluster.jobs


def test_an_image_that_comes_late_is_waited_for() -> None:
    cluster = Cluster(on_create=script(("Initializing", "")))
    turns = iter(range(100))

    def pulling(it: Cluster) -> None:
        late = next(turns) > 3
        waiting = None if late else ("ErrImagePull", "timeout")
        it.pods = [pod("head", labels={"robustrain/rayjob": NAME}, waiting=waiting)]
        if late:
            it.status(NAME, "Complete", "SUCCEEDED")

    cluster.on_pods = pulling
    launch(cluster, MINE.model_copy(update={"image_grace_s": 30}))
    assert next(turns) > 4, "the pods were checked until the image was there"


def test_a_missing_config_map_is_named() -> None:
    def configured(it: Cluster) -> None:
        fault = ("CreateContainerConfigError", 'configmap "robustrain" not found')
        it.pods = [pod("head", labels={"robustrain/rayjob": NAME}, phase="Pending", waiting=fault)]

    with pytest.raises(UserError, match='configmap "robustrain" not found'):
        launch(Cluster(on_create=script(("Initializing", "")), on_pods=configured))


def test_lost_and_expired_watches_do_no_harm() -> None:
    def end(it: Cluster, name: str) -> None:
        it.status(name, "Running", "RUNNING")
        it.wait(lambda _: it.requests.count(("watch", "rayjobs")) > 4)
        it.status(name, "Complete", "SUCCEEDED")

    cluster = Cluster(lose_watches=2, expire_watches=2, on_create=end)
    launch(cluster)
    assert cluster.lose_watches == cluster.expire_watches == 0


def test_a_cluster_that_is_busy_for_a_while_is_waited_for() -> None:
    cluster = Cluster(on_create=script(*SUCCEEDS), busy=3)
    launch(cluster)
    assert not cluster.busy


@pytest.mark.parametrize("expired", [0, 1])
def test_a_job_that_somebody_deletes_is_an_error_even_if_another_succeeds_in_its_place(expired: int) -> None:
    def replaced(it: Cluster) -> None:
        it.on_pods = None
        it.remove(NAME)
        it.put(NAME, body())
        it.status(NAME, "Complete", "SUCCEEDED")

    # The pods are looked at between the job's reading and its watch: the watch, or the next reading, has to notice it.
    with pytest.raises(UserError, match="was deleted while it ran"):
        launch(Cluster(on_pods=replaced, expire_watches=expired))


def test_a_cluster_without_an_operator_is_noticed() -> None:
    cluster = Cluster()
    with pytest.raises(UserError, match="KubeRay has not set its status"):
        launch(cluster, with_timing(operator_grace_s=0.2))
    assert not cluster.jobs


@pytest.mark.parametrize(
    ("setup", "word"),
    [
        ({"token": "other"}, "refused the token"),
        ({"forbidden": {("create", "rayjobs")}}, "may not create rayjobs"),
        ({"forbidden": {("list", "pods")}, "on_create": script(("Initializing", ""))}, "may not list pods"),
        ({"namespace": "elsewhere"}, "does not know RayJobs or the namespace"),
    ],
)
def test_a_cluster_that_refuses_is_reported_in_one_line(setup: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        launch(Cluster(**setup))


def test_an_unreachable_cluster_is_reported_in_one_line() -> None:
    with connected(Cluster()) as api:
        pass
    with pytest.raises(UserError, match="does not answer"):
        rayjob.launch("{}", **WORDS, resources=Resources(), settings=with_timing(patience_s=0.2), api=api)


def test_cancel_deletes_the_jobs_of_one_run() -> None:
    cluster = Cluster()
    cluster.put(NAME, body())
    cluster.put("other", {"metadata": {"name": "other", "labels": {"robustrain/kfp-run-id": "run-2"}}})
    with connected(cluster) as api:
        assert rayjob.cancel("run-1", namespace="team", timing=QUICK, api=api) == [NAME]
    assert list(cluster.jobs) == ["other"]


@pytest.mark.parametrize(("owner", "left"), [(MINE, []), (OTHERS, [NAME])])
def test_an_interruption_before_the_creation_is_answered_deletes_our_job_and_no_others(
    owner: RayJobSettings, left: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="components")
    cluster = Cluster()

    def interrupted(self: RayJobApi, body_: dict[str, Any]) -> None:
        cluster.put(NAME, body(owner))
        raise KeyboardInterrupt

    monkeypatch.setattr(RayJobApi, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(cluster)
    assert list(cluster.jobs) == left
    text = f"RayJob {NAME}: {'did not exist any more' if left else 'deleted'}"
    [record] = [record for record in caplog.records if record.getMessage() == text]
    assert record.threadName == "MainThread", "another thread would wait for a lock that the main thread may hold"


CHILD = """
import os, signal, sys
from kubernetes import client
from components.launch import rayjob
from tests.faults.test_cluster_launcher import MINE, WORDS
# The previous handler ends the process at once, so the deletion has to come first.
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))
configuration = client.Configuration(host=sys.argv[1])
configuration.api_key["authorization"] = "Bearer good"
rayjob.launch("{}", **WORDS, resources=rayjob.Resources(), settings=MINE, api=client.ApiClient(configuration))
"""


def start(address: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, address],
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_sigterm_deletes_our_job_first_and_leaves_another_pipelines_job() -> None:
    mine, theirs = Cluster(on_create=script(*RUNS)), Cluster()
    theirs.put(NAME, body(OTHERS))
    theirs.status(NAME, "Running", "RUNNING")
    with serve(mine) as one, serve(theirs) as two:
        processes = [start(one), start(two)]
        for cluster in (mine, theirs):
            cluster.wait(lambda it: it.watches > 1)
        before = len(mine.requests)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert not mine.jobs
    after = [call for call in mine.requests[before:] if call[0] != "list" and call[1] == "rayjobs"]
    assert after[0] == ("delete", "rayjobs")
    assert list(theirs.jobs) == [NAME]
    assert "Traceback" not in "".join(outputs)


def test_outside_a_pod_the_kubeconfig_names_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    file = tmp_path / "config"
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    with pytest.raises(UserError, match="set KUBECONFIG"):
        connect()
    file.write_text(
        """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: me}}]
clusters: [{name: here, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: me, user: {token: good}}]
"""
    )
    assert connect().configuration.host == "http://127.0.0.1:1"
