"""The verdicts of the shorter attack, read off a run of the longer one, are those of the shorter attack."""

import numpy as np
import pytest
import torch

from components.evaluate.attack import attack_block
from components.evaluate.config import Threat
from components.evaluate.outcomes import Outcome, implied_outcomes, read_off
from components.models.build import build_model
from components.threats import ATTACKS

EPS = 0.012
WHOLE, SHORT = "autoattack", "apgd-ce+apgd-t"


def outcome(found, threat):
    return Outcome(
        threat,
        32,
        found.clean_prediction.numpy(),
        found.prediction.numpy(),
        np.array(found.verdict),
        found.distance.numpy(),
        found.parts,
        found.seconds,
        found.unverified,
        found.narrow,
        found.warnings,
        [],
    )


def small_net():
    torch.manual_seed(0)
    return build_model("convnext_micro", stem="conv", num_classes=10, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)).eval()


def attacked(model, images, labels, attack):
    threat = Threat(eps=EPS, attack=attack)
    return outcome(attack_block(model, images, labels, threat, num_classes=10, seed=0), threat)


@pytest.mark.slow
def test_read_off_verdicts_are_those_of_the_shorter_attack(monkeypatch):
    torch.set_num_threads(1)
    model = small_net()
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    whole, short = (attacked(model, images, labels, attack) for attack in (WHOLE, SHORT))
    found = read_off(whole, ATTACKS[SHORT])
    assert 0 < short.robust.sum() < 12, "the attack has to break some and spare some for this test"
    assert list(found.verdict) == list(short.verdict)
    assert list(found.prediction) == list(short.prediction)
    assert list(found.distance) == list(short.distance)
    assert [part["attack"] for part in found.parts] == ["APGD-CE", "APGD-T"]
    assert found.threat.title == short.threat.title


def test_images_that_only_later_parts_broke_are_left_robust():

    whole = outcome_of(["robust", "wrong", "APGD-CE", "APGD-T", "FAB-T", "Square"], WHOLE)
    found = read_off(whole, ATTACKS[SHORT])
    assert list(found.verdict) == ["robust", "wrong", "APGD-CE", "APGD-T", "robust", "robust"]
    assert list(found.prediction) == [0, 0, 1, 1, 0, 0]
    assert np.array_equal(found.distance, [0, 0, 1, 1, 0, 0])
    assert implied_outcomes([outcome_of(["robust"], "apgd-ce")]) == []


def test_nothing_is_read_off_if_it_was_measured():
    whole, short = outcome_of(["FAB-T"], WHOLE), outcome_of(["robust"], SHORT)
    assert implied_outcomes([whole, short]) == []
    assert [o.threat.attack for o in implied_outcomes([whole])] == [SHORT]


def outcome_of(words, attack):

    broken = np.array([word not in ("robust", "wrong") for word in words])
    parts = [{"attack": name, "images": 1, "broken": 0, "seconds": 1.0} for name in ("APGD-CE", "APGD-T", "FAB-T")]
    clean = np.zeros(len(words), np.int64)
    threat = Threat(eps=EPS, attack=attack)
    return Outcome(threat, 32, clean, clean + broken, np.array(words), 1.0 * broken, parts, 3.0, 0, 0, [], [])
