"""Recipes: what loads, in which order, and the message of each mistake."""

import pytest

from components.errors import UserError
from pipeline.recipe import build, load, names
from tests.recipes import SMALL, small


def test_parents_come_first_and_roles_are_filled():
    recipe = build(small())
    assert list(recipe.stages) == ["digits", "pretrain", "adversarial", "evaluate"]
    assert recipe.stages["adversarial"].parents == {"data": "digits", "init": "pretrain"}
    assert recipe.stages["evaluate"].parents == {"model": "adversarial", "data": "digits"}
    assert recipe.stages["adversarial"].config.attack.eps == pytest.approx(4 / 255)


@pytest.mark.parametrize("name", sorted(names()))
def test_every_recipe_of_the_project_loads_and_names_itself(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.head.summary


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (small(adversarial={"epoch": 3}), "stages.adversarial.epoch: unknown key, did you mean 'epochs'? (got 3)"),
        (
            small(adversarial={"attack": {"epss": 1}}),
            "stages.adversarial.attack.epss: unknown key, did you mean 'eps'?",
        ),
        (small(adversarial={"attack": {"eps": 8}}), "stages.adversarial.attack.eps"),
        (small(adversarial={"attack": {"eps": -0.1}}), "stages.adversarial.attack.eps"),
        (
            small(adversarial={"init": "pretran"}),
            "stages.adversarial.init: this stage needs one that is missing, did you mean 'pretrain'?",
        ),
        (small(adversarial={"init": "adversarial"}), "stages.adversarial.init: a stage cannot need itself"),
        (small(adversarial={"data": "pretrain"}), "needs another kind of stage than pretrain"),
        (small(adversarial={"label_smoothing": 0.7}), "stages.adversarial.label_smoothing"),
        (small(pretrain={"kind": "pretraim"}), "stages.pretrain.kind: unknown kind of stage, did you mean 'pretrain'?"),
        (small(evaluate={"threats": [{"norm": "L3", "eps": 1}]}), "stages.evaluate.threats.0.norm"),
        ({"name": "x", "stages": {}}, "stages: a recipe needs stages"),
        (
            {"name": "x", "sed": 1, "stages": {"digits": {"kind": "encode", "source": "digits"}}},
            "sed: unknown key, did you mean 'seed'?",
        ),
        ({"name": "x", "stages": {"Digits!": {"kind": "encode", "source": "digits"}}}, "a stage's name has at most 36"),
        (
            {
                "name": "x",
                "stages": {
                    "d": {"kind": "encode", "source": "digits"},
                    "a": {"kind": "adversarial", "data": "d", "init": "b"},
                    "b": {"kind": "adversarial", "data": "d", "init": "a"},
                },
            },
            "these stages need each other in a circle",
        ),
    ],
)
def test_mistakes_are_one_line_with_field_and_remedy(document, expected):
    with pytest.raises(UserError) as caught:
        build(document)
    message = str(caught.value)
    assert message.startswith(expected) or expected in message
    assert "\n" not in message
    assert caught.value.remedy


def test_kind_follows_from_the_first_word_of_the_name():
    document = small()
    document["stages"]["adversarial-patch"] = document["stages"].pop("adversarial")
    document["stages"]["evaluate"]["model"] = "adversarial-patch"
    assert build(document).stages["adversarial-patch"].kind.name == "adversarial"


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="unknown recipe, did you mean 'quickstart'"):
        load("quickstrat")


def test_extends_merges_and_null_removes(tmp_path):
    (tmp_path / "base.yaml").write_text(SMALL)
    path = tmp_path / "more.yaml"
    path.write_text("extends: base.yaml\nname: more\nstages:\n  adversarial: {epochs: 4}\n  evaluate: null\n")
    recipe = load(str(path))
    assert recipe.name == "more"
    assert recipe.head.seed == 3
    assert recipe.stages["adversarial"].config.epochs == 4
    assert recipe.stages["adversarial"].config.attack.eps == pytest.approx(4 / 255)
    assert "evaluate" not in recipe.stages


