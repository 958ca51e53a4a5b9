"""Sources: which values a key speaks for, what is shown beside each value, and that no number of the project lacks one."""

import re

import pytest
import yaml

from components.errors import UserError
from components.threats import parse_radius
from pipeline.citations import annotated
from pipeline.recipe import build, document_of, load, names
from tests.recipes import small

PAPER = sorted(name for name, path in names().items() if path.parent.name == "paper")
FULL = sorted(n for n, path in names().items() if path.parent.name == "experiments" and not n.endswith("-small"))
OTHERS = sorted(set(names()) - {*PAPER, *FULL})
_LINE = re.compile(r"^(?P<indent> *)(?:(?P<item>-)|(?P<key>[^:]+):)(?P<value>.*?)(?:  # (?P<note>.*))?$")
_NUMBER = re.compile(r"(?<![\w./])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?:/\d+)?")


def shown(recipe):
    """Dotted path below `stages` -> (value as text, note) of every line that `recipes --show` prints."""
    found, stack, counts = {}, [], {}
    for line in annotated(recipe).splitlines():
        parts = _LINE.match(line)
        indent = len(parts["indent"])
        while stack and stack[-1][0] >= indent:
            stack.pop()
        parent = ".".join(key for _, key in stack)
        if parts["item"]:
            counts[parent] = counts.get(parent, -1) + 1
        stack.append((indent, str(counts[parent]) if parts["item"] else parts["key"]))
        found[".".join(key for _, key in stack)] = (parts["value"].strip(), parts["note"] or "")
    return found


def leaves(value, path):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for place, item in enumerate(value):
            yield from leaves(item, f"{path}.{place}")
    else:
        yield path, value


def choices(name):
    """Path and value of everything that a recipe writes and that could have been chosen otherwise."""
    document = document_of(name)
    for stage, entry in document["stages"].items():
        for path, value in leaves(entry or {}, f"stages.{stage}"):
            field = path.split(".")[2]
            wiring = field in {"kind", "name", "experiment"} or (isinstance(value, str) and value in document["stages"])
            if value is not None and not wiring:
                yield path, value


def source(found, path):
    """The note beside the value or the nearest heading above it, and the heading's path."""
    while path and not found.get(path, ("", ""))[1]:
        path = path.rpartition(".")[0]
    return (found[path][1], path) if path else ("", "")


@pytest.mark.parametrize("name", [*PAPER, *FULL])
def test_every_choice_of_the_paper_and_of_the_experiments_has_its_own_source(name):
    found = shown(load(name))
    assert found["seed"][1]
    written = list(choices(name))
    assert len(written) > 40
    without = [path for path, _ in written if source(found, path)[1].count(".") < 2]
    assert without == []


@pytest.mark.parametrize("name", OTHERS)
def test_small_recipes_say_at_least_that_their_numbers_are_ours(name):
    found = shown(load(name))
    assert [path for path, _ in choices(name) if not source(found, path)[0]] == []


@pytest.mark.parametrize("name", [*PAPER, *FULL])
def test_a_source_that_names_numbers_names_the_one_it_stands_beside(name):
    compared = 0
    for path, (text, note) in shown(load(name)).items():
        value = yaml.safe_load(text) if text else None
        numbers = {parse_radius(one.replace(",", "")) for one in _NUMBER.findall(note)}
        if isinstance(value, int | float) and not isinstance(value, bool) and numbers:
            compared += 1
            assert any(value == pytest.approx(one) for one in numbers), f"{path}: {value}  # {note}"
    assert compared > 20


@pytest.mark.parametrize("name", sorted(names()))
def test_what_is_shown_is_the_whole_recipe_as_yaml(name):
    recipe = load(name)
    resolved = recipe.resolved()
    del resolved["sources"]
    assert yaml.safe_load(annotated(recipe)) == resolved


def with_sources(sources, **stages):
    return build({**small(**stages), "sources": sources})


