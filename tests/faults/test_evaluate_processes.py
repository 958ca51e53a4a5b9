"""Blocks over processes: the same verdicts for any number of them, and clear words when one dies."""

import os
import signal
import threading
import time
from collections import deque

import numpy as np
import pytest
import torch

import components.models  # noqa: F401
from components.errors import UserError
from components.evaluate import autoattack, library, unit_file, workload
from components.evaluate.bench import Bench, as_images
from components.evaluate.config import EvaluateConfig, Threat
from components.evaluate.processes import Processes
from components.evaluate.shards import opened, processes_wanted
from components.evaluate.workload import Workload
from components.models.build import build_model
from components.models.weights import ModelCard, load_model, save_model

THREATS = (Threat(eps=0.002, attack="apgd-ce"), Threat(norm="L2", eps=0.05, attack="apgd-ce+apgd-t", n=4))


@pytest.fixture
def quick(monkeypatch):
    """Real attacks of few iterations; forked children inherit it."""

    def short(*given, **named):
        attack = library.build(*given, **named)
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = 3
        return attack

    monkeypatch.setattr(autoattack, "build", short)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = build_model("convnext_micro", stem="conv", num_classes=10, resolution=32, normalize=None)
    save_model(
        folder, model, ModelCard(name="convnext_micro", stem="conv", num_classes=10, resolution=32, crop_ratio=1.0)
    )
    return folder


def laid_out(folder, model_folder, size=3, n=6):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = load_model(model_folder)[0](as_images(pixels)).argmax(1).numpy()
    work = Workload(
        threats=THREATS,
        units=workload.cut(THREATS, (32,), n, size),
        num_classes=10,
        seed=0,
        keep=2,
        model_sha256="m",
        data_sha256="d",
    )
    workload.write(folder, work, {32: pixels}, labels)
    return work


def contents(folder, work):
    return [unit_file.read(unit_file.path_of(folder, k), work.digest) for k in range(len(work.units))]


def same(one, other):
    facts = [{k: v for k, v in r.facts.items() if k not in ("seconds", "parts")} for r in (one, other)]
    arrays = ("clean_prediction", "prediction", "distance", "shown", "adversarial")
    return facts[0] == facts[1] and all(np.array_equal(getattr(one, k), getattr(other, k)) for k in arrays)


def nothing(number, attack, share):
    pass


def test_any_number_of_processes_gives_the_same_bits(tmp_path, model_folder, quick):
    found = {}
    for count in (1, 3):
        folder = tmp_path / str(count)
        work = laid_out(folder, model_folder)
        with Processes(count) as processes:
            processes.run(folder, model_folder, work, "cpu", nothing)
        found[count] = contents(folder, work)
    assert len(found[1]) == 4
    assert all(same(a, b) for a, b in zip(found[1], found[3]))
    words = [word for result in found[1] for word in result.facts["verdict"]]
    assert len(set(words)) > 1, "the radii have to break some and leave some"


def test_blocks_really_run_in_the_other_process(tmp_path, model_folder, quick, monkeypatch):
    real = autoattack.attack_block

    def marked(*given, **named):
        (tmp_path / f"pid-{os.getpid()}").touch()
        time.sleep(0.3)
        return real(*given, **named)

    monkeypatch.setattr("components.evaluate.bench.attack_block", marked)
    work = laid_out(tmp_path / "w", model_folder, size=2)
    with Processes(2) as processes:
        processes.run(tmp_path / "w", model_folder, work, "cpu", nothing)
    assert len(list(tmp_path.glob("pid-*"))) == 2


@pytest.mark.timeout(200)
def test_a_fork_after_computing_with_several_threads_does_not_hang(tmp_path, model_folder, quick):
    torch.set_num_threads(2)
    x = torch.randn(256, 256, requires_grad=True)
    (torch.nn.functional.gelu(x @ x).sum()).backward()
    work = laid_out(tmp_path, model_folder)
    with Processes(2) as processes:
        processes.run(tmp_path, model_folder, work, "cpu", nothing)
    assert None not in contents(tmp_path, work)
    assert torch.get_num_threads() == 2