def test_circle_of_extends_is_said(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        load(str(tmp_path / "a.yaml"))


def test_yaml_mistake_names_the_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nstages: [\n")
    with pytest.raises(UserError, match=r"bad\.yaml:\d+: this is not YAML"):
        load(str(path))


def test_overrides_reach_stages_and_head(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    recipe = load(str(path), ["adversarial.epochs=7", "seed=9", "stages.adversarial.attack.eps=8/255"])
    assert recipe.stages["adversarial"].config.epochs == 7
    assert recipe.stages["adversarial"].config.attack.eps == pytest.approx(8 / 255)
    assert recipe.head.seed == 9


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("adversaril.epochs=7", "did you mean 'adversarial'"),
        ("adversarial.epochs", "KEY=VALUE"),
        ("adversarial.epohcs=7", "did you mean 'epochs'"),
    ],
)
def test_override_mistakes(tmp_path, override, expected):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    with pytest.raises(UserError, match=expected):
        load(str(path), [override])


def matching_stages(recipe):
    return {
        name: stage.config.match_released_code
        for name, stage in recipe.stages.items()
        if hasattr(stage.config, "match_released_code")
    }


def test_one_switch_makes_every_training_stage_match_the_released_code():
    recipe = load("convnext-tiny-cvst", ["match_released_code=true"])
    trained = ["pretrain", "convstem", "adversarial", "radius-8", "radius-l2", "radius-l1"]
    assert matching_stages(recipe) == dict.fromkeys(trained, True)
    assert recipe.resolved()["match_released_code"] is True
    assert recipe.resolved()["stages"]["radius-8"]["match_released_code"] is True
    assert matching_stages(load("convnext-tiny-cvst")) == dict.fromkeys(trained, False)


def test_a_stage_can_set_for_itself_whether_it_matches_the_released_code():
    document = {**small(pretrain={"match_released_code": False}), "match_released_code": True}
    assert matching_stages(build(document)) == {"pretrain": False, "adversarial": True}
    assert matching_stages(build(small(pretrain={"match_released_code": True}))) == {
        "pretrain": True,
        "adversarial": False,
    }


def test_the_switch_reaches_the_cells_of_a_matrix_and_their_fingerprints(tmp_path):
    from pipeline.plan import fingerprints

    recipe = load("steps-small", ["match_released_code=true", "adversarial-3.match_released_code=false"])
    assert matching_stages(recipe) == {
        "pretrain": True,
        "adversarial-1": True,
        "adversarial-2": True,
        "adversarial-3": False,
    }
    one_by_one = load(
        "steps-small", [f"{stage}.match_released_code=true" for stage in ("pretrain", "adversarial-1", "adversarial-2")]
    )
    assert fingerprints(recipe, tmp_path) == fingerprints(one_by_one, tmp_path)
    assert fingerprints(recipe, tmp_path) != fingerprints(load("steps-small"), tmp_path)


def test_a_recipe_and_its_base_may_be_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "base.yaml").write_text(SMALL)
    (tmp_path / "more.yaml").write_text("extends: ~/base.yaml\nname: more\n")
    assert load("~/base.yaml").name == "small"
    assert load(str(tmp_path / "more.yaml")).name == "more"
    with pytest.raises(UserError, match=r"no such recipe file"):
        load("~nobody-of-this-name/base.yaml")


def test_an_override_changes_one_stage_of_those_that_share_a_yaml_anchor():
    """In the quickstart, `adversarial-patch` takes everything from `adversarial`, its attack too."""
    stages = load("quickstart", ["adversarial.attack.eps=0.1", "pretrain.validation.steps=7"]).stages
    radii = {name: stages[name].config.model_dump()["attack"]["eps"] for name in ("adversarial", "adversarial-patch")}
    assert radii == {"adversarial": 0.1, "adversarial-patch": 0.15}
    steps = {name: stages[name].config.model_dump()["validation"]["steps"] for name in ("pretrain", "convstem")}
    assert steps == {"pretrain": 7, "convstem": 5}


def test_one_element_of_a_list_is_overridden():
    before, after = (
        load("quickstart", overrides).stages["evaluate"].config.model_dump()["threats"]
        for overrides in ([], ["evaluate.threats[1].attack=apgd-ce", "evaluate.threats[3].num_images=7"])
    )
    changed = [(i, k, after[i][k]) for i in range(4) for k in after[i] if after[i][k] != before[i][k]]
    assert changed == [(1, "attack", "apgd-ce"), (3, "num_images", 7)]


@pytest.mark.parametrize(
    ("key", "remedy"), [("evaluate.threats[4]", "count from 0 to 3"), ("evaluate.split[0]", "set the whole list")]
)
def test_an_element_that_a_list_does_not_have_is_refused(key, remedy):
    with pytest.raises(UserError, match=rf"^--set: the recipe has no list with an element \d there .*{remedy}"):
        load("quickstart", [f"{key}=1"])