def test_a_source_stands_on_the_line_of_its_value():
    text = annotated(with_sources({"adversarial.epochs": "ours:\n  few", "seed": "a prime", "all": "ours"}))
    assert "    epochs: 2  # ours: few\n" in text
    assert "\nseed: 3  # a prime\n" in text
    assert "\nstages:  # ours\n" in text
    assert text.count("#") == 3


def test_the_longest_way_wins_then_name_kind_training_and_all():
    written = {
        "all.seed_offset": "of all",
        "all.lr": "of all",
        "training.lr": "of trainings",
        "training.epochs": "of trainings",
        "adversarial.lr": "of the kind",
        "adversarial.attack": "of the attack",
        "adversarial-two.attack.eps": "of the radius",
        "adversarial-two.lr": "of the name",
        "adversarial-two": "of the stage",
    }
    two = {"kind": "adversarial", "data": "digits", "init": "pretrain"}
    found = shown(with_sources(written, **{"adversarial-two": two}))
    notes = {path: source(found, f"stages.{path}")[0] for path in found_paths(found)}
    assert notes["adversarial.lr"] == "of the kind"
    assert notes["adversarial-two.lr"] == "of the name"
    assert notes["pretrain.lr"] == "of trainings"
    assert notes["adversarial-two.epochs"] == "of trainings"
    assert notes["adversarial.attack.eps"] == "of the attack"
    assert notes["adversarial-two.attack.eps"] == "of the radius"
    assert notes["adversarial-two.attack.norm"] == "of the attack"
    assert notes["adversarial-two.hflip"] == "of the stage"
    assert notes["adversarial.hflip"] == ""
    assert notes["adversarial.seed_offset"] == "of all"


def found_paths(found):
    return [path.removeprefix("stages.") for path in found if path.startswith("stages.")]


def test_a_key_lists_stages_and_fields_with_commas():
    found = shown(with_sources({"pretrain, adversarial.lr, validation.steps": "both"}))
    for stage in ("pretrain", "adversarial"):
        assert found[f"stages.{stage}.lr"][1] == "both"
        assert found[f"stages.{stage}.validation.steps"][1] == "both"
    assert [note for _, note in found.values()].count("both") == 4


def test_items_of_lists_have_sources_and_so_have_the_lists():
    threats = [{"norm": "Linf", "eps": 0.1}, {"norm": "L2", "eps": 1.0}]
    found = shown(
        with_sources({"evaluate.threats": "of both", "evaluate.threats.1.eps": "of one"}, evaluate={"threats": threats})
    )
    assert source(found, "stages.evaluate.threats.0.eps")[0] == "of both"
    assert source(found, "stages.evaluate.threats.1.eps")[0] == "of one"
    assert found["stages.evaluate.threats.1.eps"] == ("1.0", "of one")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("adversaril.lr", "no stage, kind or field 'adversaril', did you mean 'adversarial'?"),
        ("radius.lr", "no stage, kind or field 'radius'"),
        ("adversarial.epohcs", "no field 'epohcs', did you mean 'epochs'?"),
        ("adversarial.attack.epss", "no field 'attack.epss'"),
        ("adversarial.lr, epohcs", "no field 'epohcs'"),
        ("evaluate.threats.first.eps", "no field 'threats.first.eps'"),
        ("training.threats", "no field 'threats'"),
        ("sed", "no stage, kind or field 'sed', did you mean 'seed'?"),
        ("seed.x", "no stage, kind or field 'seed'"),
    ],
)
def test_a_key_that_covers_nothing_is_refused(key, expected):
    with pytest.raises(UserError) as caught:
        with_sources({key: "somewhere"})
    message = str(caught.value)
    assert message.startswith(f"sources: this source covers nothing: there is {expected}")
    assert f"(got {key!r})" in message
    assert "\n" not in message


def test_keys_of_a_stage_that_is_left_out_do_not_matter():
    document = {**small(), "sources": {"adversarial.lr": "a", "adversarial.nothing": "b", "pretrain.lr": "c"}}
    document["stages"] |= {"adversarial": None, "evaluate": None}
    assert shown(build(document))["stages.pretrain.lr"][1] == "c"