def test_a_process_that_is_killed_is_named_and_what_is_done_is_kept(tmp_path, model_folder, quick, monkeypatch):
    real, parent = autoattack.attack_block, os.getpid()

    def deadly(*given, **named):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    monkeypatch.setattr("components.evaluate.bench.attack_block", deadly)
    work = laid_out(tmp_path, model_folder, size=2)
    with (
        pytest.raises(
            UserError, match=r"ended with signal SIGKILL while it attacked images \d+ to \d+ with APGD-CE.*kept"
        ),
        Processes(2) as processes,
    ):
        processes.run(tmp_path, model_folder, work, "cpu", nothing)
    done = [k for k, result in enumerate(contents(tmp_path, work)) if result is not None]
    stamps = {k: unit_file.path_of(tmp_path, k).stat().st_mtime_ns for k in done}
    monkeypatch.setattr("components.evaluate.bench.attack_block", real)
    with Processes(1) as processes:
        processes.run(tmp_path, model_folder, work, "cpu", nothing)
    assert None not in contents(tmp_path, work)
    assert {k: unit_file.path_of(tmp_path, k).stat().st_mtime_ns for k in done} == stamps


def test_an_error_in_another_process_keeps_its_words(tmp_path, model_folder, monkeypatch):
    parent = os.getpid()

    def refusing(*given, **named):
        assert os.getpid() != parent
        raise UserError("the moon is wrong", where="sky", remedy="wait")

    monkeypatch.setattr("components.evaluate.bench.attack_block", refusing)
    work = laid_out(tmp_path, model_folder)
    processes = Processes(2)
    try:
        feeder = threading.Thread(
            target=processes._feed,
            args=(
                *processes._children[0],
                deque([0]),
                {"folder": str(tmp_path), "model": str(model_folder), "device": "cpu"},
                work,
                nothing,
            ),
        )
        feeder.start()
        feeder.join(60)
        with pytest.raises(UserError, match=r"^sky: the moon is wrong\. wait\.$"):
            processes._stop_on_failure()
    finally:
        processes.close()


def test_no_process_is_left_behind(tmp_path, model_folder):
    with Processes(3) as processes:
        children = [child.pid for child, _ in processes._children]
        assert all(os.path.exists(f"/proc/{pid}") for pid in children)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_children_end_when_their_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    middle = os.fork()
    if middle == 0:
        processes = Processes(3)
        pids.write_text(" ".join(str(child.pid) for child, _ in processes._children))
        time.sleep(60)
        os._exit(0)
    while not pids.exists() or not pids.read_text().count(" "):
        time.sleep(0.05)
    children = [int(pid) for pid in pids.read_text().split()]
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    for _ in range(200):
        if not any(_running(pid) for pid in children):
            break
        time.sleep(0.05)
    assert [pid for pid in children if _running(pid)] == []


def _running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_damaged_or_foreign_block_is_done_again(tmp_path, model_folder, quick):
    work = laid_out(tmp_path, model_folder)
    bench = Bench(tmp_path, model_folder, "cpu")
    path = bench.attack(0)
    first = unit_file.read(path, work.digest)
    path.write_bytes(path.read_bytes()[:-200])
    assert unit_file.read(path, work.digest) is None
    assert same(unit_file.read(bench.attack(0), work.digest), first)
    assert unit_file.read(path, "of another workload") is None


def test_processes_follow_from_cores_and_blocks(monkeypatch):
    monkeypatch.setattr("components.evaluate.shards.available_cores", lambda: 8)
    config = EvaluateConfig(model="m", n=100, batch_size=64, threats=THREATS[:1])
    assert processes_wanted(config, "cpu", 1) == 2
    assert processes_wanted(config, "cpu", 3) == 6
    assert processes_wanted(config.model_copy(update={"processes": 1}), "cpu", 3) == 1
    assert processes_wanted(config, "cuda", 3) == 1
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert processes_wanted(config, "cpu", 3) == 1


@pytest.mark.slow
def test_ray_tasks_give_the_same_bits(tmp_path, model_folder, monkeypatch, ray_turn):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "local")
    threat = Threat(eps=0.002, attack="apgd-ce")
    folders = {}
    for launcher in ("local", "ray"):
        folder = folders[launcher] = tmp_path / launcher
        laid = laid_out(folder, model_folder, n=4)
        work = laid.model_copy(update={"threats": (threat,), "units": workload.cut((threat,), (32,), 4, 2)})
        (folder / workload.FILE).write_text(work.model_dump_json())
        config = EvaluateConfig(model="m", n=4, threats=[threat], launcher=launcher, processes=1)
        try:
            with opened(config, 1) as shards:
                folders[launcher] = shards.run(folder, model_folder, work, nothing)
                assert shards.device == "cpu"
        finally:
            ray.shutdown()
    assert all(same(a, b) for a, b in zip(folders["local"], folders["ray"]))
