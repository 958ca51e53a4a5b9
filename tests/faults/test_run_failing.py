"""`robustrain run` with something wrong: it ends by itself, in one line that names the cause, with the right exit status."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def robustrain(home, *arguments, **variables):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTRAIN_HOME": str(home), **variables}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=200, check=False)


def images(root, **classes):
    for name, count in classes.items():
        (root / "train" / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)).save(root / "train" / name / f"{k}.png")
    return root


def test_a_damaged_data_base_ends_the_run_with_its_cause(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no data base" * 1000)
    done = robustrain(tmp_path, "run", "quickstart")
    assert done.returncode == 2
    [error, log] = done.stderr.splitlines()
    assert error.startswith(
        f"error: the pipeline stopped before any stage failed: sqlite:///{tmp_path / 'mlflow.db'}: "
    )
    assert "move the file away" in error
    assert Path(log.removeprefix("log: ")).is_file()


def test_what_was_decided_about_the_images_is_said(storage, tmp_path):
    folder = images(tmp_path / "images", a=10, b=10)
    (tmp_path / "only.yaml").write_text(
        f"name: only\nstages: {{images: {{kind: encode, source: {folder}, max_short_side: 8}}}}\n"
    )
    temporary = tmp_path / ("tmp" + 60 * "x")  # longer than a Unix socket in it could be
    temporary.mkdir()
    done = robustrain(storage.home, "run", str(tmp_path / "only.yaml"), TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    # KFP makes a folder for every step and leaves it: they belong to the run's own folder.
    assert list(temporary.glob("tmp.*")) == []
    assert "images: there is no val/: 2 of 20 train images were held out (seed 0)" in done.stdout.replace("\n", " ")


def test_a_stage_that_fails_beside_another_ends_the_run(storage, tmp_path):
    """KFP asks for stages in an order of its own, also for those that never begin."""
    folder = images(tmp_path / "images", a=2, b=0)
    done = robustrain(storage.home, "run", "quickstart", "--set", f"shapes.source={folder}", "--jobs", "2")
    assert done.returncode == 2
    [error, log] = done.stderr.splitlines()
    assert error.startswith(f"error: stage shapes failed: {folder / 'train' / 'b'}: this class folder has no images")
    assert log.startswith("log: ")
