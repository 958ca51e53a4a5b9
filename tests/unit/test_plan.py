"""The plan says what a run would do: where runs are looked for, how long a stage worked, and what --again leaves alone."""

import time
from types import SimpleNamespace

import pytest

from components.errors import UserError
from components.store.execute import execute
from components.store.settings import StorageSettings
from components.store.spec import StageSpec
from components.store.tracking import Tracking
from pipeline.plan import fingerprints, kept_behind, plan
from pipeline.recipe import build
from tests.recipes import small


@pytest.fixture
def recipe():
    return build(small(promote={"model": "adversarial", "evaluation": "evaluate"}))


def complete(storage, recipe, names, work=lambda job: {}):
    """Finishes stages in name only."""
    tracking, prints = Tracking(storage), fingerprints(recipe, storage.cache)
    runs = {}
    for name in names:
        stage = recipe.stages[name]
        spec = StageSpec(name=name, kind=stage.kind.name, config={}, seed=0, fingerprint=prints[name])
        runs[name] = tracking.begin(spec)
        execute(spec.model_copy(update={"run_id": runs[name]}), storage, work)
    return runs


def decided(storage, recipe, *again):
    return {stage.name: stage for stage in plan(recipe, storage, again)}


def test_runs_are_looked_for_where_they_are_kept(storage, recipe, tmp_path):
    """A data base named by MLFLOW_TRACKING_URI, and no file in the home."""
    elsewhere = storage.model_copy(update={"home": tmp_path / "new-home"})
    complete(elsewhere, recipe, ["digits"])
    assert not (elsewhere.home / "mlflow.db").exists()
    assert decided(elsewhere, recipe)["digits"].action == "reuse"


def test_a_fresh_home_has_no_data_base(tmp_path):
    home = StorageSettings.from_environment({}, home=tmp_path)
    assert home.is_fresh
    assert not StorageSettings.from_environment(
        {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"}, home=tmp_path
    ).is_fresh
    (tmp_path / "mlflow.db").touch()
    assert not home.is_fresh


def test_stages_behind_one_that_runs_again_are_reused_and_the_plan_says_so(storage, recipe):
    complete(storage, recipe, ["digits", "pretrain", "adversarial"])
    found = decided(storage, recipe, "pretrain")
    assert (found["pretrain"].action, found["pretrain"].why) == ("run", "asked for again")
    assert found["adversarial"].action == "reuse"
    assert found["adversarial"].why.endswith("though pretrain runs again: its fingerprint is the same")
    assert "again" not in found["digits"].why
    assert "again" not in decided(storage, recipe)["adversarial"].why


def test_whatever_depends_on_a_stage_that_runs_again_is_named(recipe):
    found = kept_behind(recipe, ("pretrain", "evaluate"))
    assert found == {"adversarial": ["pretrain"], "promote": ["pretrain", "evaluate"]}


def test_the_newest_run_is_used_after_a_stage_was_run_again(storage, recipe):
    first = complete(storage, recipe, ["digits"])
    again = complete(storage, recipe, ["digits"])
    assert first != again
    assert decided(storage, recipe)["digits"].run_id == again["digits"]


def test_pauses_are_no_work(storage, recipe, monkeypatch):
    """Tried for 40 s, left alone for a week, then 20 s of work: it took a minute."""
    clock = {"now": 1000.0}
    fake = SimpleNamespace(monotonic=lambda: clock["now"], time=time.time)
    monkeypatch.setattr("components.store.run.time", fake)
    tracking, spec = Tracking(storage), StageSpec(name="digits", kind="encode", config={}, seed=0, fingerprint="a" * 64)
    spec = spec.model_copy(update={"run_id": tracking.begin(spec)})

    def fails(job):
        clock["now"] += 40
        raise UserError("no", remedy="mend it")

    def works(job):
        clock["now"] += 20
        return {}

    with pytest.raises(UserError):
        execute(spec, storage, fails)
    clock["now"] += 7 * 24 * 3600
    tracking.begin(spec, adopt=spec.run_id)
    execute(spec, storage, works)
    assert tracking.last_duration("digits") == 60.0


def test_a_run_that_completes_later_no_longer_tells_its_old_error(storage):
    tracking, spec = Tracking(storage), StageSpec(name="digits", kind="encode", config={}, seed=0, fingerprint="a" * 64)
    spec = spec.model_copy(update={"run_id": tracking.begin(spec)})

    def fails(job):
        raise UserError("no", remedy="mend it")

    with pytest.raises(UserError):
        execute(spec, storage, fails)
    assert tracking.client.get_run(spec.run_id).data.tags["stage_error"] == "no. mend it."
    execute(spec, storage, lambda job: {})
    assert "stage_error" not in tracking.client.get_run(spec.run_id).data.tags


@pytest.fixture
def images(tmp_path):
    """Makes a folder of images with this number of classes."""

    def make(classes):
        for split in ("train", "val"):
            for name in "abcdefgh"[:classes]:
                (tmp_path / "images" / split / name).mkdir(parents=True)
                (tmp_path / "images" / split / name / "1.png").write_bytes(b"x")
        return {"source": str(tmp_path / "images")}

    return make


def test_attacks_that_need_more_classes_are_refused_for_all_stages_at_once(storage, images):
    threat = {"norm": "Linf", "eps": 0.1}
    again = {
        "kind": "evaluate",
        "model": "pretrain",
        "threats": [{**threat, "attack": name} for name in ("apgd-ce", "apgd-ce+apgd-t")],
    }
    recipe = build(small(digits=images(3), again=again))
    with pytest.raises(UserError) as refused:
        plan(recipe, storage)
    assert str(refused.value) == (
        "digits has 3 classes, and attacks need at least 4: evaluate (AutoAttack), again (APGD-CE+APGD-T). "
        "set `attack: apgd-ce` in these threats; with so few classes no result may be called AutoAttack."
    )


@pytest.mark.parametrize(("classes", "attack"), [(2, "apgd-ce"), (3, "apgd-ce"), (4, "autoattack")])
def test_enough_classes_are_planned(storage, images, classes, attack):
    threats = [{"norm": "Linf", "eps": 0.1, "attack": attack}]
    recipe = build(small(digits=images(classes), evaluate={"threats": threats}))
    assert {stage.action for stage in plan(recipe, storage)} == {"run"}


def test_a_data_set_that_cannot_be_used_is_named_by_its_stage(storage, images, tmp_path):
    recipe = build(small(digits=images(4)))
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "pictures")
    with pytest.raises(UserError, match=r"^stages\.digits\.source: there is no folder `train` in it"):
        plan(recipe, storage)


def test_a_run_refuses_what_a_plan_refuses(storage, images, monkeypatch):
    from pipeline.run_command import make_console, run_with_display

    monkeypatch.setattr("pipeline.local.run_here", lambda *arguments, **options: pytest.fail("it was started"))
    monkeypatch.setenv("ROBUSTRAIN_HOME", str(storage.home))
    with pytest.raises(UserError, match="digits has 2 classes"):
        run_with_display(build(small(digits=images(2))), make_console())
