"""Submission through the real `kfp.Client` against a Kubeflow Pipelines API over HTTP: successes and failures.

No `from __future__ import annotations`: KFP reads the annotations of the pipeline below as objects.
"""

from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from components.launch import rayjob
from pipeline import kubeflow
from pipeline.kubeflow import RunFailedError, RunResult
from pipeline.kubeflow_client import KubeflowSettings
from tests.cluster_servers import crd
from tests.cluster_servers.kfp_api import Kubeflow, serve
from tests.cluster_servers.kubernetes_api import Cluster
from tests.faults.test_cluster_launcher import body, connected

NAMES = {"pipeline_name": "robustrain-tiny", "run_name": "tiny"}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client keeps a context file in the home folder."""
    from kfp.client import Client

    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled pipeline of one task with one parameter."""
    from kfp import compiler, components, dsl

    text = """
name: Echo
inputs: [{name: word, type: String}]
implementation: {container: {image: python, command: [echo, {inputValue: word}]}}
"""
    echo = components.load_component_from_text(text)

    @dsl.pipeline(name="tiny")
    def tiny(word: str = "hello") -> None:
        echo(word=word)

    path = tmp_path_factory.mktemp("package") / "pipeline.yaml"
    compiler.Compiler().compile(tiny, str(path))
    return path


def settings(host: str, **more: Any) -> KubeflowSettings:
    return KubeflowSettings(**{"host": host, "poll_s": 0.01, **more})


def submit(server: Kubeflow, package: Path, **more: Any) -> str:
    with serve(server) as host:
        return kubeflow.submit(package, **NAMES, parameters={"word": "x"}, settings=settings(host, **more))


def follow(server: Kubeflow, **more: Any) -> tuple[RunResult, list[str]]:
    lines: list[str] = []
    server.runs.setdefault("run-1", {"run_id": "run-1"})
    with serve(server) as host:
        return kubeflow.wait("run-1", settings=settings(host, **more), print_line=lines.append), lines


