"""The configuration of an evaluation, and the messages for values that make no sense."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from components.evaluate.config import EvaluateConfig, SweepConfig, Threat


@pytest.mark.parametrize(("written", "value"), [("4/255", 4 / 255), ("0.15", 0.15), (2, 2.0), ("2", 2.0)])
def test_radius_is_read_as_number_or_fraction(written, value):
    assert Threat(norm="L2", eps=written).eps == value


@pytest.mark.parametrize("written", ["4/0", "four", "4/255/2", ""])
def test_radius_that_is_no_number_is_refused(written):
    with pytest.raises(ValidationError, match="fraction such as 4/255"):
        Threat(eps=written)


@pytest.mark.parametrize("eps", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_radius_must_be_positive_and_finite(norm, eps):
    with pytest.raises(ValidationError):
        Threat(norm=norm, eps=eps)


def test_linf_radius_in_255_units_is_caught_with_the_remedy():
    with pytest.raises(ValidationError, match=r"0-255 units.*got 4\.0.*write 4/255"):
        Threat(norm="Linf", eps=4)
    assert Threat(norm="Linf", eps=1).eps == 1
    assert Threat(norm="L1", eps=75).eps == 75


def test_attack_words_are_known_whatever_their_case():
    assert Threat(eps=0.1, attack="AutoAttack").title == "AutoAttack Linf 0.1"
    assert Threat(eps=0.1, attack="APGD-CE+APGD-T").attack == "apgd-ce+apgd-t"
    with pytest.raises(ValidationError, match="attack"):
        Threat(eps=0.1, attack="pgd")


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="treats"):
        EvaluateConfig(model="a", treats=[])


def test_the_same_threat_twice_is_refused():
    with pytest.raises(ValidationError, match=r"given twice.*Linf 4/255"):
        EvaluateConfig(model="a", threats=[{"eps": "4/255"}, {"eps": 4 / 255}])


def test_a_threat_cannot_have_more_images_than_the_evaluation():
    with pytest.raises(ValidationError, match=r"more images than the evaluation has \(10\)"):
        EvaluateConfig(model="a", num_images=10, threats=[{"eps": 0.1, "num_images": 11}])


def test_a_sweep_takes_resolutions_and_no_resolution():
    assert SweepConfig(model="a", resolutions=[192, 224]).resolutions_or(10) == (192, 224)
    assert EvaluateConfig(model="a").resolutions_or(10) == (10,)
    with pytest.raises(ValidationError, match="add it to resolutions"):
        SweepConfig(model="a", resolutions=[32], resolution=64)
    with pytest.raises(ValidationError, match="given twice"):
        SweepConfig(model="a", resolutions=[32, 32])
    with pytest.raises(ValidationError):
        SweepConfig(model="a", resolutions=[])


def test_only_what_cannot_change_a_figure_stays_out_of_the_fingerprint():
    out = {
        name
        for name, field in SweepConfig.model_fields.items()
        if (field.json_schema_extra or {}).get("fingerprint") is False
    }
    listed = {"images", "images_sha256"}  # the digest of the list stands for them
    assert out == {"num_processes", "launcher", "device"} | listed


def test_a_configuration_survives_json():
    config = SweepConfig(
        model="a", resolutions=[32], threats=[{"norm": "L1", "eps": "12", "attack": "apgd-ce", "num_images": 4}]
    )
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config


def test_configuration_modules_are_light():
    code = "import components.evaluate.config, components.promote.config, sys; print(sorted({'torch', 'numpy', 'mlflow'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_estimated_time_counts_images_attacks_and_resolutions():
    threats = [{"eps": 0.1, "attack": "apgd-ce"}, {"eps": 0.1, "num_images": 5}]
    config = EvaluateConfig(model="a", num_images=10, threats=threats)
    assert config.estimated_seconds == pytest.approx(10 * 0.15 + 5 * 2.0)
    sweep = SweepConfig(model="a", num_images=10, threats=threats, resolutions=[32, 64])
    assert sweep.estimated_seconds == pytest.approx(2 * config.estimated_seconds)


def test_default_threats_are_those_of_the_paper():
    assert [threat.title for threat in EvaluateConfig(model="a").threats] == [
        "AutoAttack Linf 4/255",
        "AutoAttack L2 2",
        "AutoAttack L1 75",
    ]
