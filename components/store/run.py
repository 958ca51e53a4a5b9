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
from components.files import FileDigest, files_below, mismatch, write_json
from components.store.artifacts import Artifacts
from components.store.objects import ObjectRef
from components.store.progress import Progress
from components.store.spec import ParentRef, StageSpec

STATE, FINGERPRINT, ERROR = "stage_state", "stage_fingerprint", "stage_error"
RUNNING, FAILED, COMPLETE = "running", "failed", "complete"
WORKED = "seconds_worked"
"""Tag: seconds that a stage was worked on, over all its tries; pauses between them do not count."""
CHECKPOINTS = "checkpoints/"
"""Artifacts below this path are for resuming; they are no outputs and stay out of the manifest."""

RECIPE = "recipe.json"
"""Artifact of a pipeline run: its resolved recipe."""
OBJECTS = "objects.json"
"""Artifact that lists what a stage has put into the object store."""

_PARAM_LENGTH, _TAG_LENGTH = 500, 5000


class StageRun:
    """Writes to one stage's run: parameters, metrics, artifacts, progress.

    Attributes:
        run_id: the MLflow run.
        workdir: scratch folder of this fingerprint; survives a crash, removed after completion.
        attempt: 1 for the first try, one more each time the stage is continued.
    """

    def __init__(self, client: Any, artifacts: Artifacts, spec: StageSpec, workdir: Path) -> None:
        self._client, self._artifacts, self._spec = client, artifacts, spec
        self.run_id, self.workdir = spec.run_id, workdir
        tags = client.get_run(spec.run_id).data.tags
        self.attempt = int(tags.get("stage_attempt", "1"))
        self._began, self._worked_before = time.monotonic(), float(tags.get(WORKED, "0"))
        self._outputs: dict[str, FileDigest] = {}
        self._progress = Progress(spec.name)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._save_json("spec.json", spec.model_dump())

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs parameters once; longer values are cut (the whole configuration is the artifact `spec.json`)."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in params.items() if key not in known]
        self._client.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs all metrics of a step in one call; non-finite values are left out, as no chart can show them."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = [Metric(key, float(v), now, step) for key, v in metrics.items() if math.isfinite(v)]
        self._client.log_batch(self.run_id, metrics=finite)

    def save(self, local: Path, artifact: str) -> None:
        """Uploads a file or folder as the artifact path `artifact`."""
        digests = self._artifacts.save(local, artifact)
        self._outputs.update({k: v for k, v in digests.items() if not k.startswith(CHECKPOINTS)})

    def fetch(self, artifact: str, to: Path) -> Path | None:
        """Copies an artifact of this run (file or folder) to `to`; None when absent. Used when resuming."""
        found = self._artifacts.fetch(artifact)
        if found is None:
            return None
        if found.is_dir():
            return Path(shutil.copytree(found, to, dirs_exist_ok=True))
        to.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(found, to))

    def list(self, artifact: str = "") -> list[str]:
        """Artifact paths directly below a folder."""
        return self._artifacts.list(artifact)

    def progress(self, *, phase: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Live progress; cheap enough to be called for every batch."""
        self._progress.report(phase=phase, done=done, total=total, unit=unit, note=note)

    def info(self, text: str) -> None:
        """One line for people while the run is under way, such as where the stage goes on or what it decided."""
        self._progress.info(text)

    def warn(self, text: str) -> None:
        """Something people should know that does not end the stage."""
        self.info(f"warning: {text}")

    def pipeline_recipe(self) -> dict[str, Any]:
        """The resolved recipe of the pipeline run this stage belongs to; empty where it belongs to none."""
        if not self._spec.pipeline_run:
            return {}
        run = self._client.get_run(self._spec.pipeline_run)
        cache = self.workdir / "pipeline"
        return Artifacts(self._client, run.info.run_id, run.info.artifact_uri, cache).read_json(RECIPE) or {}

    def heartbeat(self) -> None:
        """Says that the process that works on this run is alive. A tracking server that is away is not fatal."""
        with contextlib.suppress(Exception):
            self._client.set_tag(self.run_id, "heartbeat", str(time.time()))
            self._note_worked()

    def finish(self, result: Mapping[str, Any], objects: Sequence[ObjectRef] = ()) -> None:
        """Outputs, then the manifest, then `complete`: the order is what makes a finished run trustworthy.

        Args:
            result: the stage's small result.
            objects: large files it has put into the object store.
        """
        self._save_json("result.json", dict(result))
        if objects:
            self._save_json(OBJECTS, [ref.as_dict() for ref in objects])
        sha256 = self._artifacts.write_manifest(self._outputs, self.workdir)
        self._client.set_tag(self.run_id, "manifest_sha256", sha256)
        self._note_worked()
        if ERROR in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, ERROR)
        self._client.set_tag(self.run_id, STATE, COMPLETE)
        self._client.set_terminated(self.run_id, "FINISHED")
        self._progress.set_state(COMPLETE, run_id=self.run_id)
        shutil.rmtree(self.workdir, ignore_errors=True)

    def fail(self, error: BaseException) -> None:
        """Records the cause where `robustrain` and the MLflow page find it; the workdir stays for the next try."""
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
    """A finished parent stage; `role` says what it is to the stage that reads it."""

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
        """Reads the parent's configuration and result."""
        spec, result = artifacts.read_json("spec.json"), artifacts.read_json("result.json")
        return cls(role, parent.name, parent.kind, parent.run_id, parent.fingerprint, spec["config"], result, artifacts)

    def path(self, artifact: str) -> Path:
        """A local path of an output (file or folder), verified against the run's manifest.

        Raises:
            UserError: the output is missing or is not what the stage wrote.
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
        """Whether the run has such an artifact."""
        return self.artifacts.fetch(artifact) is not None
