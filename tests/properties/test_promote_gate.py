"""The gate as a function: what must hold for every result and every rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.promote.config import PromoteConfig
from components.promote.gate import JudgedResult, decide
from components.statistics import mcnemar, paired_difference

N = 60


def rules(**changes):
    return PromoteConfig(evaluation="e", model="m", **changes)


def judged_result_of(robust, clean=None, **changes):
    robust = tuple(robust)
    share = sum(robust) / len(robust)
    base = {
        "norm": "Linf",
        "eps": 4 / 255,
        "attack": "AutoAttack",
        "library": "pyautoattack 0.2.0",
        "resolution": 32,
        "n": len(robust),
        "images_digest": "d",
        "precision": "fp32",
        "seed": 0,
        "batch_size": 64,
        "clean_accuracy": max(share, 0.9) if clean is None else clean,
        "robust_accuracy": share,
        "interval": (max(0.0, share - 0.1), min(1.0, share + 0.1)),
        "robust": robust,
    }
    return JudgedResult(**{**base, **changes})


verdicts = st.lists(st.booleans(), min_size=N, max_size=N)
shares = st.floats(0, 1)


@given(verdicts, verdicts, shares, shares, shares, st.booleans())
def test_promoted_exactly_when_nothing_failed(a, b, least, clean, margin, significant):
    answer = decide(
        judged_result_of(a),
        judged_result_of(b),
        rules(min_robust=least, min_clean=clean, min_robust_gain=margin, significant=significant),
    )
    assert answer.promote == (not answer.failed)
    assert len(answer.reasons) == len(answer.failed) + len(answer.passed) >= 5


@given(verdicts, st.booleans())
def test_a_model_never_beats_itself(a, significant):
    assert not decide(judged_result_of(a), judged_result_of(a), rules(significant=significant)).promote


@given(verdicts, verdicts)
def test_two_models_never_both_beat_each_other(a, b):
    first, second = (
        decide(judged_result_of(x), judged_result_of(y), rules(max_clean_drop=1)).promote for x, y in ((a, b), (b, a))
    )
    assert not (first and second)
    assert (first or second) == (sum(a) != sum(b))


@given(verdicts, verdicts, st.integers(0, N - 1))
def test_one_more_robust_image_never_costs_a_promotion(a, b, place):
    better = [flag or k == place for k, flag in enumerate(a)]
    one, other = (
        decide(
            judged_result_of(x, 0.95), judged_result_of(b, 0.95), rules(min_robust=0.3, min_robust_gain=0.05)
        ).promote
        for x in (a, better)
    )
    assert other or not one


@given(verdicts, shares)
def test_without_a_champion_only_the_minima_count(a, least):
    figure = judged_result_of(a)
    assert decide(figure, None, rules(min_robust=least)).promote == (figure.interval[0] >= least)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm", "L2"),
        ("eps", 8 / 255),
        ("attack", "APGD-CE"),
        ("library", "other 1"),
        ("resolution", 64),
        ("images_digest", "x"),
        ("precision", "bf16"),
        ("seed", 1),
        ("batch_size", 32),
    ],
)
def test_results_under_other_conditions_are_never_compared(name, value):
    good, poor = judged_result_of([True] * N), judged_result_of([False] * N)
    assert decide(good, poor, rules(attack="any")).promote
    answer = decide(good, poor.model_copy(update={name: value}), rules(attack="any"))
    assert not answer.promote
    assert any("other conditions" in reason and name in reason for reason in answer.failed)


def test_a_champion_without_a_result_blocks():
    answer = decide(judged_result_of([True] * N), None, rules(), has_champion=True)
    assert not answer.promote
    assert "left no result" in answer.failed[0]


def test_a_reduced_attack_is_not_enough_unless_allowed():
    reduced = judged_result_of([True] * N, attack="APGD-CE")
    answer = decide(reduced, None, rules())
    assert not answer.promote
    assert "measured by APGD-CE; AutoAttack is asked for" in answer.failed[0]
    assert decide(reduced, None, rules(attack="any")).promote


def test_the_low_end_of_the_interval_has_to_reach_the_minimum():
    figure = judged_result_of([True] * 36 + [False] * 24)
    assert figure.robust_accuracy == 0.6
    assert figure.interval[0] == pytest.approx(0.5)
    assert decide(figure, None, rules(min_robust=0.45)).promote
    assert not decide(figure, None, rules(min_robust=0.55)).promote


def test_gain_and_clean_drop_are_counted_in_images():
    champion = judged_result_of([True] * 30 + [False] * 30, 0.9)
    better = judged_result_of([True] * 33 + [False] * 27, 0.9 - 1 / 60)
    assert decide(better, champion, rules(min_robust_gain=0.05, max_clean_drop=1 / 60)).promote
    assert not decide(better, champion, rules(min_robust_gain=0.051, max_clean_drop=1 / 60)).promote
    assert not decide(better, champion, rules(min_robust_gain=0.05, max_clean_drop=0.016)).promote


def test_significance_asks_for_more_than_a_gain():
    champion = judged_result_of([True] * 30 + [False] * 30)
    little, much = judged_result_of([True] * 32 + [False] * 28), judged_result_of([True] * 45 + [False] * 15)
    assert decide(little, champion, rules()).promote
    assert not decide(little, champion, rules(significant=True)).promote
    assert decide(much, champion, rules(significant=True)).promote
    unknown = decide(much.model_copy(update={"robust": ()}), champion, rules(significant=True))
    assert not unknown.promote
    assert any("not known image by image" in reason for reason in unknown.failed)


@given(verdicts)
def test_a_longer_attack_is_enough_if_a_part_of_it_is_asked_for(a):
    whole = judged_result_of(a)
    assert decide(whole, None, rules(attack="APGD-CE")).promote
    assert not decide(whole.model_copy(update={"attack": "APGD-CE"}), None, rules(attack="APGD-CE+APGD-T")).promote


@given(verdicts, verdicts)
def test_the_paired_difference_is_antisymmetric_and_contains_itself(a, b):
    def interval(flags):
        return judged_result_of(flags).interval

    one, other = paired_difference(a, b, interval(a), interval(b)), paired_difference(b, a, interval(b), interval(a))
    assert one.difference == pytest.approx(-other.difference)
    assert one.interval == (pytest.approx(-other.interval[1]), pytest.approx(-other.interval[0]))
    assert one.interval[0] - 1e-12 <= one.difference <= one.interval[1] + 1e-12
    assert one.only_first - one.only_second == sum(a) - sum(b)


@pytest.mark.parametrize(
    ("b", "c", "p"), [(6, 0, 0.03125), (5, 0, 0.0625), (0, 0, 1.0), (3, 3, 1.0), (1, 8, 0.0390625)]
)
def test_mcnemars_exact_p(b, c, p):
    assert mcnemar(b, c) == mcnemar(c, b) == pytest.approx(p)


def test_a_paired_interval_against_a_published_example():
    # Newcombe 1998 (paired), e = 36, f = 12, g = 2, h = 0 of 50, method 10 (phi is negative, so it is not corrected).
    first = [True] * 48 + [False] * 2
    second = [True] * 36 + [False] * 12 + [True] * 2
    from components.statistics import wilson

    found = paired_difference(first, second, wilson(48, 50), wilson(38, 50))
    assert found.difference == pytest.approx(0.2)
    assert found.interval == (pytest.approx(0.0569, abs=2e-3), pytest.approx(0.3404, abs=2e-3))
