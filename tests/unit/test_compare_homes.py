"""The comparison of two homes: equal for a copy, also with older key names, and different for every change."""

import json
import shutil

import pytest

from components.store.settings import StorageSettings
from components.store.spec import StageSpec
from components.store.tracking import Tracking
from tests.compare_homes import compare

ROW = {"kind": "adversarial", "stage": "adversarial", "n": 8, "robust_accuracy": 0.5, "details": {"seconds": 1.5}}
FILES = {
    "model/weights.safetensors": "weights",
    "checkpoints/a/state.json": {"step": 21},
    "checkpoints/a/optimizer.safetensors": "moments",
    "history.json": [{"epoch": 1, "loss": 0.25, "raw_clean_accuracy": 0.5, "images_per_s": 9.0}],
    "results/results.json": {"rows": [ROW], "conditions": {"images": "8 of val", "n": 8}},
    "results/verdicts.json": {"verdicts": "prose", "resolutions": [{"images": [{"index": 3, "verdicts": ["robust"]}]}]},
    "objects.json": [{"uri": "/somewhere/train.beton", "size": 5, "sha256": "ab"}],
    "result.json": {"promoted": True, "clean_accuracy": 0.5, "robust_accuracy": 0.5, "version": "1"},
}


@pytest.fixture
def homes(storage, tmp_path):
    """Two homes with one promotion each that has every kind of file; the second one's artifact folder."""
    tracking = Tracking(storage)
    spec = StageSpec(name="stage", kind="promote", config={}, seed=0, fingerprint="ab" * 32)
    parent, run_id = tracking.open_pipeline_run("p", {}, {}), tracking.begin(spec)
    tracking.record_stage(parent, "stage", run_id, "ran")
    folder = storage.home / "artifacts" / run_id / "artifacts"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    other = tmp_path / "other"
    shutil.copytree(storage.home, other)
    return storage.home, other, other / "artifacts" / run_id / "artifacts"


def change(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_copy_is_equal_and_everything_is_compared(homes, capsys):
    assert compare(*homes[:2])
    assert capsys.readouterr().out.splitlines()[-1] == "equal: 7 files and documents compared"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("model/weights.safetensors", "weights", "Weights"),
        ("checkpoints/a/optimizer.safetensors", "moments", "Moments"),
        ("history.json", "0.25", "0.2500000000000001"),
        ("results/results.json", '"robust_accuracy": 0.5', '"robust_accuracy": 0.375'),
        ("results/results.json", '"kind"', '"sort"'),
        ("results/verdicts.json", "robust", "wrong"),
        ("objects.json", "ab", "cd"),
        ("result.json", "true", "false"),
    ],
)
def test_every_change_of_a_result_is_a_difference(homes, capsys, file, old, new):
    change(homes[2] / file, old, new)
    assert not compare(*homes[:2])
    assert capsys.readouterr().out.splitlines()[-1].startswith("DIFFERENT")


@pytest.mark.parametrize("file", ["model/weights.safetensors", "history.json", "results/verdicts.json"])
def test_a_missing_file_is_a_difference(homes, file):
    (homes[2] / file).unlink()
    assert not compare(*homes[:2])


def test_times_prose_and_older_key_names_make_no_difference(homes):
    change(homes[2] / "history.json", "9.0", "8.0")
    change(homes[2] / "history.json", "raw_clean_accuracy", "live_clean_accuracy")
    change(homes[2] / "results/results.json", "1.5", "2.5")
    change(homes[2] / "results/results.json", "8 of val", "eight")
    change(homes[2] / "results/results.json", '"stage"', '"name"')
    change(homes[2] / "results/results.json", '"kind"', '"stage"')
    change(homes[2] / "results/verdicts.json", "prose", "text")
    assert compare(*homes[:2])


def test_checkpoints_of_different_steps_are_not_compared(homes, capsys):
    change(homes[2] / "checkpoints/a/state.json", "21", "42")
    change(homes[2] / "checkpoints/a/optimizer.safetensors", "moments", "Moments")
    assert compare(*homes[:2])
    assert capsys.readouterr().out.splitlines()[-1] == "equal: 6 files and documents compared"


def test_runs_with_nothing_to_compare_are_not_called_equal(homes):
    for home in homes[:2]:
        folder = home / homes[2].relative_to(homes[1])
        shutil.rmtree(folder)
        tracking = Tracking(StorageSettings.from_environment({}, home=home))
        tracking.client.set_tag(folder.parent.name, "stage_kind", "report")
    assert not compare(*homes[:2])
