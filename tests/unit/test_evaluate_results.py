"""The worst case over the norms takes one radius a norm, so that models can be compared by it."""

from types import SimpleNamespace

import numpy as np
import pytest

from components.evaluate.config import Threat
from components.evaluate.results import Subject, worst_case_rows
from components.models.weights import ModelCard

IMAGES = "drawn with seed 0"


def outcome(norm, eps, pattern, attack="apgd-ce"):
    robust = np.array([letter == "1" for letter in pattern])
    return SimpleNamespace(
        threat=Threat(norm=norm, eps=eps, attack=attack),
        resolution=32,
        robust=robust,
        correct=np.ones(len(robust), bool),
        n=len(robust),
    )


@pytest.fixture
def subject():
    card = ModelCard(name="convnext_micro", stem="conv", num_classes=10, resolution=32)
    return Subject("adversarial", "net", card, "s", "digits", ("a", "b"))


def test_a_second_radius_does_not_enter_the_worst_case(subject):
    plain = [outcome("Linf", 0.15, "11110"), outcome("L2", 2.0, "11011")]
    (alone,) = worst_case_rows(subject, plain, IMAGES)
    (more,) = worst_case_rows(subject, [plain[0], outcome("Linf", 0.22, "00000"), plain[1]], IMAGES)
    assert alone == more
    assert alone.robust_accuracy == 3 / 5
    assert [(t.norm, t.eps) for t in more.threats] == [("Linf", 0.15), ("L2", 2.0)]


def test_two_radii_of_one_norm_alone_have_no_worst_case_over_norms(subject):
    assert worst_case_rows(subject, [outcome("Linf", 0.1, "11"), outcome("Linf", 0.2, "10")], IMAGES) == []


def test_of_two_attacks_at_one_radius_the_stronger_counts(subject):
    threats = [outcome("Linf", 0.1, "1111"), outcome("Linf", 0.1, "1100", "autoattack"), outcome("L2", 1.0, "1111")]
    (row,) = worst_case_rows(subject, threats, IMAGES)
    assert (row.robust_accuracy, row.attack) == (0.5, "AutoAttack / APGD-CE")


def test_the_worst_case_is_taken_image_by_image(subject):
    (row,) = worst_case_rows(subject, [outcome("Linf", 0.1, "1100"), outcome("L2", 1.0, "1010")], IMAGES)
    # Not the smaller of the two shares, which is 1/2.
    assert (row.robust_accuracy, row.n) == (0.25, 4)
