"""Recipe files that cannot be used: one line with the place, never a stack trace."""

import pytest

from components.errors import UserError
from pipeline.recipe import build, load
from tests.recipes import SMALL, small

TWICE = "this key is given twice"


def refused(tmp_path, content, overrides=()):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        load(str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.remedy
    return message.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SMALL + "  digits: {kind: encode, source: shapes}\n", f"bad.yaml:9: {TWICE} (got 'digits'). keep one of them; the first is on line 7."),
        ("name: a\nseed: 1\nname: b\n", f"bad.yaml:3: {TWICE} (got 'name'). keep one of them; the first is on line 1."),
        ("name: a\nstages:\n  d: {kind: encode, source: digits, kind: report}\n", f"bad.yaml:3: {TWICE} (got 'kind')"),
        ('name: a\n"name": b\n', f"bad.yaml:2: {TWICE} (got 'name')"),
        (b"name: x\nsummary: caf\xe9\n", "bad.yaml:2: byte 0xe9 is not UTF-8"),
        (b"name: x\nseed: 1\nsummary: \x07\n", "bad.yaml:3: this is not YAML"),
        ("name: x\nstages: [\n", "bad.yaml:3: this is not YAML"),
        ("name: x\nstages: &s\n  a: *s\n", "bad.yaml:3: this alias is inside its own anchor (got '*s')"),
        ("name: x\nstages: &s\n  a: [*s]\n", "bad.yaml:3: this alias is inside its own anchor (got '*s')"),
        ("name: x\nseed: 2020-13-45\n", "bad.yaml: this YAML has an impossible value (month"),
        ("- a\n", "bad.yaml: a recipe is a mapping"),
        ("", "bad.yaml: a recipe is a mapping"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_named_with_its_line(tmp_path, content, expected):
    assert refused(tmp_path, content).startswith(expected)


def test_a_mapping_may_repeat_what_it_merges(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(
        "name: good\nstages:\n"
        "  digits: {kind: encode, source: digits}\n"
        "  pretrain: &a {data: digits, epochs: 3, warmup_epochs: 1}\n"
        "  pretrain-more: &b {<<: *a, epochs: 4}\n"
        "  pretrain-most: {<<: [*b, *a], epochs: 5}\n"
    )
    assert [stage.config.epochs for name, stage in load(str(path)).stages.items() if name != "digits"] == [3, 4, 5]


def test_a_file_that_cannot_be_opened_is_said(tmp_path):
    (tmp_path / "sub.yaml").mkdir()
    with pytest.raises(UserError, match=r"sub\.yaml: there is no such recipe file"):
        load(str(tmp_path / "sub.yaml"))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"name": "x", "stages": {1: {"kind": "encode", "source": "digits"}}}, "stages.1: a stage's name has at most 36"),
        ({"name": "x", "stages": {None: {}}}, "stages.None: a stage's name has at most 36"),
        ({"name": "x", "stages": {True: {}}}, "stages.True: a stage's name has at most 36"),
        (small(pretrain={"kind": ["encode"]}), "stages.pretrain.kind: unknown kind of stage"),
        (small(pretrain={"kind": {"a": 1}}), "stages.pretrain.kind: unknown kind of stage"),
        (small(pretrain={"kind": 3}), "stages.pretrain.kind: unknown kind of stage"),
        (small(pretrain={1: 2}), "stages.pretrain.1: "),
        ({**small(), 1: 2}, "1: "),
        ({**small(), "sources": {"seed": 3}}, "sources.seed: "),
        ({**small(), "sources": ["seed"]}, "sources: "),
        ({**small(), "match_released_code": "perhaps"}, "match_released_code: "),
    ],
)  # fmt: skip
def test_names_and_kinds_that_are_no_words_are_refused(document, expected):
    with pytest.raises(UserError) as caught:
        build(document)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("content", "given", "expected"),
    [
        ("name: x\nstages: {1: {kind: encode, source: digits}}\n", "adversarial.lr=1", "--set: no stage or field"),
        ("name: x\nstages: [1]\n", "adversarial.lr=1", "--set: no stage or field"),
        (SMALL, "adversarial.attack={eps: 1/255, eps: 2/255}", "--set: the value is not YAML"),
        (SMALL, "match_released_code=maybe", "match_released_code: "),
    ],
)
def test_overrides_of_what_is_not_there_are_refused(tmp_path, content, given, expected):
    assert refused(tmp_path, content, [given]).startswith(expected)
