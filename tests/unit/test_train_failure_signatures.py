"""The signatures of trainings that went wrong, on made-up histories: what is one, and what nearly is."""

import pytest

from components.train.config import MonitorConfig
from components.train.monitor import REMEDIES, findings, is_good

HEALTHY = {
    "clean_accuracy": 0.6,
    "robust_accuracy": 0.4,
    "raw_clean_accuracy": 0.6,
    "raw_attacked_accuracy": 0.45,
    "raw_robust_accuracy": 0.4,
}


def _history(*changes):
    """One validation per epoch, without failures except for the changes; None leaves a figure out."""
    entries = [{**HEALTHY, "epoch": epoch, **change} for epoch, change in enumerate(changes, start=1)]
    return [{name: value for name, value in entry.items() if value is not None} for entry in entries]


def _seen(*changes, images=1000, classes=10, **config):
    found = findings(_history(*changes), MonitorConfig(**config), classes=classes, images=images)
    return {finding.signature: finding.sentence for finding in found}


def _live(clean, attacked, robust):
    return {"raw_clean_accuracy": clean, "raw_attacked_accuracy": attacked, "raw_robust_accuracy": robust}


def _averaged(clean, robust):
    return {"clean_accuracy": clean, "robust_accuracy": robust}


def test_health_is_silent():
    assert _seen({}) == {}
    assert _seen({}, {}, {}) == {}
    assert findings([], MonitorConfig(), classes=10, images=100) == []
    assert findings([{"epoch": 1, "loss": 2.0}], MonitorConfig(), classes=10, images=100) == []


def test_collapse_is_both_accuracies_falling():
    assert "60.0% to 20.0%" in _seen({}, _averaged(0.2, 0.1))["collapse"]


@pytest.mark.parametrize(
    "last",
    [_averaged(0.6, 0.1), _averaged(0.2, 0.4), _averaged(0.31, 0.1), _averaged(0.2, 0.21)],
    ids=["robust alone", "clean alone", "clean just above half", "robust just above half"],
)
def test_nearly_a_collapse(last):
    assert "collapse" not in _seen({}, last)


def test_what_was_never_there_cannot_collapse():
    assert "collapse" not in _seen(_averaged(0.15, 0.15), _averaged(0.05, 0.05))
    assert "collapse" in _seen(_averaged(0.25, 0.15), _averaged(0.05, 0.05))


def test_a_collapse_of_clean_training_needs_no_robust_figure():
    clean = {name: None for name in HEALTHY if name != "clean_accuracy"}
    assert "collapse" in _seen(clean, {**clean, "clean_accuracy": 0.1})


def test_catastrophic_overfitting_is_a_gap_that_opened():
    sentence = _seen({}, _live(0.7, 0.65, 0.0))["catastrophic_overfitting"]
    assert "65.0%" in sentence
    assert "0.0%" in sentence


def test_catastrophic_overfitting_before_the_first_probe():
    assert "catastrophic_overfitting" in _seen(_live(0.9, 0.8, 0.05))


@pytest.mark.parametrize(
    "last",
    [_live(0.7, 0.45, 0.23), _live(0.5, 0.3, 0.1), _live(0.6, 0.4, 0.3), _live(0.3, 0.15, 0.0)],
    ids=["just over half is left", "the training attack succeeds more too", "both a little", "near chance"],
)
def test_nearly_catastrophic(last):
    assert "catastrophic_overfitting" not in _seen({}, last)


def test_a_wide_gap_that_was_always_there_and_closes_is_no_alarm():
    assert "catastrophic_overfitting" not in _seen(_live(0.7, 0.6, 0.1), _live(0.7, 0.6, 0.2))


def test_overfitting_is_clean_up_and_robust_down():
    sentence = _seen({}, _averaged(0.7, 0.25))["overfitting"]
    assert "since epoch 1" in sentence
    assert "40.0% to 25.0%" in sentence


@pytest.mark.parametrize(
    ("last", "images"),
    [(_averaged(0.6, 0.25), 1000), (_averaged(0.7, 0.31), 1000), (_averaged(0.7, 0.25), 50)],
    ids=["clean did not rise", "a little less", "within the noise of few images"],
)
def test_nearly_overfitting(last, images):
    assert "overfitting" not in _seen({}, last, images=images)


def test_clean_training_cannot_overfit_robustly():
    clean = {"raw_attacked_accuracy": None, "raw_robust_accuracy": None}
    assert "overfitting" not in _seen(clean, {**clean, **_averaged(0.7, 0.2)})


def test_the_catastrophic_kind_is_told_once():
    seen = _seen({}, {**_averaged(0.7, 0.0), **_live(0.7, 0.65, 0.0)})
    assert list(seen) == ["catastrophic_overfitting"]


def test_poor_generalisation_names_the_norms():
    sentence = _seen({"robust_accuracy_L2": 0.3, "robust_accuracy_L1": 0.02})["poor_generalisation"]
    assert "2.0% in L1" in sentence
    assert "L2" not in sentence


@pytest.mark.parametrize(
    "last",
    [{"robust_accuracy_L1": 0.05}, {}, {"robust_accuracy": 0.15, "robust_accuracy_L1": 0.0}],
    ids=["an eighth is left", "no other norm was looked at", "not robust in the training norm"],
)
def test_nearly_poor_generalisation(last):
    assert "poor_generalisation" not in _seen(last)


GUESSING = {**_averaged(0.1, 0.1), **_live(0.1, 0.1, 0.1)}


def test_never_left_chance():
    assert "10 classes" in _seen(*[GUESSING] * 5)["chance"]
    assert "chance" in _seen(*[GUESSING] * 2, chance_epochs=2)


@pytest.mark.parametrize(
    "validations",
    [[GUESSING] * 4, [GUESSING] * 4 + [_live(0.2, 0.1, 0.1)], [_live(0.2, 0.1, 0.1)] + [GUESSING] * 4],
    ids=["too early to say", "left it at last", "left it once"],
)
def test_nearly_never_left_chance(validations):
    assert "chance" not in _seen(*validations)


def test_chance_is_found_within_the_noise_of_the_images():
    slightly = {**GUESSING, "raw_clean_accuracy": 0.13}
    assert "chance" in _seen(*[slightly] * 5, images=100)
    many = findings(_history(*[slightly] * 5), MonitorConfig(num_images=4000), classes=10, images=4000)
    assert many == []


def test_every_signature_has_an_action_and_a_remedy():
    actions = {name.removeprefix("on_") for name in MonitorConfig.model_fields if name.startswith("on_")}
    assert actions == set(REMEDIES)


def test_only_a_recipe_with_rollbacks_keeps_good_states():
    assert not MonitorConfig().can_roll_back
    assert not MonitorConfig(on_chance="stop").can_roll_back
    assert MonitorConfig(on_chance="rollback").can_roll_back


@pytest.mark.parametrize(
    ("last", "worth"),
    [
        ({}, True),
        (_averaged(0.46, 0.31), True),
        (_averaged(0.44, 0.29), False),
        (_averaged(0.44, 0.4), True),
        (_live(0.1, 0.1, 0.1), False),
    ],
    ids=["healthy", "a little less", "half-way to a collapse", "clean alone", "guessing"],
)
def test_which_states_are_fit_for_a_rollback(last, worth):
    assert is_good(_history({}, last), MonitorConfig(), classes=10, images=1000) is worth
