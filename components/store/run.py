"""One stage's MLflow run: `StageRun` while it is written, `StageInput` once it is finished and read by others."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.files import FileDigest, files_below, mismatch, remove_folder, write_json
from components.store.artifacts import Artifacts
from components.store.objects import ObjectRef
from components.store.progress import Progress
from components.store.spec import ParentRef, StageSpec

STATE, FINGERPRINT, ERROR = "stage_state", "stage_fingerprint", "stage_error"
RUNNING, FAILED, COMPLETE = "running", "failed", "complete"
WORKED = "seconds_worked"
"""Tag: seconds of work on a stage over all its attempts, without the pauses between them."""
CHECKPOINTS = "checkpoints/"
"""Artifacts below this path serve to resume a stage. They are not outputs and not in the manifest."""

RECIPE = "recipe.json"
"""Artifact of a pipeline run: its resolved recipe."""
OBJECTS = "objects.json"
"""Artifact of a stage: the objects that it has put into the object store."""

_PARAM_LENGTH, _TAG_LENGTH = 500, 5000


class StageRun:
    """Writes to one stage's run: parameters, metrics, artifacts, progress.

    Attributes:
        run_id: the MLflow run.
        workdir: scratch folder of this fingerprint; kept after a crash, removed after completion.
        attempt: 1 at first, one more each time the stage is continued.
    """

    def __init__(self, client: Any, artifacts: Artifacts, spec: StageSpec, workdir: Path) -> None:
        self._client, self._artifacts, self._spec = client, artifacts, spec
        self.run_id, self.workdir = spec.run_id, workdir
        tags = client.get_run(spec.run_id).data.tags
        self.attempt = int(tags.get("stage_attempt", "1"))
        self._began, self._worked_before = time.monotonic(), float(tags.get(WORKED, "0"))
        self._finished = False
        self._outputs: dict[str, FileDigest] = {}
        self._progress = Progress(spec.name)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._save_json("spec.json", spec.model_dump())

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs parameters once. Long values are cut; the whole configuration is the artifact `spec.json`."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in params.items() if key not in known]
        self._client.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs all metrics of a step in one call, without NaN and infinities, which no chart can show."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = [Metric(key, float(v), now, step) for key, v in metrics.items() if math.isfinite(v)]
        self._client.log_batch(self.run_id, metrics=finite)

    def save(self, local: Path, artifact: str) -> None:
        """Uploads a file or folder as the artifact path `artifact`."""
        digests = self._artifacts.save(local, artifact)
        self._outputs.update({k: v for k, v in digests.items() if not k.startswith(CHECKPOINTS)})

    def fetch(self, artifact: str, to: Path) -> Path | None:
        """Copies an artifact of this run (file or folder) to `to` when resuming; returns None if it does not exist."""
        found = self._artifacts.fetch(artifact)
        if found is None:
            return None
        if found.is_dir():
            return Path(shutil.copytree(found, to, dirs_exist_ok=True))
        to.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(found, to))

    def list(self, artifact: str = "") -> list[str]:
        """Returns the artifact paths directly below a folder."""
        return self._artifacts.list(artifact)

    def progress(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Reports live progress. Cheap enough to be called for every batch."""
        self._progress.report(phase=phase, done=done, total=total, unit=unit, note=note)

    def info(self, text: str) -> None:
        """Shows one line to the user while the stage runs, such as the point from which it continues."""
        self._progress.info(text)

    def warn(self, text: str) -> None:
        """Shows a warning to the user; the stage goes on."""
        self._progress.warn(text)

    def pipeline_recipe(self) -> dict[str, Any]:
        """Returns the resolved recipe of the pipeline run that this stage belongs to; empty if there is none."""
        if not self._spec.pipeline_run:
            return {}
        run = self._client.get_run(self._spec.pipeline_run)
        cache = self.workdir / "pipeline"
        return Artifacts(self._client, run.info.run_id, run.info.artifact_uri, cache).read_json(RECIPE) or {}

    def heartbeat(self) -> None:
        """Records that the process working on this run is alive. An unreachable tracking server is ignored."""
        with contextlib.suppress(Exception):
            self._client.set_tag(self.run_id, "heartbeat", str(time.time()))
            self._note_worked()

    def finish(self, result: Mapping[str, Any], objects: Sequence[ObjectRef] = ()) -> None:
        """Saves the result, then the manifest, then marks the run `complete`.

        The order is what makes a finished run trustworthy: a run that is killed in between is not `complete`.

        Args:
            result: the stage's small result.
            objects: large files that the stage has put into the object store.
        """
        self._save_json("result.json", dict(result))
        if objects:
            self._save_json(OBJECTS, [ref.as_dict() for ref in objects])
        sha256 = self._artifacts.write_manifest(self._outputs, self.workdir)
        self._client.set_tag(self.run_id, "manifest_sha256", sha256)
        self._note_worked()
        if ERROR in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, ERROR)
        # Set before the tag: an interruption of what follows must not mark a complete run as failed.
        self._finished = True
        self._client.set_tag(self.run_id, STATE, COMPLETE)
        self._client.set_terminated(self.run_id, "FINISHED")
        self._progress.set_state(COMPLETE, run_id=self.run_id)
        remove_folder(self.workdir)

    def fail(self, error: BaseException) -> None:
        """Records the cause of a failure in the run. The workdir is kept for the next attempt.

        Does nothing once the run is being marked complete: it is complete then, or will be continued.
        """
        if self._finished:
            return
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(Exception):
            self._client.set_tag(self.run_id, ERROR, cause[:_TAG_LENGTH])
            self._note_worked()
            self._client.set_tag(self.run_id, STATE, FAILED)
            self._client.log_text(self.run_id, trace, "error.txt")
            self._client.set_terminated(self.run_id, "FAILED")

    def _note_worked(self) -> None:
        seconds = self._worked_before + time.monotonic() - self._began
        self._client.set_tag(self.run_id, WORKED, f"{seconds:.1f}")

    def _save_json(self, name: str, value: Any) -> None:
        self.save(write_json(self.workdir / name, value), name)


