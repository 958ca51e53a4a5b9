"""The evaluate and sweep stages from encoded images to results, with real attacks of few iterations."""

import hashlib
import json

import pytest
from PIL import Image

import components.models  # noqa: F401
from components.errors import UserError
from components.evaluate import pyautoattack_adapter, unit_worker
from components.store.tracking import Tracking
from tests.digits_model import ENCODE, PRETRAIN, fit

pytestmark = pytest.mark.slow

KEYS = [
    "kind",
    "stage",
    "model",
    "stem",
    "dataset",
    "resolution",
    "image_set",
    "norm",
    "eps",
    "attack",
    "n",
    "clean_accuracy",
    "robust_accuracy",
    "interval",
    "stored_side",
]
THREATS = [
    {"norm": "Linf", "eps": "20/255", "attack": "apgd-ce+apgd-t"},
    {"norm": "L2", "eps": 2.0, "attack": "apgd-ce", "num_images": 9},
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    build = pyautoattack_adapter.build

    def short(*given, **named):
        attack = build(*given, **named)
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = 3
        return attack

    monkeypatch.setattr(pyautoattack_adapter, "build", short)


@pytest.fixture
def digits(run_stage):
    return run_stage("encode", ENCODE, name="digits")


@pytest.fixture
def trained(run_stage, digits):
    return run_stage("pretrain", PRETRAIN, {"data": digits}, name="net", function=fit)


def evaluated(run_stage, trained, digits, kind="evaluate", **changes):
    config = {"model": "net", "num_images": 20, "threats": THREATS, "batch_size": 8, "gallery": 3, **changes}
    return run_stage(kind, config, {"model": trained, "data": digits})


def read(stage, name):
    return json.loads(stage.path(f"results/{name}.json").read_text())


def test_results_verdicts_and_gallery(run_stage, trained, digits, storage):
    stage = evaluated(run_stage, trained, digits)
    assert Tracking(storage).client.get_run(stage.run_id).data.params["jpeg_decoder"] == "none"
    found, images = read(stage, "results"), read(stage, "verdicts")["resolutions"][0]["images"]
    first, second = found["rows"]
    assert [list(row)[: len(KEYS)] for row in found["rows"]] == [KEYS, KEYS]
    assert (first["kind"], first["stage"], first["model"], first["stem"], first["dataset"]) == (
        "pretrain",
        "net",
        "convnext_micro",
        "conv",
        "digits",
    )
    assert (first["norm"], first["eps"], first["attack"], first["n"], first["resolution"]) == (
        "Linf",
        20 / 255,
        "APGD-CE+APGD-T",
        20,
        32,
    )
    assert (second["norm"], second["attack"], second["n"]) == ("L2", "APGD-CE", 9)
    for place, row in enumerate(found["rows"]):
        words = [image["verdicts"][place] for image in images[: row["n"]]]
        assert row["robust_accuracy"] == words.count("robust") / row["n"]
        assert row["clean_accuracy"] == sum(word != "wrong" for word in words) / row["n"]
        assert row["interval"][0] <= row["robust_accuracy"] <= row["interval"][1]
        assert row["robust_accuracy"] < row["clean_accuracy"], "the attack has to break something for this test"
    assert [image["verdicts"][1] for image in images[9:]] == [None] * 11
    details = first["details"]
    assert details["targets"] == {"apgd-t": 9}
    assert details["precision"] == "fp32"
    assert details["attack_library"].startswith("pyautoattack 0.2")
    assert details["images_digest"] == found["conditions"]["images_digest"] == stage.result["images_digest"]
    assert details["largest_distance"] <= 20 / 255 * (1 + 1e-5)
    _union(found, images)
    _gallery(stage, images)


def test_spectra_are_measured_only_when_asked_for_and_change_no_result(run_stage, trained, digits):
    plain = evaluated(run_stage, trained, digits, threats=THREATS[1:], gallery=0)
    more = evaluated(run_stage, trained, digits, threats=THREATS[1:], gallery=0, spectra=True)
    assert not plain.has("results/spectra.json")
    assert read(plain, "verdicts") == read(more, "verdicts")
    spectra = read(more, "spectra")
    assert [one["kernel"] for one in spectra["stem"]] == [[3, 3], [3, 3]]
    (gradients,) = spectra["gradients"]
    assert (gradients["resolution"], gradients["n"], sum(gradients["count"])) == (32, 20, 32 * 32)
    assert len(gradients["frequency"]) == len(gradients["power"]) == len(gradients["count"])
    assert max(gradients["power"]) > 0


def _union(found, images):
    (worst,) = found["union"]
    both = [all(word == "robust" for word in image["verdicts"]) for image in images[:9]]
    assert worst["n"] == 9
    assert worst["robust_accuracy"] == sum(both) / 9
    assert worst["norms"] == ["Linf", "L2"]


def _gallery(stage, images):
    folder = stage.path("gallery")
    entries = json.loads((folder / "gallery.json").read_text())
    assert len(entries) == 3
    assert {entry["norm"] for entry in entries} == {"Linf", "L2"}
    for entry in entries:
        assert entry["clean_prediction"] == entry["label"] != entry["adversarial_prediction"]
        (image,) = [image for image in images if image["index"] == entry["index"]]
        assert str(image["label"]) == entry["label"]
        for name in ("clean", "adversarial", "difference"):
            with Image.open(folder / entry[name]) as picture:
                assert picture.size == (32, 32)
                assert picture.mode == "RGB"


def test_images_do_not_depend_on_the_block_size_or_the_recipes_seed(run_stage, trained, digits):
    one = evaluated(run_stage, trained, digits, threats=[{"eps": 0.001, "attack": "apgd-ce"}], num_images=6)
    other = evaluated(
        run_stage, trained, digits, threats=[{"eps": 0.001, "attack": "apgd-ce"}], num_images=6, batch_size=3
    )
    sets = [
        [(i["index"], i["label"], i["clean_prediction"]) for i in read(s, "verdicts")["resolutions"][0]["images"]]
        for s in (one, other)
    ]
    assert sets[0] == sets[1]
    assert one.result["images_digest"] == other.result["images_digest"]


def test_a_sweep_keeps_images_and_radii(run_stage, trained, digits):
    stage = evaluated(
        run_stage,
        trained,
        digits,
        kind="sweep",
        resolutions=[32, 48],
        num_images=5,
        threats=[{"norm": "L2", "eps": 0.1, "attack": "apgd-ce"}],
        gallery=0,
    )
    found = read(stage, "results")
    assert [(row["resolution"], row["eps"]) for row in found["rows"]] == [(32, 0.1), (48, 0.1)]
    assert "not scaled" in found["conditions"]["radii"]
    groups = read(stage, "verdicts")["resolutions"]
    assert [group["resolution"] for group in groups] == [32, 48]
    assert [i["index"] for i in groups[0]["images"]] == [i["index"] for i in groups[1]["images"]]
    assert not stage.has("gallery")
    assert [row["stored_side"] for row in found["rows"]] == [32, 32]
    assert [row["details"]["resolution_note"] for row in found["rows"]] == [
        "",
        "5 of the 5 images are enlarged for 48 px: their shorter side would have to be 48 px, and is stored with 32 px "
        "(median)",
    ]


QUICK = {"threats": [{"norm": "L2", "eps": 0.1, "attack": "apgd-ce"}], "num_images": 4, "gallery": 0}


def test_a_list_chooses_the_images_and_is_named_in_every_row(run_stage, trained, digits, tmp_path):
    names = json.loads(digits.path("val-names.json").read_text())
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(names[k] for k in (30, 2, 17, 5, 11)))
    listed = evaluated(run_stage, trained, digits, images=f"file:{path}", **QUICK)
    drawn = evaluated(run_stage, trained, digits, **QUICK)
    images = read(listed, "verdicts")["resolutions"][0]["images"]
    assert [image["index"] for image in images] == [30, 2, 17, 5], "the first four, in the order of the list"
    assert [image["label"] for image in images] == [int(names[k].split("/")[0]) for k in (30, 2, 17, 5)]
    title = f"mine.txt ({hashlib.sha256(path.read_bytes()).hexdigest()[:8]})"
    found = read(listed, "results")
    assert [row["image_set"] for row in found["rows"]] == [title]
    assert found["conditions"]["images"] == f"4 of the split val: {title}"
    assert {row["image_set"] for row in read(drawn, "results")["rows"]} == {"drawn with seed 0"}
    assert listed.fingerprint != drawn.fingerprint
    path.write_text(path.read_text() + "\n")
    again = evaluated(run_stage, trained, digits, images=f"file:{path}", **QUICK)
    assert again.fingerprint != listed.fingerprint, "another list is another evaluation"


