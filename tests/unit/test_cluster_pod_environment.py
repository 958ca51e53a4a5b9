"""The variables of a step's pod: all that the launcher reads, in a form that Kubeflow's protobuf accepts.

No `from __future__ import annotations`: KFP reads the annotations of the pipeline below as objects.
"""

from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, components, dsl
from kfp.kubernetes import kubernetes_executor_config_pb2 as pb

from components.launch.rayjob_settings import (
    CONFIG_MAP,
    POD_FIELDS,
    SECRET,
    SECRET_KEYS,
    RayJobSettings,
    config_map_keys,
)
from components.store.settings import StorageSettings
from pipeline.graph import set_pod_environment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def executor(tmp_path: Path) -> pb.KubernetesExecutorConfig:
    """The compiled package's configuration of the pod."""
    echo = components.load_component_from_text(
        "name: Echo\nimplementation: {container: {image: python, command: [echo]}}"
    )

    @dsl.pipeline(name="tiny")
    def tiny() -> None:
        set_pod_environment(echo())

    compiler.Compiler().compile(tiny, str(tmp_path / "pipeline.yaml"))
    _, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    (found,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    return json_format.ParseDict(found, pb.KubernetesExecutorConfig())


def test_the_pod_gets_fields_config_and_keys(executor: pb.KubernetesExecutorConfig) -> None:
    assert {field.name: field.field_path for field in executor.field_path_as_env} == POD_FIELDS
    (config,), (secret,) = executor.config_map_as_env, executor.secret_as_env
    assert (config.config_map_name, secret.secret_name) == ("robustrain", "robustrain-credentials")
    assert config.optional
    assert secret.optional
    assert {pair.config_map_key: pair.env_var for pair in config.key_to_env}["ROBUSTRAIN_IMAGE"] == "ROBUSTRAIN_IMAGE"
    assert [pair.config_map_key for pair in config.key_to_env] == config_map_keys()
    assert len(secret.key_to_env) == len(SECRET_KEYS)


def test_every_variable_that_the_launcher_reads_can_be_set() -> None:
    read = {name for variable in RayJobSettings.variables() for name in variable.names}
    # KFP sets these two itself in the pods of some versions.
    assert read - {"KFP_POD_NAME", "KFP_POD_UID"} <= {*config_map_keys(), *POD_FIELDS}
    assert "ROBUSTRAIN_IMAGE" in read


def test_the_storage_of_a_cluster_is_set_in_the_config_map_and_the_home_is_not() -> None:
    names = {variable.names[0] for variable in StorageSettings.variables()}
    assert names - set(config_map_keys()) == {"ROBUSTRAIN_HOME"}


@pytest.mark.parametrize("folder", ["base", "overlays/example"])
def test_the_manifests_set_only_keys_that_are_read(folder: str) -> None:
    config = yaml.safe_load((ROOT / "k8s" / folder / "config.yaml").read_text())
    assert config["metadata"]["name"] == CONFIG_MAP
    passed = {key for key in config["data"] if key != "MLFLOW_DISABLE_TELEMETRY"}
    assert passed <= set(config_map_keys())
    required = {v.names[0] for v in RayJobSettings.variables("config map") if v.default == "none, required"}
    assert {*required, "MLFLOW_TRACKING_URI", "ROBUSTRAIN_ARTIFACTS", "ROBUSTRAIN_OBJECTS"} <= passed


def test_training_pods_get_the_same_config_map_and_secret_by_default() -> None:
    settings = RayJobSettings(image="i")
    assert (settings.config_map, settings.secret) == (CONFIG_MAP, SECRET)