def test_a_package_is_uploaded_and_started(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    crd.need_contracts()
    server = Kubeflow(token="good")
    run = server.runs[submit(server, package, token="good", service_account="robustrain")]
    assert server.faults == []
    assert run["runtime_config"]["parameters"] == {"word": "x"}
    assert run["service_account"] == "robustrain"
    assert run["display_name"] == "tiny"
    assert list(server.experiments) == ["robustrain"]
    assert capfd.readouterr().out == "", "standard output belongs to the command"


def test_a_name_that_exists_gets_a_new_version_and_the_same_package_none(package: Path) -> None:
    server = Kubeflow(pipelines={"robustrain-tiny": "p"}, versions={"p": [("robustrain-tiny", "old")]})
    first = server.runs[submit(server, package)]["pipeline_version_reference"]
    again = server.runs[submit(server, package)]["pipeline_version_reference"]
    assert first == again
    assert first["pipeline_id"] == "p"
    assert first["pipeline_version_id"] not in {"old", None}
    assert len(server.versions["p"]) == 2
    assert len(server.experiments) == 1


def test_a_file_that_is_no_pipeline_is_refused_with_the_servers_message(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("pipelineInfo: {name: x}\nunknownField: 1\n")
    with pytest.raises(UserError, match=r"answered 400 .*the file is no pipeline"):
        submit(Kubeflow(), wrong)


@pytest.mark.parametrize(
    ("setup", "word"),
    [
        ({"token": "good"}, "refused the token.*ROBUSTRAIN_KFP_TOKEN"),
        ({"login": True}, "asks for a login"),
        ({"web_page": True}, "is not Kubeflow Pipelines"),
        ({"multi_user": True}, "no profile is set"),
        ({"forbidden": {"/runs"}}, "may not start the run: .*not authorized"),
    ],
)
def test_a_kubeflow_that_refuses_is_reported_in_one_line(setup: dict[str, Any], word: str, package: Path) -> None:
    with pytest.raises(UserError, match=word) as caught:
        submit(Kubeflow(**setup), package)
    assert "\n" not in str(caught.value)


def test_an_address_that_does_not_answer_is_reported_before_the_client_is_made(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Kubeflow()) as host:
        pass
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    with pytest.raises(UserError, match=r"does not answer.*ROBUSTRAIN_KFP_HOST"):
        kubeflow.submit(package, **NAMES, parameters={}, settings=settings(host))


def test_waiting_shows_the_tasks_and_ends_with_the_run() -> None:
    states = [
        ("PENDING", {}),
        ("RUNNING", {"root-driver": "SUCCEEDED", "encode": "RUNNING"}),
        ("RUNNING", {"root-driver": "SUCCEEDED", "encode": "RUNNING"}),
        ("SUCCEEDED", {"root-driver": "SUCCEEDED", "encode": "SUCCEEDED"}),
    ]
    result, lines = follow(Kubeflow(states=states))
    assert lines == ["encode: running", "encode: succeeded"]
    assert result.tasks == {"encode": "SUCCEEDED"}


def test_waiting_ends_when_the_run_is_cancelled() -> None:
    with pytest.raises(RunFailedError, match="was cancelled"):
        follow(Kubeflow(states=[("RUNNING", {}), ("CANCELING", {}), ("CANCELED", {})]))


def test_a_failed_run_names_its_stage_and_cause() -> None:
    states = [("FAILED", {"encode": "SUCCEEDED", "train": "FAILED"})]
    with pytest.raises(RunFailedError, match=r"stage train failed: out of memory.*#/runs/details/run-1"):
        follow(Kubeflow(states=states, errors={"train": "out of memory"}))


def test_a_short_outage_is_waited_for_and_a_long_one_is_reported() -> None:
    result, _ = follow(Kubeflow(busy=2))
    assert result.state == "SUCCEEDED"
    with pytest.raises(UserError, match="does not answer"):
        follow(Kubeflow(busy=10_000), outage_s=0.2)


def test_a_run_that_does_not_exist_is_reported() -> None:
    with serve(Kubeflow()) as host, pytest.raises(UserError, match="Run elsewhere not found"):
        kubeflow.wait("elsewhere", settings=settings(host))


def test_cancel_ends_the_run_and_deletes_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    server, kubernetes = Kubeflow(runs={"run-1": {"run_id": "run-1"}}), Cluster()
    name = body()["metadata"]["name"]
    kubernetes.put(name, body())
    with serve(server) as host, connected(kubernetes) as api:
        monkeypatch.setattr(rayjob, "connect", lambda: api)
        gone = kubeflow.cancel("run-1", settings=settings(host, job_namespace="team"))
    assert gone == [name]
    assert "POST /runs/run-1:terminate" in server.requests


def test_a_run_whose_jobs_cannot_be_deleted_is_reported_as_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise UserError("no cluster is configured", remedy="set KUBECONFIG")

    monkeypatch.setattr(rayjob, "connect", fails)
    server = Kubeflow(runs={"run-1": {"run_id": "run-1"}})
    with serve(server) as host, pytest.raises(UserError) as caught:
        kubeflow.cancel("run-1", settings=settings(host, job_namespace="team"))
    message = str(caught.value)
    assert "the run was cancelled, but its RayJobs could not be deleted: no cluster is configured" in message
    assert "kubectl -n team delete rayjobs -l robustrain/kfp-run-id=run-1" in message
    assert "POST /runs/run-1:terminate" in server.requests


def test_a_schedule_is_one_run_at_a_time_without_catching_up(package: Path) -> None:
    server = Kubeflow()
    with serve(server) as host:
        made = kubeflow.schedule(package, **NAMES, cron="0 0 2 * * 1", parameters={}, settings=settings(host))
    assert made == "schedule-1"
    assert server.faults == []
    assert server.schedules[0]["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * 1"}}
    assert (server.schedules[0]["no_catchup"], int(server.schedules[0]["max_concurrency"])) == (True, 1)


def test_a_cron_expression_of_five_fields_is_corrected_in_the_message(package: Path) -> None:
    with pytest.raises(UserError, match=r"write '0 0 2 \* \* 1'"):
        kubeflow.schedule(package, **NAMES, cron="0 2 * * 1", parameters={}, settings=settings("http://127.0.0.1:9"))


def test_settings_come_from_the_environment() -> None:
    got = KubeflowSettings.from_environment(
        {"KF_PIPELINES_ENDPOINT": "kubeflow.example.com/pipeline/", "ROBUSTRAIN_KFP_NAMESPACE": "team"}
    )
    assert got.host == "https://kubeflow.example.com/pipeline"
    assert got.job_namespace == got.namespace == "team"
    assert "secret" not in repr(got.model_copy(update={"token": "secret"}))
    with pytest.raises(UserError, match="ROBUSTRAIN_KFP_HOST"):
        KubeflowSettings.from_environment({})
