"""The promote stage: registration, the gate's answer, and the model card."""

import json

import pytest

from components.errors import UserError
from components.promote.config import PromoteConfig
from components.promote.gate import Decision, JudgedResult, judged_result, result_to_compare
from components.promote.stage import model_card, run
from components.result_rows import read_results, read_verdicts
from components.store.registry import Registry
from tests.result_documents import results_document, row_document, verdicts_document, worst_case_document

MODEL = {
    "name": "convnext_micro",
    "stem": "conv",
    "num_classes": 10,
    "resolution": 32,
    "normalize": None,
    "crop_ratio": 0.875,
}


THREATS = [("Linf", 4 / 255, "AutoAttack"), ("L2", 2.0, "APGD-CE")]
NOTE = "targets capped at classes - 1 = 4: FAB-T 4 instead of 9"


def row(robust, n=50, norm="Linf", eps=4 / 255, attack="AutoAttack"):
    return row_document(
        stage="net",
        model="convnext_micro",
        dataset="digits",
        resolution=32,
        norm=norm,
        eps=eps,
        attack=attack,
        n=n,
        clean_accuracy=0.96,
        robust_accuracy=robust / n,
        interval=[max(0, robust / n - 0.1), min(1, robust / n + 0.1)],
        details={"images_digest": "d", "targets_note": NOTE},
    )


def results(robust, run_id="r", weights="", **changes):
    return results_document(
        [row(robust, **changes), row(3, norm="L2", eps=2.0, attack="APGD-CE")],
        [worst_case_document(n=50, resolution=32, robust_accuracy=0.06, interval=[0.02, 0.16])],
        dataset="digits",
        model_run=run_id,
        model_sha256=weights,
        images_digest="d",
        resolutions=[32],
    )


def verdicts(robust, n=50):
    words = [("robust" if k < robust else "APGD-CE", "robust" if k < 3 else "wrong") for k in range(n)]
    return verdicts_document(THREATS, words, resolution=32)


def judged_result_of(document, found, config):
    return judged_result(read_results(document, where="e"), read_verdicts(found, where="e"), config)


def rules(**changes):
    return PromoteConfig(evaluation="evaluate", model="net", **changes)


@pytest.fixture
def promoted(run_stage, storage):
    """`promoted(robust images, seed, **rules)`: trains, evaluates and promotes in name only; everything else is real."""

    def go(robust, seed, evaluated_run=None, evaluated_weights="", **changes):
        def train(job):
            folder = job.run.workdir / "model"
            folder.mkdir()
            (folder / "model.json").write_text(json.dumps({**MODEL, "weights": {"sha256": "w" * 64}}))
            job.run.save(folder, "model")
            return {}

        def evaluate(job):
            for name, document in (
                ("results", results(robust, evaluated_run or job.inputs["model"].run_id, weights=evaluated_weights)),
                ("verdicts", verdicts(robust)),
            ):
                path = job.run.workdir / f"{name}.json"
                path.write_text(json.dumps(document))
                job.run.save(path, f"results/{name}.json")
            return {}

        config = {"data": "d", "init": "random", "model": {"name": "convnext_micro"}, "attack": {"eps": 0.1}}
        net = run_stage("adversarial", config, {}, name="net", seed=seed, function=train)
        evaluation = run_stage("evaluate", {"model": "net"}, {"model": net}, seed=seed, function=evaluate)
        return net, go.again(net, evaluation, seed, **changes)

    def again(net, evaluation, seed, **changes):
        go.last = net, evaluation
        stage = {"evaluation": "evaluate", "model": "net", "name": "digits-net", **changes}
        return run_stage(
            "promote",
            stage,
            {"model": net, "evaluation": evaluation},
            seed=seed,
            function=lambda job: run(job, Registry(storage)),
        )

    go.again = again
    return go


def test_only_a_better_model_becomes_champion(promoted, storage):
    registry = Registry(storage)
    first, answer = promoted(30, 1)
    assert answer.result["promoted"] is True
    assert registry.champion("digits-net").run_id == registry.challenger("digits-net").run_id == first.run_id
    worse, answer = promoted(25, 2)
    assert answer.result["promoted"] is False
    assert registry.champion("digits-net").run_id == first.run_id
    assert registry.challenger("digits-net").run_id == worse.run_id
    assert any("\N{MINUS SIGN}10.0 points" in reason for reason in answer.result["reasons"])
    better, answer = promoted(45, 3, significant=True)
    assert answer.result["promoted"] is True
    assert any("paired difference to the champion: 95" in reason for reason in answer.result["reasons"])
    assert registry.champion("digits-net").run_id == better.run_id
    assert registry.get("digits-net", "previous").run_id == first.run_id
    decision = json.loads(answer.path("decision.json").read_text())
    assert decision["difference"]["only_first"] == 15
    assert decision["conditions"]["images_digest"] == "d"
    assert "Promoted to champion" in answer.path("model_card.md").read_text()


def test_judging_the_champion_again_leaves_it_champion(promoted, storage):
    net, first = promoted(30, 1)
    answer = promoted.again(*promoted.last, 1, significant=True, min_robust_gain=0.5)
    assert answer.result["promoted"] is True
    assert answer.result["version"] == first.result["version"]
    registry = Registry(storage)
    assert registry.champion("digits-net").run_id == net.run_id
    assert registry.get("digits-net", "previous") is None


def test_an_evaluation_of_another_model_is_refused(promoted):
    with pytest.raises(UserError, match="'evaluate' did not measure these weights of 'net'"):
        promoted(30, 1, evaluated_run="somebody else's", evaluated_weights="v" * 64)


