"""What pyautoattack can and cannot do, and that it is set up as the standard version."""

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from torch import nn

from components.errors import UserError
from components.evaluate.config import Threat
from components.evaluate.pyautoattack_adapter import build, refuse_impossible, square_can_tile, targets, targets_note

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
CPU = torch.device("cpu")


@pytest.mark.parametrize("classes", range(4, 13))
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_targets_are_capped_at_classes_less_one_and_noted(norm, classes):
    threat = Threat(norm=norm, eps=0.5)
    standard = 5 if norm == "L1" else 9
    expected = {"apgd-t": min(standard, classes - 1), "fab-t": min(9, classes - 1)}
    assert targets(threat, classes) == expected
    attack = build(MODEL, threat, num_classes=classes, seed=3, device=CPU)
    assert (attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes) == tuple(expected.values())
    note = targets_note(threat, classes)
    assert bool(note) == (classes < 10)
    if classes < 10:
        assert f"classes - 1 = {classes - 1}" in note
        assert f"FAB-T {classes - 1} instead of 9" in note


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("attack", ["autoattack", "apgd-ce+apgd-t", "apgd-ce"])
def test_every_attack_has_the_standard_versions_parameters(norm, attack):
    ours = build(MODEL, Threat(norm=norm, eps=0.5, attack=attack), num_classes=10, seed=3, device=CPU)
    standard = AutoAttack(MODEL, norm=norm, eps=0.5, version="standard", seed=3)
    parts = {"autoattack": 4, "apgd-ce+apgd-t": 2, "apgd-ce": 1}[attack]
    assert ours.attacks_to_run == standard.attacks_to_run[:parts]
    for part in ("apgd", "apgd_targeted"):
        for name in ("n_iter", "n_restarts", "eps", "norm", "thr_decr", "eot_iter", "use_largereps"):
            assert getattr(getattr(ours, part), name) == getattr(getattr(standard, part), name), (part, name)
    assert (ours.square.n_queries, ours.square.p_init, ours.fab.n_iter, ours.fab.n_restarts) == (5000, 0.8, 100, 1)
    if attack == "autoattack":
        assert (ours.apgd_targeted.n_target_classes, ours.fab.n_target_classes) == (5 if norm == "L1" else 9, 9)


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_for_targeted_losses_are_refused_with_the_remedy(classes):
    for attack in ("autoattack", "apgd-ce+apgd-t"):
        with pytest.raises(UserError, match=r"at least 4 classes.*attack: apgd-ce"):
            refuse_impossible(Threat(eps=0.1, attack=attack), num_classes=classes, resolution=32)
    refuse_impossible(Threat(eps=0.1, attack="apgd-ce"), num_classes=classes, resolution=32)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("side", [*range(5, 35), 48, 64])
def test_square_tiles_exactly_the_sides_that_the_rule_names(norm, side):
    attack = SquareAttack(
        lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1) - 1e3,
        norm=norm,
        eps=0.1,
        n_queries=0,
        seed=0,
        device=CPU,
    )
    images, labels = torch.full((1, 1, side, side), 0.5), torch.zeros(1, dtype=torch.int64)
    try:
        attack.perturb(images, labels)
        works = True
    except RuntimeError:
        works = False
    assert works == square_can_tile(side)


def test_a_side_that_square_cannot_tile_is_refused_with_near_ones():
    for side in (4, 12, 14, 18, 19, 24):
        for norm in ("L2", "L1"):
            with pytest.raises(UserError, match="cannot tile") as error:
                refuse_impossible(Threat(norm=norm, eps=0.5), num_classes=10, resolution=side)
            assert f"got {side}" in str(error.value)
            assert "apgd-ce+apgd-t" in str(error.value)
        refuse_impossible(Threat(norm="Linf", eps=0.5), num_classes=10, resolution=side)
        refuse_impossible(Threat(norm="L2", eps=0.5, attack="apgd-ce+apgd-t"), num_classes=10, resolution=side)
