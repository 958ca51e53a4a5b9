"""What every test shares: one thread, no leftovers from the environment, and a tracking store made once."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

for name in [
    n
    for n in os.environ
    if n.startswith(("MLFLOW_", "AWS_"))
    or (n.startswith("ROBUSTRAIN_") and n not in {"ROBUSTRAIN_CONTRACTS", "ROBUSTRAIN_WRITE_GOLDEN"})
]:
    del os.environ[name]
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", GIT_PYTHON_REFRESH="quiet", OMP_NUM_THREADS="1")


SLOW_FOLDERS = {"e2e", "faults", "parity", "resume"}
"""Folders of tests that start pipelines, Ray, servers or several processes, or train."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests of some folders as slow; elsewhere a slow test carries the marker itself."""
    for item in items:
        if SLOW_FOLDERS & set(item.path.relative_to(Path(__file__).parent).parts):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test processes share two cores; more threads would only get in each other's way."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def _empty_home(tmp_path_factory):
    """A home whose MLflow data base exists: making one takes five seconds, copying it none."""
    from components.store.settings import StorageSettings
    from components.store.tracking import Tracking

    home = tmp_path_factory.mktemp("home-template")
    Tracking(StorageSettings.from_environment({}, home=home))
    return home


@pytest.fixture
def storage(_empty_home, tmp_path):
    """StorageSettings in a fresh home with an empty data base."""
    from components.store.settings import StorageSettings

    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(_empty_home / "mlflow.db", home / "mlflow.db")
    return StorageSettings.from_environment({}, home=home)


@pytest.fixture
def repository():
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def run_stage(storage):
    """Runs one stage for real in this process: `run_stage(kind, config, {role: token}, function=None) -> StageInput`."""
    from components.store.execute import execute
    from components.store.spec import ParentRef, StageSpec
    from components.store.tracking import Tracking
    from pipeline.stage_runner import fingerprint_of
    from pipeline.stages import STAGES

    def run(kind, config, parents=None, *, name=None, seed=0, function=None):
        parents = parents or {}
        row = STAGES[kind]
        refs = {
            r: ParentRef(name=p.name, kind=p.kind, run_id=p.run_id, fingerprint=p.fingerprint)
            for r, p in parents.items()
        }
        full = row.config.model_validate(config)
        print_ = fingerprint_of(kind, full, {r: p.fingerprint for r, p in refs.items()}, seed, storage.cache)
        tracking = Tracking(storage)
        spec = StageSpec(
            name=name or kind,
            kind=kind,
            config=full.model_dump(mode="json"),
            seed=seed,
            fingerprint=print_,
            parents=refs,
        )
        spec = spec.model_copy(update={"run_id": tracking.begin(spec)})
        execute(spec, storage, function or row.function())
        return tracking.finished(ParentRef(name=spec.name, kind=kind, run_id=spec.run_id, fingerprint=print_), kind)

    return run


@pytest.fixture
def ray_turn():
    """One Ray at a time: two that start at once on two cores outwait each other."""
    from components.store.locks import file_lock

    with file_lock(Path(tempfile.gettempdir()) / f"robustrain-tests-{os.getuid()}.lock"):
        yield
