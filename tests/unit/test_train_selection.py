"""Which weights are kept, and what is told about the choice."""

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
    told = _choice(history, 2)
    assert (told["rule"], told["epoch"], told["robust_accuracy"], told["probes"]) == ("best probe", 2, 0.4, 3)
    assert told["runner_up"] == {"epoch": 3, "step": 15, "clean_accuracy": 0.7, "robust_accuracy": 0.3}
    assert told["split"] == SPLIT


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
    told = describe_split(one, 100, config, 0)
    assert (told["images"], told["total"], told["fraction"], told["seed"]) == (10, 100, 0.1, 0)
    assert told["sha256"] == describe_split(one, 100, config, 0)["sha256"]
    assert told["sha256"] != describe_split(other, 100, config, 0)["sha256"]


@pytest.mark.parametrize("select", ["best", "last"])
def test_result_and_card_tell_the_choice(tmp_path, select):
    made = job(encoded(tmp_path / "data"), tmp_path / "run", epochs=3, select=select)
    result = train(made)
    told, history = result["weights"], json.loads((made.run.artifacts / "history.json").read_text())
    assert told["split"]["images"] == result["held_out"] == 15
    assert told["split"]["total"] == 100
    details = read_card(made.run.artifacts / "model").details
    assert {name: details[name] for name in told} == told
    if select == "last":
        assert told["epoch"] == 3
        return
    ordered = sorted(history, key=lambda entry: (score(entry), -entry["epoch"]), reverse=True)
    assert [told["epoch"], told["runner_up"]["epoch"]] == [entry["epoch"] for entry in ordered[:2]]
    assert told["runner_up"]["clean_accuracy"] == ordered[1]["clean_accuracy"]
