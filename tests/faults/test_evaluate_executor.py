"""Units over processes: the same verdicts for any number of them, and a clear message when one dies."""

import os
import signal
import time

import numpy as np
import pytest
import torch

import components.models  # noqa: F401
from components.errors import RemoteUserError, UserError
from components.evaluate import pyautoattack_adapter, unit_worker, work_units
from components.evaluate.config import EvaluateConfig, Threat
from components.evaluate.executor import LocalProcesses, open_executor, processes_for
from components.evaluate.unit_worker import UnitWorker, as_images
from components.evaluate.work_units import Workload
from components.models.build import build_model
from components.models.weights import ModelCard, load_model, save_model

THREATS = (Threat(eps=0.002, attack="apgd-ce"), Threat(norm="L2", eps=0.05, attack="apgd-ce+apgd-t", num_images=4))


@pytest.fixture
def quick(monkeypatch):
    """Real attacks of few iterations; forked children inherit it."""

    build = pyautoattack_adapter.build

    def short(*given, **named):
        attack = build(*given, **named)
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = 3
        return attack

    monkeypatch.setattr(pyautoattack_adapter, "build", short)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = build_model("convnext_micro", stem="conv", num_classes=10, resolution=32, normalize=None)
    save_model(
        folder, model, ModelCard(name="convnext_micro", stem="conv", num_classes=10, resolution=32, crop_ratio=1.0)
    )
    return folder


def written(folder, model_folder, size=3, n=6):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = load_model(model_folder)[0](as_images(pixels)).argmax(1).numpy()
    work = Workload(
        threats=THREATS,
        units=work_units.cut(THREATS, (32,), n, size),
        num_classes=10,
        seed=0,
        keep=2,
        model_sha256="m",
        data_sha256="d",
    )
    work_units.write(folder, work, {32: pixels}, labels)
    return work


def contents(folder, work):
    return [work_units.read_unit(work_units.unit_path(folder, k), work.digest) for k in range(len(work.units))]


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
        work = written(folder, model_folder)
        with LocalProcesses(count, 9) as processes:
            processes.run(folder, model_folder, work, "cpu", nothing)
        found[count] = contents(folder, work)
    assert len(found[1]) == 4
    assert all(same(a, b) for a, b in zip(found[1], found[3]))
    words = [word for result in found[1] for word in result.facts["verdict"]]
    assert len(set(words)) > 1, "the radii have to break some and leave some"