@dataclass(frozen=True)
class StageInput:
    """A finished parent stage, for reading.

    Attributes:
        role: what the parent is to the stage that reads it, e.g. `data` or `init`.
        config: the parent's resolved configuration.
        result: the parent's small result.
    """

    role: str
    name: str
    kind: str
    run_id: str
    fingerprint: str
    config: dict[str, Any]
    result: dict[str, Any]
    artifacts: Artifacts

    @classmethod
    def read(cls, role: str, parent: ParentRef, artifacts: Artifacts) -> StageInput:
        """Reads the configuration and the result of a parent."""
        spec, result = artifacts.read_json("spec.json"), artifacts.read_json("result.json")
        return cls(role, parent.name, parent.kind, parent.run_id, parent.fingerprint, spec["config"], result, artifacts)

    def path(self, artifact: str) -> Path:
        """Returns a local path of an output (file or folder), verified against the run's manifest.

        Raises:
            UserError: the output is missing, has changed, or is not in the manifest.
        """
        found = self.artifacts.fetch(artifact)
        remedy = f"run the stage {self.name!r} again"
        if found is None:
            raise UserError(f"the output {artifact} is missing", where=f"run {self.run_id}", remedy=remedy)
        manifest = self.artifacts.manifest()
        for relative, path in files_below(found):
            name = f"{artifact}/{relative}" if found.is_dir() else artifact
            expected = manifest.get(name)
            problem = mismatch(path, expected) if expected else "is not in its manifest"
            if problem:
                raise UserError(f"the output {name} {problem}", where=f"run {self.run_id}", remedy=remedy)
        return found

    def has(self, artifact: str) -> bool:
        """Returns whether the run has this artifact."""
        return self.artifacts.fetch(artifact) is not None
