"""Children of the preloaded process: results and errors come back, a killed child is noticed, nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from components.errors import UserError
from components.launch.child_process import ChildFailed, Children, ChildStopped, ForkserverDied, stop_forkserver

ROOT = Path(__file__).resolve().parents[2]

TASKS = """
import os, pathlib, signal, subprocess, sys, time
from components.errors import UserError
from components.launch.child_process import Children, start_forkserver
def write(path, text): pathlib.Path(path).write_text(f"{text} {os.getpid()}"); print("written")
def look(path):
    names = ("MARK", "ADOPTED", "MALLOC_TRIM_THRESHOLD_", "ROBUSTRAIN_FORKSERVER_OF")
    facts = [str(os.environ.get(name)) for name in names] + [str("decimal" in sys.modules), str("caller" in sys.modules)]
    pathlib.Path(path).write_text(" ".join([*facts, str(os.nice(0)), str(os.getsid(0) == os.getpid())]))
def complain(): raise UserError("no such eps", where="attack.eps", value=3, remedy="use 4/255")
def stumble(): raise RuntimeError("inside")
def die(): os.kill(os.getpid(), signal.SIGKILL)
def leave_one_behind(path):
    pathlib.Path(path).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    os.kill(os.getpid(), signal.SIGKILL)
def sleep(path):
    other = subprocess.Popen(["sleep", "600"])
    pathlib.Path(path + ".part").write_text(f"{os.getpid()} {other.pid} {os.getppid()}")
    os.rename(path + ".part", path)
    time.sleep(600)
def checkpoint(path):
    def save(*_): time.sleep(0.5); pathlib.Path(path + ".saved").touch(); sys.exit(1)
    signal.signal(signal.SIGTERM, save)
    sleep(path)
"""

CALLER = """
import pathlib, sys, threading
import tasks
from components.launch.child_process import Children, start_forkserver
caller = "not to be imported by a child"
print("imported")
start_forkserver(pathlib.Path(sys.argv[1]) / "forkserver.log", ["decimal", "no.such.module"] + sys.argv[4:])
children = Children({{"MARK": "here"}}, without=("ADOPTED",))
children.run(getattr(tasks, sys.argv[2]), sys.argv[3], log=pathlib.Path(sys.argv[1]) / "log", nice=3)
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A module of tasks that a forkserver of a process of its own can import, and that process."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "caller.py").write_text(CALLER.replace("{{", "{").replace("}}", "}"))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "ADOPTED": "a run"}

    def start(task, *modules):
        command = [sys.executable, str(tmp_path / "caller.py"), str(tmp_path), task, str(tmp_path / "mark"), *modules]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def marked(folder):
    until((folder / "mark").exists)
    return [psutil.Process(int(pid)) for pid in (folder / "mark").read_text().split()]


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_a_child_has_the_preloaded_modules_its_environment_and_a_session(tasks, tmp_path):
    caller = tasks("look")
    out, err = caller.communicate(timeout=60)
    assert caller.returncode == 0, err
    assert (tmp_path / "mark").read_text() == f"here None {1 << 30} None True False {os.nice(0) + 3} True"
    assert out == "imported\n", "the caller's main module was imported again"


