"""The storage settings: defaults below the home, variables that override them, one line for a wrong value."""

import shutil
from pathlib import Path

import pytest

from components.errors import UserError
from components.store.execute import execute
from components.store.settings import StorageSettings
from components.store.spec import StageSpec
from components.store.tracking import Tracking


def test_without_variables_everything_is_below_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / ".robustrain"
    found = StorageSettings.from_environment({"ROBUSTRAIN_HOME": ""})
    assert found.model_dump() == {
        "home": home,
        "tracking_uri": f"sqlite:///{home / 'mlflow.db'}",
        "artifacts_uri": str(home / "artifacts"),
        "objects_uri": str(home / "objects"),
        "experiment": "robustrain",
    }
    assert not home.exists(), "settings create nothing"
    assert found.is_fresh


def test_every_variable_overrides_its_default(tmp_path):
    given = {
        "ROBUSTRAIN_HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "ROBUSTRAIN_ARTIFACTS": "s3://bucket/artifacts",
        "ROBUSTRAIN_OBJECTS": "s3://bucket/objects",
        "ROBUSTRAIN_EXPERIMENT": "mine",
    }
    found = StorageSettings.from_environment(given)
    assert found.environment() == given
    assert not found.is_fresh


def test_a_child_process_gets_the_same_settings(tmp_path):
    found = StorageSettings.from_environment({}, home=tmp_path)
    assert StorageSettings.from_environment(found.environment()) == found


@pytest.mark.parametrize("field", ["home", "artifacts_uri", "objects_uri"])
def test_relative_folders_and_tildes_become_absolute(tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    variable = next(v.names[0] for v in StorageSettings.variables() if v.field == field)
    for written, meant in (("data/x", tmp_path / "data/x"), ("~/x", Path("/home/somebody/x"))):
        assert str(getattr(StorageSettings.from_environment({variable: written}), field)) == str(meant)


@pytest.mark.parametrize("value", ["gs://bucket/prefix", "s3:/bucket", "s3://", "file:///tmp"])
def test_objects_in_a_store_that_is_not_supported_are_one_line(value):
    with pytest.raises(UserError) as caught:
        StorageSettings.from_environment({"ROBUSTRAIN_OBJECTS": value})
    assert str(caught.value) == (
        f"ROBUSTRAIN_OBJECTS: is neither a folder nor s3://bucket/prefix (got {value!r}). "
        "name a folder or s3://bucket/prefix."
    )


@pytest.mark.parametrize("name", ["feature%2Flogin", "what?", "a%20b#c", "plain"])
def test_a_home_may_have_any_name(storage, tmp_path, name):
    """Branch names become folder names on build servers; `%` and `?` mean something else in a URL."""
    folder = tmp_path / "all"
    home = folder / name / ".robustrain"
    home.mkdir(parents=True)
    settings = StorageSettings.from_environment({}, home=home)
    assert settings.is_fresh
    shutil.copy(storage.home / "mlflow.db", home / "mlflow.db")
    tracking = Tracking(settings)
    run_id = tracking.open_pipeline_run("p", {}, {"name": "p"})
    spec = StageSpec(name="x", kind="encode", config={}, seed=0, fingerprint="e" * 64)
    spec = spec.model_copy(update={"run_id": tracking.begin(spec)})
    execute(spec, settings, lambda job: {"a": 1})
    found = tracking.find(spec.fingerprint)
    assert (found.state, found.run_id) == ("complete", spec.run_id)
    assert tracking.recipe_of(run_id) == {"name": "p"}
    assert list((home / "artifacts").glob("*/artifacts/result.json"))
    assert not settings.is_fresh
    assert [path.name for path in folder.iterdir()] == [name], "nothing was written beside it"
