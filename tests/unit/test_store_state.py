"""A stage's state: what makes a finished run trustworthy, and what makes it refused."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from components.errors import Terminated, UserError
from components.files import FileDigest, digest_file
from components.store.execute import execute
from components.store.objects import ObjectStore
from components.store.settings import StorageSettings
from components.store.spec import ParentRef, StageSpec
from components.store.tracking import Tracking

PRINT = "ab" * 32


def work(job):
    path = job.run.workdir / "numbers.json"
    path.write_text("[1, 2, 3]")
    job.run.save(path, "sub/numbers.json")
    job.run.log_metrics({"accuracy": 0.5, "broken": float("nan")}, step=2)
    return {"sum": 6}


@pytest.fixture
def tracking(storage):
    return Tracking(storage)


@pytest.fixture
def spec(tracking):
    spec = StageSpec(name="adversarial", kind="adversarial", config={"eps": 0.1}, seed=1, fingerprint=PRINT)
    return spec.model_copy(update={"run_id": tracking.begin(spec)})


def parent(spec):
    return ParentRef(name=spec.name, kind=spec.kind, run_id=spec.run_id, fingerprint=spec.fingerprint)


def test_unknown_fingerprint_is_absent(tracking):
    assert tracking.find(PRINT).state == "absent"


def test_finished_run_is_found_and_read(tracking, spec, storage):
    assert tracking.find(PRINT).state == "interrupted"
    execute(spec, storage, work)
    found = tracking.find(PRINT)
    assert (found.state, found.run_id) == ("complete", spec.run_id)
    read = tracking.finished(parent(spec), "init")
    assert read.result == {"sum": 6}
    assert read.config == {"eps": 0.1}
    assert json.loads(read.path("sub/numbers.json").read_text()) == [1, 2, 3]
    assert [p.name for p in read.path("sub").iterdir()] == ["numbers.json"]


@pytest.mark.parametrize(("cluster", "adopted"), [("", False), ("0123-4567", True)])
def test_a_run_from_the_environment_is_adopted_on_a_cluster_only(tracking, spec, monkeypatch, cluster, adopted):
    """Kubeflow opens one for each step; somebody's shell may hold one that belongs to other work."""
    monkeypatch.setenv("MLFLOW_RUN_ID", spec.run_id)
    monkeypatch.setenv("ROBUSTRAIN_KFP_RUN_ID", cluster)
    assert (tracking.begin(spec.model_copy(update={"run_id": ""})) == spec.run_id) is adopted


def test_non_finite_metrics_are_left_out(tracking, spec, storage):
    execute(spec, storage, work)
    assert tracking.client.get_run(spec.run_id).data.metrics == {"accuracy": 0.5}


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest", "manifest-gone"])
def test_damaged_outputs_are_not_reused(tracking, spec, storage, damage):
    execute(spec, storage, work)
    folder = tracking.artifacts(tracking.client.get_run(spec.run_id)).folder
    output, manifest = folder / "sub/numbers.json", folder / "manifest-of-outputs.json"
    {
        "cut": lambda: output.write_text("[1"),
        "flip": lambda: output.write_text("[1, 2, 4]"),
        "remove": output.unlink,
        "manifest": lambda: manifest.write_text(manifest.read_text().replace("numbers", "number5")),
        "manifest-gone": manifest.unlink,
    }[damage]()
    found = tracking.find(PRINT)
    assert found.state == "absent"
    assert found.reason


def test_reader_refuses_a_changed_output(tracking, spec, storage):
    execute(spec, storage, work)
    read = tracking.finished(parent(spec), "init")
    (read.artifacts.folder / "sub/numbers.json").write_text("[1, 2, 4]")
    with pytest.raises(UserError, match=r"numbers\.json has another sha256"):
        read.path("sub/numbers.json")
    with pytest.raises(UserError, match="missing"):
        read.path("nothing.json")


