"""The typed documents: they are read back as they were written, and verdicts are found for the result they belong to."""

import json

import pytest

from components.errors import UserError
from components.result_rows import (
    EvaluationResults,
    ResultRow,
    read_results,
    read_verdicts,
    strongest,
)
from tests.result_documents import results_document, row_document, verdicts_document, worst_case_document

EPS = 4 / 255


def row(**changes):
    return ResultRow.model_validate(row_document(**changes))


def test_results_are_read_back_as_they_were_written():
    document = results_document([row_document(details={"warnings": ["zero gradients"]})], [worst_case_document()])
    results = read_results(document, where="evaluate")
    assert EvaluationResults.model_validate_json(results.model_dump_json()) == results
    assert results.rows[0].interval == (0.31, 0.5)
    assert json.loads(results.model_dump_json())["rows"][0]["stage"] == "adversarial"


def test_plain_row_has_the_documented_fields_and_no_more():
    assert list(row().plain()) == [
        "kind",
        "stage",
        "model",
        "stem",
        "dataset",
        "resolution",
        "image_set",
        "norm",
        "eps",
        "attack",
        "n",
        "clean_accuracy",
        "robust_accuracy",
        "interval",
        "stored_side",
    ]


@pytest.mark.parametrize("change", [{"name": "a"}, {"eps": float("nan")}, {"interval": [0.1]}])
def test_document_of_another_form_is_refused_with_the_stage_to_run_again(change):
    with pytest.raises(UserError, match=r"does not read \(rows\.0.*--again evaluate"):
        read_results(results_document([row_document(**change)]), where="evaluate")


def test_verdicts_are_found_by_threat_and_cut_to_the_images_of_the_threat():
    threats = [("Linf", EPS, "AutoAttack"), ("L2", 2.0, "AutoAttack")]
    words = [["robust", "robust"], ["APGD-CE", "robust"], ["wrong", None]]
    verdicts = read_verdicts(verdicts_document(threats, words, first_index=7), where="e")
    found = verdicts.robust(row())
    assert found == ([(7, 7), (8, 8), (9, 9)], [True, False, False])
    assert verdicts.robust(row(norm="L2", eps=2.0)) == ([(7, 7), (8, 8)], [True, True])
    assert verdicts.resolutions[0].clean == [True, True, False]


def test_shorter_attack_is_read_off_the_longer_one():
    words = [["robust"], ["APGD-T"], ["FAB-T"], ["Square"]]
    verdicts = read_verdicts(verdicts_document([("Linf", EPS, "AutoAttack")], words), where="e")
    assert [*verdicts.robust(row(attack="APGD-CE+APGD-T")).robust] == [True, False, True, True]
    assert [*verdicts.robust(row(attack="AutoAttack")).robust] == [True, False, False, False]
    assert verdicts.robust(row(attack="APGD-CE")) is None


def test_own_verdicts_of_the_shorter_attack_go_before_those_of_the_longer_one():
    threats = [("Linf", EPS, "AutoAttack"), ("Linf", EPS, "APGD-CE+APGD-T")]
    verdicts = read_verdicts(verdicts_document(threats, [["Square", "APGD-T"]]), where="e")
    assert [*verdicts.robust(row(attack="APGD-CE+APGD-T")).robust] == [False]


@pytest.mark.parametrize("change", [{"resolution": 32}, {"norm": "L1"}, {"eps": 8 / 255}, {"attack": "PGD"}])
def test_no_verdicts_are_found_for_another_threat(change):
    verdicts = read_verdicts(verdicts_document([("Linf", EPS, "AutoAttack")], [["robust"]]), where="e")
    assert verdicts.robust(row(**change)) is None


def test_strongest_attack_is_kept_then_the_larger_number_of_images():
    rows = [row(attack="APGD-CE", n=500), row(attack="AutoAttack", n=50), row(attack="AutoAttack", n=100)]
    assert strongest(rows) == [rows[2]]
    assert strongest([*rows, row(resolution=256, attack="APGD-CE")])[1].attack == "APGD-CE"


def test_details_name_the_variant_of_a_complete_attack_only():
    assert row().details.version == "pyautoattack 0.2.0, standard"
    assert row(details={"attack_version": "parts of standard"}).details.version == "pyautoattack 0.2.0"


def test_notes_are_the_reservations_of_the_evaluation_in_a_fixed_order():
    found = row(details={"targets_note": "capped", "warnings": ["zero gradients"], "unverified": 2}).details
    assert found.notes == ("capped", "zero gradients", "2 adversarial images could not be verified")
    assert row().details.notes == ()


def test_titles_of_model_and_threat():
    assert (row().model_title, row(stem="patch").stem_title) == ("convnext_tiny, ConvStem", "PatchStem")
    assert row(norm="L2", eps=2.0).threat == "L2 2"


def test_results_of_a_reused_evaluation_take_the_name_of_the_recipe_at_hand():
    results = read_results(results_document([row_document()], [worst_case_document()]), where="evaluate")
    named = results.with_stage_name("adversarial-2")
    assert {one.stage for one in (*named.rows, *named.union)} == {"adversarial-2"}
    assert results.with_stage_name("") == results
