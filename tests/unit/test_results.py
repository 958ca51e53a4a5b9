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


def test_unknown_run_is_said(places):
    with pytest.raises(UserError, match="no pipeline run"):
        results.read(places)


def test_rows_come_in_the_order_of_the_recipe(places, tmp_path):
    from components.store.digests import write_json
    from components.store.job import StageSpec
    from components.store.tracking import Tracking

    tracking = Tracking(places)
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
    found = results.read(places, parent[:6])
    assert [(r["name"], r["eps"]) for r in found.rows] == [
        ("pretrain", 0.1),
        ("adversarial", 0.05),
        ("adversarial", 0.1),
    ]
    assert [set(r) for r in found.plain()] == [set(results.KEYS)] * 3
    assert {r["evaluation"] for r in found.worst_case} == {"a", "b"}
