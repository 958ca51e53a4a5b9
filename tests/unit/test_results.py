"""The results of a run: the strongest row for each stage, resolution, norm and radius; what the notices say."""

import pytest

from components.errors import UserError
from components.result_rows import ResultRow, strongest
from pipeline import results
from tests.result_documents import results_document, row_document, worst_case_document


def row(**changes):
    return row_document(**{"dataset": "digits", "resolution": 32, "eps": 0.1, "attack": "APGD-CE", "n": 50, **changes})


def rows_of(*documents):
    return [ResultRow.model_validate(document) for document in documents]


def test_stronger_attack_then_more_images_is_kept():
    rows = rows_of(
        row(), row(attack="AutoAttack", n=10), row(attack="APGD-CE+APGD-T", n=500), row(attack="AutoAttack", n=20)
    )
    assert strongest(rows) == [rows[3]]


def test_rows_are_written_as_csv():
    found = results.Results("a" * 32, "demo", "complete", rows_of(row(robust_accuracy=0.5)), [], "")
    header, line = found.csv().splitlines()
    values = dict(zip(header.split(","), line.split(","), strict=True))
    low, high = found.plain()[0]["interval"]
    assert (values["attack"], values["robust_accuracy"], values["n"]) == ("APGD-CE", "0.5", "50")
    assert (float(values["interval_low"]), float(values["interval_high"])) == (low, high)


@pytest.mark.parametrize(
    "change", [{"resolution": 64}, {"norm": "L2"}, {"eps": 0.2}, {"stage": "radius"}, {"dataset": "shapes"}]
)
def test_other_conditions_stay_apart(change):
    assert len(strongest(rows_of(row(), row(**change)))) == 2


def test_unknown_run_is_an_error(storage):
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
    for name, rows in {"b": [row(), row(eps=0.05)], "a": [row(stage="pretrain")]}.items():
        spec = StageSpec(name=name, kind="evaluate", config={}, seed=0, fingerprint=name * 64, pipeline_run=parent)
        run_id = tracking.begin(spec)
        tracking.client.log_artifact(
            run_id,
            str(write_json(tmp_path / "results.json", results_document(rows, [worst_case_document(stage=name)]))),
            "results",
        )
        tracking.record_stage(parent, name, run_id, "ran")
    found = results.read(storage, parent[:6])
    assert [(row.stage, row.eps) for row in found.rows] == [
        ("pretrain", 0.1),
        ("adversarial", 0.05),
        ("adversarial", 0.1),
    ]
    assert [row.stage for row in found.worst_case] == ["b", "a"]
    keys = "kind stage model stem dataset resolution image_set norm eps attack n"
    keys += " clean_accuracy robust_accuracy interval stored_side"
    assert [list(plain) for plain in found.plain()] == [keys.split()] * 3
    assert (found.plain()[0]["stage"], found.plain()[0]["kind"]) == ("pretrain", "adversarial")


def finished(storage, name, state, rows=(), stages=None):
    """A pipeline run that ended in `state`, with one evaluation where there are rows."""
    from components.files import write_json
    from components.store.spec import StageSpec
    from components.store.tracking import Tracking

    tracking = Tracking(storage)
    parent = tracking.open_pipeline_run(name, {"recipe": name}, {"name": name, "stages": stages or {}})
    if rows:
        spec = StageSpec(name="e", kind="evaluate", config={}, seed=0, fingerprint="e" * 64, pipeline_run=parent)
        run_id, document = tracking.begin(spec), results_document(rows)
        file = write_json(storage.home / "results.json", document)
        tracking.client.log_artifact(run_id, str(file), "results")
        tracking.record_stage(parent, "e", run_id, "ran")
    if state != "running":
        tracking.close_pipeline_run(parent, state=state)
    return parent


def test_the_notice_of_a_run_that_failed_says_so_and_names_the_newest_complete_one(storage):
    older = finished(storage, "demo", "complete", [row()])
    newest = finished(storage, "demo", "failed")
    message = results.read(storage).notice()
    assert message == (
        f"run {newest[:8]} of demo is not complete (state: failed) and has no figures. Start it again to finish it: "
        f"robustrain run demo; or look at the newest complete run: --run {older[:8]}."
    )
    assert results.read(storage, older).notice() == ""


def test_a_run_under_way_with_figures_says_that_more_may_come(storage):
    run = finished(storage, "demo", "running", [row()])
    assert results.read(storage).notice() == (
        f"run {run[:8]} of demo is not complete (state: running). Start it again to finish it: robustrain run demo."
    )


def test_a_complete_run_without_figures_says_so(storage):
    finished(storage, "demo", "complete")
    assert results.read(storage).notice().endswith("of demo is complete and measured no robust accuracy.")


def test_a_missing_report_differs_from_a_recipe_without_one(storage):
    finished(storage, "demo", "failed", stages={"report": {"kind": "report"}})
    assert "has not reached its report stage (state: failed)" in str(results.read(storage).no_report())
    finished(storage, "demo", "complete", stages={"digits": {"kind": "encode"}})
    assert "add a `report` stage" in str(results.read(storage).no_report())


def test_a_reused_evaluation_is_shown_under_the_name_that_this_recipe_gives_its_model(storage):
    finished(storage, "demo", "complete", [row(stage="adversarial-2")], stages={"e": {"model": "adversarial"}})
    [found] = results.read(storage).rows
    assert found.stage == "adversarial"


def test_results_of_another_form_are_refused_with_the_stage_to_run_again(storage):
    old = {key: value for key, value in row().items() if key != "kind"}
    finished(storage, "demo", "complete", [{**old, "name": "adversarial"}])
    with pytest.raises(UserError, match="--again e"):
        results.read(storage)


def test_a_stage_whose_run_was_removed_from_mlflow_is_left_out_and_named(storage):
    from components.store.tracking import Tracking

    tracking = Tracking(storage)
    parent = tracking.open_pipeline_run("demo", {}, {"name": "demo", "stages": {}})
    tracking.record_stage(parent, "encode", "0" * 32, "ran")
    tracking.close_pipeline_run(parent, state="complete")
    found = results.read(storage)
    assert found.removed == ("encode",)
    assert found.notice().endswith("stages whose runs were removed from MLflow are left out: encode.")