def test_modules_in_the_working_folder_are_not_imported(tasks, tmp_path, monkeypatch):
    """A user's `random.py` beside the recipe: neither the forkserver nor Python's resource tracker may run it."""
    folder = tmp_path / "working"
    folder.mkdir()
    for name in ("random", "statistics", "multiprocessing", "pipeline", "tempfile"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('{name} ')")
    monkeypatch.chdir(folder)
    caller = tasks("look", "statistics", "tempfile")
    _, err = caller.communicate(timeout=60)
    assert caller.returncode == 0, err
    assert not (tmp_path / "imported").exists()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Children of this very process; tasks are functions of importable modules."""
    (tmp_path / "own_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    return importlib.import_module("own_tasks"), tmp_path / "log"


@pytest.fixture
def module(own):
    yield own[0]
    sys.modules.pop("own_tasks", None)


def test_a_child_works_in_another_process_and_its_output_is_in_the_log(module, own, tmp_path):
    children = Children({})
    for text in ("first", "second"):
        children.run(module.write, str(tmp_path / text), text, log=own[1])
        found, pid = (tmp_path / text).read_text().split()
        assert found == text
        assert int(pid) != os.getpid()
    assert own[1].read_text().splitlines() == ["written", "written"]


def test_a_user_error_keeps_its_text(module, own):
    with pytest.raises(UserError) as caught:
        Children({}).run(module.complain, log=own[1])
    assert str(caught.value) == "attack.eps: no such eps (got 3). use 4/255."


def test_other_errors_have_their_trace_in_the_log(module, own):
    with pytest.raises(ChildFailed, match="RuntimeError: inside"):
        Children({}).run(module.stumble, log=own[1])
    assert "Traceback" in own[1].read_text()


def test_a_killed_child_is_noticed_with_its_signal_and_the_next_one_works(module, own, tmp_path):
    children = Children({})
    with pytest.raises(ChildFailed, match=r"its process was ended by SIGKILL; the log is .*/log"):
        children.run(module.die, log=own[1])
    children.run(module.write, str(tmp_path / "mark"), "next", log=own[1])


def test_what_a_killed_child_has_started_is_ended(module, own, tmp_path):
    with pytest.raises(ChildFailed, match="SIGKILL"):
        Children({}).run(module.leave_one_behind, str(tmp_path / "mark"), log=own[1])
    assert not any(alive(process) for process in marked_if_there(tmp_path))


def marked_if_there(folder):
    try:
        return marked(folder)
    except psutil.NoSuchProcess:
        return []


def in_a_thread(children, *task, **options):
    caught = []

    def run():
        try:
            children.run(*task, **options)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, caught


def test_stopping_lets_children_take_a_checkpoint_and_ends_all_they_have_started(module, own, tmp_path):
    children = Children({})
    thread, caught = in_a_thread(children, module.checkpoint, str(tmp_path / "mark"), log=own[1])
    child, other, _ = marked(tmp_path)
    children.stop()
    assert not alive(child)
    assert not alive(other)
    thread.join(20)
    assert isinstance(caught[0], ChildStopped)
    assert (tmp_path / "mark.saved").exists()
    with pytest.raises(ChildStopped):
        children.run(module.write, str(tmp_path / "more"), "", log=own[1])
    assert not (tmp_path / "more").exists()


def test_two_children_side_by_side_have_their_own_ends(module, own, tmp_path):
    """`multiprocessing` reads a child's end in whatever thread comes first; it must not be lost to the other."""
    children, ends = Children({}), []
    for _ in range(10):
        running = [in_a_thread(children, module.die, log=own[1]), in_a_thread(children, module.stumble, log=own[1])]
        for thread, caught in running:
            thread.join(30)
            ends.append(str(caught[0]).partition(";")[0])
    assert sorted(ends) == ["RuntimeError: inside"] * 10 + ["its process was ended by SIGKILL"] * 10


def test_the_death_of_the_forkserver_ends_its_children(module, own, tmp_path):
    children = Children({})
    thread, caught = in_a_thread(children, module.sleep, str(tmp_path / "mark"), log=own[1])
    child, other, parent = marked(tmp_path)
    parent.kill()
    thread.join(20)
    assert isinstance(caught[0], ForkserverDied)
    assert not alive(child)
    assert not alive(other)
    children.run(module.write, str(tmp_path / "again"), "", log=own[1])


def test_a_stopped_forkserver_and_its_helpers_are_gone_at_once_and_a_new_one_works(module, own, tmp_path):
    Children({}).run(module.write, str(tmp_path / "first"), "", log=own[1])
    helpers = [p for p in psutil.Process().children() if "from multiprocessing." in " ".join(p.cmdline())]
    assert len(helpers) >= 2, "the forkserver and the resource tracker"
    stop_forkserver()
    assert [process for process in helpers if alive(process)] == []
    Children({}).run(module.write, str(tmp_path / "second"), "", log=own[1])
    assert (tmp_path / "second").exists()


@pytest.mark.parametrize("task", ["sleep", "checkpoint"])
def test_the_death_of_the_command_ends_its_children_with_checkpoints_taken(tasks, tmp_path, task):
    caller = tasks(task)
    started = marked(tmp_path)
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    assert until(lambda: not any(alive(process) for process in started), 10)
    assert (tmp_path / "mark.saved").exists() is (task == "checkpoint")


def test_the_death_of_the_command_ends_a_forkserver_that_still_imports(tasks, tmp_path):
    (tmp_path / "slow_module.py").write_text(
        textwrap.dedent("""
        import os, pathlib, time
        pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
        time.sleep(600)
    """)
    )
    caller = tasks("sleep", "slow_module")
    assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    forkserver = psutil.Process(int((tmp_path / "pid").read_text()))
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    assert until(lambda: not alive(forkserver), 10)