def test_units_really_run_in_several_processes(tmp_path, model_folder, quick, monkeypatch):
    real = unit_worker.attack_block

    def marked(*given, **named):
        (tmp_path / f"pid-{os.getpid()}").touch()
        time.sleep(0.3)
        return real(*given, **named)

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", marked)
    work = written(tmp_path / "w", model_folder, size=2)
    with LocalProcesses(2, 9) as processes:
        processes.run(tmp_path / "w", model_folder, work, "cpu", nothing)
    pids = {int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.timeout(200)
def test_a_fork_after_computing_with_several_threads_does_not_hang(tmp_path, model_folder, quick):
    torch.set_num_threads(2)
    x = torch.randn(256, 256, requires_grad=True)
    (torch.nn.functional.gelu(x @ x).sum()).backward()
    work = written(tmp_path, model_folder)
    with LocalProcesses(2, 9) as processes:
        processes.run(tmp_path, model_folder, work, "cpu", nothing)
    assert None not in contents(tmp_path, work)
    assert torch.get_num_threads() == 2


def test_a_process_that_is_killed_is_named_and_finished_units_are_kept(tmp_path, model_folder, quick, monkeypatch):
    real = unit_worker.attack_block

    def deadly(*given, **named):
        try:
            (tmp_path / "first").touch(exist_ok=False)
        except FileExistsError:
            while not list(tmp_path.glob("unit-*.npz")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", deadly)
    work = written(tmp_path, model_folder, size=2)
    with (
        pytest.raises(
            UserError, match=r"ended with signal SIGKILL while it attacked images \d+ to \d+ with APGD-CE.*kept"
        ),
        LocalProcesses(2, 9) as processes,
    ):
        processes.run(tmp_path, model_folder, work, "cpu", nothing)
    done = [k for k, result in enumerate(contents(tmp_path, work)) if result is not None]
    assert len(done) == 1
    stamps = {k: work_units.unit_path(tmp_path, k).stat().st_mtime_ns for k in done}
    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", real)
    with LocalProcesses(1, 9) as processes:
        processes.run(tmp_path, model_folder, work, "cpu", nothing)
    assert None not in contents(tmp_path, work)
    assert {k: work_units.unit_path(tmp_path, k).stat().st_mtime_ns for k in done} == stamps


def test_the_unit_of_the_killed_process_is_named_and_not_that_of_another(tmp_path, model_folder, monkeypatch):
    """Both are at work when one is killed; the pool ends the other one."""
    work = written(tmp_path, model_folder)
    work = work.model_copy(update={"units": (work.units[2], work.units[0])})
    (tmp_path / work_units.FILE).write_text(work.model_dump_json())

    def deadly(model, images, labels, threat, *, num_classes, seed, progress):
        (tmp_path / f"started-{os.getpid()}").touch()
        while len(list(tmp_path.glob("started-*"))) < 2:
            time.sleep(0.01)
        if threat == THREATS[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", deadly)
    message = "SIGKILL while it attacked images 0 to 2 with APGD-CE Linf 0.002 at 32 px"
    with pytest.raises(UserError, match=message), LocalProcesses(2, 9) as processes:
        processes.run(tmp_path, model_folder, work, "cpu", nothing)


def test_an_error_in_another_process_keeps_its_message(tmp_path, model_folder, monkeypatch):
    def refusing(*given, **named):
        raise UserError("the moon is wrong", where="sky", remedy="wait")

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", refusing)
    work = written(tmp_path, model_folder)
    with (
        pytest.raises(RemoteUserError, match=r"^sky: the moon is wrong\. wait\.$"),
        LocalProcesses(2, 9) as processes,
    ):
        processes.run(tmp_path, model_folder, work, "cpu", nothing)


def test_a_mistake_in_another_process_keeps_its_traceback(tmp_path, model_folder, monkeypatch):
    class Unpicklable(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def failing(*given, **named):
        raise Unpicklable("this", "that")

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", failing)
    work = written(tmp_path, model_folder)
    with (
        pytest.raises(RuntimeError, match=r"(?s)evaluation process failed.*in failing.*this and that"),
        LocalProcesses(2, 9) as processes,
    ):
        processes.run(tmp_path, model_folder, work, "cpu", nothing)


def test_progress_of_other_processes_is_reported(tmp_path, model_folder, monkeypatch):
    def slow(model, images, labels, threat, *, num_classes, seed, progress):
        progress("APGD-CE", 0.25)
        time.sleep(0.7)
        raise UserError("enough", remedy="stop")

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", slow)
    work = written(tmp_path, model_folder)
    seen = []
    with pytest.raises(UserError, match="enough"), LocalProcesses(2, 9) as processes:
        processes.run(tmp_path, model_folder, work, "cpu", lambda *given: seen.append(given))
    first, second = work.by_cost()[:2]
    assert {(first, "APGD-CE", 0.25), (second, "APGD-CE", 0.25)} <= set(seen)


def test_an_interrupt_does_not_wait_for_the_running_units(tmp_path, model_folder, monkeypatch):
    def endless(model, images, labels, threat, *, num_classes, seed, progress):
        progress("APGD-CE", 0.5)
        time.sleep(600)

    def interrupted(number, part, share):
        if part:
            raise KeyboardInterrupt

    monkeypatch.setattr("components.evaluate.unit_worker.attack_block", endless)
    work = written(tmp_path, model_folder)
    processes = LocalProcesses(2, 9)
    with pytest.raises(KeyboardInterrupt), processes:
        processes.run(tmp_path, model_folder, work, "cpu", interrupted)
    assert [child.pid for child in processes.children if _running(child.pid)] == []


def test_no_process_is_left_behind(tmp_path, model_folder):
    with LocalProcesses(3, 9) as processes:
        children = [child.pid for child in processes.children]
        assert len(children) == 3
        assert all(os.path.exists(f"/proc/{pid}") for pid in children)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_one_process_needs_no_child():
    with LocalProcesses(1, 9) as processes:
        assert processes.children == []


def test_children_end_when_their_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    middle = os.fork()
    if middle == 0:
        processes = LocalProcesses(3, 9)
        pids.write_text(" ".join(str(child.pid) for child in processes.children))
        time.sleep(60)
        os._exit(0)
    while not pids.exists() or pids.read_text().count(" ") < 2:
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


def test_a_damaged_or_foreign_unit_is_done_again(tmp_path, model_folder, quick):
    work = written(tmp_path, model_folder)
    worker = UnitWorker(tmp_path, model_folder, "cpu")
    path = worker.attack(0)
    first = work_units.read_unit(path, work.digest)
    path.write_bytes(path.read_bytes()[:-200])
    assert work_units.read_unit(path, work.digest) is None
    assert same(work_units.read_unit(worker.attack(0), work.digest), first)
    assert work_units.read_unit(path, "of another workload") is None


def test_number_of_processes_follows_from_the_stages_cores_and_the_units(monkeypatch):
    monkeypatch.setattr("components.process.available_cores", lambda: 8)
    config = EvaluateConfig(model="m", num_images=100, batch_size=64, threats=THREATS[:1])
    assert processes_for(config, "cpu", 1) == 2
    assert processes_for(config, "cpu", 3) == 6
    assert processes_for(config.model_copy(update={"num_processes": 1}), "cpu", 3) == 1
    assert processes_for(config, "cuda", 3) == 1
    # Stages side by side share the cores of a machine.
    monkeypatch.setenv("ROBUSTRAIN_CORES", "3")
    assert processes_for(config, "cpu", 3) == 3
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert processes_for(config, "cpu", 3) == 1


@pytest.mark.slow
def test_ray_tasks_give_the_same_bits(tmp_path, model_folder, monkeypatch, ray_turn):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "local")
    threat = Threat(eps=0.002, attack="apgd-ce")
    folders = {}
    for launcher in ("local", "ray"):
        folder = folders[launcher] = tmp_path / launcher
        laid = written(folder, model_folder, n=4)
        work = laid.model_copy(update={"threats": (threat,), "units": work_units.cut((threat,), (32,), 4, 2)})
        (folder / work_units.FILE).write_text(work.model_dump_json())
        config = EvaluateConfig(model="m", num_images=4, threats=[threat], launcher=launcher, num_processes=1)
        try:
            with open_executor(config, 1) as executor:
                folders[launcher] = executor.run(folder, model_folder, work, nothing)
                assert executor.device == "cpu"
        finally:
            ray.shutdown()
    assert all(same(a, b) for a, b in zip(folders["local"], folders["ray"]))