def test_a_manifest_that_was_changed_together_with_its_file_is_refused(tracking, spec, storage):
    """For artifacts that are not in a local folder, the manifest's own sha256 is the only check."""
    execute(spec, storage, work)
    artifacts = tracking.artifacts(tracking.client.get_run(spec.run_id))
    output, manifest = artifacts.folder / "sub/numbers.json", artifacts.folder / "manifest-of-outputs.json"
    before = digest_file(output)
    output.write_text("[1, 2, 4]")
    manifest.write_text(manifest.read_text().replace(before.sha256, digest_file(output).sha256))
    assert artifacts.manifest()["sub/numbers.json"] == digest_file(output)
    found = tracking.find(PRINT)
    assert (found.state, found.reason) == ("absent", "its manifest has been changed")


def test_a_file_that_is_not_in_the_manifest_is_refused(tracking, spec, storage):
    execute(spec, storage, work)
    read = tracking.finished(parent(spec), "init")
    (read.artifacts.folder / "sub/extra.json").write_text("{}")
    with pytest.raises(UserError, match=r"the output sub/extra\.json is not in its manifest"):
        read.path("sub")


def test_a_run_is_marked_complete_before_mlflow_ends_it_and_after_its_manifest(tracking, spec, storage, monkeypatch):
    """MLflow may say FINISHED only of a run that is complete; killed in between, the run is complete and RUNNING."""
    states = []
    plain = MlflowClient.set_terminated

    def recorded(client, run_id, status):
        run = client.get_run(run_id)
        states.append((status, run.data.tags["stage_state"], "manifest_sha256" in run.data.tags))
        plain(client, run_id, status)

    monkeypatch.setattr(MlflowClient, "set_terminated", recorded)
    execute(spec, storage, work)
    assert states == [("FINISHED", "complete", True)]


def test_failed_stage_says_why_and_is_continued(tracking, spec, storage):
    def broken(job):
        (job.run.workdir / "kept").write_text("from the first try")
        raise UserError("no such thing", where="here", remedy="mend it")

    with pytest.raises(UserError):
        execute(spec, storage, broken)
    found = tracking.find(PRINT)
    assert (found.state, found.run_id) == ("interrupted", spec.run_id)
    assert found.reason == "here: no such thing. mend it."
    again = spec.model_copy(update={"run_id": tracking.begin(spec, adopt=found.run_id)})
    seen = {}

    def second(job):
        seen.update(attempt=job.run.attempt, kept=(job.run.workdir / "kept").read_text())
        return {}

    execute(again, storage, second)
    assert seen == {"attempt": 2, "kept": "from the first try"}
    assert tracking.find(PRINT).run_id == spec.run_id


def test_unfinished_parent_is_refused(tracking, spec):
    with pytest.raises(UserError, match="not complete"):
        tracking.finished(parent(spec))


def test_pipeline_runs_that_this_home_left_open_are_closed_and_no_others(tracking, storage, monkeypatch):
    left, done = (tracking.open_pipeline_run("p", {}, {}) for _ in range(2))
    tracking.close_pipeline_run(done, state="complete")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another-machine")
        others = tracking.open_pipeline_run("p", {}, {})
    tracking.close_left_open()
    states = [tracking.client.get_run(run).data.tags["stage_state"] for run in (left, done, others)]
    assert states == ["failed", "complete", "running"]
    assert tracking.client.get_run(left).info.status == "FAILED"


def test_newest_complete_run_wins(tracking, spec, storage):
    """Whoever ran a finished stage once more wants what came of it."""
    second = spec.model_copy(update={"run_id": tracking.begin(spec)})
    execute(second, storage, work)
    execute(spec, storage, work)
    assert tracking.find(PRINT).run_id == second.run_id


def test_checkpoints_are_no_outputs(tracking, spec, storage):
    def keeps(job):
        path = job.run.workdir / "state.bin"
        path.write_bytes(b"x")
        job.run.save(path, "checkpoints/00000001/state.bin")
        return {}

    execute(spec, storage, keeps)
    artifacts = tracking.artifacts(tracking.client.get_run(spec.run_id))
    assert artifacts.fetch("checkpoints/00000001/state.bin").read_bytes() == b"x"
    assert not [name for name in artifacts.manifest() if name.startswith("checkpoints")]


