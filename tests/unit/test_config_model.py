"""No configuration reads a boolean or a text as a number, and YAML's numbers are those that a person sees."""

import re
from typing import Any

import pytest
from pydantic import Field, ValidationError

from components.config_model import ConfigModel
from components.errors import UserError
from components.threats import Radius
from pipeline.recipe import build, load
from pipeline.recipe_loading import parse_yaml
from tests.recipes import small


class Part(ConfigModel):
    count: int = 1


class Example(ConfigModel):
    count: int = 1
    rate: float | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    radius: Radius = 0.5
    radii: dict[str, Radius] = Field(default={})
    flag: bool = False
    either: bool | int = False
    name: str = ""
    anything: dict[str, Any] = Field(default={})
    part: Part = Part()


@pytest.mark.parametrize("value", [True, False, "1", "yes", ""])
@pytest.mark.parametrize("field", ["count", "rate"])
def test_booleans_and_texts_are_no_numbers(field, value):
    with pytest.raises(ValidationError):
        Example.model_validate({field: value})
    with pytest.raises(ValidationError):
        Example.model_validate({"pair": [0.5, value]})


def test_booleans_are_refused_in_nested_parts_and_in_radii():
    for document in ({"part": {"count": True}}, {"radius": True}, {"radii": {"L2": True}}):
        with pytest.raises(ValidationError, match="this is not a number"):
            Example.model_validate(document)


def test_other_values_pass_unchanged():
    document = {
        "count": 3,
        "rate": 2,
        "pair": [1, 2.5],
        "radius": "4/255",
        "radii": {"L2": "1/2"},
        "flag": True,
        "either": True,
        "name": "7",
        "anything": {"a": True, "b": "1"},
        "part": {"count": 2},
    }
    found = Example.model_validate(document)
    assert found == Example(
        count=3,
        rate=2.0,
        pair=(1.0, 2.5),
        radius=4 / 255,
        radii={"L2": 0.5},
        flag=True,
        either=True,
        name="7",
        anything={"a": True, "b": "1"},
        part=Part(count=2),
    )
    assert found.either is True
    assert Example(rate=None).rate is None


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("pretrain.epochs=yes", "stages.pretrain.epochs", "yes"),
        ("pretrain.epochs=true", "stages.pretrain.epochs", "true"),
        ("pretrain.epochs='3'", "stages.pretrain.epochs", "3"),
        ("pretrain.epochs=010", "stages.pretrain.epochs", "010"),
        ("pretrain.lr=on", "stages.pretrain.lr", "on"),
        ("pretrain.lr=1:30", "stages.pretrain.lr", "1:30"),
        ("pretrain.betas=[no, 0.9]", "stages.pretrain.betas", "no"),
        ("adversarial.attack.eps=true", "stages.adversarial.attack.eps", "true"),
        ("adversarial.attack.steps=yes", "stages.adversarial.attack.steps", "yes"),
        ("pretrain.validation.extra_norms={L2: true}", "stages.pretrain.validation.extra_norms", "true"),
        ("digits.quality=true", "stages.digits.quality", "true"),
        ("evaluate.num_images=true", "stages.evaluate.num_images", "true"),
        ("sweep.resolutions=[32, yes]", "stages.sweep.resolutions", "yes"),
        ("promote.min_clean=true", "stages.promote.min_clean", "true"),
        ("seed=on", "seed", "on"),
        ("seed=true", "seed", "true"),
    ],
)
def test_a_recipe_with_a_lax_number_is_refused_with_the_value_as_typed(override, field, value):
    with pytest.raises(UserError, match=rf"^{re.escape(field)}: .*\(got '{re.escape(value)}'\)"):
        load("quickstart", [override])


def test_a_radius_that_is_no_number_is_refused_with_the_value_as_typed():
    with pytest.raises(UserError, match=r"^stages\.adversarial\.attack\.eps: .*'yes'"):
        load("quickstart", ["adversarial.attack.eps=yes"])


@pytest.mark.parametrize("text", ["true", "yes", "on"])
def test_a_flag_may_be_written_in_any_usual_form(text):
    assert load("quickstart", [f"pretrain.compile={text}"]).stages["pretrain"].config.model_dump()["compile"] is True


def test_numbers_are_those_of_yaml_1_2():
    text = "[1, -2, +3, 0, 1e-3, 1.5e3, .5, 2., -.inf, 010, 1:30, 1_000, 0x10, yes, on, y, true, FALSE, 1.2.3]"
    found = parse_yaml(text, "x")
    assert found == [
        *(1, -2, 3, 0, 0.001, 1500.0, 0.5, 2.0, float("-inf")),
        *("010", "1:30", "1_000", "0x10", "yes", "on", "y", True, False, "1.2.3"),
    ]
    assert [type(value) for value in found[:5]] == [int, int, int, int, float]


def test_the_example_of_an_override_is_read_as_a_number():
    assert load("quickstart", ["adversarial.lr=1e-3"]).stages["adversarial"].config.model_dump()["lr"] == 0.001


@pytest.mark.parametrize("length", [117, 118])
def test_a_name_is_as_long_as_a_compiled_pipeline_can_take(length):
    document = small() | {"name": "a" * length}
    if length == 117:
        assert build(document).name == "a" * 117
    else:
        with pytest.raises(UserError, match="name: String should have at most 117 characters"):
            build(document)


@pytest.mark.parametrize("base", ["", "extends: base.yaml\n"])
def test_a_stage_without_value_is_refused_where_there_is_nothing_to_leave_out(tmp_path, base):
    (tmp_path / "base.yaml").write_text("name: base\nstages:\n  digits: {kind: encode, source: digits}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(f"{base}name: mine\nstages:\n  shapes: {{kind: encode, source: shapes}}\n  report:\n")
    with pytest.raises(UserError, match=r"mine\.yaml: stages\.report: this stage has no value\. write \{\} for"):
        load(str(path))


def test_a_recipe_of_which_nothing_is_left_is_refused(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text("name: base\nstages:\n  digits: {kind: encode, source: digits}\n")
    with pytest.raises(UserError, match="stages: every stage is set to null"):
        load(str(path), ["digits=null"])
