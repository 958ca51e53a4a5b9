"""`robustrain experiments`: the page links every report, a failing recipe hides none, and the six small ones are complete."""

import json
import xml.etree.ElementTree as ET

import pytest

from components.errors import UserError
from components.store.settings import StorageSettings
from pipeline import experiments
from pipeline.local import Outcome
from pipeline.recipe import load, names

TITLES = ("stem", "initialisation", "steps", "frontier", "pretraining", "low-resolution")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTRAIN_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return StorageSettings.from_environment()


def ended(folder, name, ok=True):
    report = folder / name / "report.html"
    report.parent.mkdir()
    report.write_text(f"<html>{name}</html>")
    answer = {"question": f"Why {name}?", "summary": [f"{name} <shows> it."]}
    report.with_name("experiment.json").write_text(json.dumps(answer))
    stages = {} if ok else {"a": {"state": "failed", "stage": "a", "error": "no <luck>", "log": "a.log", "time": 1.0}}
    return Outcome("run", ok, stages, folder / "log", [], str(report))


def test_the_page_links_a_copy_of_every_report_and_names_what_failed(home, tmp_path):
    def run(recipe):
        if recipe.name == "frontier-small":
            raise UserError("another run is under way", remedy="wait")
        return ended(tmp_path, recipe.name, ok=recipe.name != "stem-small")

    chosen = ["steps-small", "frontier-small", "stem-small", "pretraining-small"]
    page, entries = experiments.run_all(experiments.load_all(chosen), home, run)
    assert page == home.home / "experiments.html"
    assert [bool(entry.problem) for entry in entries] == [False, True, True, False]
    root = ET.fromstring(page.read_text().split("\n", 1)[1])
    links = [one.get("href") for one in root.iter("a")]
    assert links == ["experiments/steps-small.html", "experiments/pretraining-small.html"]
    assert all((home.home / link).is_file() for link in links)
    text = " ".join("".join(root.itertext()).split())
    for words in (
        "Why steps-small?",
        "steps-small <shows> it.",
        "stage a failed: no <luck>; log: a.log",
        "another run is",
    ):
        assert words in text
    assert "Not complete: frontier-small, stem-small failed." in text
    assert not [one for one in root.iter() if one.tag in {"script", "link", "img"}]


def test_a_recipe_that_does_not_load_is_an_error_before_anything_runs():
    with pytest.raises(UserError, match="did you mean 'steps-small'"):
        experiments.load_all(["stem-small", "steps-smal"])


def test_every_experiment_has_both_forms_and_asks_the_same_question():
    assert sorted(experiments.small()) == sorted(f"{title}-small" for title in TITLES)
    for title in TITLES:
        for name in (title, f"{title}-small"):
            assert names()[name].parent.name == "experiments"
            asked = load(name).stages["report"].config.experiment
            assert asked.question
            assert asked.compared


def test_the_small_ones_share_their_first_stages(tmp_path):
    from pipeline.plan import fingerprints

    found = [fingerprints(load(name), tmp_path) for name in experiments.small()]
    assert len({prints["digits"] for prints in found}) == 1
    assert len({prints["pretrain"] for prints in found}) == 1


def test_every_pinned_timm_tag_is_one_that_timm_has():
    timm = pytest.importorskip("timm")
    known = set(timm.list_pretrained())
    inits = [s.config.init for s in load("pretraining").stages.values() if s.kind.trains]
    tags = [init.removeprefix("timm:") for init in inits if init.startswith("timm:")]
    assert len(tags) == 5
    assert set(tags) <= known
    for stage in load("pretraining").stages.values():
        if stage.kind.name == "pretrain":
            pinned = timm.get_pretrained_cfg(stage.config.init.removeprefix("timm:"))
            assert stage.config.model.normalize == (tuple(pinned.mean), tuple(pinned.std))


def test_exit_status_is_nonzero_when_one_failed(home, monkeypatch, capsys):
    import typer

    from pipeline import cli

    entry = experiments.Entry("steps-small", "", 1.0, problem="stage a failed")
    monkeypatch.setattr(cli, "check_machine", lambda: None)
    monkeypatch.setattr(experiments, "run_all", lambda recipes, storage, run: (home.home / "experiments.html", [entry]))
    with pytest.raises(typer.Exit) as ended:
        cli.experiments(["steps-small"])
    assert ended.value.exit_code == 1
    printed = capsys.readouterr()
    assert str(home.home / "experiments.html") in printed.out
    assert "steps-small: stage a failed" in printed.err
