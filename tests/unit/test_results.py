"""The results of a run: one row a (stage, resolution, norm, radius), the strongest that was measured."""

import pytest

from components.errors import UserError
from pipeline import results


def row(**changes):
    base = {
        "name": "adversarial",
        "stage": "adversarial",
        "dataset": "digits",
        "resolution": 32,
        "norm": "Linf",
        "eps": 0.1,
        "attack": "APGD-CE",
        "n": 50,
        "robust_accuracy": 0.6,
    }
    return {**base, **changes}


def test_stronger_attack_then_more_images_is_kept():
    rows = [row(), row(attack="AutoAttack", n=10), row(attack="APGD-CE+APGD-T", n=500), row(attack="AutoAttack", n=20)]
    assert results.strongest(rows) == [row(attack="AutoAttack", n=20)]


@pytest.mark.parametrize(
    "change", [{"resolution": 64}, {"norm": "L2"}, {"eps": 0.2}, {"name": "radius"}, {"dataset": "shapes"}]
)
def test_other_conditions_stay_apart(change):
    assert len(results.strongest([row(), row(**change)])) == 2


def test_unknown_run_is_said(storage):
    with pytest.raises(UserError, match="no pipeline run"):
        results.read(storage)


def test_rows_come_in_the_order_of_the_recipe(storage, tmp_path):
    from components.files import write_json
    from components.store.spec import StageSpec
    from components.store.tracking import Tracking

    tracking = Tracking(storage)
    parent = tracking.open_pipeline_run(
        "demo", {"recipe": "demo"}, {"name": "demo", "stages": {"pretrain": {}, "adversarial": {}}}
    )
    for name, rows in {"b": [row(), row(eps=0.05)], "a": [row(name="pretrain")]}.items():
        spec = StageSpec(name=name, kind="evaluate", config={}, seed=0, fingerprint=name * 64, pipeline_run=parent)
        run_id = tracking.begin(spec)
        tracking.client.log_artifact(
            run_id, str(write_json(tmp_path / "results.json", {"rows": rows, "union": [{"n": 5}]})), "results"
        )
        tracking.record_stage(parent, name, run_id, "ran")
    found = results.read(storage, parent[:6])
    assert [(r["name"], r["eps"]) for r in found.rows] == [
        ("pretrain", 0.1),
        ("adversarial", 0.05),
        ("adversarial", 0.1),
    ]
    assert [set(r) for r in found.plain()] == [set(results.KEYS)] * 3
    assert {r["evaluation"] for r in found.worst_case} == {"a", "b"}


def finished(storage, name, state, rows=(), stages=None):
    """A pipeline run that ended in `state`, with one evaluation where there are rows."""
    from components.files import write_json
    from components.store.spec import StageSpec
    from components.store.tracking import Tracking

    tracking = Tracking(storage)
    parent = tracking.open_pipeline_run(name, {"recipe": name}, {"name": name, "stages": stages or {}})
    if rows:
        spec = StageSpec(name="e", kind="evaluate", config={}, seed=0, fingerprint="e" * 64, pipeline_run=parent)
        run_id, document = tracking.begin(spec), {"rows": list(rows), "conditions": {"split": "val"}}
        file = write_json(storage.home / "results.json", document)
        tracking.client.log_artifact(run_id, str(file), "results")
        tracking.record_stage(parent, "e", run_id, "ran")
    if state != "running":
        tracking.close_pipeline_run(parent, state=state)
    return parent


def test_a_run_that_failed_says_so_and_names_the_newest_complete_one(storage):
    older = finished(storage, "demo", "complete", [row()])
    newest = finished(storage, "demo", "failed")
    said = results.read(storage).notice()
    assert said == (
        f"run {newest[:8]} of demo is not complete (it says: failed) and has no figures. Start it again to finish it: "
        f"robustrain run demo; or look at the newest complete run: --run {older[:8]}."
    )
    assert results.read(storage, older).notice() == ""


def test_a_run_under_way_with_figures_says_that_more_may_come(storage):
    run = finished(storage, "demo", "running", [row()])
    assert results.read(storage).notice() == (
        f"run {run[:8]} of demo is not complete (it says: running). Start it again to finish it: robustrain run demo."
    )


def test_a_complete_run_without_figures_says_so(storage):
    finished(storage, "demo", "complete")
    assert results.read(storage).notice().endswith("of demo is complete and measured no robust accuracy.")


def test_a_missing_report_is_told_from_a_recipe_without_one(storage):
    finished(storage, "demo", "failed", stages={"report": {"kind": "report"}})
    assert "has not come as far as its report; it says: failed" in str(results.read(storage).no_report())
    finished(storage, "demo", "complete", stages={"digits": {"kind": "encode"}})
    assert "add a `report` stage" in str(results.read(storage).no_report())


def test_rows_know_the_split_of_their_images(storage):
    finished(storage, "demo", "complete", [row(details={"seed": 3})])
    [found] = results.read(storage).rows
    assert found["details"] == {"split": "val", "seed": 3}