@pytest.mark.parametrize(("damage", "same_times"), [(b"x" * 99, False), (b"y" * 100, False), (b"y" * 100, True)])
def test_lost_object_means_the_stage_is_not_reused(tracking, spec, storage, damage, same_times):
    refs = []

    def stores(job):
        path = job.run.workdir / "train.beton"
        path.write_bytes(b"x" * 100)
        refs.append(job.objects.put(path, "data/train.beton"))
        return {}

    execute(spec, storage, stores)
    assert tracking.find(PRINT).state == "complete"
    path = Path(refs[0].uri)
    before = path.stat()
    path.write_bytes(damage)
    if same_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = tracking.find(PRINT)
    assert found.state == "absent"
    assert "train.beton is missing or has changed" in found.reason


def test_full_disk_is_said_as_something_to_mend(tracking, spec, storage):
    def full(job):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/weights.safetensors")

    with pytest.raises(UserError, match=r"/somewhere/weights\.safetensors: no space is left.*ROBUSTRAIN_HOME"):
        execute(spec, storage, full)
    assert tracking.find(PRINT).state == "interrupted"


def test_an_object_that_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    store, read = ObjectStore(str(tmp_path / "objects"), tmp_path / "cache"), []
    (tmp_path / "file").write_bytes(b"abc")
    ref = store.put(tmp_path / "file", "a/b")
    monkeypatch.setattr("components.store.objects.mismatch", lambda path, digest: read.append(path) or "")
    later = ObjectStore(str(tmp_path / "objects"), tmp_path / "cache")
    assert later.holds(ref, deep=True)
    assert read == []
    os.utime(ref.uri)
    assert later.holds(ref, deep=True)
    assert later.holds(ref, deep=True)
    assert read == [Path(ref.uri)]


def test_damage_that_a_reader_finds_is_found_by_the_next_start_too(tmp_path, monkeypatch):
    """Bytes can change on a disk without a change of times: whoever reads them tells those who only look."""
    store = ObjectStore(str(tmp_path / "objects"), tmp_path / "cache")
    (tmp_path / "file").write_bytes(b"abc")
    ref = store.put(tmp_path / "file", "a/b")
    Path(ref.uri).write_bytes(b"abd")
    store._verified.note(Path(ref.uri), FileDigest(ref.size, ref.sha256))
    assert store.holds(ref, deep=True)
    with pytest.raises(UserError, match=r"another sha256.*start the same command again: the stage that makes it"):
        store.get(ref)
    assert not store.holds(ref, deep=True)


def test_object_that_has_changed_is_refused_when_read(tmp_path):
    store = ObjectStore(str(tmp_path / "objects"), tmp_path / "cache")
    (tmp_path / "file").write_bytes(b"abc")
    ref = store.put(tmp_path / "file", "a/b")
    assert store.get(ref).read_bytes() == b"abc"
    Path(ref.uri).write_bytes(b"abd")
    with pytest.raises(UserError, match="another sha256"):
        store.get(ref)
    store.put(tmp_path / "file", "a/b")
    assert store.get(ref).read_bytes() == b"abc"


def test_an_interruption_after_a_stage_is_complete_leaves_it_complete(tracking, spec, storage, monkeypatch):
    """While its scratch folder is removed."""

    def interrupted(folder):
        raise Terminated

    monkeypatch.setattr("components.store.run.remove_folder", interrupted)
    with pytest.raises(Terminated):
        execute(spec, storage, work)
    assert tracking.find(PRINT).state == "complete"


def test_a_data_base_whose_creation_is_interrupted_is_created_again(tmp_path):
    """MLflow creates its tables one by one, and refuses a file that has some of them."""
    home = StorageSettings.from_environment({}, home=tmp_path)
    code = (
        "import os, sqlalchemy\n"
        "from components.store.settings import StorageSettings\n"
        "from components.store.tracking import Tracking\n"
        "seen = []\n"
        "@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, 'before_cursor_execute')\n"
        "def kill(connection, cursor, statement, *rest):\n"
        "    seen.append('CREATE TABLE' in statement)\n"
        "    if sum(seen) == 10: os._exit(9)\n"
        f"Tracking(StorageSettings.from_environment({{}}, home={str(tmp_path)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert home.is_fresh
    assert Tracking(home).last_pipeline_runs() == []
    assert not home.is_fresh
