"""`robustrain run --on kubeflow` and `cancel` from the command line, with a real recipe, against a Kubeflow over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from components.launch import rayjob
from pipeline import kubeflow
from pipeline.cli import app
from pipeline.recipe import load
from tests.cluster_servers.kfp_api import Kubeflow, serve
from tests.cluster_servers.kubernetes_api import Cluster
from tests.faults.test_cluster_launcher import body, connected

TINY = str(Path(__file__).parents[1] / "e2e" / "tiny.yaml")
STAGES = list(load(TINY).stages)


@pytest.fixture
def server() -> Kubeflow:
    return Kubeflow(states=[("SUCCEEDED", dict.fromkeys(STAGES, "SUCCEEDED"))])


@pytest.fixture
def host(server: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from kfp.client import Client

    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve(server) as address:
        monkeypatch.setenv("ROBUSTRAIN_KFP_HOST", address)
        yield address


def robustrain(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_real_recipe_is_compiled_uploaded_started_and_followed(
    server: Kubeflow, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTRAIN_PIPELINE_IMAGE", "registry.example.com/team/pipeline:7")
    done = robustrain("run", TINY, "--on", "kubeflow")
    assert done.exit_code == 0, done.output
    assert server.faults == []
    assert list(server.pipelines) == ["robustrain-tiny"]
    [(run_id, run)] = server.runs.items()
    assert run["display_name"] == "tiny"
    assert done.stdout.splitlines() == [
        f"submitted: run {run_id}",
        f"page:      {host}/#/runs/details/{run_id}",
        *(f"{name}: succeeded" for name in STAGES),
    ]
    [package] = server.packages
    executors = package["deploymentSpec"]["executors"].values()
    assert {one["container"]["image"] for one in executors} == {"registry.example.com/team/pipeline:7"}
    assert {task["taskInfo"]["name"] for task in package["root"]["dag"]["tasks"].values()} == set(STAGES)


def test_without_waiting_it_ends_after_the_start(server: Kubeflow, host: str) -> None:
    server.states = [("RUNNING", {})]
    done = robustrain("run", TINY, "--on", "kubeflow", "--no-wait")
    assert done.exit_code == 0
    assert len(server.runs) == 1


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([("FAILED", {"pretrain": "FAILED"})], "stage pretrain failed: out of memory"),
        ([("CANCELED", {})], "was cancelled"),
    ],
)
def test_a_run_that_fails_is_status_1(server: Kubeflow, host: str, states: Any, text: str) -> None:
    """Status 2 is for errors that the user can fix by changing the command."""
    server.states, server.errors = states, {"pretrain": "out of memory"}
    done = robustrain("run", TINY, "--on", "kubeflow")
    assert done.exit_code == 1
    [line] = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert text in line


def test_ctrl_c_prints_that_the_run_continues_and_how_to_cancel_it(
    server: Kubeflow, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(run_id: str, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kubeflow, "wait", interrupted)
    done = robustrain("run", TINY, "--on", "kubeflow")
    assert done.exit_code == 130
    [run_id] = server.runs
    assert (
        done.stdout.splitlines()[-1]
        == f"stopped following; run {run_id} continues. To cancel it: robustrain cancel {run_id}"
    )
    assert f"POST /runs/{run_id}:terminate" not in server.requests


def test_cancel_ends_the_run_and_deletes_its_jobs(server: Kubeflow, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTRAIN_NAMESPACE", "team")
    server.runs["run-1"] = {"run_id": "run-1"}
    kubernetes, name = Cluster(), body()["metadata"]["name"]
    kubernetes.put(name, body())
    with connected(kubernetes) as api:
        monkeypatch.setattr(rayjob, "connect", lambda: api)
        first, again = robustrain("cancel", "run-1"), robustrain("cancel", "run-1")
    assert (first.exit_code, first.stdout) == (0, f"cancelled: run run-1\ndeleted:   RayJob {name}\n")
    assert again.stdout == "cancelled: run run-1\ndeleted:   no RayJob was left\n"
    assert "POST /runs/run-1:terminate" in server.requests
