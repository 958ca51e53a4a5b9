"""The matrix of a recipe: what fans out, with which values, and the message of each mistake."""

import pytest
import yaml

from components.errors import UserError
from pipeline.matrix import expand
from pipeline.recipe import build, load
from tests.recipes import small

DOCUMENT = """
name: many
matrix:
  stem: [patch, conv]
  threat: {linf: {norm: Linf, eps: 8/255}, l2: {norm: L2, eps: 1.5}}
sources:
  adversarial-{stem}-{threat}.epochs: "ours"
stages:
  digits: {kind: encode, source: digits}
  pretrain: {data: digits, epochs: 2, warmup_epochs: 1}
  adversarial-{stem}-{threat}:
    data: digits
    init: pretrain
    epochs: 2
    warmup_epochs: 1
    model: {name: convnext_micro, stem: "{stem}"}
    attack: "{threat}"
    validation: {eps: "{threat.eps}"}
  evaluate-{stem}-{threat}: {model: "adversarial-{stem}-{threat}", threats: ["{threat}"]}
"""


def document(text=DOCUMENT, **matrix):
    found = yaml.safe_load(text)
    found["matrix"].update(matrix)
    return found


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "many.yaml"
    found.write_text(DOCUMENT)
    return str(found)


def test_stages_fan_out_over_the_axes_of_their_name_and_shared_ones_exist_once():
    recipe = build(document())
    assert list(recipe.stages) == [
        *("digits", "pretrain"),
        *("adversarial-patch-linf", "adversarial-patch-l2", "adversarial-conv-linf", "adversarial-conv-l2"),
        *("evaluate-patch-linf", "evaluate-patch-l2", "evaluate-conv-linf", "evaluate-conv-l2"),
    ]
    assert {recipe.stages[name].parents["init"] for name in recipe.stages if name.startswith("adv")} == {"pretrain"}
    assert recipe.stages["evaluate-conv-l2"].parents["model"] == "adversarial-conv-l2"


def test_a_whole_placeholder_is_the_value_and_one_inside_a_text_the_label():
    stages = expand(document(stem={"p": "patch", "c": "conv"}))["stages"]
    made = stages["adversarial-c-l2"]
    assert made["model"]["stem"] == "conv"
    assert made["attack"] == {"norm": "L2", "eps": 1.5}
    assert made["validation"]["eps"] == 1.5
    assert stages["evaluate-p-linf"] == {"model": "adversarial-p-linf", "threats": [{"norm": "Linf", "eps": "8/255"}]}


@pytest.mark.parametrize(("value", "label"), [(2, "2"), ("conv", "conv"), (True, "true"), (0, "0")])
def test_scalars_keep_their_type(value, label):
    found = expand({"matrix": {"axis": [value]}, "stages": {"a-{axis}": {"x": "{axis}", "y": "is {axis}"}}})
    (made,) = found["stages"].values()
    assert list(found["stages"]) == [f"a-{label}"]
    assert made["x"] == value
    assert type(made["x"]) is type(value)
    assert made["y"] == f"is {label}"


def test_values_are_not_shared_between_stages():
    stages = expand(document())["stages"]
    stages["adversarial-patch-l2"]["attack"]["eps"] = 9
    assert stages["adversarial-conv-l2"]["attack"]["eps"] == 1.5


def test_list_items_repeat_over_the_axes_that_the_name_does_not_hold():
    text = {"matrix": {"a": [1, 2], "b": ["x", "y"]}, "stages": {"s-{a}-{b}": {}, "r-{a}": {}, "report": {}}}
    text["stages"]["r-{a}"] = {"all": ["s-{a}-{b}", "fixed"]}
    text["stages"]["report"] = {"pairs": [{"first": "s-{a}-y", "value": "{a}", "both": ["s-{a}-x", "s-{a}-y"]}]}
    stages = expand(text)["stages"]
    assert stages["r-2"] == {"all": ["s-2-x", "s-2-y", "fixed"]}
    assert stages["report"]["pairs"] == [
        {"first": "s-1-y", "value": 1, "both": ["s-1-x", "s-1-y"]},
        {"first": "s-2-y", "value": 2, "both": ["s-2-x", "s-2-y"]},
    ]


def test_sources_fan_out_with_their_stages():
    assert set(expand(document())["sources"]) == {
        f"adversarial-{s}-{t}.epochs" for s in ("patch", "conv") for t in ("linf", "l2")
    }


def test_expansion_is_done_once_and_a_recipe_without_a_matrix_stays_as_it_is():
    once = expand(document())
    assert "matrix" not in once
    assert expand(once) == once
    plain = small(adversarial={"init": "{not a placeholder}"})
    assert expand(plain) == plain


