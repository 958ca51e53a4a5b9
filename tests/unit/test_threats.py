"""The registry of threats: one rule of writing a radius, the order of norms and attacks, and what bounds what."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from components.errors import UserError
from components.threats import (
    ATTACKS,
    NORMS,
    AttackKey,
    attack_order,
    attack_titled,
    check_radius,
    evaluation_seconds,
    is_upper_bound,
    norm_order,
    parse_radius,
    radius_text,
)


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (4 / 255, "4/255"),
        (1 / 255, "1/255"),
        (0.5 / 255, "0.5/255"),
        (0.25 / 255, "0.25/255"),
        (128 / 255, "128/255"),
        (0.2, "0.2"),
        (51 / 255, "0.2"),
        (0.15, "0.15"),
        (38.25 / 255, "0.15"),
        (0.6, "0.6"),
        (0.001, "0.001"),
        (0.0005, "0.0005"),
        (2.0, "2"),
        (0.5, "0.5"),
        (75.0, "75"),
        (1500.0, "1500"),
        (1.2345678, "1.23457"),
        (0.1234567, "0.123457"),
    ],
)
def test_radius_is_written_in_one_way(eps, text):
    assert radius_text(eps) == text


@given(st.integers(1, 25_500).map(lambda k: k / 100 / 255) | st.integers(1, 1_500_000).map(lambda k: k / 1000))
def test_radius_that_people_write_is_read_back(eps):
    assert math.isclose(parse_radius(radius_text(eps)), eps, rel_tol=1e-9)


def test_same_number_has_the_same_text_however_it_was_computed():
    assert radius_text(0.1 + 0.2) == radius_text(0.3)
    assert radius_text(4 * (1 / 255)) == radius_text(4 / 255)


def test_paper_radii_are_accepted_and_the_same_in_255_units_are_refused():
    for norm, info in NORMS.items():
        check_radius(norm, info.paper_radius, where="eps")
        with pytest.raises(UserError, match="0-255 units"):
            check_radius(norm, info.paper_radius * 255, where="eps")


def test_norms_are_ordered_and_unknown_ones_come_last():
    assert sorted(["L1", "x", "Linf", "L2"], key=norm_order) == ["Linf", "L2", "L1", "x"]


def test_attacks_are_ordered_from_the_strongest_and_unknown_ones_come_last():
    titles = [attack.title for attack in ATTACKS.values()]
    assert sorted([*reversed(titles), "PGD"], key=attack_order) == [*titles, "PGD"]


def test_only_the_whole_standard_version_is_called_autoattack():
    assert [attack.key for attack in ATTACKS.values() if attack.version == "standard"] == ["autoattack"]
    assert [attack.key for attack in ATTACKS.values() if "autoattack" in attack.title.lower()] == ["autoattack"]


def test_shorter_attack_bounds_the_longer_one_and_never_the_other_way():
    assert is_upper_bound("APGD-CE", "AutoAttack")
    assert is_upper_bound("APGD-CE", "APGD-CE+APGD-T")
    assert not is_upper_bound("AutoAttack", "APGD-CE")
    assert not is_upper_bound("APGD-CE", "APGD-CE")
    assert not is_upper_bound("PGD", "AutoAttack")


def test_implied_attacks_begin_with_the_same_parts():
    """Else their verdicts could not be read off a run of the longer attack."""
    for attack in ATTACKS.values():
        for key in attack.implies:
            assert attack.parts[: len(ATTACKS[key].parts)] == ATTACKS[key].parts


def test_keys_titles_and_strengths_are_unique():
    for values in zip(*((key, attack.key, attack.title, attack.strength) for key, attack in ATTACKS.items())):
        assert len(set(values)) == len(ATTACKS)
    assert all(key == attack.key == key.lower() for key, attack in ATTACKS.items())


def test_attack_is_found_by_its_title():
    found = attack_titled("APGD-CE+APGD-T")
    assert found is ATTACKS["apgd-ce+apgd-t"]
    assert attack_titled("apgd-ce") is None


def test_attack_key_is_read_in_any_case_and_an_unknown_one_is_refused_with_the_nearest():
    key = TypeAdapter(AttackKey)
    assert key.validate_python("AutoAttack") == "autoattack"
    with pytest.raises(ValidationError, match="did you mean 'autoattack'"):
        key.validate_python("autoatack")


def test_cost_grows_with_images_attack_and_resolutions():
    cheap = evaluation_seconds([("apgd-ce", 10)])
    assert evaluation_seconds([("apgd-ce", 20)]) == pytest.approx(2 * cheap)
    assert evaluation_seconds([("autoattack", 10)]) > evaluation_seconds([("apgd-ce+apgd-t", 10)]) > cheap
    assert evaluation_seconds([("apgd-ce", 10)], num_resolutions=3) == pytest.approx(3 * cheap)
    assert [a.forwards_per_image for a in ATTACKS.values()] == [10123, 2220, 220]
