"""The variables of a step's pod: all that the launcher reads, in a form that Kubeflow's protobuf accepts.

No `from __future__ import annotations`: KFP reads the annotations of the pipeline below as objects.
"""

import re
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, components, dsl
from kfp.kubernetes import kubernetes_executor_config_pb2 as pb

from components.launch.rayjob import RayJobSettings
from pipeline import graph

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(tmp_path: Path) -> pb.KubernetesExecutorConfig:
    """What the compiled package says about the pod."""
    say = components.load_component_from_text(
        "name: Say\nimplementation: {container: {image: python, command: [echo]}}"
    )

    @dsl.pipeline(name="tiny")
    def tiny() -> None:
        graph.set_pod_environment(say())

    compiler.Compiler().compile(tiny, str(tmp_path / "pipeline.yaml"))
    _, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    (executor,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    return json_format.ParseDict(executor, pb.KubernetesExecutorConfig())


def test_the_pod_gets_fields_config_and_keys(told: pb.KubernetesExecutorConfig) -> None:
    assert {field.name: field.field_path for field in told.field_path_as_env} == graph.FIELDS
    (config,), (secret,) = told.config_map_as_env, told.secret_as_env
    assert (config.config_map_name, secret.secret_name) == ("robustrain", "robustrain-credentials")
    assert config.optional
    assert secret.optional
    assert {pair.config_map_key: pair.env_var for pair in config.key_to_env}["ROBUSTRAIN_IMAGE"] == "ROBUSTRAIN_IMAGE"
    assert len(secret.key_to_env) == len(graph.SECRET_KEYS)


def test_every_variable_that_the_launcher_reads_can_be_set() -> None:
    read = set(re.findall(r'"(ROBUSTRAIN_[A-Z_]+)"', (ROOT / "components/launch/rayjob_settings.py").read_text()))
    assert read, "the settings no longer read variables"
    assert read <= {*graph.CONFIG_KEYS, *graph.FIELDS}


def test_the_names_are_those_of_the_manifests() -> None:
    for file in ("base", "overlays/example"):
        config = yaml.safe_load((ROOT / "k8s" / file / "config.yaml").read_text())
        assert config["metadata"]["name"] == graph.CONFIG_MAP
        passed = {key for key in config["data"] if key != "MLFLOW_DISABLE_TELEMETRY"}
        assert passed <= set(graph.CONFIG_KEYS)
    settings = RayJobSettings(image="i")
    assert (settings.config_map, settings.secret) == (graph.CONFIG_MAP, graph.SECRET)
