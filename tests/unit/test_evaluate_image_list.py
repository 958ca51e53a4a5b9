"""Lists of images: RobustBench's is found where it is installed and checked; wrong lists are one message each."""

import hashlib
import subprocess
import sys

import pytest
from pydantic import ValidationError

from components.errors import UserError
from components.evaluate import image_list as lists
from components.evaluate.config import EvaluateConfig
from components.evaluate.image_list import image_list, images_digest

NAMES = ["n02/b.JPEG", "n01/a.JPEG", "n02/c.JPEG"]
KNOWN = ["n01/a.JPEG", "n01/z.JPEG", "n02/b.JPEG", "n02/c.JPEG"]


def config(images, **changes):
    return EvaluateConfig(model="net", images=images, **changes)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(NAMES))  # without a last newline, as RobustBench's
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package `robustbench` with a short list, which cannot be imported, as without its own timm."""
    folder = tmp_path / "site" / "robustbench"
    (folder / "helper_files").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('another timm')\n")
    path = folder / "helper_files" / "imagenet_test_image_ids.txt"
    path.write_text("\n".join(NAMES))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def test_drawn_images_have_no_list_and_no_digest():
    assert image_list(config("drawn")) is None
    assert images_digest(config("drawn")) == ""


def test_a_list_keeps_its_order_and_fewer_images_are_its_first_ones(mine):
    found = image_list(config(f"file:{mine}"))
    assert found.names == tuple(NAMES)
    assert found.rows(KNOWN, 5000) == [2, 0, 3]
    assert found.rows(KNOWN, 2) == [2, 0]
    assert found.sha256 == images_digest(config(f"file:{mine}")) == hashlib.sha256(mine.read_bytes()).hexdigest()
    assert found.title == f"mine.txt ({found.sha256[:8]})"


def test_robustbenchs_list_is_taken_from_the_installed_package_without_importing_it(installed, monkeypatch):
    digest = hashlib.sha256(installed.read_bytes()).hexdigest()
    monkeypatch.setattr(lists, "ROBUSTBENCH_SHA256", digest)
    found = image_list(config("robustbench"))
    assert (found.title, found.names, found.sha256) == ("RobustBench", tuple(NAMES), digest)
    assert image_list(config(f"file:{installed}")).title == "RobustBench", "a file is recognised by its sha256"


def test_a_changed_list_of_robustbench_is_refused(installed):
    with pytest.raises(UserError, match=r"sha256 is not d4121626.*imagenet_test_image_ids"):
        image_list(config("robustbench"))


def test_a_missing_robustbench_is_refused_with_the_way_to_get_its_list(monkeypatch):
    monkeypatch.setattr(lists, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed.*pip download --no-deps robustbench.*images: drawn"):
        images_digest(config("robustbench"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"n01/a.JPEG\nn02/b.JPEG\nn01/a.JPEG\n", r"in the list twice.*n01/a.JPEG"),
        (b"\n \n", "this list is empty"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_wrong_list_is_refused(mine, content, message):
    mine.write_bytes(content)
    with pytest.raises(UserError, match=message):
        image_list(config(f"file:{mine}"))


def test_a_list_of_images_that_the_set_lacks_names_one(mine):
    found = image_list(config(f"file:{mine}"))
    with pytest.raises(UserError, match=r"mine.txt: 1 of the 3 images .*'n02/c.JPEG'"):
        found.rows(KNOWN[:3], 1)


def test_an_absent_file_and_another_digest_are_refused(mine):
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        image_list(config(f"file:{mine}.not"))
    assert image_list(config(f"file:{mine}", images_sha256=images_digest(config(f"file:{mine}"))))
    with pytest.raises(UserError, match=r"the list's sha256 is not 0000"):
        image_list(config(f"file:{mine}", images_sha256="0" * 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": "robustbnch"}, r"did you mean|robustbench"),
        ({"images": "robustbench", "split": "train"}, "lists name validation images"),
        ({"images": "drawn", "images_sha256": "0" * 64}, "only a list in a file"),
        ({"images": "file:x", "images_sha256": "12"}, "images_sha256"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        config(**fields)


def test_planning_loads_nothing_heavy():
    code = "import sys, components.evaluate.image_list; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