def test_a_template_set_to_null_and_an_axis_set_to_null_are_left_out():
    found = document()
    found["stages"]["evaluate-{stem}-{threat}"] = None
    assert not [name for name in build(found).stages if name.startswith("evaluate")]
    assert "gone" not in expand({"matrix": {"gone": None, "a": [1]}, "stages": {"s-{a}": {}}})["stages"]


def test_extends_merges_axes(tmp_path, path):
    more = tmp_path / "more.yaml"
    more.write_text("extends: many.yaml\nname: more\nmatrix: {stem: [conv], threat: {l1: {norm: L1, eps: 12}}}\n")
    names = [name for name in load(str(more)).stages if name.startswith("adversarial")]
    assert names == ["adversarial-conv-linf", "adversarial-conv-l2", "adversarial-conv-l1"]


def test_overrides_reach_one_cell_all_cells_and_the_axis(path):
    one = load(path, ["adversarial-conv-l2.epochs=5", "adversarial-{stem}-{threat}.epochs=7", "matrix.stem=[conv]"])
    epochs = {name: stage.config.epochs for name, stage in one.stages.items() if name.startswith("adversarial")}
    assert epochs == {"adversarial-conv-linf": 7, "adversarial-conv-l2": 5}
    assert "evaluate-conv-l2" not in load(path, ["evaluate-conv-l2=null"]).stages


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("adversarial-{stam}-{threat}.epochs=7", "did you mean 'adversarial-{stem}-{threat}'"),
        ("adversarial-konv-l2.epochs=7", "did you mean 'adversarial-conv-l2'"),
        ("matrix.stem=[conv", "the value is not YAML"),
        ("matrix.stem=[]", "matrix.stem: an axis is a list of scalars"),
    ],
)
def test_override_mistakes(path, given, expected):
    with pytest.raises(UserError) as caught:
        load(path, [given])
    assert expected in str(caught.value)


def changed(name, entry, **matrix):
    found = document(**matrix)
    found["stages"][name] = entry
    return found


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (document(stem=[]), "matrix.stem: an axis is a list of scalars or a mapping"),
        (document(stem="conv"), "matrix.stem: an axis is a list of scalars or a mapping"),
        ({**document(), "matrix": ["stem"]}, "matrix: a matrix is a mapping of its axes"),
        (document(stem=["patch", {"a": 1}]), "matrix.stem: a value in a list must be a scalar"),
        (document(stem=["patch", None]), "matrix.stem: a value in a list must be a scalar"),
        (document(stem=["Patch"]), "matrix.stem: a label becomes part of stage names"),
        (document(stem=["4/255"]), "(got '4/255')"),
        (document(stem=[0.15]), "write the axis as label: value with another label"),
        (document(stem=["patch", "patch"]), "matrix.stem: this value is on the axis twice (got 'patch')"),
        (document(stems=["a"]), "matrix: this axis is in no stage's name, did you mean 'stem'? (got 'stems')"),
        (
            changed("evaluate-{stam}", {}),
            "stages.evaluate-{stam}: there is no such axis, did you mean 'stem'? (got '{stam}'). The axes are",
        ),
        (
            changed("evaluate-{stem}", {"model": "adversarial-{stem}-{threta}"}),
            "stages.evaluate-{stem}.model: there is no such axis, did you mean 'threat'?",
        ),
        (
            changed("evaluate-{stem}", {"model": "adversarial-{stem}-{threat}"}),
            "stages.evaluate-{stem}.model: this axis is not in the stage's name (got '{threat}')",
        ),
        (
            changed("evaluate-{stem}", {"threats": [{"eps": "{threats.eps}"}]}),
            "stages.evaluate-{stem}.threats.0: there is no such axis, did you mean 'threat'?",
        ),
        (
            changed("x-{threat}", {"eps": "{threat.epz}"}),
            "stages.x-{threat}.eps: this value has no such key, did you mean 'eps'? (got '{threat.epz}')",
        ),
        (changed("x-{stem}", {"eps": "{stem.eps}"}), "which has: no keys"),
        (changed("x-{threat.eps}", {}), "a stage's name can contain labels, not parts of values"),
        (
            changed("evaluate-conv-l2", {}),
            "two stages have this name; the other one comes from 'evaluate-{stem}-{threat}'",
        ),
        (changed("evaluate-{stem}-with-a-very-long-name", {}, stem=["convolutional"]), "at most 36"),
        (changed("{stem}", {}, stem=["4"]), "stages.{stem}: a stage's name has at most 36"),
        ({"name": "x", "stages": {"evaluate-{stem}": {}}}, "(none: the recipe has no matrix)"),
    ],
)
def test_mistakes_are_one_line_with_place_and_remedy(found, expected):
    with pytest.raises(UserError) as caught:
        build(found)
    message = str(caught.value)
    assert expected.lower() in message.lower()
    assert "\n" not in message
    assert caught.value.remedy
    assert caught.value.where
