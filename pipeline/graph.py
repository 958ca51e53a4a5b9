"""The KFP pipeline, built from a recipe and the stage table: one task a stage, static, the same here and on a cluster.

The variables of a step's pod (its own name and uid, addresses, keys) are written into the compiled pipeline's platform
part, which a run on this machine does not read. Names and addresses come from the ConfigMap and the Secret of
`k8s/base`, so that one compiled pipeline serves every cluster. Each key may be absent: a step that needs it reports the
variable's name. That steps start RayJobs at all (`ROBUSTRAIN_LAUNCHER`) is set in their image: a run on this machine
would see it in the pipeline.

No `from __future__ import annotations` in this module: KFP 2.17 reads the annotations as objects.
Configuration travels as one JSON string a task; a task returns one short token, `<run id>/<fingerprint>`.
KFP's own cache stays off: it does not see the code of the installed package, and reuse is looked up in MLflow.
"""

import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, List  # noqa: UP035 - KFP wants typing.List

from kfp import compiler, dsl

from components.errors import UserError
from components.files import write_output
from components.launch.rayjob_settings import CONFIG_MAP, POD_FIELDS, SECRET, SECRET_KEYS, config_map_keys
from pipeline.recipe import Recipe
from pipeline.recipe import build as recipe_from_document
from pipeline.stage_runner import stage_definition_json

IMAGE = "robustrain/pipeline:0.1.0"
STEP_CPU, STEP_MEMORY = "1", "4Gi"
"""The step's pod only decides, launches and waits; the work is done by the job it launches."""

_MARK = "# PIPELINE DEFINITION\n# Name: robustrain-"
"""The beginning of every compiled pipeline of ours."""

_component = functools.partial(dsl.component, packages_to_install=[], install_kfp_package=False)


@_component(base_image=IMAGE)
def stage(definition: str, parents: List[str], pipeline_run: str) -> str:  # noqa: UP006 - KFP wants typing.List
    """One stage of the recipe: reused, continued, or launched."""
    from pipeline.kfp_step import run_step

    return run_step(definition, parents, pipeline_run)


def build(recipe: Recipe, image: str = IMAGE, *, retry: bool = True) -> Callable[..., Any]:
    """The pipeline function of a recipe.

    Args:
        image: container image of the steps; on this machine it is not used.
        retry: let KFP try a failed step again. Off on this machine, where somebody reads the message at once.
    """

    @dsl.pipeline(name=f"robustrain-{recipe.name}", description=recipe.head.summary or recipe.name)
    def pipeline(pipeline_run: str = "") -> None:
        tasks: dict[str, Any] = {}
        for node in recipe.stages.values():
            outputs = [tasks[name].output for name in node.parents.values()]
            task: Any = stage(
                definition=stage_definition_json(node, recipe), parents=outputs, pipeline_run=pipeline_run
            )
            task.set_display_name(node.name)
            task.set_caching_options(False)
            if retry:
                task.set_retry(node.kind.retries, backoff_duration="30s", backoff_factor=2.0)
            task.set_cpu_limit(STEP_CPU).set_memory_limit(STEP_MEMORY)
            task.set_container_image(image)
            set_pod_environment(task)
            tasks[node.name] = task

    return pipeline


def set_pod_environment(task: dsl.PipelineTask) -> None:
    """Gives the pod of a task its variables."""
    from kfp import kubernetes

    for variable, path in POD_FIELDS.items():
        kubernetes.use_field_path_as_env(task, variable, path)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in config_map_keys()}, optional=True)
    kubernetes.use_secret_as_env(task, SECRET, {key: key for key in SECRET_KEYS}, optional=True)


def run_locally(recipe_json: str, pipeline_run: str, root: str, temporary: str) -> None:
    """Runs the pipeline with KFP's local runner: each step is a process, one after the other.

    Args:
        recipe_json: the resolved recipe.
        pipeline_run: MLflow id of the parent run.
        root: folder for what KFP keeps of each step.
        temporary: folder for the temporary folders of the steps, which KFP does not remove.

    Raises:
        RuntimeError: a step failed.
    """
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # resources and image names mean nothing here
    from kfp import local

    os.environ["TMPDIR"] = temporary
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root, raise_on_error=True)
    build(recipe_from_document(json.loads(recipe_json)), retry=False)(pipeline_run=pipeline_run)


def compile_to(recipe: Recipe, path: Path, image: str = IMAGE) -> Path:
    """Writes the pipeline as KFP YAML; equal recipes give equal bytes.

    Raises:
        UserError: the path does not end in `.yaml`, is that of another file, or cannot be written.
    """
    if path.suffix != ".yaml" or path.is_dir():
        raise UserError("this is no file name ending in .yaml", where=str(path), remedy="name one, as pipeline.yaml")
    pipeline: Any = build(recipe, image)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(written))
        return write_output(path, written.read_text(encoding="utf-8"), _MARK)
