"""The compiled pipeline: equal bytes for equal recipes, a golden file beside the test, and KFP's own protobuf reads it.

Write the golden file anew after a deliberate change: ROBUSTRAIN_WRITE_GOLDEN=1 python -m pytest tests/golden/test_graph_golden.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.recipe import load

GOLDEN = Path(__file__).parent / "quickstart.pipeline.yaml"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    from pipeline import graph

    return graph.compile_to(load("quickstart"), tmp_path_factory.mktemp("graph") / "a.yaml")


def documents(text):
    first, *rest = list(yaml.safe_load_all(text))
    first.pop("sdkVersion")
    return [first, *rest]


def test_pipeline_is_the_golden_one(compiled):
    text = compiled.read_text()
    if os.environ.get("ROBUSTRAIN_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert documents(text) == documents(GOLDEN.read_text())


def test_compiling_is_deterministic_over_processes(compiled, tmp_path):
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.yaml"
        command = [sys.executable, "-m", "pipeline.cli", "compile", "quickstart", "-o", str(path)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
        assert path.read_bytes() == compiled.read_bytes()


def test_kfp_protobuf_reads_it(compiled):
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec = json_format.ParseDict(next(yaml.safe_load_all(compiled.read_text())), pipeline_spec_pb2.PipelineSpec())
    recipe = load("quickstart")
    tasks = {task.task_info.name: task for task in spec.root.dag.tasks.values()}
    assert sorted(tasks) == sorted(recipe.stages)
    names = {key: task.task_info.name for key, task in spec.root.dag.tasks.items()}
    for name, stage in recipe.stages.items():
        assert sorted(names[key] for key in tasks[name].dependent_tasks) == sorted(set(stage.parents.values()))
        assert not tasks[name].caching_options.enable_cache
        assert tasks[name].retry_policy.max_retry_count == stage.kind.retries
        parameter = tasks[name].inputs.parameters["definition"]
        definition = json.loads(parameter.runtime_value.constant.string_value)
        assert (definition["name"], definition["kind"]) == (name, stage.kind.name)


def test_definition_carries_the_whole_configuration(compiled):
    from pipeline.stage_runner import StageDefinition, stage_definition_json

    recipe = load("quickstart")
    for stage in recipe.stages.values():
        definition = StageDefinition.model_validate_json(stage_definition_json(stage, recipe))
        assert stage.kind.config.model_validate(definition.config) == stage.config
        assert {role: name for role, name, _ in definition.parents} == stage.parents