def test_a_list_of_images_that_the_set_lacks_is_refused(run_stage, trained, digits, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("0/absent.png\n")
    with pytest.raises(UserError, match=r"mine.txt: 1 of the 1 images of the list are not in .*'0/absent.png'"):
        evaluated(run_stage, trained, digits, images=f"file:{path}", **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 16}, "cannot take images of that side"),
        ({"split": "train", "threats": [{"norm": "L1", "eps": 1}], "resolution": 24}, "cannot"),
    ],
)
def test_impossible_threats_are_refused_before_any_work(run_stage, trained, digits, changes, message, monkeypatch):
    monkeypatch.setattr("components.evaluate.stage.open_executor", lambda *_: pytest.fail("work began"))
    with pytest.raises(UserError, match=message):
        evaluated(run_stage, trained, digits, **changes)


def test_a_model_of_other_classes_is_refused(run_stage, trained):
    shapes = run_stage(
        "encode",
        {"source": "shapes", "max_short_side": 32, "mode": "raw", "max_train_images": 40, "max_val_images": 40},
        name="shapes",
    )
    with pytest.raises(UserError, match="'net' has 10 classes and the data set 'shapes'"):
        evaluated(run_stage, trained, shapes)


def test_an_interrupted_evaluation_goes_on_from_its_blocks(run_stage, trained, digits, monkeypatch):
    real, done = unit_worker.attack_block, []

    def counted(*given, **named):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(given[1]))
        return real(*given, **named)

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", counted)
    changes = {"num_processes": 1, "threats": THREATS[:1]}
    with pytest.raises(KeyboardInterrupt):
        evaluated(run_stage, trained, digits, **changes)
    monkeypatch.setattr(
        "components.evaluate.unit_worker.attack_block", lambda *g, **n: done.append(len(g[1])) or real(*g, **n)
    )
    stage = evaluated(run_stage, trained, digits, **changes)
    assert sum(done) == 20, "blocks that were done are not done again"
    assert read(stage, "results")["rows"][0]["n"] == 20
