"""The base of the settings classes: which variable wins, and one line for each kind of wrong value."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from components.errors import UserError
from components.settings import EnvironmentSettings, JsonObject, JsonObjects, Names, setting


class Example(EnvironmentSettings):
    image: str = setting("EXAMPLE_IMAGE", description="the image", set_in="config map")
    namespace: str = setting("EXAMPLE_NAMESPACE", "POD_NAMESPACE", description="the namespace", default="team")
    labels: JsonObject = setting("EXAMPLE_LABELS", description="labels", default={}, remedy="write an object")
    rules: JsonObjects = setting("EXAMPLE_RULES", description="rules", default=())
    names: Names = setting("EXAMPLE_NAMES", description="names", default=())
    limit: int = setting("EXAMPLE_LIMIT", description="limit", default=1, ge=0)
    where: str = setting("EXAMPLE_WHERE", description="place", default="", default_text="nowhere")
    token: str = setting("EXAMPLE_TOKEN", description="token", default="", repr=False)
    internal: int = 7


def test_values_are_read_from_variables_and_converted() -> None:
    found = Example.from_environment(
        {
            "EXAMPLE_IMAGE": "i:1",
            "EXAMPLE_LABELS": '{"gpu": "a100"}',
            "EXAMPLE_RULES": '[{"operator": "Exists"}]',
            "EXAMPLE_NAMES": "a, b,,",
            "EXAMPLE_LIMIT": "3",
        }
    )
    assert found.labels == {"gpu": "a100"}
    assert found.rules == ({"operator": "Exists"},)
    assert found.names == ("a", "b")
    assert (found.image, found.limit, found.internal) == ("i:1", 3, 7)


def test_the_first_variable_that_is_not_empty_wins() -> None:
    both = {"EXAMPLE_IMAGE": "i", "EXAMPLE_NAMESPACE": "mine", "POD_NAMESPACE": "pods"}
    assert Example.from_environment(both).namespace == "mine"
    assert Example.from_environment({**both, "EXAMPLE_NAMESPACE": " "}).namespace == "pods"
    assert Example.from_environment({"EXAMPLE_IMAGE": "i", "POD_NAMESPACE": ""}).namespace == "team"


def test_a_field_without_a_variable_is_not_read_from_the_environment() -> None:
    assert Example.from_environment({"EXAMPLE_IMAGE": "i", "internal": "9", "INTERNAL": "9"}).internal == 7


def test_the_constructor_reads_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_LIMIT", "9")
    assert Example(image="i").limit == 1
    assert Example.from_environment(image="i").limit == 9


def test_values_given_by_name_override_variables() -> None:
    assert Example.from_environment({"EXAMPLE_IMAGE": "i", "EXAMPLE_LIMIT": "2"}, limit=5).limit == 5


def test_settings_are_frozen_and_hide_their_token() -> None:
    found = Example(image="i", token="secret")
    with pytest.raises(ValidationError):
        found.limit = 2
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("EXAMPLE_IMAGE", "", "EXAMPLE_IMAGE: is not set. set it: the image."),
        ("EXAMPLE_LIMIT", "many", "EXAMPLE_LIMIT: is not a number (got 'many'). write digits."),
        ("EXAMPLE_LIMIT", "-1", "EXAMPLE_LIMIT: is less than 0 (got '-1'). give 0 or more."),
        ("EXAMPLE_LABELS", "[]", "EXAMPLE_LABELS: has the wrong shape (got '[]'). write an object."),
        ("EXAMPLE_RULES", '["x"]', """EXAMPLE_RULES: has the wrong shape (got '["x"]'). correct the value."""),
    ],
)
def test_a_wrong_value_is_one_line_with_variable_value_and_remedy(variable: str, value: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Example.from_environment({"EXAMPLE_IMAGE": "i", variable: value})
    assert str(caught.value) == message


def test_a_wrong_value_names_the_variable_that_was_set() -> None:
    class Two(EnvironmentSettings):
        limit: int = setting("FIRST", "SECOND", description="limit", default=1)

    with pytest.raises(UserError, match=r"^SECOND: is not a number"):
        Two.from_environment({"SECOND": "x"})


def test_text_that_is_not_json_is_reported_as_such() -> None:
    with pytest.raises(UserError, match=r"^EXAMPLE_LABELS: is not JSON: .* \(got 'gpu=a100'\)\. write an object\.$"):
        Example.from_environment({"EXAMPLE_IMAGE": "i", "EXAMPLE_LABELS": "gpu=a100"})


def test_the_tables_get_names_descriptions_and_defaults() -> None:
    found = {variable.field: variable for variable in Example.variables()}
    assert "internal" not in found
    assert found["namespace"].names == ("EXAMPLE_NAMESPACE", "POD_NAMESPACE")
    assert (found["image"].default, found["namespace"].default) == ("none, required", "`team`")
    assert (found["labels"].default, found["where"].default) == ("none", "nowhere")
    assert [variable.field for variable in Example.variables("config map")] == ["image"]
