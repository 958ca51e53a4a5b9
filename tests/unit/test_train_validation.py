"""Which weights are kept, and what is described about the choice."""

import json

import pytest

from components.models import read_card
from components.train.config import PretrainConfig
from components.train.images import split_indices
from components.train.validation import describe_choice, describe_split, score
from tests.small_training import encoded, job, train

SPLIT = {"of": "train", "images": 20}


def _history(*pairs):
    return [{"epoch": e, "step": 5 * e, "clean_accuracy": c, "robust_accuracy": r} for e, (c, r) in enumerate(pairs, 1)]


def _choice(history, epoch):
    return describe_choice(history, epoch, PretrainConfig(data="digits"), SPLIT)


def test_the_runner_up_is_the_second_best_and_not_the_best_before():
    history = [*_history((0.5, 0.2), (0.6, 0.4), (0.7, 0.3)), {"epoch": 4, "loss": 1.0}]
    described = _choice(history, 2)
    assert (described["rule"], described["epoch"], described["robust_accuracy"], described["validations"]) == (
        "best validation",
        2,
        0.4,
        3,
    )
    assert described["runner_up"] == {"epoch": 3, "step": 15, "clean_accuracy": 0.7, "robust_accuracy": 0.3}
    assert described["split"] == SPLIT


def test_ties_go_to_clean_accuracy_and_then_to_the_earlier():
    assert score({"clean_accuracy": 0.7, "robust_accuracy": 0.4}) > score(
        {"clean_accuracy": 0.6, "robust_accuracy": 0.4}
    )
    assert _choice(_history((0.7, 0.4), (0.6, 0.3), (0.6, 0.3)), 1)["runner_up"]["epoch"] == 2


def test_a_single_probe_has_no_runner_up():
    assert _choice(_history((0.7, 0.4)), 1)["runner_up"] is None
    assert _choice(_history((0.7, 0.4)), None)["rule"] == "last"


def test_the_splits_digest_says_which_images():
    config = PretrainConfig(data="digits", batch_size=16)
    one, other = (split_indices(100, config, seed)[1] for seed in (0, 1))
    described = describe_split(one, 100, config, 0)
    assert (described["images"], described["total"], described["fraction"], described["seed"]) == (10, 100, 0.1, 0)
    assert described["sha256"] == describe_split(one, 100, config, 0)["sha256"]
    assert described["sha256"] != describe_split(other, 100, config, 0)["sha256"]


def test_the_last_epoch_is_validated_whatever_the_interval(tmp_path):
    validation = {"every_epochs": 2, "max_images": 16, "fraction": 0.15, "steps": 1, "eps": 0.1}
    made = job(encoded(tmp_path / "data"), tmp_path / "run", epochs=3, validation=validation)
    result = train(made)
    history = json.loads((made.run.artifacts / "history.json").read_text())
    assert [entry["epoch"] for entry in history if "clean_accuracy" in entry] == [2, 3]
    assert result["clean_accuracy"] == history[-1]["clean_accuracy"]


@pytest.mark.parametrize("keep_weights", ["best", "last"])
def test_result_and_card_describe_the_choice(tmp_path, keep_weights):
    made = job(encoded(tmp_path / "data"), tmp_path / "run", epochs=3, keep_weights=keep_weights)
    result = train(made)
    described, history = result["weights"], json.loads((made.run.artifacts / "history.json").read_text())
    assert described["split"]["images"] == result["held_out"] == 15
    assert described["split"]["total"] == 100
    details = read_card(made.run.artifacts / "model").details
    assert {name: details[name] for name in described} == described
    if keep_weights == "last":
        assert described["epoch"] == 3
        return
    ordered = sorted(history, key=lambda entry: (score(entry), -entry["epoch"]), reverse=True)
    assert [described["epoch"], described["runner_up"]["epoch"]] == [entry["epoch"] for entry in ordered[:2]]
    assert described["runner_up"]["clean_accuracy"] == ordered[1]["clean_accuracy"]