def test_an_evaluation_of_the_same_weights_from_another_run_counts(promoted):
    """After --again a training has two runs, and its evaluation, which is reused, measured the first one's weights."""
    _, answer = promoted(30, 1, evaluated_run="the run before", evaluated_weights="w" * 64)
    assert answer.result["promoted"] is True


def test_the_judged_result_is_the_one_that_was_named():
    found = judged_result_of(results(30), verdicts(30), rules())
    assert (found.norm, found.robust_accuracy, sum(found.robust), len(found.robust)) == ("Linf", 0.6, 30, 50)
    other = judged_result_of(results(30), verdicts(30), rules(norm="L2", eps="2"))
    assert (other.norm, other.attack, sum(other.robust)) == ("L2", "APGD-CE", 3)
    with pytest.raises(UserError, match=r"no result to judge.*Linf 4/255 by AutoAttack, L2 2 by APGD-CE"):
        judged_result_of(results(30), verdicts(30), rules(norm="L1"))


def test_the_strongest_attack_on_a_threat_is_judged():
    document = results(30)
    document["rows"].insert(0, row(40, attack="APGD-CE"))
    assert judged_result_of(document, verdicts(30), rules()).robust_accuracy == 0.6


def compared(document, **changes):
    """The champion's result that is chosen for a challenger judged under the first threat, with some of it changed."""
    challenger = judged_result_of(results(30), verdicts(30), rules()).model_copy(update=changes)
    return result_to_compare(read_results(document, where="e"), read_verdicts(verdicts(20), where="e"), challenger)


def test_the_champions_result_under_the_challengers_threat_is_compared():
    found = compared(results(20))
    assert isinstance(found, JudgedResult)
    assert (found.norm, found.robust_accuracy, sum(found.robust)) == ("Linf", 0.4, 20)
    assert compared(results(20), norm="L2", eps=2.0, attack="APGD-CE").norm == "L2"


def test_a_champion_without_the_challengers_threat_gives_its_nearest_result():
    assert compared(results(20), norm="L2", eps=1.0).eps == 2.0
    assert compared(results(20, attack="APGD-CE")).attack == "APGD-CE"


def test_the_champions_verdicts_are_read_from_the_evaluation_that_its_tag_names(promoted, storage):
    promoted(30, 1)
    registry = Registry(storage)
    champion = registry.champion("digits-net")
    _, evaluation = promoted.last
    assert champion.tags["evaluation_run"] == evaluation.run_id
    assert all(len(value) < 100 for value in champion.tags.values())
    _, answer = promoted(31, 2)
    difference = json.loads(answer.path("decision.json").read_text())["difference"]
    assert (difference["n"], difference["only_first"], difference["only_second"]) == (50, 1, 0)


@pytest.mark.parametrize("damage", ["changed", "removed", "run deleted"])
def test_a_champion_whose_evaluation_cannot_be_read_is_never_replaced_unseen(promoted, storage, damage):
    first, _ = promoted(30, 1)
    _, evaluation = promoted.last
    path = evaluation.path("results/verdicts.json")
    if damage == "changed":
        path.write_text(path.read_text().replace("robust", "APGD-CE"))
    elif damage == "removed":
        path.unlink()
    else:
        client = Registry(storage)._client
        client.set_model_version_tag("digits-net", "1", "evaluation_run", "0" * 32)
    _, answer = promoted(45, 2)
    assert answer.result["promoted"] is False
    assert any("left no result to compare with" in reason for reason in answer.result["reasons"])
    assert Registry(storage).champion("digits-net").run_id == first.run_id


@pytest.mark.parametrize(
    ("written", "kept"), [("any", "any"), ("autoattack", "AutoAttack"), ("APGD-CE", "APGD-CE"), ("Any", "any")]
)
def test_the_attack_that_is_asked_for_is_one_of_the_registry(written, kept):
    assert rules(attack=written).attack == kept
    with pytest.raises(ValueError, match="choose one of any, AutoAttack"):
        rules(attack="pgd")


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a b"])
def test_names_that_no_registry_takes_are_refused(name):
    with pytest.raises(ValueError, match="registry takes letters"):
        rules(name=name)


def card(**changes):
    given = {
        "name": "digits-net",
        "model": MODEL,
        "results": read_results(results(30), where="e"),
        "decision": Decision(False, ["clean accuracy fine"], ["robust accuracy too low"]),
        "intended_use": "reading digits",
        "lineage": {"run": "abc"},
    }
    return model_card(**{**given, **changes})


def test_the_card_has_results_with_conditions_use_and_decision():
    text = card().replace("\N{NO-BREAK SPACE}", " ")
    assert "| 32 px | Linf | 4/255 | AutoAttack | 50 | 96.0 % | 60.0 % | 50.0 % to 70.0 % |" in text
    assert "| 32 px | L2 | 2 | APGD-CE | 50 | 96.0 % | 6.0 % |" in text
    for needed in (
        "reading digits",
        "not certified",
        "targets capped",
        "Worst case over Linf 4/255, L2 2, image by image: 6.0 % (2.0 % to 16.0 %, n = 50, 32 px)",
        "- images digest: d",
        "- run: abc",
        "floor(resolution / 0.875)",
        "no normaliser",
    ):
        assert needed in text, needed
    assert text.index("no: robust accuracy too low") < text.index("yes: clean accuracy fine")
    assert "stays challenger" in text
    assert "No use beyond that was stated" in card(intended_use="")


def test_names_cannot_write_markup_into_the_card():
    text = card(intended_use="<script>alert(1)</script> | [x](http://y) `code`\n# heading")
    assert "<script>" not in text
    assert "\n# heading" not in text
    assert "\\[x\\]" in text
